//! Label selectors.

use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Fault;
use super::meta::{check_label_key, check_label_value};
use crate::model::{Operator, Requirement, Selector, intern};

/// A selector: `matchLabels` and `matchExpressions` together, in the one order that makes equal selectors equal.
pub(super) fn selector(field: impl Display, selector: &LabelSelector) -> Result<Selector, Fault> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        check_label_key(format_args!("{field}.matchLabels"), key)?;
        check_label_value(format_args!("{field}.matchLabels[{key}]"), value)?;
        requirements.push(Requirement {
            key: intern(key),
            operator: Operator::In,
            values: vec![intern(value)],
        });
    }
    for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
        requirements.push(requirement(
            format_args!("{field}.matchExpressions[{i}]"),
            expression,
        )?);
    }
    requirements.sort();
    requirements.dedup();
    Ok(Selector { requirements })
}

fn requirement(
    field: impl Display,
    expression: &LabelSelectorRequirement,
) -> Result<Requirement, Fault> {
    check_label_key(format_args!("{field}.key"), &expression.key)?;
    let operator = match expression.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            return Err(Fault::new(
                format_args!("{field}.operator"),
                format_args!(
                    "{other:?} is an unknown operator; write In, NotIn, Exists or DoesNotExist"
                ),
            ));
        }
    };
    let mut values = Vec::new();
    for value in expression.values.iter().flatten() {
        check_label_value(format_args!("{field}.values"), value)?;
        values.push(intern(value));
    }
    let wants_values = matches!(operator, Operator::In | Operator::NotIn);
    if wants_values == values.is_empty() {
        let operator = &expression.operator;
        let problem = if wants_values {
            format!("{operator} needs at least one value")
        } else {
            format!("{operator} takes no values; remove them, or write In or NotIn")
        };
        return Err(Fault::new(format_args!("{field}.values"), problem));
    }
    values.sort();
    values.dedup();
    Ok(Requirement {
        key: intern(&expression.key),
        operator,
        values,
    })
}

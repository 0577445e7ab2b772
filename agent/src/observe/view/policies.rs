//! `sluice policy list`.

use serde::{Deserialize, Serialize};

use super::endpoints::{local_pods, selects};
use crate::model::{Kind, NetworkPolicy, ObjectId, ObjectKey, PolicyRule};
use crate::observe::state::{State, Summary};
use crate::source::Rejected;

/// Every policy of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyList {
    /// Sorted by namespace and name.
    pub policies: Vec<PolicyView>,
}

/// What a policy says of one direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyRulesView {
    /// How many rules allow something.
    pub rules: usize,
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What it says of ingress; null where it does not isolate in this direction.
    pub ingress: Option<PolicyRulesView>,
    /// Likewise for egress.
    pub egress: Option<PolicyRulesView>,
    /// What it denies is only reported (annotation `sluice.dev/audit`).
    pub audit: bool,
    /// The pods of this node that it selects.
    pub local_pods: Vec<String>,
    /// How many pods it selects in the whole cluster.
    pub pods: usize,
    /// What an author should know: it selects nothing, a newer version was rejected.
    pub notices: Vec<String>,
}

impl PolicyList {
    /// The policies of a namespace, or all.
    #[must_use]
    pub fn build(summary: &Summary, state: &State, namespace: Option<&str>) -> Self {
        let local = local_pods(state);
        let policies = state.cluster.policies.values();
        let wanted = policies.filter(|p| namespace.is_none_or(|n| *p.key.namespace == *n));
        let policies = wanted.map(|policy| {
            let selected = local.values().filter(|pod| selects(policy, pod));
            PolicyView {
                namespace: policy.key.namespace.to_string(),
                name: policy.key.name.to_string(),
                ingress: rules(policy.ingress.as_deref()),
                egress: rules(policy.egress.as_deref()),
                audit: policy.audit,
                local_pods: selected.map(|pod| pod.key.to_string()).collect(),
                pods: selected_anywhere(state, policy),
                notices: notices(summary, state, policy),
            }
        });
        Self {
            policies: policies.collect(),
        }
    }
}

fn rules(rules: Option<&[PolicyRule]>) -> Option<PolicyRulesView> {
    rules.map(|rules| PolicyRulesView { rules: rules.len() })
}

fn selected_anywhere(state: &State, policy: &NetworkPolicy) -> usize {
    let namespace = &policy.key.namespace;
    let first = ObjectKey {
        namespace: namespace.clone(),
        name: crate::model::intern(""),
    };
    let pods = state.cluster.pods.range(first..);
    pods.take_while(|(key, _)| key.namespace == *namespace)
        .filter(|(_, pod)| selects(policy, pod))
        .count()
}

fn notices(summary: &Summary, state: &State, policy: &NetworkPolicy) -> Vec<String> {
    let id = ObjectId {
        kind: Kind::NetworkPolicy,
        key: policy.key.clone(),
    };
    let text = id.to_string();
    let about = |told: &&Rejected| told.id.as_ref() == Some(&id) || told.object == text;
    let mut notices = Vec::new();
    for rejected in summary.rejected.iter().filter(about) {
        notices.push(format!(
            "a newer version was rejected, and the one before stays in force: {}",
            rejected.reason
        ));
    }
    for notice in summary.notices.iter().filter(about) {
        notices.push(notice.reason.clone());
    }
    let problems = summary.problems.iter().filter(|p| p.object == text);
    notices.extend(problems.map(|problem| problem.reason.clone()));
    if notices.is_empty() && selected_anywhere(state, policy) == 0 {
        notices.push("selects no pod".to_owned());
    }
    notices
}

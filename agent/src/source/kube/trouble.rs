//! What a failed request means, in one line that says what to do.

use std::error::Error as _;

use kube::Resource;

/// HTTP's "the resource version is too old", which only a new list mends.
const GONE: u16 = 410;
/// HTTP's "who are you".
const UNAUTHORIZED: u16 = 401;
/// HTTP's "you must not".
const FORBIDDEN: u16 = 403;
/// HTTP's "no such resource".
const NOT_FOUND: u16 = 404;

/// Whether a list must begin again.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == GONE)
}

/// One line for people about a request for objects of `K` that failed.
pub(super) fn explain<K: Resource<DynamicType = ()>>(error: &kube::Error) -> String {
    let plural = K::plural(&());
    let group = match K::group(&()) {
        group if group.is_empty() => "core".to_owned(),
        group => group.into_owned(),
    };
    let kube::Error::Api(status) = error else {
        return format!("listing and watching {plural}: {}", chain(error));
    };
    let mend = match status.code {
        UNAUTHORIZED => "; the credentials are not accepted, check the kubeconfig's user or the service account's token".to_owned(),
        FORBIDDEN => format!(
            "; let the agent's service account get, list and watch {plural} of the API group {group} (a ClusterRole and its binding)"
        ),
        NOT_FOUND => format!("; the API server does not serve {} of {plural}", K::api_version(&())),
        _ => String::new(),
    };
    format!(
        "listing and watching {plural}: {} ({}){mend}",
        status.message, status.code
    )
}

/// An error with its causes, which clients tend to hide ("client error (Connect)").
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use kube::core::Status;

    use super::*;

    fn api_error(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        }))
    }

    #[test]
    fn a_forbidden_kind_is_named_with_its_mend() {
        let line = explain::<NetworkPolicy>(&api_error(FORBIDDEN, "User \"sluice\" cannot list"));
        assert_eq!(
            line,
            "listing and watching networkpolicies: User \"sluice\" cannot list (403); let the agent's service account get, \
             list and watch networkpolicies of the API group networking.k8s.io (a ClusterRole and its binding)"
        );
    }

    #[test]
    fn only_410_is_gone() {
        assert!(is_gone(&api_error(GONE, "too old")));
        assert!(!is_gone(&api_error(FORBIDDEN, "")));
    }
}

//! What a failed request means, in one line that says what to do.

use std::error::Error as _;
use std::time::Duration;

use kube::Resource;
use kube::core::Status;
use kube::core::response::StatusCause;

/// HTTP's "the resource version is too old", which only a new list mends.
const GONE: u16 = 410;
/// HTTP's "who are you".
const UNAUTHORIZED: u16 = 401;
/// HTTP's "you must not".
const FORBIDDEN: u16 = 403;
/// HTTP's "no such resource".
const NOT_FOUND: u16 = 404;

/// What the server says of a version that it has not seen yet: its database was restored from an older state.
const TOO_LARGE: &str = "ResourceVersionTooLarge";

/// What keeps a kind from being followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// One line for people.
    pub(super) reason: String,
    /// How long the server asks to be left alone.
    pub(super) wait: Option<Duration>,
    /// The credentials are not accepted.
    pub(super) refused: bool,
    /// The server cannot be reached, or not be trusted: no answer of its own came.
    pub(super) unreached: bool,
}

impl Trouble {
    fn of(reason: String) -> Self {
        Self {
            reason,
            wait: None,
            refused: false,
            unreached: false,
        }
    }
}

/// What a failed request for objects of `K` means. None: the place in the history is lost, and only a new list helps.
pub(super) fn judge<K: Resource<DynamicType = ()>>(error: &kube::Error) -> Option<Trouble> {
    let mut trouble = Trouble::of(explain::<K>(error));
    match error {
        kube::Error::Api(status) if is_lost(status) => return None,
        kube::Error::Api(status) => {
            trouble.refused = status.code == UNAUTHORIZED;
            let details = status.details.as_ref();
            let seconds = details.map_or(0, |details| details.retry_after_seconds);
            trouble.wait = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        }
        kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::Auth(_) => {
            trouble.unreached = true;
        }
        _ => {}
    }
    Some(trouble)
}

/// No answer within a time.
pub(super) fn no_answer<K: Resource<DynamicType = ()>>(within: Duration) -> Trouble {
    Trouble::of(format!(
        "listing and watching {}: no answer within {within:?}; check the API server and the way to it",
        K::plural(&())
    ))
}

/// An answer without a version: no list of a Kubernetes API server, and so no proof that anything is gone.
pub(super) fn no_list<K: Resource<DynamicType = ()>>() -> Trouble {
    Trouble::of(format!(
        "listing {}: the answer has no resourceVersion, so it is no list; check what answers at the API server's address",
        K::plural(&())
    ))
}

/// The version of a list was forgotten before the list was whole, or before its watch was open.
pub(super) fn forgets<K: Resource<DynamicType = ()>>() -> Trouble {
    Trouble::of(format!(
        "listing and watching {}: the API server forgets versions sooner than a list takes (410 Gone); check etcd's compaction and the server's load",
        K::plural(&())
    ))
}

fn is_lost(status: &Status) -> bool {
    let too_large = |cause: &StatusCause| cause.reason == TOO_LARGE;
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == GONE || causes.into_iter().any(too_large)
}

/// One line for people about a request for objects of `K` that failed.
fn explain<K: Resource<DynamicType = ()>>(error: &kube::Error) -> String {
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
        let error = api_error(FORBIDDEN, "User \"sluice\" cannot list");
        let line = judge::<NetworkPolicy>(&error).unwrap().reason;
        assert_eq!(
            line,
            "listing and watching networkpolicies: User \"sluice\" cannot list (403); let the agent's service account get, \
             list and watch networkpolicies of the API group networking.k8s.io (a ClusterRole and its binding)"
        );
    }

    #[test]
    fn only_410_and_a_version_from_the_future_are_lost() {
        assert!(judge::<NetworkPolicy>(&api_error(GONE, "too old")).is_none());
        assert!(judge::<NetworkPolicy>(&api_error(FORBIDDEN, "")).is_some());
        let future = serde_json::json!({
            "code": 504, "reason": "Timeout", "message": "Too large resource version: 9, current: 5",
            "details": { "retryAfterSeconds": 1, "causes": [{ "reason": TOO_LARGE, "message": "Too large resource version" }] },
        });
        let future = kube::Error::Api(Box::new(serde_json::from_value(future).unwrap()));
        assert!(judge::<NetworkPolicy>(&future).is_none());
    }

    #[test]
    fn refused_credentials_and_a_time_to_wait_are_told_apart() {
        let refused = judge::<NetworkPolicy>(&api_error(UNAUTHORIZED, "Unauthorized")).unwrap();
        assert!(refused.refused && refused.wait.is_none() && !refused.unreached);
        let busy = serde_json::json!({ "code": 429, "details": { "retryAfterSeconds": 7 } });
        let busy = kube::Error::Api(Box::new(serde_json::from_value(busy).unwrap()));
        let busy = judge::<NetworkPolicy>(&busy).unwrap();
        assert_eq!(busy.wait, Some(Duration::from_secs(7)));
        assert!(!busy.refused && !busy.unreached);
        let away = kube::Error::Service("connection refused".into());
        assert!(judge::<NetworkPolicy>(&away).unwrap().unreached);
    }
}

//! What the API server was asked by the agent: its own audit log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

/// Verbs that the agent may use.
const READS: [&str; 3] = ["get", "list", "watch"];

/// The audit log of one user.
pub(crate) struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

impl Audit {
    /// Writes the policy that logs the requests of `user`, and of nobody else, as they come.
    pub(crate) fn new(directory: &Path, user: &str) -> Result<Self> {
        let (policy, log) = (directory.join("audit.yaml"), directory.join("audit.log"));
        let text = format!(
            "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
- {{ level: Metadata, users: [\"{user}\"] }}
- {{ level: None }}
"
        );
        std::fs::write(&policy, text).with_context(|| format!("writing {}", policy.display()))?;
        Ok(Self { policy, log })
    }

    /// The API server's arguments.
    pub(crate) fn arguments(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
        ]
    }

    /// Requests so far, by verb and resource.
    fn requests(&self) -> Result<BTreeMap<(String, String), usize>> {
        let mut requests = BTreeMap::new();
        for event in self.events()? {
            let key = (text(&event, "/verb"), text(&event, "/objectRef/resource"));
            *requests.entry(key).or_default() += 1;
        }
        Ok(requests)
    }

    fn events(&self) -> Result<Vec<Value>> {
        let log = std::fs::read_to_string(&self.log)
            .with_context(|| format!("reading {}", self.log.display()))?;
        // The last line may be half written.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).context("a line of the audit log"))
            .collect()
    }

    /// Requests of this verb and resource so far.
    pub(crate) fn count(&self, verb: &str, resource: &str) -> Result<usize> {
        let key = (verb.to_owned(), resource.to_owned());
        Ok(self.requests()?.get(&key).copied().unwrap_or_default())
    }

    /// Requests of this verb so far, for whatever.
    pub(crate) fn count_of(&self, verb: &str) -> Result<usize> {
        let requests = self.requests()?;
        let of_verb = requests.iter().filter(|((v, _), _)| v == verb);
        Ok(of_verb.map(|(_, count)| count).sum())
    }

    /// When requests for each resource came since `from`, by the server's clock.
    pub(crate) fn moments(&self, from: SystemTime) -> Result<BTreeMap<String, Vec<SystemTime>>> {
        let mut moments: BTreeMap<String, Vec<SystemTime>> = BTreeMap::new();
        for event in self.events()? {
            let at: MicroTime = serde_json::from_value(event["requestReceivedTimestamp"].clone())?;
            let at = SystemTime::from(at.0);
            if at >= from {
                moments
                    .entry(text(&event, "/objectRef/resource"))
                    .or_default()
                    .push(at);
            }
        }
        Ok(moments)
    }

    /// One line for people.
    pub(crate) fn summary(&self) -> Result<String> {
        let requests = self.requests()?;
        let parts: Vec<String> = requests
            .iter()
            .map(|((verb, resource), count)| format!("{verb} {resource} {count}"))
            .collect();
        let all: usize = requests.values().sum();
        Ok(format!("{all} ({})", parts.join(", ")))
    }

    /// Whether the agent only ever read.
    pub(crate) fn only_reads(&self) -> Result<()> {
        for (verb, resource) in self.requests()?.keys() {
            ensure!(
                READS.contains(&verb.as_str()),
                "the agent asked for `{verb}` of {resource}"
            );
        }
        Ok(())
    }
}

fn text(event: &Value, pointer: &str) -> String {
    let value = event.pointer(pointer).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

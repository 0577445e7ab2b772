//! The text of a scenario.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sluice::compile::{IpBlockMode, Options, UnknownPod};
use sluice::local::{Local, PodLink};
use sluice::model::intern;

use super::NODE;

/// A section: the name between its dashes, and its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// Name.
    pub name: String,
    /// Text, up to the next section.
    pub text: String,
}

/// What happens until the next look at the maps.
#[derive(Clone, Default, Debug)]
pub struct Step {
    /// The node's own state from now on; None: as it was.
    pub local: Option<Local>,
    /// Files that appear or change, and (None) go.
    pub files: Vec<(String, Option<String>)>,
    /// The writes that it takes, where the scenario says; then the section's place.
    pub writes: Option<(usize, String)>,
    /// What the maps say afterwards; and the section's place.
    pub expect: (usize, String),
}

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The lines before the first section.
    pub head: String,
    /// All sections.
    pub sections: Vec<Section>,
    /// How the agent runs.
    pub options: Options,
    /// Whether a restart is meant to change nothing.
    pub restart_same: bool,
    /// Whether the maps say what the objects alone say.
    pub oracle_same: bool,
    /// The steps.
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalText {
    #[serde(default)]
    links: Vec<LinkText>,
    #[serde(default)]
    addresses: BTreeSet<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkText {
    ifindex: u32,
    name: String,
    addresses: BTreeSet<IpAddr>,
}

fn local(text: &str) -> Result<Local> {
    let text: LocalText = serde_yaml_ng::from_str(text).context("section local")?;
    let pods = text.links.into_iter().map(|link| {
        // Any MACs will do; they differ by link.
        let last = link.ifindex.to_be_bytes()[3];
        let pod = PodLink {
            ifindex: link.ifindex,
            name: link.name,
            host_mac: [2, 0, 0, 0, 0, last],
            pod_mac: Some([2, 0, 0, 0, 1, last]),
            addresses: link.addresses,
            peer_namespace: Some(0),
        };
        (link.ifindex, pod)
    });
    Ok(Local {
        pods: pods.collect(),
        addresses: text.addresses,
        ..Local::default()
    })
}

fn section_name(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix("-- ")?.strip_suffix(" --")
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut head = String::new();
        let mut sections: Vec<Section> = Vec::new();
        for line in text.split_inclusive('\n') {
            match (section_name(line), sections.last_mut()) {
                (Some(name), _) => sections.push(Section {
                    name: name.to_owned(),
                    text: String::new(),
                }),
                (None, Some(section)) => section.text.push_str(line),
                (None, None) => head.push_str(line),
            }
        }
        let mut options = Options::new(intern(NODE));
        let (mut restart_same, mut oracle_same) = (true, true);
        for line in head.lines() {
            match line.trim() {
                "# ip-block-mode: cilium" => options.ip_block_mode = IpBlockMode::Cilium,
                "# unknown-pod: deny" => options.unknown_pod = UnknownPod::Deny,
                "# restart: differs" => restart_same = false,
                "# oracle: differs" => oracle_same = false,
                _ => {}
            }
        }
        let mut steps = Vec::new();
        let mut step = Step::default();
        let mut ended = false;
        for (at, section) in sections.iter().enumerate() {
            ended = false;
            match (section.name.as_str(), section.name.strip_prefix("rm ")) {
                ("local", _) => step.local = Some(local(&section.text)?),
                ("writes", _) => step.writes = Some((at, section.text.clone())),
                ("expect", _) => {
                    step.expect = (at, section.text.clone());
                    steps.push(std::mem::take(&mut step));
                    ended = true;
                }
                (_, Some(name)) => step.files.push((name.to_owned(), None)),
                (name, None) => {
                    let text = section.text.clone();
                    step.files.push((name.to_owned(), Some(text)));
                }
            }
        }
        if !ended {
            bail!("the last section is not `-- expect --`");
        }
        Ok(Self {
            head,
            sections,
            options,
            restart_same,
            oracle_same,
            steps,
        })
    }

    /// The text of the scenario.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.head.clone();
        for section in &self.sections {
            text.push_str(&format!("-- {} --\n{}", section.name, section.text));
        }
        text
    }
}

//! Changes each of which takes something from one pod's peers and nothing from anybody else's: of its policy, of a peer's labels, of the labels
//! of a peer's namespace, and of whose an address is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::lab::manifests;

use crate::PORT;
use crate::scene::{Role, Scene};

/// Ports that versions of a policy let in beside [`PORT`], one after the other.
const OTHER_PORTS: u32 = 1_000;
/// The port that peers of either side may reach.
const SIDES: [(&str, u16); 2] = [("even", 6_000), ("odd", 6_001)];
/// A pod of the node whose labels change.
const THIRD: &str = "third";
/// A pod of the node in a namespace whose labels change.
const GUEST: &str = "guest";
/// That namespace.
const GUESTS: &str = "guests";
/// Pods of another node, which change their addresses with each other, and these.
const MOVING: [&str; 2] = ["moving-even", "moving-odd"];
/// The last bytes of their addresses, of each pod's peers.
const MOVING_FIRST: u8 = 10;

/// What changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// The pod's policy: whom it lets in beside the traffic, and to which port.
    Policy,
    /// The labels of a pod that the policy names.
    Relabel,
    /// The labels of a namespace that the policy names.
    Namespace,
    /// An address goes to another pod that the policy names, and that one's to the first.
    Address,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 4] = [Self::Policy, Self::Relabel, Self::Namespace, Self::Address];
}

/// The stage of the changes: pods under a policy, each with peers of its own that the policy names.
pub(crate) struct Changes<'a> {
    scene: &'a Scene,
    /// How many there were so far, by pod and kind.
    versions: BTreeMap<(&'static str, Kind), AtomicU32>,
    pods: Vec<&'static str>,
}

/// Who must be on the stage beside the pods under policy.
pub(crate) fn peers() -> [Role<'static>; 2] {
    [Role::new(THIRD), Role::new(GUEST).in_namespace(GUESTS)]
}

impl<'a> Changes<'a> {
    /// Puts the policies of these pods in force, and their peers.
    pub(crate) fn begin(scene: &'a Scene, pods: &[&'static str]) -> Result<Self> {
        let all = pods
            .iter()
            .flat_map(|pod| Kind::ALL.map(|kind| ((*pod, kind), AtomicU32::new(0))));
        let this = Self {
            scene,
            versions: all.collect(),
            pods: pods.to_vec(),
        };
        for pod in pods {
            for kind in Kind::ALL {
                this.write(pod, kind)?;
            }
        }
        scene.settle()?;
        Ok(this)
    }

    /// Makes the next change of a kind that concerns a pod. It is in force some time later.
    pub(crate) fn make(&self, pod: &'static str, kind: Kind) -> Result<()> {
        let version = self.versions.get(&(pod, kind)).context("no such pod")?;
        version.fetch_add(1, Ordering::Relaxed);
        self.write(pod, kind)
    }

    fn version(&self, pod: &'static str, kind: Kind) -> u32 {
        let version = self.versions.get(&(pod, kind));
        version.map_or(0, |version| version.load(Ordering::Relaxed))
    }

    /// On which side the peers of a kind are.
    fn side(&self, pod: &'static str, kind: Kind) -> &'static str {
        SIDES[self.version(pod, kind) as usize % SIDES.len()].0
    }

    /// A label for each pod under policy, which tells on which side of it the bearer is.
    fn labels(&self, kind: Kind) -> Vec<(&'static str, &'static str)> {
        let pods = self.pods.iter();
        pods.map(|pod| (*pod, self.side(pod, kind))).collect()
    }

    fn write(&self, pod: &'static str, kind: Kind) -> Result<()> {
        let dir = &self.scene.dir;
        match kind {
            Kind::Policy => dir.put(&policy(pod, self.version(pod, kind))),
            Kind::Relabel => {
                let third = &self.scene.actor(THIRD)?.pod;
                dir.put(&manifests::pod(third, &self.labels(kind), &[]))
            }
            Kind::Namespace => dir.put(&manifests::namespace(GUESTS, &self.labels(kind))),
            Kind::Address => {
                let list =
                    json!({ "apiVersion": "v1", "kind": "List", "items": self.moving(pod)? });
                dir.put_file(&format!("moving-{pod}.json"), &list.to_string())
            }
        }
    }

    /// The peers of a pod that change their addresses.
    fn moving(&self, pod: &'static str) -> Result<[Value; 2]> {
        let number = self.pods.iter().position(|known| *known == pod);
        let number = u8::try_from(number.context("no such pod")?)?;
        let version = self.version(pod, Kind::Address);
        let third = &self.scene.actor(THIRD)?.pod;
        let mut peers = [0, 1].map(|_| manifests::pod(third, &[], &[]));
        for (at, peer) in peers.iter_mut().enumerate() {
            let address = (version as usize + at) % MOVING.len();
            let last = MOVING_FIRST + 2 * number + u8::try_from(address)?;
            let addresses = [format!("10.244.99.{last}"), format!("fd00:244:99::{last}")];
            peer["metadata"]["name"] = json!(format!("{}-{pod}", MOVING[at]));
            peer["metadata"]["uid"] =
                json!(format!("00000000-0000-4000-8000-0000000{number:02}{at:03}"));
            peer["metadata"]["labels"] = json!({ pod: SIDES[at].0 });
            peer["spec"]["nodeName"] = json!("elsewhere");
            peer["status"]["podIP"] = json!(addresses[0]);
            peer["status"]["podIPs"] = json!(addresses.map(|ip| json!({ "ip": ip })));
        }
        Ok(peers)
    }
}

/// A policy that lets the traffic in, peers of either side to a port of theirs, and something else that the next version takes away: whoever
/// was let in must be judged again. Whom it speaks of there is another list of peers each time, which concerns no other pod either.
fn policy(pod: &str, version: u32) -> Value {
    let app = |app: String| json!({ "podSelector": { "matchLabels": { "app": app } } });
    let other = u32::from(PORT) + 1 + version % OTHER_PORTS;
    let mut ingress = vec![json!({
        "from": [app("client".to_owned()), app(format!("nobody-{version}"))],
        "ports": [{ "port": PORT }, { "port": other }],
    })];
    ingress.extend(SIDES.map(|(side, port)| {
        let side = json!({ "matchLabels": { pod: side } });
        json!({
            "from": [{ "podSelector": side }, { "namespaceSelector": side }],
            "ports": [{ "port": port }],
        })
    }));
    manifests::network_policy(
        "default",
        &format!("changing-{pod}"),
        json!({ "podSelector": { "matchLabels": { "app": pod } }, "ingress": ingress }),
    )
}

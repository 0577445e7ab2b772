//! Services whose backends are outside (an API server, a database), on a node that masquerades what its pods send there: answers are for the node's own
//! address when they come in, and what the backend sent only behind the stack.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::lab::manifests;
use tests::lab::node::Node;
use tests::lab::traffic::{Patience, probe};

use crate::scene::{DEADLINE, SERVICE, Scene, roles, service};
use crate::services::service_probes;

/// The number of the service.
const OUTSIDE: u8 = 10;

/// Masquerades what the node's pods send out by its uplink, as CNI plugins and ip-masq-agent do.
fn masquerade(node: &Node) -> Result<()> {
    let rules = format!(
        "table inet lab {{\n chain out {{\n type nat hook postrouting priority srcnat;\n \
         oifname {up} ip saddr {v4} masquerade\n oifname {up} ip6 saddr {v6} masquerade\n }}\n}}\n",
        up = Node::UPLINK,
        v4 = node.pod_range_v4(),
        v6 = node.pod_range_v6(),
    );
    node.netns().run(|| {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting `nft` (install nftables)")?;
        nft.stdin
            .take()
            .context("no way to tell `nft`")?
            .write_all(rules.as_bytes())?;
        let told = nft.wait_with_output()?;
        ensure!(
            told.status.success(),
            "nft: {}\n{rules}",
            String::from_utf8_lossy(&told.stderr).trim()
        );
        Ok(())
    })?
}

#[test]
fn a_service_of_the_outside_answers_through_a_masquerade() -> Result<()> {
    let scene = Scene::new(&roles(&["client"]))?;
    let [service, mut v4, mut v6] = service("outside", OUTSIDE, &[]);
    for (slice, address) in [&mut v4, &mut v6]
        .into_iter()
        .zip(scene.addresses("world")?)
    {
        slice["endpoints"] = json!([{ "addresses": [address], "conditions": { "ready": true } }]);
    }
    scene.apply([&service, &v4, &v6])?;
    let closed = manifests::network_policy(
        "default",
        "closed",
        json!({ "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Ingress"] }),
    );
    let (client, node) = (scene.addresses("client")?, scene.node.addresses());
    let assert_answered = |seen_as: [IpAddr; 2]| -> Result<()> {
        let probes = service_probes(&scene, OUTSIDE, SERVICE)?;
        let outcomes = probe::run(&probes, Patience::deadline(DEADLINE))?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            let own = seen_as[usize::from(probe.to.is_ipv6())];
            ensure!(
                outcome.by() == Some("world")
                    && outcome.peer_seen().map(|peer| peer.ip()) == Some(own),
                "{probe}, to be seen as {own}: {outcome}; drops: {:?}",
                scene.pinned().all_drops()?
            );
        }
        Ok(())
    };
    assert_answered(client)?;
    masquerade(&scene.node)?;
    assert_answered(node)?;
    // Nothing but answers comes to it now.
    scene.apply([&closed])?;
    assert_answered(node)
}

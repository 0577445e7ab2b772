//! Attaching: by tcx, by clsact and to the cgroup; what a restart keeps, and what goes.

use aya::programs::{SchedClassifier, TcAttachType};
use sluice::datapath::attach::{Attacher, Mode};
use sluice::datapath::cgroup::{CgroupReport, Sockets};
use sluice::datapath::host;

use super::*;

/// Our stubs on the node's interfaces, by the kernel's own lists: `bpftool net` for clsact, a query for tcx (which an older
/// bpftool does not show).
fn seen(node: &Node) -> Vec<String> {
    node.netns()
        .run(|| {
            let output = std::process::Command::new("bpftool")
                .args(["net", "show"])
                .output()
                .expect("bpftool");
            let text = String::from_utf8(output.stdout).unwrap();
            let mut stubs: Vec<String> = text
                .lines()
                .filter(|line| line.contains("sluice_stub_"))
                .map(str::to_owned)
                .collect();
            for interface in nix::net::if_::if_nameindex().unwrap().iter() {
                let name = interface.name().to_str().unwrap();
                for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                    // A kernel without tcx has nothing to ask for.
                    let query = SchedClassifier::query_tcx(name, side);
                    for program in query.map(|(_, programs)| programs).unwrap_or_default() {
                        stubs.push(format!(
                            "{name} {side:?} {} {}",
                            program.name_as_str().unwrap(),
                            program.id()
                        ));
                    }
                }
            }
            stubs
        })
        .unwrap()
}

fn attach_keeps_and_removes(mode: Mode) {
    let lab = Lab::new("kernel").unwrap();
    let node = lab.node("a").unwrap();
    let (first, second) = (node.pod("first").unwrap(), node.pod("second").unwrap());
    let root = Root::new();
    let uplinks = BTreeSet::from([ifindex(&node, Node::UPLINK)]);
    let pods = BTreeSet::from([
        ifindex(&node, &first.device),
        ifindex(&node, &second.device),
    ]);
    let agent = |pods: &BTreeSet<u32>, uplinks: &BTreeSet<u32>| {
        node.netns()
            .run(|| {
                let (pins, mut loaded) = root.load();
                let mut attacher = Attacher::new(&pins, &loaded.programs, mode).unwrap();
                assert_eq!(attacher.mode(), mode);
                loaded.programs.install().unwrap();
                attacher.reconcile(pods, uplinks).unwrap()
            })
            .unwrap()
    };
    let report = agent(&pods, &uplinks);
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(
        (
            report.attached.len(),
            report.kept.len(),
            report.detached.len()
        ),
        (5, 0, 0)
    );
    let shown = seen(&node);
    let count = |name: &str| shown.iter().filter(|line| line.contains(name)).count();
    assert_eq!(count("stub_from_pod"), 2, "{shown:?}");
    assert_eq!(count("stub_from_u"), 1, "{shown:?}");

    // A restart keeps the very same programs and links.
    let report = agent(&pods, &uplinks);
    assert_eq!(
        (
            report.attached.len(),
            report.kept.len(),
            report.detached.len()
        ),
        (0, 5, 0),
        "{report:?}"
    );
    assert_eq!(seen(&node), shown);

    // A pod goes, and its index with it; another pod's link is no longer one.
    first.delete().unwrap();
    let gone = BTreeSet::from([ifindex(&node, &second.device)]);
    let report = agent(&gone, &uplinks);
    assert_eq!(
        (report.attached.len(), report.kept.len()),
        (0, 3),
        "{report:?}"
    );
    let report = agent(&BTreeSet::new(), &BTreeSet::new());
    assert_eq!(report.detached.len(), 3, "{report:?}");
    assert!(seen(&node).is_empty());

    // An interface that does not exist fails alone.
    let report = agent(
        &BTreeSet::from([9_999, ifindex(&node, &second.device)]),
        &BTreeSet::new(),
    );
    assert_eq!(
        (report.attached.len(), report.failed.len()),
        (2, 2),
        "{report:?}"
    );
}

#[test]
fn tcx_links_are_kept_by_a_restart_and_removed_when_unneeded() {
    attach_keeps_and_removes(Mode::Tcx);
}

#[test]
fn clsact_filters_are_kept_by_a_restart_and_removed_when_unneeded() {
    attach_keeps_and_removes(Mode::Clsact);
}

#[test]
fn changing_the_way_of_attaching_leaves_one_of_each() {
    let lab = Lab::new("kernel").unwrap();
    let node = lab.node("a").unwrap();
    let pod = node.pod("first").unwrap();
    let root = Root::new();
    let pods = BTreeSet::from([ifindex(&node, &pod.device)]);
    for (mode, attached, detached) in [
        (Mode::Clsact, 2, 0),
        (Mode::Auto, 2, 2),
        (Mode::Clsact, 2, 2),
    ] {
        let report = node
            .netns()
            .run(|| {
                let (pins, loaded) = root.load();
                let mut attacher = Attacher::new(&pins, &loaded.programs, mode).unwrap();
                attacher.reconcile(&pods, &BTreeSet::new()).unwrap()
            })
            .unwrap();
        assert_eq!(
            (report.attached.len(), report.detached.len()),
            (attached, detached),
            "{mode:?} {report:?}"
        );
        assert_eq!(seen(&node).len(), 2, "{mode:?}");
    }
}

#[test]
fn socket_programs_are_replaced_in_their_links() {
    let lab = Lab::new("kernel").unwrap();
    let root = Root::new();
    let ours = host::cgroup(Some(lab.cgroup().path())).unwrap();
    let attach = |path: &Path| {
        let (pins, loaded) = root.load();
        Sockets::attach(&pins, &loaded.programs, path).unwrap().1
    };
    assert_eq!(
        attach(&ours),
        CgroupReport {
            attached: 8,
            replaced: 0
        }
    );
    assert_eq!(
        attach(&ours),
        CgroupReport {
            attached: 0,
            replaced: 8
        }
    );
    let other = lab.cgroup().child("other").unwrap();
    assert_eq!(
        attach(other.path()),
        CgroupReport {
            attached: 8,
            replaced: 0
        }
    );
    assert!(host::netns_cookie().unwrap() > 0);
    host::check().unwrap();
}

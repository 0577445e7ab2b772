//! Machines that cannot carry an agent, or not without a hand: what is missing is one clear line and an exit code, and a BPF file
//! system that is not mounted is mounted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::lab::agent::{Agent, AgentPlan, Source, sluice_binary};
use tests::lab::manifests::ManifestDir;
use tests::lab::patience;

/// How long an agent that cannot start may take to say so.
const REFUSAL: Duration = Duration::from_secs(20);
/// Who is nobody.
const NOBODY: u32 = 65_534;
/// Where the kernel's BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";

/// The agent behind a few shell commands, in a mount namespace of its own: what they change, nobody else sees.
pub(crate) fn in_a_changed_machine(
    lab: &Lab,
    name: &str,
    changes: &str,
    through: &str,
) -> Result<PathBuf> {
    let script = lab.dir().join(format!("{name}.sh"));
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private -- sh -ec '{changes}\nexec {through} \"$@\"' sh {} \"$@\"\n",
        sluice_binary()?.display()
    );
    fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// The agent must end by itself, with an error, and its last line must say all of `words`.
fn assert_refuses(
    lab: &Lab,
    name: &str,
    change: impl FnOnce(&mut AgentPlan),
    words: &[&str],
) -> Result<()> {
    let node = lab.node(name)?;
    let dir = ManifestDir::create(lab.dir(), &format!("manifests-{name}"))?;
    let mut plan = AgentPlan::new(&node, Source::Manifests(dir.path().to_owned()))?;
    change(&mut plan);
    let mut agent = Agent::launch(&node, plan)?;
    let status = agent.process().wait(REFUSAL * patience())?;
    let status = status.with_context(|| format!("{name}: still running\n{}", agent.log_tail()))?;
    ensure!(!status.success(), "{name}: ended with success");
    ensure_one_clear_line(&agent.log(), words).with_context(|| name.to_owned())
}

fn ensure_one_clear_line(log: &str, words: &[&str]) -> Result<()> {
    let last = log.trim_end().lines().last().unwrap_or_default();
    ensure!(
        words.iter().all(|word| last.contains(word))
            && !log.contains("panicked")
            && !log.contains("Caused by"),
        "one line that says {words:?} is wanted, not:\n{log}"
    );
    Ok(())
}

#[test]
fn an_agent_that_cannot_work_here_says_why_in_one_line() -> Result<()> {
    let lab = Lab::new("lab")?;
    let elsewhere = lab.dir().join("no-bpffs");
    assert_refuses(&lab, "pins", |plan| plan.pin_root = elsewhere, &["BPF"])?;
    let no_cgroup = lab.dir().to_owned();
    assert_refuses(&lab, "cgroup", |plan| plan.cgroup = no_cgroup, &["cgroup"])?;
    let missing = Path::new("/sys/fs/cgroup/no-such-cgroup").to_owned();
    assert_refuses(&lab, "absent", |plan| plan.cgroup = missing, &["cgroup"])?;

    // Not root: from a copy that everybody may read, in a namespace of the lab.
    let node = lab.node("user")?;
    let binary = lab.dir().join("sluice");
    fs::copy(sluice_binary()?, &binary).context("copying the agent")?;
    let output = node.netns().run(|| {
        Command::new(&binary)
            .args(["agent", "--node-name", "user", "--manifests", "/"])
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
    })??;
    ensure!(!output.status.success());
    ensure_one_clear_line(&String::from_utf8_lossy(&output.stderr), &["root"])?;

    // The CLI without an agent.
    let output = Command::new(sluice_binary()?)
        .arg("--socket")
        .arg(lab.dir().join("nobody.sock"))
        .arg("status")
        .output()?;
    ensure!(!output.status.success());
    ensure_one_clear_line(&String::from_utf8_lossy(&output.stderr), &["nobody.sock"])
}

#[test]
fn without_btf_or_cgroup2_the_agent_says_so() -> Result<()> {
    let lab = Lab::new("lab")?;
    let no_btf = in_a_changed_machine(&lab, "no-btf", "mount -t tmpfs none /sys/kernel/btf", "")?;
    assert_refuses(
        &lab,
        "btf",
        |plan| plan.binary = Some(no_btf),
        &["BTF", "CONFIG_DEBUG_INFO_BTF"],
    )?;
    // Every mount of the kind, the last first: one may lie on another.
    let no_cgroup2 = in_a_changed_machine(
        &lab,
        "no-cgroup2",
        "for place in $(sed -n \"s/^[^ ]* \\([^ ]*\\) cgroup2 .*/\\1/p\" /proc/self/mounts | tac); do umount -l \"$place\"; done",
        "",
    )?;
    let node = lab.node("group")?;
    let output = node.netns().run(|| {
        Command::new(&no_cgroup2)
            .args(["agent", "--node-name", "group", "--manifests", "/"])
            .arg("--pin-root")
            .arg(Path::new(BPFFS).join("slc-never"))
            .arg("--socket")
            .arg(lab.dir().join("group.sock"))
            .env_remove("RUST_BACKTRACE")
            .output()
    })??;
    ensure!(!output.status.success());
    ensure_one_clear_line(
        &String::from_utf8_lossy(&output.stderr),
        &["cgroup", "mount"],
    )
}

/// Takes away every file system that lies at the place where the BPF file system belongs.
const NO_BPFFS: &str = "for each in $(grep \" /sys/fs/bpf bpf \" /proc/self/mounts | cut -d\" \" -f2); do umount -l \"$each\"; done";

#[test]
fn a_bpf_file_system_that_is_not_mounted_is_mounted_where_that_is_allowed() -> Result<()> {
    let lab = Lab::new("lab")?;
    let node = lab.node("mounts")?;
    let dir = ManifestDir::create(lab.dir(), "manifests-mounts")?;
    let mut plan = AgentPlan::new(&node, Source::Manifests(dir.path().to_owned()))?;
    // Under the mount of the agent's own: nothing of the lab's lies there.
    plan.pin_root = Path::new(BPFFS).join("sluice");
    plan.binary = Some(in_a_changed_machine(&lab, "unmounted", NO_BPFFS, "")?);
    let mut agent = Agent::start(&node, plan)?;
    let process = PathBuf::from(format!("/proc/{}", agent.process().id()));
    let mounts = fs::read_to_string(process.join("mounts"))?;
    ensure!(
        mounts.contains(&format!(" {BPFFS} bpf ")),
        "not mounted: {mounts}"
    );
    let pinned = process.join("root").join(&BPFFS[1..]).join("sluice");
    let maps: Vec<_> = fs::read_dir(&pinned)
        .with_context(|| format!("reading {}", pinned.display()))?
        .collect::<Result<_, _>>()?;
    ensure!(
        !maps.is_empty(),
        "nothing is pinned at {}",
        pinned.display()
    );
    agent.kill()?;

    // Without the right to mount, and with every right that the agent's work needs.
    let forbidden = in_a_changed_machine(
        &lab,
        "forbidden",
        NO_BPFFS,
        "setpriv --bounding-set -sys_admin",
    )?;
    assert_refuses(
        &lab,
        "forbidden",
        |plan| {
            plan.pin_root = Path::new(BPFFS).join("sluice");
            plan.binary = Some(forbidden);
        },
        &["no BPF file system", "mount -t bpf"],
    )
}

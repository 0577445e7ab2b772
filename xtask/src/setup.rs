//! `cargo xtask setup`: finds or installs what building, testing and checking Sluice needs.
//!
//! The other commands call [`ensure`] for what they need, which is silent and quick when all is there.

mod apt;
mod go;
mod linker;
mod toolchain;
mod tools;
pub(crate) mod vm;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// Finds or installs what building eBPF and running the tests needs; one line for each step.
///
/// Debian and Ubuntu: system packages through apt-get (with sudo where this is not root), the rest through rustup
/// and cargo. Elsewhere it says what is missing and how to get it. Nothing happens where all is there.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// What a command needs of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// Building the eBPF half: core's source and a linker.
    Ebpf,
    /// Network namespaces and looking into them.
    Lab,
    /// The control plane that the cluster tier builds.
    ControlPlane,
    /// The machine with an older kernel that the tier `vm` boots.
    Vm,
    /// The dependency checks of `lint`.
    Lint,
}

/// What a step found.
enum State {
    /// It is there; what was found.
    Ready(String),
    /// It is not there, or does not fit; why.
    Missing(String),
}

/// One thing that the machine must have.
struct Step {
    name: &'static str,
    need: Need,
    check: fn() -> State,
    /// Tries to make `check` ready. The error says in one line what to do by hand.
    install: fn() -> Result<()>,
    /// Whether work can go on without it; its own users then say what they lack.
    optional: bool,
}

const STEPS: &[Step] = &[
    Step {
        name: "source of Rust's core library",
        need: Need::Ebpf,
        check: toolchain::check,
        install: toolchain::install,
        optional: false,
    },
    Step {
        name: "bpf-linker",
        need: Need::Ebpf,
        check: linker::check,
        install: linker::install,
        optional: false,
    },
    Step {
        name: "network tools",
        need: Need::Lab,
        check: tools::check,
        install: tools::install,
        optional: false,
    },
    Step {
        name: "test control plane",
        need: Need::ControlPlane,
        check: go::check,
        install: go::install,
        optional: true,
    },
    Step {
        name: "machine with an older kernel",
        need: Need::Vm,
        check: vm::check,
        install: vm::install,
        optional: true,
    },
    Step {
        name: "cargo-deny",
        need: Need::Lint,
        check: deny_check,
        install: deny_install,
        optional: false,
    },
];

pub(crate) fn run(_: &Arguments) -> Result<ExitCode> {
    let mut missing = 0;
    for step in STEPS {
        match attempt(step, true) {
            Ok(()) => {}
            Err(_) if step.optional => {}
            Err(_) => missing += 1,
        }
    }
    Ok(if missing == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Installs what of `needs` is missing; says nothing when nothing is.
///
/// # Errors
/// When something that cannot be done without could not be installed; the line says what to do.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    for step in STEPS.iter().filter(|step| needs.contains(&step.need)) {
        match attempt(step, false) {
            Err(error) if !step.optional => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Checks one step and installs what it lacks, printing its line when there is something to say.
fn attempt(step: &Step, talk: bool) -> Result<()> {
    let name = step.name;
    let lacking = match (step.check)() {
        State::Ready(found) => {
            if talk {
                println!("setup: {name}: {found}");
            }
            return Ok(());
        }
        State::Missing(why) => why,
    };
    let outcome = (step.install)().and_then(|()| match (step.check)() {
        State::Ready(found) => Ok(found),
        State::Missing(why) => bail!("still missing after its installation: {why}"),
    });
    match outcome {
        Ok(found) => {
            println!("setup: {name}: installed ({found})");
            Ok(())
        }
        Err(error) => {
            let error = error.context(format!("setup: {name}: {lacking}"));
            println!("{error:#}");
            Err(error)
        }
    }
}

/// Tells `agent/build.rs` which toolchain builds the eBPF half, where it is not the pinned one.
///
/// The variable `SLUICE_EBPF_TOOLCHAIN` then holds the name that rustup knows it by.
pub(crate) fn with_ebpf_toolchain(command: &mut Command) -> &mut Command {
    if let Some(name) = ebpf_toolchain() {
        command.env("SLUICE_EBPF_TOOLCHAIN", name);
    }
    command
}

/// The name of the linked toolchain that builds the eBPF half; `None` where the pinned one does.
pub(crate) fn ebpf_toolchain() -> Option<&'static str> {
    toolchain::chosen().and_then(|chosen| chosen.name())
}

/// The version that `cargo install` builds: the newest that takes the pinned compiler.
const DENY_VERSION: &str = "0.20.2";

fn deny_check() -> State {
    match crate::shell::output(Command::new("cargo-deny").arg("--version")) {
        Some(version) => State::Ready(version),
        None => State::Missing("not installed".to_owned()),
    }
}

fn deny_install() -> Result<()> {
    let mut command = crate::workspace::cargo();
    // Unoptimised: it is built once, in a quarter of the time, and checks this tree in a second.
    command.args([
        "install",
        "cargo-deny",
        "--version",
        DENY_VERSION,
        "--locked",
        "--debug",
    ]);
    install_with_cargo(&mut command, "cargo-deny").with_context(|| {
        format!("by hand: cargo install cargo-deny --version {DENY_VERSION} --locked")
    })
}

/// Runs a `cargo install` with a target directory of its own, so that a second try need not start over.
fn install_with_cargo(command: &mut Command, name: &str) -> Result<()> {
    let directory = crate::workspace::target().join("xtask");
    println!("setup: {name}: building it with cargo, which takes a few minutes");
    command.env("CARGO_TARGET_DIR", directory.join("install"));
    crate::shell::run_quietly(command, &directory.join(format!("{name}.log")))
}

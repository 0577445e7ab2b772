//! `cargo xtask lint`: what a change must hold before anybody reads it.

mod floor;
mod layers;
mod length;
mod source;
mod words;

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::ValueEnum as _;

use crate::setup::{self, Need};
use crate::{shell, workspace};

/// Checks the tree: all checks, or those named. Every finding is printed; warnings are errors.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these checks.
    #[arg(value_enum)]
    checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Check {
    /// Formatting, as rustfmt has it.
    Fmt,
    /// Who may import what, and where `unsafe` may be (DESIGN.md 2).
    Layers,
    /// The length of source files.
    Length,
    /// No registry's host name and no path of one machine in a tracked file.
    Words,
    /// Clippy on the host's crates.
    Clippy,
    /// Clippy on the eBPF half, for its own target.
    ClippyEbpf,
    /// What of the kernel is used, against the table of first kernels (floor/table.rs).
    Floor,
    /// The documentation builds without a warning.
    Doc,
    /// Licences, bans and sources of dependencies (deny.toml).
    Deny,
}

/// Clippy on the host's crates, as cargo is told.
const CLIPPY: &[&str] = &[
    "clippy",
    "--workspace",
    "--exclude",
    "agent-ebpf",
    "--all-targets",
];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let all = Check::value_variants();
    let checks = if arguments.checks.is_empty() {
        all
    } else {
        &arguments.checks
    };
    let mut failed = Vec::new();
    for check in checks {
        let name = check
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned());
        match check.run() {
            Ok(()) => println!("lint {name}: ok"),
            Err(error) => {
                println!("lint {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

impl Check {
    fn run(self) -> Result<()> {
        match self {
            Self::Fmt => shell::run(workspace::cargo().args(["fmt", "--all", "--check"])),
            Self::Layers => report(layers::check()?),
            Self::Length => report(length::check()?),
            Self::Words => report(words::check()?),
            Self::Clippy => {
                setup::ensure(&[Need::Ebpf])?;
                let mut command = workspace::cargo();
                command.args(CLIPPY).args(["--", "--deny", "warnings"]);
                shell::run(setup::with_ebpf_toolchain(&mut command))
            }
            Self::ClippyEbpf => {
                setup::ensure(&[Need::Ebpf])?;
                shell::run(&mut ebpf(&[]))?;
                shell::run(&mut ebpf(&["--features=log"]))
            }
            Self::Floor => {
                setup::ensure(&[Need::Ebpf])?;
                report(floor::check()?)
            }
            Self::Doc => {
                setup::ensure(&[Need::Ebpf])?;
                let mut command = workspace::cargo();
                command
                    // Links to private items are for those who read the source, as are these documents.
                    .env(
                        "RUSTDOCFLAGS",
                        "--deny warnings --allow rustdoc::private_intra_doc_links",
                    )
                    .args(["doc", "--workspace", "--exclude", "agent-ebpf", "--no-deps"]);
                shell::run(setup::with_ebpf_toolchain(&mut command))
            }
            Self::Deny => {
                setup::ensure(&[Need::Lint])?;
                let mut command = workspace::cargo();
                command.args([
                    "deny",
                    "--all-features",
                    "--locked",
                    "check",
                    "licenses",
                    "bans",
                    "sources",
                ]);
                shell::run(&mut command)
            }
        }
    }
}

/// Clippy on the eBPF half; a linked toolchain has none, and there the compiler's own warnings are the errors.
fn ebpf(features: &[&str]) -> Command {
    let build = [
        "--package",
        "agent-ebpf",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
    ];
    let mut command = match setup::ebpf_toolchain() {
        None => {
            let mut command = workspace::cargo();
            command
                .arg("clippy")
                .args(build)
                .args(features)
                .args(["--", "--deny", "warnings"]);
            command
        }
        Some(name) => {
            println!(
                "lint clippy-ebpf: the linked toolchain `{name}` has no clippy; rustc's warnings alone"
            );
            let mut command = Command::new("rustup");
            command.current_dir(workspace::root()).args([
                "run",
                name,
                "cargo",
                "rustc",
                "--profile",
                "check",
            ]);
            command
                .args(build)
                .args(features)
                .args(["--", "--deny", "warnings"]);
            command
        }
    };
    // The pinned toolchain is stable; `-Z` is for nightly without this.
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Prints findings; any is an error.
fn report(findings: Vec<String>) -> Result<()> {
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("{count} findings"),
    }
}

//! The toolchain that builds the eBPF half: it needs the source of core, which few installations carry.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{State, apt};
use crate::{shell, workspace};

/// The name under which rustup knows the distribution's compiler.
const LINKED: &str = "ebpf";

/// Where a distribution installs its compiler, and its packages: compiler, cargo, library source.
/// Debian's `-web` packages follow what browsers need, so they are the newest a stable release has.
const DISTRIBUTION: (&str, [&str; 3]) = ("/usr", ["rustc-web", "cargo-web", "rust-web-src"]);

/// A toolchain that has the source of core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chosen {
    /// The one that `rust-toolchain.toml` pins.
    Pinned,
    /// The distribution's, linked under [`LINKED`].
    Linked,
}

impl Chosen {
    /// Rustup's name; `None` for the pinned one, which needs none inside the workspace.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Pinned => None,
            Self::Linked => Some(LINKED),
        }
    }

    /// Its compiler.
    pub(super) fn rustc(self) -> Command {
        let mut command = match self {
            Self::Pinned => Command::new("rustc"),
            Self::Linked => {
                let mut command = Command::new("rustup");
                command.args(["run", LINKED, "rustc"]);
                command
            }
        };
        command.current_dir(workspace::root());
        command
    }

    fn has_core_source(self) -> bool {
        shell::output(self.rustc().args(["--print", "sysroot"])).is_some_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .is_file()
        })
    }

    /// The major version of LLVM inside its compiler.
    pub(super) fn llvm(self) -> Option<u32> {
        let version = shell::output(self.rustc().arg("-vV"))?;
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))?;
        llvm.split('.').next()?.parse().ok()
    }
}

/// The toolchain that will build the eBPF half.
pub(super) fn chosen() -> Option<Chosen> {
    [Chosen::Pinned, Chosen::Linked]
        .into_iter()
        .find(|chosen| chosen.has_core_source())
}

pub(super) fn check() -> State {
    match chosen() {
        Some(Chosen::Pinned) => State::Ready("in the pinned toolchain".to_owned()),
        Some(Chosen::Linked) => State::Ready(format!("in the linked toolchain `{LINKED}`")),
        None => State::Missing("not in the pinned toolchain".to_owned()),
    }
}

pub(super) fn install() -> Result<()> {
    let log = workspace::target().join("xtask").join("rust-src.log");
    let mut add = Command::new("rustup");
    add.current_dir(workspace::root())
        .args(["component", "add", "rust-src"]);
    let refusal = match shell::run_quietly(&mut add, &log) {
        Ok(()) if Chosen::Pinned.has_core_source() => return Ok(()),
        // Its files were removed behind its back: it believes that they are there.
        Ok(()) => anyhow::anyhow!("rustup says that rust-src is installed, and it is not there"),
        Err(refusal) => refusal,
    };
    let (prefix, packages) = DISTRIBUTION;
    apt::install(&packages)
        .and_then(|()| {
            let mut link = Command::new("rustup");
            link.args(["toolchain", "link", LINKED, prefix]);
            shell::run_quietly(&mut link, &log)
        })
        .with_context(|| {
            // One line: the rest of rustup's words are in the log.
            let refusal = format!("{refusal:#}");
            let first = refusal.lines().next().unwrap_or_default();
            format!("{first}; by hand: `rustup component add rust-src`, or a toolchain with it: `rustup toolchain link {LINKED} DIR`")
        })
}

//! bpf-linker: turns the compiler's LLVM bitcode into one eBPF object.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{State, apt, toolchain};
use crate::{shell, workspace};

/// The release that is built here when there is none on PATH.
const VERSION: &str = "0.13.0";

/// The versions of LLVM that this release can be built with, oldest first. Its LLVM must be at least the compiler's.
const LLVMS: [u32; 3] = [21, 22, 23];

/// What a program needs to link: no core, so that it takes a tenth of a second.
const PROBE: &str = r#"
#![feature(no_core, lang_items)]
#![allow(internal_features)]
#![no_core]
#![no_main]
#[lang = "pointee_sized"]
pub trait PointeeSized {}
#[lang = "meta_sized"]
pub trait MetaSized: PointeeSized {}
#[lang = "sized"]
pub trait Sized: MetaSized {}
#[lang = "copy"]
pub trait Copy {}
impl Copy for i32 {}
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub extern "C" fn probe() -> i32 { 0 }
"#;

pub(super) fn check() -> State {
    let Some(path) = shell::find("bpf-linker") else {
        return State::Missing("not on PATH".to_owned());
    };
    match link_probe() {
        Ok(()) => {
            let version = shell::output(Command::new(&path).arg("--version")).unwrap_or_default();
            State::Ready(format!("{version} at {}", path.display()))
        }
        Err(error) => State::Missing(format!(
            "{} does not link for this compiler: {error:#}",
            path.display()
        )),
    }
}

/// Compiles and links a trivial program: shows that the linker runs and reads this compiler's bitcode.
fn link_probe() -> Result<()> {
    let Some(toolchain) = toolchain::chosen() else {
        bail!("there is no toolchain to try it with");
    };
    let directory = workspace::target().join("xtask");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let source = directory.join("linker_probe.rs");
    std::fs::write(&source, PROBE).with_context(|| format!("cannot write {}", source.display()))?;
    let mut command = toolchain.rustc();
    command
        // The options below exist on nightly, and on stable with this.
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "bin",
            "--target",
            "bpfel-unknown-none",
        ])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "debuginfo=2",
            "-C",
            "linker=bpf-linker",
            "-C",
            "link-arg=--btf",
            "-o",
        ])
        .arg(directory.join("linker_probe.o"))
        .arg(&source);
    shell::run_quietly(&mut command, &directory.join("linker_probe.log"))
}

pub(super) fn install() -> Result<()> {
    let Some(oldest) = toolchain::chosen().and_then(toolchain::Chosen::llvm) else {
        bail!("no toolchain to build for: the step before says why");
    };
    let packaged = LLVMS
        .into_iter()
        .filter(|version| *version >= oldest)
        .find(|version| {
            shell::find("apt-get").is_some() && apt::available(&format!("llvm-{version}-dev"))
        });
    if let Some(version) = packaged {
        return build(version);
    }
    if shell::find("cargo-binstall").is_some() {
        let mut command = workspace::cargo();
        command.args([
            "binstall",
            "--no-confirm",
            "--force",
            &format!("bpf-linker@{VERSION}"),
        ]);
        return shell::run_quietly(
            &mut command,
            &workspace::target().join("xtask").join("bpf-linker.log"),
        );
    }
    bail!(
        "no package of LLVM {oldest} or later here: put a released bpf-linker {VERSION} on PATH (`cargo binstall bpf-linker@{VERSION}`)"
    )
}

/// Builds it with the distribution's LLVM.
fn build(llvm: u32) -> Result<()> {
    let packages = [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
        "libxml2-dev".to_owned(),
    ];
    apt::install(&packages.each_ref().map(String::as_str))?;
    let mut command = workspace::cargo();
    command
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        .args(["install", "bpf-linker", "--version", VERSION, "--force"])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ]);
    super::install_with_cargo(&mut command, "bpf-linker")
        .with_context(|| format!("by hand: a released bpf-linker {VERSION} on PATH"))
}

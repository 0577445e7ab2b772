//! Builds the eBPF object that the agent carries, and puts it into `OUT_DIR/sluice-ebpf`.
//!
//! The object is built by the toolchain that builds the agent, where that has the standard library's source (`rust-src`), else
//! by the linked toolchain `ebpf`. Its build directory lies beside those of the profiles, so that debug, release and clippy
//! share one object. `SLUICE_MUTANTS=1` builds both halves with `--cfg mutants`, `SLUICE_EBPF_LOG=1` programs that write lines through
//! aya-log: each in a directory of its own, in debug builds.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The target of the programs. Maps are shared with the agent in the machine's own order; big-endian machines are not served.
const TARGET: &str = "bpfel-unknown-none";
/// The linked toolchain that `cargo xtask setup` makes where `rust-src` is not to be had.
const FALLBACK: &str = "ebpf";
/// The linker's name.
const LINKER: &str = "bpf-linker";
/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\u{1f}";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out = path_variable("OUT_DIR")?;
    let workspace = path_variable("CARGO_MANIFEST_DIR")?
        .parent()
        .map(Path::to_path_buf)
        .ok_or("the agent lies in no workspace")?;
    for input in [
        "agent-ebpf/src",
        "agent-ebpf/Cargo.toml",
        "agent-common/src",
        "agent-common/Cargo.toml",
        "Cargo.toml",
        "rust-toolchain.toml",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-env-changed=SLUICE_MUTANTS");
    println!("cargo::rerun-if-env-changed=SLUICE_EBPF_LOG");
    // Programs that write lines are for work on them: slower, and open to a flood of log lines.
    let log = debug_only("SLUICE_EBPF_LOG")?;
    // What guards something can be switched off in these.
    let mutants = debug_only("SLUICE_MUTANTS")?;
    if mutants {
        println!("cargo::rustc-cfg=mutants");
    }

    let linker = linker()?;
    let next = env::var_os("CARGO_FEATURE_LAYOUT_NEXT").is_some();
    let target_dir = target_dir(&out, mutants, next, log)?;
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Copies stay as wide as they were written: expanded in order they take more stack than the verifier allows.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // 32-bit arithmetic and jumps (v3, Linux 5.1): fewer instructions, less stack.
        "-Ctarget-cpu=v3".to_owned(),
        // The linker makes BTF from debug information, also that of the map types in agent-common.
        "-Cdebuginfo=2".to_owned(),
    ];
    if mutants {
        flags.extend(["--cfg", "mutants"].map(str::to_owned));
    }

    let mut cargo = toolchain()?;
    cargo
        .current_dir(&workspace)
        .args(["build", "--package", "agent-ebpf", "--release", "--locked"])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .args(log.then_some("--features=log"))
        .args(
            next.then_some(["--features", "layout-next"])
                .into_iter()
                .flatten(),
        )
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR));
    let status = cargo.status().map_err(|error| {
        format!("cannot run cargo for the eBPF programs: {error}; run `cargo xtask setup`")
    })?;
    if !status.success() {
        return Err(
            "building the eBPF programs failed (compiler output above); if the toolchain is incomplete, run `cargo xtask setup`"
                .to_owned(),
        );
    }
    let object = target_dir.join(TARGET).join("release/sluice-ebpf");
    fs::copy(&object, out.join("sluice-ebpf"))
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    Ok(())
}

/// Whether the variable asks for what releases must not have.
fn debug_only(variable: &str) -> Result<bool, String> {
    let wanted = env::var_os(variable).is_some_and(|value| value == "1");
    if wanted && env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        return Err(format!("{variable} is for debug builds only"));
    }
    Ok(wanted)
}

/// `target/ebpf`, with `-log`, `-mutants` and `-next` (the tests' next layout) behind it: beside the profile directory that `OUT_DIR`
/// lies in.
fn target_dir(out: &Path, mutants: bool, next: bool, log: bool) -> Result<PathBuf, String> {
    let target = out
        .ancestors()
        .find(|ancestor| ancestor.file_name() == Some(OsStr::new("build")))
        .and_then(Path::parent)
        .and_then(Path::parent)
        .ok_or_else(|| format!("cannot find the target directory above {}", out.display()))?;
    let suffixes = [(log, "-log"), (mutants, "-mutants"), (next, "-next")];
    let name: String = std::iter::once("ebpf")
        .chain(
            suffixes
                .iter()
                .filter(|(on, _)| *on)
                .map(|(_, suffix)| *suffix),
        )
        .collect();
    Ok(target.join(name))
}

/// The linker, on PATH or where `cargo install` puts it.
fn linker() -> Result<PathBuf, String> {
    let installed = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .map(|home| home.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(installed)
        .map(|dir| dir.join(LINKER))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("{LINKER} is not installed: run `cargo xtask setup`"))
}

/// `cargo` of a toolchain that can build the core library for the BPF target.
fn toolchain() -> Result<Command, String> {
    let current: [OsString; 2] = [
        env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()),
    ];
    if has_source(clean(Command::new(&current[1]), true)) {
        return Ok(clean(Command::new(&current[0]), true));
    }
    let linked = |tool: &str| {
        let mut command = Command::new("rustup");
        command.args(["run", FALLBACK, tool]);
        clean(command, false)
    };
    if has_source(linked("rustc")) {
        return Ok(linked("cargo"));
    }
    Err("no toolchain here has the standard library's source: run `cargo xtask setup`".to_owned())
}

/// Whether the toolchain of this `rustc` has the source of the core library.
fn has_source(mut rustc: Command) -> bool {
    rustc
        .args(["--print", "sysroot"])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| {
            output.status.success()
                && Path::new(String::from_utf8_lossy(&output.stdout).trim())
                    .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                    .is_file()
        })
}

/// Takes out of a command's environment what Cargo set for the host's build of this crate.
fn clean(mut command: Command, keep_toolchain: bool) -> Command {
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let host = text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_CFG_")
            || text.starts_with("CARGO_FEATURE_")
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("DEP_")
            || matches!(
                text,
                "RUSTFLAGS"
                    | "RUSTDOCFLAGS"
                    | "CARGO_ENCODED_RUSTFLAGS"
                    | "CARGO_ENCODED_RUSTDOCFLAGS"
                    | "CARGO_BUILD_RUSTFLAGS"
                    | "CARGO_BUILD_TARGET"
                    | "CARGO_TARGET_DIR"
                    | "CARGO_MANIFEST_DIR"
                    | "CARGO_MANIFEST_PATH"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "RUSTC_LINKER"
                    | "RUSTC"
                    | "RUSTDOC"
                    | "CLIPPY_ARGS"
                    | "TARGET"
                    | "HOST"
                    | "PROFILE"
                    | "OUT_DIR"
                    | "OPT_LEVEL"
                    | "DEBUG"
            )
            || (!keep_toolchain && matches!(text, "RUSTUP_TOOLCHAIN" | "CARGO"));
        if host {
            command.env_remove(&name);
        }
    }
    command
}

fn path_variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set: build.rs runs under Cargo"))
}

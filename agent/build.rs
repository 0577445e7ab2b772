//! Builds the eBPF object that the agent carries, and puts it into `OUT_DIR/sluice-ebpf`.
//!
//! The object is built by the toolchain that builds the agent, where that has the standard library's source (`rust-src`), else
//! by the linked toolchain `ebpf`. Its build directory lies beside those of the profiles, so that debug, release and clippy
//! share one object. `SLUICE_MUTANT=NAME` builds both halves with `--cfg mutant="NAME"`, in a directory of its own;
//! `SLUICE_EBPF_LOG=1` builds programs that write lines through aya-log, in debug builds.

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
    println!("cargo::rerun-if-env-changed=SLUICE_MUTANT");
    println!("cargo::rerun-if-env-changed=SLUICE_EBPF_LOG");
    // Programs that write lines are for work on them: slower, and open to a flood of log lines.
    let log = env::var_os("SLUICE_EBPF_LOG").is_some_and(|value| value == "1");
    if log && env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        return Err("SLUICE_EBPF_LOG is for debug builds only".to_owned());
    }
    let mutant = mutant()?;
    if let Some(name) = &mutant {
        println!("cargo::rustc-cfg=mutant=\"{name}\"");
    }

    let linker = linker()?;
    let next = env::var_os("CARGO_FEATURE_LAYOUT_NEXT").is_some();
    let target_dir = target_dir(&out, mutant.as_deref(), next, log)?;
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
    if let Some(name) = &mutant {
        flags.push("--cfg".to_owned());
        flags.push(format!("mutant=\"{name}\""));
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

/// The mutant asked for: a name of letters, digits and dashes, as it becomes a directory and a flag.
fn mutant() -> Result<Option<String>, String> {
    match env::var("SLUICE_MUTANT") {
        Err(env::VarError::NotPresent) => Ok(None),
        Ok(name) if name.is_empty() => Ok(None),
        Ok(name)
            if name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') =>
        {
            Ok(Some(name))
        }
        other => Err(format!("SLUICE_MUTANT is not a mutant's name: {other:?}")),
    }
}

/// `target/ebpf`, `target/ebpf-log`, or `target/ebpf-mutants/NAME`, each with `-next` behind it for the tests' next layout: beside the
/// profile directory that `OUT_DIR` lies in.
fn target_dir(out: &Path, mutant: Option<&str>, next: bool, log: bool) -> Result<PathBuf, String> {
    let target = out
        .ancestors()
        .find(|ancestor| ancestor.file_name() == Some(OsStr::new("build")))
        .and_then(Path::parent)
        .and_then(Path::parent)
        .ok_or_else(|| format!("cannot find the target directory above {}", out.display()))?;
    let suffix = if next { "-next" } else { "" };
    Ok(match mutant {
        None if log => target.join(format!("ebpf-log{suffix}")),
        None => target.join(format!("ebpf{suffix}")),
        Some(name) => target.join("ebpf-mutants").join(format!("{name}{suffix}")),
    })
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

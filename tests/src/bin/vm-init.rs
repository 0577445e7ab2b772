//! The first process of the machine that `cargo xtask test vm` boots: mounts what the tests need, does what the plan says, and
//! ends the machine.
//!
//! The plan is a file of lines, words separated by tabs: `module FILE` loads a kernel module, `set NAME VALUE` is environment of
//! what comes behind, `do PROGRAM ARGUMENT...` runs something that must succeed, and `run NAME SECONDS PROGRAM ARGUMENT...` runs
//! tests for so long at most. What is said of each
//! step begins with [`SAYS`]; the last of it is `SAYS done`, and a reader that misses that knows that the machine died.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Begins each line of this program's own.
const SAYS: &str = "vm-init:";
/// The plan's file.
const PLAN: &str = "/vm/plan";
/// Where tests and this program write: the second serial line. The first is the kernel's.
const CONSOLE: &str = "/dev/ttyS1";
/// Where programs are looked for.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// What is mounted: kind and place.
const MOUNTS: [(&str, &str); 7] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("vm-init is the first process of a machine, and of no other use");
        return ExitCode::FAILURE;
    }
    let mut console = None;
    match prepare().and_then(|opened| follow(console.insert(opened))) {
        Ok(()) => say(console.as_mut(), "done"),
        Err(error) => say(console.as_mut(), format_args!("failed: {error:#}")),
    }
    // The emulator ends instead of starting the machine again.
    let refused = reboot(RebootMode::RB_AUTOBOOT);
    say(
        console.as_mut(),
        format_args!("cannot end the machine: {refused:?}"),
    );
    ExitCode::FAILURE
}

/// One line, on the console, or on the kernel's where there is none yet.
fn say(console: Option<&mut File>, line: impl Display) {
    let _nobody_else_to_tell = match console {
        Some(console) => writeln!(console, "{SAYS} {line}"),
        None => writeln!(std::io::stdout(), "{SAYS} {line}"),
    };
}

/// Mounts what there is to mount, and opens the console.
fn prepare() -> Result<File> {
    for (kind, place) in MOUNTS {
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting {kind} at {place}"))?;
    }
    OpenOptions::new()
        .write(true)
        .open(CONSOLE)
        .with_context(|| format!("opening {CONSOLE}"))
}

/// Does what the plan says.
fn follow(console: &mut File) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's name")?;
    say(Some(console), format_args!("Linux {}", release.trim()));
    let plan = fs::read_to_string(PLAN).with_context(|| format!("reading {PLAN}"))?;
    let mut environment = vec![("PATH", PATH), ("HOME", "/tmp"), ("RUST_BACKTRACE", "0")];
    for line in plan.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words.as_slice() {
            ["module", file] => load(file)?,
            ["set", name, value] => environment.push((name, value)),
            ["do", program, arguments @ ..] => {
                let status = start(console, &environment, program, arguments)?
                    .wait()
                    .with_context(|| format!("waiting for {program}"))?;
                if !status.success() {
                    bail!("`{}` ended with {status}", line.replace('\t', " "));
                }
            }
            ["run", name, seconds, program, arguments @ ..] => {
                let bound = Duration::from_secs(seconds.parse().context("the plan's seconds")?);
                say(Some(console), format_args!("begin {name}"));
                let started = Instant::now();
                let ended = bounded(start(console, &environment, program, arguments)?, bound)?;
                let took = started.elapsed().as_secs();
                match ended {
                    Some(status) => say(
                        Some(console),
                        format_args!("end {name}: {status} in {took} s"),
                    ),
                    None => say(
                        Some(console),
                        format_args!("end {name}: stopped, not done after {took} s"),
                    ),
                }
            }
            _ => bail!("the plan has a line that is none: {line:?}"),
        }
    }
    Ok(())
}

/// Loads a module.
fn load(file: &str) -> Result<()> {
    let module = File::open(file).with_context(|| format!("opening {file}"))?;
    finit_module(&module, c"", ModuleInitFlags::empty())
        .with_context(|| format!("loading the module {file}"))
}

/// Starts a program of a process group of its own, which writes to the console.
fn start(
    console: &File,
    environment: &[(&str, &str)],
    program: &str,
    arguments: &[&str],
) -> Result<Child> {
    let shared = || console.try_clone().context("sharing the console");
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(shared()?)
        .stderr(shared()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {program}"))
}

/// Waits for a process; kills its group when it takes longer than `bound`, and answers `None` then.
fn bounded(mut child: Child, bound: Duration) -> Result<Option<ExitStatus>> {
    let group = Pid::from_raw(i32::try_from(child.id()).context("a process's number")?);
    let (sender, ended) = mpsc::channel();
    let waiting = thread::spawn(move || sender.send(child.wait()));
    match ended.recv_timeout(bound) {
        Ok(status) => Ok(Some(status.context("waiting for a process")?)),
        Err(_) => {
            killpg(group, Signal::SIGKILL).context("killing what takes too long")?;
            let _nobody_asks_how_it_ended = waiting.join();
            Ok(None)
        }
    }
}

//! The machine: one run of the emulator.

use std::io::PipeReader;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Result;

use crate::setup::vm::{Kernel, QEMU};
use crate::test::runner;

/// Memory in MiB: the image and its unpacked copy, and for each test that runs two agents' maps of full size (two nodes, or two layouts).
const MEMORY: &str = "3072";
/// CPUs: programs meet each other on two, and a third would have no core of its own on a small machine.
const CPUS: &str = "2";
/// What the kernel is told. A panic ends the machine at once; what costs time and shows nothing here is left out: copies by
/// `rep` instructions, which the emulator does byte by byte, mitigations, and memory zeroed before its use.
const COMMAND_LINE: &str = "console=ttyS0 rdinit=/init panic=-1 quiet mitigations=off init_on_alloc=0 clearcpuid=rep_good,erms,fsrm";

/// Starts the emulator. The second serial line is its standard output; the kernel's messages go into a file.
pub(super) fn start(kernel: &Kernel, image: &Path, messages: &Path) -> Result<(Child, PipeReader)> {
    let mut command = Command::new(QEMU);
    command
        .args(["-accel", "tcg,thread=multi", "-smp", CPUS, "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        // The kernel ends a machine by starting it again, and so does a panic.
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(image)
        .args(["-append", COMMAND_LINE])
        .arg("-serial")
        .arg(format!("file:{}", messages.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null());
    runner::Echo::Shown.start(command)
}

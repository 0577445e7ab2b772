//! The verifier's gate: every program passes on the kernel that runs, and within bounds that leave room for older kernels.

use std::fs;

use aya::Ebpf;
use aya::programs::Program;
use tests::packet::object;

/// Instructions that the verifier may walk for a program that answers for established flows or belongs to sockets.
const SHORT: u32 = 20_000;
/// Programs that make flows, which are longer: every path of judging and translating is in them. And the one for ICMP errors, which does the work of
/// three hooks for packets in packets.
const LONG: [&str; 4] = [
    "new_from_pod",
    "new_to_pod",
    "new_from_uplink",
    "icmp_error",
];
/// Instructions that the verifier may walk for one of [`LONG`], by the beginning of the kernel's release: what was measured (38,000 on 6.18,
/// 35,000 on 6.1, where it was 106,000 before the programs' parts were walked by themselves), and half as much again or less. The kernel's own limit is 1,000,000; older ones walk more of the same program, since
/// they prune less.
const BOUNDS: [(&str, u32); 2] = [("6.1.", 60_000), ("6.18.", 47_000)];
/// The same on a kernel that was never measured: a fifth of what the kernel takes.
const ELSEWHERE: u32 = 200_000;

fn verified(program: &Program) -> u32 {
    program
        .info()
        .unwrap()
        .verified_instruction_count()
        .unwrap()
}

/// The bound of a program on a kernel.
fn bound(release: &str, program: &str) -> u32 {
    if !LONG.contains(&program) {
        return SHORT;
    }
    BOUNDS
        .iter()
        .find(|(kernel, _)| release.starts_with(kernel))
        .map_or(ELSEWHERE, |(_, bound)| *bound)
}

#[test]
fn every_program_passes_the_verifier_within_its_bound() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let release = release.trim();
    let mut ebpf: Ebpf = object::open(false).unwrap();
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 29, "{names:?}");
    let check = |ebpf: &mut Ebpf, name: &str, set_retval: bool| {
        object::load_program(ebpf, name).unwrap_or_else(|error| panic!("{error:#}"));
        let count = verified(ebpf.program(name).unwrap());
        let bound = bound(release, name);
        tests::say(format_args!(
            "Linux {release} set_retval={set_retval} {name:16} {count:>7} instructions verified, at most {bound}"
        ));
        assert!(
            count <= bound,
            "{name}: {count} instructions verified on Linux {release}, more than {bound}"
        );
    };
    for name in &names {
        check(&mut ebpf, name, false);
    }
    if !set_retval() {
        tests::say(format_args!("Linux {release} has no bpf_set_retval"));
        return;
    }
    // The switch is for socket programs, and no other reads it.
    let mut ebpf: Ebpf = object::open(true).unwrap();
    for name in &names {
        if matches!(ebpf.program(name), Some(Program::CgroupSockAddr(_))) {
            check(&mut ebpf, name, true);
        }
    }
}

/// Whether the kernel lets these programs set the error that a caller sees.
fn set_retval() -> bool {
    aya::sys::is_helper_supported(
        aya::programs::ProgramType::CgroupSockAddr,
        aya::sys::BpfHelper::BPF_FUNC_set_retval,
    )
    .unwrap()
}

#[test]
fn bounds_are_those_of_the_kernel_that_runs() {
    assert_eq!(bound("6.18.44", "new_to_pod"), 47_000);
    assert_eq!(bound("6.1.0-56-cloud-amd64", "new_from_pod"), 60_000);
    assert_eq!(bound("6.12.1", "new_from_pod"), ELSEWHERE);
    assert_eq!(bound("6.1.0", "to_pod"), SHORT);
}

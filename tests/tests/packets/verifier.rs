//! The verifier's gate: every program passes, and within bounds that leave room for older kernels.

use aya::Ebpf;
use aya::programs::Program;
use tests::packet::object;

/// Instructions that the verifier may walk for one program. The kernel's own limit is 1,000,000; older ones walk more of the same
/// program, since they prune less.
const LIMIT: u32 = 300_000;

fn verified(program: &Program) -> u32 {
    program
        .info()
        .unwrap()
        .verified_instruction_count()
        .unwrap()
}

#[test]
fn every_program_passes_the_verifier_within_its_bound() {
    for set_retval in [false, true] {
        let mut ebpf: Ebpf = object::open(set_retval).unwrap();
        let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        names.sort();
        assert_eq!(names.len(), 26, "{names:?}");
        for name in names {
            object::load_program(&mut ebpf, &name).unwrap_or_else(|error| panic!("{error:#}"));
            let count = verified(ebpf.program(&name).unwrap());
            tests::say(format_args!(
                "set_retval={set_retval} {name:16} {count:>7} instructions verified"
            ));
            assert!(
                count <= LIMIT,
                "{name}: {count} instructions verified, more than {LIMIT}"
            );
        }
    }
}

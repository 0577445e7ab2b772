use std::collections::BTreeSet;

use aya_obj::generated::bpf_insn;

use super::table::{self, Row, Thing};
use super::{findings, of_function, of_source};

/// An instruction, from its code, source register, offset and immediate.
fn instruction(code: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, source),
        off,
        imm,
    }
}

fn used(instructions: &[bpf_insn], program: bool) -> Vec<Thing> {
    let mut used = BTreeSet::new();
    of_function(instructions, program, &mut used);
    used.into_iter().collect()
}

fn row(thing: Thing, first: (u32, u32), instead: Option<&'static str>) -> Row {
    Row {
        thing,
        name: "x",
        first,
        instead,
    }
}

#[test]
fn helpers_are_read_from_calls_and_from_nothing_else() {
    let helper = instruction(0x85, 0, 0, 160);
    let function = instruction(0x85, 1, 0, 12);
    let wide = instruction(0x18, 0, 0, 1);
    // The second half of a wide load looks like whatever its bits say.
    let data = instruction(0x85, 0, 0, 99);
    assert_eq!(
        used(&[wide, data, function, helper], true),
        [Thing::Helper(160)]
    );
}

#[test]
fn loops_short_jumps_and_fetching_atomics_are_seen() {
    assert_eq!(
        used(&[instruction(0x1e, 0, -3, 0)], true),
        [
            Thing::Instruction(table::LOOPS),
            Thing::Instruction(table::JUMPS_32)
        ]
    );
    assert!(
        used(
            &[instruction(0x15, 0, 3, 0), instruction(0x95, 0, 0, 0)],
            true
        )
        .is_empty()
    );
    assert_eq!(
        used(&[instruction(0xdb, 0, 0, 0x01)], true),
        [Thing::Instruction(table::FETCHING_ATOMICS)]
    );
    assert!(used(&[instruction(0xdb, 0, 0, 0)], true).is_empty());
}

#[test]
fn a_tail_call_is_beside_subprograms_in_a_caller_and_in_a_subprogram() {
    let tail_call = instruction(0x85, 0, 0, 12);
    let call = instruction(0x85, 1, 0, 7);
    let both = Thing::Instruction(table::TAIL_CALLS_AND_SUBPROGRAMS);
    assert!(!used(&[tail_call], true).contains(&both));
    assert!(used(&[tail_call, call], true).contains(&both));
    assert!(used(&[tail_call], false).contains(&both));
}

#[test]
fn names_of_the_kernel_are_read_from_code_and_not_from_comments_or_tests() {
    let mut used = BTreeSet::new();
    let text = "// BPF_COMMENT\nfn f() { x(bpf_cmd::BPF_PROG_BIND_MAP, libc::SO_MARK, TcHandle::CLSACT, BPF_FS) }\n\
                #[cfg(test)]\nmod tests { use BPF_IN_A_TEST; }";
    of_source(text, &mut used);
    let names: Vec<Thing> = ["BPF_PROG_BIND_MAP", "CLSACT", "SO_MARK"]
        .map(|name| Thing::Name(name.to_owned()))
        .into();
    assert_eq!(used.into_iter().collect::<Vec<_>>(), names);
}

#[test]
fn each_kind_of_disagreement_is_a_finding() {
    let one = || Thing::Helper(1);
    let used = BTreeSet::from([one()]);
    assert!(findings(&used, &[row(one(), (3, 19), None)]).is_empty());
    assert!(findings(&used, &[row(one(), (6, 6), Some("clsact"))]).is_empty());
    let lacks = findings(&used, &[]);
    assert!(lacks[0].contains("not in"), "{lacks:?}");
    let claims = findings(&BTreeSet::new(), &[row(one(), (3, 19), None)]);
    assert!(claims[0].contains("nothing uses it"), "{claims:?}");
    let late = findings(&used, &[row(one(), (5, 16), None)]);
    assert!(late[0].contains("5.16"), "{late:?}");
    let twice = findings(
        &used,
        &[row(one(), (3, 19), None), row(one(), (3, 19), None)],
    );
    assert!(twice[0].contains("two rows"), "{twice:?}");
}

#[test]
fn versions_are_compared_by_number_and_not_as_text() {
    assert!((5, 9) < table::FLOOR && table::FLOOR < (5, 16) && (4, 18) < table::FLOOR);
}

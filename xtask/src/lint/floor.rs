//! The floor: every helper, kind of map, attach type and call that Sluice uses is in a table with its first kernel, and none is
//! younger than the oldest kernel that Sluice is for, unless something else is done there.
//!
//! What is used is read from the built object (helpers from its call instructions, maps, programs, kinds of instructions) and from
//! the source of `agent/src/datapath` (commands, attach types, options). What aya does by itself is not in the table: loading programs, maps
//! and type information, for which it asks the kernel what it has.

mod table;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use aya_obj::generated::bpf_insn;
use aya_obj::{Object, ProgramSection};
use serde_json::Value;

use super::source;
use crate::{setup, shell, workspace};
use table::{FLOOR, Row, Thing};

/// The object's name in the output directory of the agent's build script.
const OBJECT: &str = "sluice-ebpf";
/// The part of the agent that talks to the kernel.
const SOURCE: &str = "agent/src/datapath";
/// Names that begin so are the kernel's, and must be in the table.
const KERNELS: [&str; 3] = ["BPF_", "SO_", "SYS_"];
/// Names that only begin so.
const NOT_KERNELS: [&str; 1] = ["BPF_FS"];

/// How a name begins that the compiler has made longer: such a function is not seen from outside.
const MANGLED: &str = "_R";
/// Functions of the compiler's own, which aya makes local before it loads them.
const MEMORY: [&str; 4] = ["memcpy", "memmove", "memset", "memcmp"];

/// The parts of an instruction's code (Documentation/bpf/standardization/instruction-set.rst).
mod code {
    /// Mask of the class.
    pub(super) const CLASS: u8 = 0x07;
    /// Class: store from a register, or an atomic operation.
    pub(super) const STX: u8 = 0x03;
    /// Class: jump on 64 bits.
    pub(super) const JMP: u8 = 0x05;
    /// Class: jump on 32 bits.
    pub(super) const JMP32: u8 = 0x06;
    /// A call.
    pub(super) const CALL: u8 = 0x85;
    /// The end of a program.
    pub(super) const EXIT: u8 = 0x95;
    /// Mask of the mode of a store, and its value for atomic operations.
    pub(super) const ATOMIC: (u8, u8) = (0xe0, 0xc0);
    /// The bit of an atomic operation's immediate that asks for the old value.
    pub(super) const FETCH: i32 = 0x01;
    /// A call's source register where it names a helper.
    pub(super) const HELPER: u8 = 0;
    /// A call's source register where it names another function of the object.
    pub(super) const FUNCTION: u8 = 1;
    /// Two instructions wide: a 64-bit immediate. The second is data.
    pub(super) const WIDE: u8 = 0x18;
}

/// Compares what is used with the table.
///
/// # Errors
/// The object or the source cannot be read.
pub(super) fn check() -> Result<Vec<String>> {
    let bytes = object()?;
    let object = Object::parse(&bytes).context("the built eBPF object is broken")?;
    let mut used = of_object(&object);
    let root = workspace::root();
    for file in workspace::files()? {
        if file.starts_with(SOURCE) && is_production(&file) {
            let text = std::fs::read_to_string(root.join(&file))
                .with_context(|| format!("cannot read {}", file.display()))?;
            of_source(&text, &mut used);
        }
    }
    Ok(findings(&used, &table::rows()))
}

/// Whether a source file is more than tests.
fn is_production(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "rs")
        && !file.components().any(|part| part.as_os_str() == "tests")
        && file.file_stem().is_none_or(|stem| stem != "tests")
}

/// The object that clippy's build of the agent has just made: the same words to cargo, so that nothing is built.
fn object() -> Result<Vec<u8>> {
    let mut command = workspace::cargo();
    command.args(super::CLIPPY).arg("--message-format=json");
    let messages = shell::output(setup::with_ebpf_toolchain(&mut command))
        .context("the agent does not build: `cargo xtask lint clippy` says why")?;
    let directory = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "build-script-executed")
        .filter_map(|message| Some(message["out_dir"].as_str()?.to_owned()))
        .find(|directory| Path::new(directory).join(OBJECT).is_file())
        .with_context(|| format!("no build script has made an {OBJECT}"))?;
    let path = Path::new(&directory).join(OBJECT);
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// What an object uses.
fn of_object(object: &Object) -> BTreeSet<Thing> {
    let mut used = BTreeSet::new();
    for (name, map) in &object.maps {
        if name.starts_with('.') {
            used.insert(Thing::Instruction(table::DATA));
        }
        used.insert(Thing::Map(map.map_type()));
        for bit in (0..u32::BITS).map(|bit| 1 << bit) {
            if map.map_flags() & bit != 0 {
                used.insert(Thing::MapFlag(bit));
            }
        }
    }
    for program in object.programs.values() {
        used.insert(Thing::Program(match &program.section {
            ProgramSection::CgroupSockAddr { attach_type } => {
                format!("CgroupSockAddr {attach_type:?}")
            }
            other => format!("{other:?}"),
        }));
    }
    let programs: BTreeSet<_> = object
        .programs
        .values()
        .map(aya_obj::Program::function_key)
        .collect();
    for (key, function) in &object.functions {
        let name = function.name.as_str();
        if !programs.contains(key) && !name.starts_with(MANGLED) && !MEMORY.contains(&name) {
            used.insert(Thing::Instruction(table::GLOBAL_FUNCTIONS));
        }
        of_function(&function.instructions, programs.contains(key), &mut used);
    }
    used
}

/// What a function uses; `program` says that it is one that the kernel calls.
fn of_function(instructions: &[bpf_insn], program: bool, used: &mut BTreeSet<Thing>) {
    use aya_obj::generated::bpf_func_id::BPF_FUNC_tail_call;
    let (mut tail_calls, mut calls) = (false, false);
    let mut rest = instructions.iter();
    while let Some(instruction) = rest.next() {
        let class = instruction.code & code::CLASS;
        match instruction.code {
            code::WIDE => {
                rest.next();
            }
            code::CALL if instruction.src_reg() == code::HELPER => {
                let helper = instruction.imm.cast_unsigned();
                tail_calls |= helper == BPF_FUNC_tail_call as u32;
                used.insert(Thing::Helper(helper));
            }
            code::CALL => calls |= instruction.src_reg() == code::FUNCTION,
            code::EXIT => {}
            _ if class == code::JMP || class == code::JMP32 => {
                if instruction.off < 0 {
                    used.insert(Thing::Instruction(table::LOOPS));
                }
                if class == code::JMP32 {
                    used.insert(Thing::Instruction(table::JUMPS_32));
                }
            }
            store
                if class == code::STX
                    && store & code::ATOMIC.0 == code::ATOMIC.1
                    && instruction.imm & code::FETCH != 0 =>
            {
                used.insert(Thing::Instruction(table::FETCHING_ATOMICS));
            }
            _ => {}
        }
    }
    // A function that is called is a subprogram, and its own tail calls are beside its caller.
    if tail_calls && (calls || !program) {
        used.insert(Thing::Instruction(table::TAIL_CALLS_AND_SUBPROGRAMS));
    }
}

/// The kernel's names that a source file uses, and those of the table.
fn of_source(text: &str, used: &mut BTreeSet<Thing>) {
    let in_table: BTreeSet<&str> = table::rows()
        .iter()
        .filter(|row| matches!(row.thing, Thing::Name(_)))
        .map(|row| row.name)
        .collect();
    for token in source::tokens(text) {
        let name = token.text.as_str();
        let kernels = KERNELS.iter().any(|start| name.starts_with(start));
        if in_table.contains(name) || (kernels && !NOT_KERNELS.contains(&name)) {
            used.insert(Thing::Name(name.to_owned()));
        }
    }
}

/// Everything that is wrong between what is used and the table.
fn findings(used: &BTreeSet<Thing>, rows: &[Row]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut known = BTreeSet::new();
    let (major, minor) = FLOOR;
    for row in rows {
        if !known.insert(&row.thing) {
            findings.push(format!("{}: two rows", row.name));
        }
        if !used.contains(&row.thing) {
            findings.push(format!(
                "{} ({:?}): in the table, and nothing uses it",
                row.name, row.thing
            ));
        }
        if row.first > FLOOR && row.instead.is_none() {
            findings.push(format!(
                "{}: came with Linux {}.{}, Sluice is for {major}.{minor}, and the table does not say what is done without it",
                row.name, row.first.0, row.first.1
            ));
        }
    }
    findings.extend(
        used.iter()
            .filter(|thing| !known.contains(thing))
            .map(|thing| {
                format!(
                    "{thing:?}: used, and not in xtask/src/lint/floor/table.rs with its first kernel"
                )
            }),
    );
    findings
}

#[cfg(test)]
mod tests;

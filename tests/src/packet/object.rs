//! Loading the eBPF object: fresh maps each time, small ones, so that a row takes milliseconds.

use std::fs;
use std::sync::OnceLock;

use agent_common::{Timeouts, gate, hook};
use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, ProgramArray};
use aya::programs::{CgroupSockAddr, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

/// The environment variable that names an object to test instead of the one the agent carries.
pub const OBJECT: &str = "SLUICE_EBPF_OBJECT";

/// Bytes of the ring: one page, the least there is, so that a row can fill it.
pub const RING_BYTES: u32 = 4_096;

/// Capacities for rows. LRU maps give free elements to CPUs in batches of 128, so a small one evicts early: these hold all that a row
/// puts into them.
const CAPACITIES: &[(&str, u32)] = &[
    ("conntrack", 16_384),
    ("unreplied", 16_384),
    ("sock_reverse", 1_024),
    ("fragments", 1_024),
    ("addresses", 1_024),
    ("services", 1_024),
    ("prefixes", 1_024),
    ("rules", 1_024),
    ("groups", 1_024),
    ("heads", 64),
    ("slots", 256),
    ("backends", 256),
    ("pods", 64),
    ("shares", 64),
    ("events", RING_BYTES),
];

/// What a program array slot holds, by program name.
const PROGRAMS: &[(u32, &str)] = &[
    (hook::FROM_POD, "from_pod"),
    (hook::TO_POD, "to_pod"),
    (hook::FROM_UPLINK, "from_uplink"),
    (hook::slot::NEW_FROM_POD, "new_from_pod"),
    (hook::slot::NEW_TO_POD, "new_to_pod"),
    (hook::slot::NEW_FROM_UPLINK, "new_from_uplink"),
    (hook::slot::REJECT, "reject"),
    (hook::slot::ICMP_ERROR, "icmp_error"),
    (hook::slot::EXTENSION, "extension"),
    (hook::slot::FRAGMENT, "fragment"),
];

/// The stubs that are attached to interfaces.
pub const STUBS: [&str; 3] = ["stub_from_pod", "stub_to_pod", "stub_from_uplink"];

fn bytes() -> Result<&'static [u8]> {
    static NAMED: OnceLock<Result<Option<Vec<u8>>, String>> = OnceLock::new();
    let named = NAMED.get_or_init(|| {
        let Some(path) = std::env::var_os(OBJECT) else {
            return Ok(None);
        };
        fs::read(&path)
            .map(Some)
            .map_err(|e| format!("reading {}: {e}", path.display()))
    });
    match named {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Ok(sluice::datapath::object::BYTES),
        Err(error) => Err(anyhow!("{error}")),
    }
}

/// Opens the object with small maps. `set_retval` says whether the programs may use `bpf_set_retval`.
///
/// # Errors
/// No object, or the kernel takes none of its maps.
pub fn open(set_retval: bool) -> Result<Ebpf> {
    open_told(set_retval, &Timeouts::DEFAULT)
}

/// The same, with programs that are told how long flows may be idle, as an agent tells them.
///
/// # Errors
/// As [`open`].
pub fn open_told(set_retval: bool, timeouts: &Timeouts) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    sluice::datapath::load::tell_timeouts(&mut loader, timeouts);
    for (name, entries) in CAPACITIES {
        loader.map_max_entries(name, *entries);
    }
    let set_retval = u32::from(set_retval);
    loader.override_global("HAS_SET_RETVAL", &set_retval, true);
    let mutant = sluice::mutant::word();
    if let Some(number) = &mutant {
        loader.override_global("MUTANT", number, true);
    }
    loader.load(bytes()?).context("loading the eBPF object")
}

/// The program arrays.
pub struct Arrays {
    programs: ProgramArray<MapData>,
    gate: ProgramArray<MapData>,
}

impl Arrays {
    /// Empties a slot; a hook's in the gate.
    ///
    /// # Errors
    /// It was empty.
    pub fn clear(&mut self, slot: u32) -> Result<()> {
        if slot < hook::HOOKS {
            self.gate.clear_index(&gate::slot(0, slot))?;
        } else {
            self.programs.clear_index(&slot)?;
        }
        Ok(())
    }
}

/// Loads the TC programs and fills the program arrays, which the caller keeps: with its last descriptor the kernel empties one.
///
/// # Errors
/// The verifier refuses a program; the message ends with its last lines.
pub fn load_classifiers(ebpf: &mut Ebpf) -> Result<Arrays> {
    for name in PROGRAMS.iter().map(|(_, name)| *name).chain(STUBS) {
        load_program(ebpf, name)?;
    }
    let array = ebpf
        .take_map("programs")
        .context("no map `programs` in the object")?;
    let array = ProgramArray::try_from(array)?;
    let gate = ebpf
        .take_map("gate")
        .context("no map `gate` in the object")?;
    let mut arrays = Arrays {
        programs: array,
        gate: ProgramArray::try_from(gate)?,
    };
    fill(ebpf, &mut arrays)?;
    Ok(arrays)
}

/// Fills the program arrays; of the gate the first side, which is in force where nobody has stored its word.
///
/// # Errors
/// A program was not loaded, or the kernel refuses the write.
pub fn fill(ebpf: &Ebpf, arrays: &mut Arrays) -> Result<()> {
    for (slot, name) in PROGRAMS {
        let program = ebpf
            .program(name)
            .with_context(|| format!("no program `{name}` in the object"))?;
        let program: &SchedClassifier = program.try_into()?;
        if *slot < hook::HOOKS {
            arrays.gate.set(gate::slot(0, *slot), program.fd()?, 0)?;
        } else {
            arrays.programs.set(*slot, program.fd()?, 0)?;
        }
    }
    Ok(())
}

/// Loads one program, whatever its type.
///
/// # Errors
/// There is none of that name, or the verifier refuses it; the message ends with its last lines.
pub fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program `{name}` in the object"))?;
    let loaded = match program {
        aya::programs::Program::SchedClassifier(p) => SchedClassifier::load(p),
        aya::programs::Program::CgroupSockAddr(p) => CgroupSockAddr::load(p),
        other => return Err(anyhow!("{name} is of an unexpected type: {other:?}")),
    };
    loaded.map_err(|error| anyhow!("the verifier refuses {name}: {}", last_lines(&error)))
}

/// The end of a verifier's log is where it says why.
fn last_lines(error: &aya::programs::ProgramError) -> String {
    const LINES: usize = 30;
    let text = format!("{error:?}").replace("\\n", "\n");
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

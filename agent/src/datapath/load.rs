//! From the object in the binary to maps, programs and the parts of the agent that use them.
//!
//! Loading changes nothing that packets meet: maps that are pinned are taken over as they are, programs pass the verifier and wait.
//! [`Programs::install`] puts them in force, and [`Programs::settle`] ends what an agent of another layout left.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use agent_common::layout::known;
use agent_common::{Timeouts, gate};
use aya::maps::{Map, MapData, MapError, ProgramArray};
use aya::programs::{Program, ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};

use super::capacity::Kept;
use super::conntrack::Conntrack;
use super::counters::Counters;
use super::events::EventRing;
use super::gate::{Gate, SOCKETS};
use super::grace::Grace;
use super::kernel::KernelDatapath;
use super::log::ProgramLog;
use super::migrate::{self, MigrateError, OldMaps};
use super::object::{self, ObjectError, Sizes};
use super::pins::{PinError, Pins, Shape};
use super::programs::Programs;
use super::words::Words;
use super::{DatapathError, drift, sys};
use crate::mutant;

/// Lines of the verifier's log that an error shows; the last ones say what is wrong.
const VERIFIER_LINES: usize = 12;

/// Why the datapath could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The object in the binary is broken.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel did not take the maps.
    #[error("cannot create the maps: {0}")]
    Maps(#[from] EbpfError),
    /// A map cannot be used.
    #[error("map {map}: {source}")]
    Map {
        /// Map name.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map cannot be mapped into the agent.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The object lacks something that this agent needs.
    #[error("the eBPF object in this binary has no {0}")]
    Missing(String),
    /// The verifier refused a program.
    #[error("the kernel refuses program {program}: {source}\n{log}")]
    Verifier {
        /// Program name.
        program: String,
        /// The error number.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// A program could not be loaded for another reason.
    #[error("program {program}: {source}")]
    Program {
        /// Program name.
        program: String,
        /// Why.
        source: ProgramError,
    },
    /// What another agent left cannot be taken over.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a loaded datapath consists of; each part goes to the task that uses it.
#[derive(Debug)]
pub struct Loaded {
    /// The maps that the agent writes.
    pub datapath: KernelDatapath,
    /// The programs, to be installed and attached.
    pub programs: Programs,
    /// The pinned maps, to be looked after.
    pub maps: drift::Maps,
    /// The ring of events.
    pub events: EventRing,
    /// The counters.
    pub counters: Counters,
    /// The tables of flows.
    pub conntrack: Conntrack,
    /// Whether maps of an earlier agent were taken over. (Epochs must then be raised once.)
    pub adopted: bool,
    /// Every pinned map with its capacity, by name.
    pub capacities: BTreeMap<String, u32>,
    /// Lines of the programs, where they write any.
    pub log: Option<ProgramLog>,
    /// Tables of flows that keep another capacity than was asked for.
    pub kept: Vec<Kept>,
}

/// Tells the programs how long flows may be idle; until they are loaded.
pub fn tell_timeouts<'a>(loader: &mut EbpfLoader<'a>, timeouts: &'a Timeouts) {
    if !mutant::removed("untold-timeouts") {
        loader.override_global("TIMEOUTS", timeouts, true);
    }
}

/// Takes over or makes the pinned maps, and loads every program. Where maps of another layout are in force, this one's are filled
/// from them. Tables of flows that are pinned keep their capacity; `timeouts` are those of the programs and of the
/// collection alike.
///
/// # Errors
/// See [`LoadError`]. What packets meet is as before.
pub fn load(pins: &Pins, sizes: &Sizes, timeouts: &Timeouts) -> Result<Loaded, LoadError> {
    let (sizes, kept) = sizes.keep_pinned(pins)?;
    let maps = object::maps(&sizes)?;
    let present = pins.check(&maps)?;

    let has_set_retval = u32::from(has_set_retval());
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
        .override_global("HAS_SET_RETVAL", &has_set_retval, false);
    tell_timeouts(&mut loader, timeouts);
    let mutant = mutant::word();
    if let Some(number) = &mutant {
        loader.override_global("MUTANT", number, true);
    }
    if let Some(name) = mutant::chosen() {
        tracing::warn!(name, "a build for tests that runs without one mechanism");
    }
    for (name, entries) in sizes.by_name() {
        loader.map_max_entries(name, entries);
    }
    for (name, _) in &maps {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut ebpf = loader.load(object::BYTES)?;
    recheck(&ebpf, pins, &maps)?;
    load_programs(&mut ebpf)?;

    let slots: ProgramArray<MapData> = typed(&mut ebpf, "programs")?;
    let gate_id = pinned_id(pins, "gate")?;
    let mut datapath = datapath(&mut ebpf)?;
    let mut adopted = present.iter().any(|name| !in_gate(name));
    if let Some(layout) = known(pins.found().layout())
        && layout.number != agent_common::limits::LAYOUT
        && !mutant::removed("flip-before-fill")
    {
        let old = OldMaps::open(pins, layout)?;
        let entries = migrate::seed(&old, &mut datapath)?;
        tracing::info!(
            from = layout.number,
            entries,
            "maps filled from another layout's"
        );
        adopted = true;
    }
    let mut loaded = Loaded {
        log: ProgramLog::of(&mut ebpf),
        datapath,
        events: EventRing::new(typed(&mut ebpf, "events")?),
        counters: Counters::new(typed(&mut ebpf, "counters")?),
        conntrack: Conntrack::new(
            data(&mut ebpf, "conntrack")?,
            data(&mut ebpf, "unreplied")?,
            *timeouts,
        ),
        kept,
        maps: drift::Maps::open(pins, &maps)?,
        programs: Programs {
            slots,
            gate: open_gate(&mut ebpf)?,
            grace: grace()?,
            settled: false,
            gate_id,
            ebpf,
        },
        adopted,
        capacities: maps
            .into_iter()
            .filter(|(name, _)| !in_gate(name))
            .map(|(name, shape)| (name, shape.max_entries))
            .collect(),
    };
    if mutant::removed("flip-before-fill") {
        loaded.programs.install()?;
    }
    Ok(loaded)
}

/// Whether cgroup address programs may set the error that the caller sees (Linux 6.1, or where it was backported).
fn has_set_retval() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .unwrap_or(false)
}

/// Compares what aya really opened: between the check and its own open, a pin may have been replaced.
fn recheck(ebpf: &Ebpf, pins: &Pins, maps: &[(String, Shape)]) -> Result<(), LoadError> {
    for (name, map) in ebpf.maps() {
        let Some((_, wanted)) = maps.iter().find(|(known, _)| known == name) else {
            continue;
        };
        let Some(data) = map_data(map) else { continue };
        let info = sys::map_info(data.fd().as_fd()).map_err(|source| LoadError::Io {
            what: "reading what was opened",
            source,
        })?;
        let differences = Shape::of(&info).differences(wanted);
        if !differences.is_empty() {
            return Err(pins.differs(pins.map(name), differences).into());
        }
    }
    Ok(())
}

/// The kinds of maps that Sluice uses.
const fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

fn pinned_id(pins: &Pins, name: &'static str) -> Result<u32, LoadError> {
    let read = || {
        let (_, fd) = sys::open_pinned(&pins.map(name))?;
        sys::map_info(fd.as_fd())
    };
    read().map(|info| info.id).map_err(|source| LoadError::Io {
        what: "reading the pinned gate",
        source,
    })
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name)
        .ok_or_else(|| LoadError::Missing(format!("map {name}")))
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    T::try_from(take(ebpf, name)?).map_err(|source| LoadError::Map { map: name, source })
}

fn data(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, LoadError> {
    match take(ebpf, name)? {
        Map::Array(data) | Map::LruHashMap(data) => Ok(data),
        _ => Err(LoadError::Missing(format!(
            "map {name} of the expected kind"
        ))),
    }
}

fn words<T: aya::Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Words<T>, LoadError> {
    Ok(Words::new(name, data(ebpf, name)?)?)
}

fn datapath(ebpf: &mut Ebpf) -> Result<KernelDatapath, LoadError> {
    Ok(KernelDatapath {
        backends: words(ebpf, "backends")?,
        slots: words(ebpf, "slots")?,
        heads: words(ebpf, "heads")?,
        groups: words(ebpf, "groups")?,
        pods: words(ebpf, "pods")?,
        config: words(ebpf, "config")?,
        services: typed(ebpf, "services")?,
        addresses: typed(ebpf, "addresses")?,
        links: typed(ebpf, "links")?,
        prefixes: typed(ebpf, "prefixes")?,
        rules: typed(ebpf, "rules")?,
        grace: grace()?,
    })
}

fn grace() -> Result<Grace, LoadError> {
    Grace::new().map_err(|source| LoadError::Io {
        what: "creating the map of maps that waits for a grace period",
        source,
    })
}

/// Whether a map is the gate's, and of no layout.
fn in_gate(name: &str) -> bool {
    gate::MAPS.contains(&name)
}

fn open_gate(ebpf: &mut Ebpf) -> Result<Gate, LoadError> {
    let sockets = SOCKETS.map(|hook| typed(ebpf, hook.map));
    Ok(Gate {
        slots: typed(ebpf, "gate")?,
        sockets: sockets.into_iter().collect::<Result<_, _>>()?,
        word: words(ebpf, "gate_word")?,
    })
}

/// Loads every program, whatever its slot or hook.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut() {
        let result = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => return Err(LoadError::Missing(format!("use for program {name}"))),
        };
        result.map_err(|error| refusal(name, error))?;
    }
    Ok(())
}

fn refusal(name: &str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let text = verifier_log.to_string();
            let lines: Vec<&str> = text.lines().collect();
            LoadError::Verifier {
                program: name.to_owned(),
                source: io_error,
                log: lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n"),
            }
        }
        source => LoadError::Program {
            program: name.to_owned(),
            source,
        },
    }
}

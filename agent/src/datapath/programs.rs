//! The loaded programs: put in force, and what flows of another layout are moved by.

use std::os::fd::{AsFd, BorrowedFd};

use agent_common::layout::known;
use agent_common::limits::LAYOUT;
use agent_common::{gate, hook};
use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::{CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier};

use super::gate::{Gate, Hook, SOCKETS, SocketHook};
use super::grace::Grace;
use super::load::LoadError;
use super::migrate::{self, Moved, OldMaps};
use super::pins::{PinError, Pins};

/// What the programs of a layout tail-call, and its slot: what is called before what calls it, so that a new program finds whatever it needs.
const CALLED: [(&str, u32); 7] = [
    ("reject", hook::slot::REJECT),
    ("icmp_error", hook::slot::ICMP_ERROR),
    ("extension", hook::slot::EXTENSION),
    ("fragment", hook::slot::FRAGMENT),
    ("new_from_pod", hook::slot::NEW_FROM_POD),
    ("new_to_pod", hook::slot::NEW_TO_POD),
    ("new_from_uplink", hook::slot::NEW_FROM_UPLINK),
];
/// The hooks' programs, and their numbers: the gate has them.
const HOOKS: [(&str, u32); 3] = [
    ("from_pod", hook::FROM_POD),
    ("to_pod", hook::TO_POD),
    ("from_uplink", hook::FROM_UPLINK),
];

/// The loaded programs. They live as long as this, or as a slot, pin or link holds them.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) slots: ProgramArray<MapData>,
    pub(super) gate: Gate,
    pub(super) grace: Grace,
    pub(super) settled: bool,
    /// Number of the gate's program array: stubs that do not use it are not ours to keep.
    pub(super) gate_id: u32,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs")
            .field("gate_id", &self.gate_id)
            .finish_non_exhaustive()
    }
}

impl Programs {
    /// Puts the programs in force: first what others tail-call, so that no packet meets a program whose helpers are missing, then
    /// the hooks' own. Programs of this layout are replaced one by one, each atomically; those of another, and none, all at once
    /// ([`super::gate`]). Links are not touched.
    ///
    /// # Errors
    /// The kernel refused a slot. Those of this layout that stand before it are new already, which is harmless within one.
    pub fn install(&mut self) -> Result<(), LoadError> {
        for (name, slot) in CALLED {
            let fd = fd(name, classifier(&self.ebpf, name)?.fd())?;
            self.slots
                .set(slot, fd, 0)
                .map_err(|source| LoadError::Map {
                    map: "programs",
                    source,
                })?;
        }
        let word = self.gate.word()?;
        let side = Gate::side(word);
        for (name, hook) in HOOKS {
            let fd = fd(name, classifier(&self.ebpf, name)?.fd())?;
            self.gate.put(side, Hook::Tc(hook), fd)?;
        }
        for (at, hook) in SOCKETS.into_iter().enumerate() {
            let fd = fd(hook.name, socket(&self.ebpf, hook.name)?.fd())?;
            self.gate.put(side, Hook::Socket(at), fd)?;
        }
        if side != word.side() {
            self.gate.store(word.flipped(LAYOUT))?;
        }
        Ok(())
    }

    /// Every slot that is in force with its map, number and program: what others tail-call first, then the hooks' own, as
    /// [`Self::install`] fills them.
    ///
    /// # Errors
    /// The gate cannot be read.
    pub(super) fn slots(
        &self,
    ) -> Result<Vec<(&'static str, u32, &'static str, BorrowedFd<'_>)>, LoadError> {
        let side = self.gate.word()?.side();
        let mut slots = Vec::new();
        for (name, slot) in CALLED {
            let fd = fd(name, self.classifier(name)?.fd())?.as_fd();
            slots.push(("programs", slot, name, fd));
        }
        for (name, hook) in HOOKS {
            let fd = fd(name, self.classifier(name)?.fd())?.as_fd();
            slots.push(("gate", gate::slot(side, hook), name, fd));
        }
        for SocketHook { name, map, .. } in SOCKETS {
            let fd = fd(name, socket(&self.ebpf, name)?.fd())?.as_fd();
            slots.push((map, side, name, fd));
        }
        Ok(slots)
    }

    /// Takes over the flows of another layout, after [`Self::install`], and removes its maps. Does nothing where there is none, and
    /// once it is done. Blocks as long as three walks through the tables and three grace periods take; packets do not wait.
    ///
    /// # Errors
    /// What was in force is, flows that were not copied are the old programs', and the call can be made again.
    pub fn settle(&mut self, pins: &Pins) -> Result<(), LoadError> {
        if self.settled {
            return Ok(());
        }
        let word = self.gate.word()?;
        if word.handover() {
            let started = std::time::Instant::now();
            let moved = self.take_over(pins, word)?;
            tracing::info!(
                from = word.from(),
                flows = moved.flows,
                sockets = moved.sockets,
                took = ?started.elapsed(),
                "connections of another layout taken over"
            );
        }
        self.gate.clear(word.other())?;
        for directory in pins.remove_others()? {
            tracing::info!(directory = %directory.display(), "removed: nothing uses its maps any more");
        }
        self.settled = true;
        Ok(())
    }

    fn take_over(&self, pins: &Pins, word: gate::GateWord) -> Result<Moved, LoadError> {
        let from = word.from();
        let layout = known(from).ok_or_else(|| PinError::OtherLayout {
            root: pins.root().to_path_buf(),
            found: format!("v{from}"),
        })?;
        let old = OldMaps::open(pins, layout)?;
        // Runs of the old programs that began before the flip write to the old tables until they end.
        self.wait()?;
        let mut moved = migrate::move_flows(&old, pins)?;
        // Each time what is left is what the old programs made during the walk before: datagrams' flows, first without, then with
        // those that are translated already in the new tables.
        for next in [word.services_moved(), word.settled()] {
            self.gate.store(next)?;
            self.wait()?;
            moved += migrate::move_flows(&old, pins)?;
        }
        Ok(moved)
    }

    fn wait(&self) -> Result<(), LoadError> {
        self.grace.wait().map_err(|source| LoadError::Io {
            what: "waiting for a grace period",
            source,
        })
    }

    pub(super) fn classifier(&self, name: &str) -> Result<&SchedClassifier, LoadError> {
        classifier(&self.ebpf, name)
    }

    /// The stub of a socket hook.
    pub(super) fn socket(&self, name: &str) -> Result<&CgroupSockAddr, LoadError> {
        socket(&self.ebpf, &format!("stub_{name}"))
    }
}

fn fd<'a>(name: &str, fd: Result<&'a ProgramFd, ProgramError>) -> Result<&'a ProgramFd, LoadError> {
    fd.map_err(|source| LoadError::Program {
        program: name.to_owned(),
        source,
    })
}

fn socket<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a CgroupSockAddr, LoadError> {
    match ebpf.program(name) {
        Some(Program::CgroupSockAddr(program)) => Ok(program),
        _ => Err(LoadError::Missing(format!("socket program {name}"))),
    }
}

fn classifier<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier, LoadError> {
    match ebpf.program(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(LoadError::Missing(format!("TC program {name}"))),
    }
}

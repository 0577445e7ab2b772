//! The gate, from the agent's side: see [`agent_common::gate`] for what it is, and that it never changes.

use agent_common::gate::{GateWord, slot};
use agent_common::limits::LAYOUT;
use aya::maps::{MapData, MapError, ProgramArray};
use aya::programs::ProgramFd;

use super::load::LoadError;
use super::words::Words;

/// The socket hooks' programs, and the maps of the gate that hold them.
pub(super) const SOCKETS: [(&str, &str); 8] = [
    ("recvmsg4", "gate_recvmsg4"),
    ("recvmsg6", "gate_recvmsg6"),
    ("getpeername4", "gate_peername4"),
    ("getpeername6", "gate_peername6"),
    ("connect4", "gate_connect4"),
    ("connect6", "gate_connect6"),
    ("sendmsg4", "gate_sendmsg4"),
    ("sendmsg6", "gate_sendmsg6"),
];

/// Where a program stands in the gate: a TC hook by its number, a socket hook by its place in [`SOCKETS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    Tc(u32),
    Socket(usize),
}

/// The pinned maps of the gate.
pub(super) struct Gate {
    pub(super) slots: ProgramArray<MapData>,
    /// In the order of [`SOCKETS`].
    pub(super) sockets: Vec<ProgramArray<MapData>>,
    pub(super) word: Words<u64>,
}

/// An empty slot is as good as one that was emptied.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), LoadError> {
    match result {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other.map_err(|source| LoadError::Map {
            map: "gate",
            source,
        }),
    }
}

impl Gate {
    /// What is in force.
    pub(super) fn word(&self) -> Result<GateWord, LoadError> {
        Ok(GateWord(self.word.read(0)?))
    }

    /// Stores the word: all hooks change at once.
    pub(super) fn store(&self, word: GateWord) -> Result<(), LoadError> {
        Ok(self.word.store(0, 0, word.0)?)
    }

    /// The side that this agent's programs belong in: the one in force where that is of this layout, so that each is replaced by
    /// its like; else the other.
    pub(super) fn side(word: GateWord) -> u32 {
        if word.layout() == LAYOUT {
            word.side()
        } else {
            word.other()
        }
    }

    /// Puts a program into a side.
    pub(super) fn put(
        &mut self,
        side: u32,
        hook: Hook,
        program: &ProgramFd,
    ) -> Result<(), LoadError> {
        let result = match hook {
            Hook::Tc(hook) => self.slots.set(slot(side, hook), program, 0),
            Hook::Socket(at) => match self.sockets.get_mut(at) {
                Some(array) => array.set(side, program, 0),
                None => Ok(()),
            },
        };
        result.map_err(|source| LoadError::Map {
            map: "gate",
            source,
        })
    }

    /// Empties a side, which must not be in force: its programs, and the maps that only they use, then go.
    pub(super) fn clear(&mut self, side: u32) -> Result<(), LoadError> {
        for hook in 0..agent_common::gate::SIDE_SLOTS {
            absent_is_fine(self.slots.clear_index(&slot(side, hook)))?;
        }
        for array in &mut self.sockets {
            absent_is_fine(array.clear_index(&side))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate")
            .field("word", &self.word().ok())
            .finish_non_exhaustive()
    }
}

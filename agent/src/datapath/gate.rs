//! The gate, from the agent's side: see [`agent_common::gate`] for what it is, and that it never changes.

use agent_common::gate::{GateWord, slot};
use agent_common::limits::LAYOUT;
use aya::maps::{MapData, MapError, ProgramArray};
use aya::programs::ProgramFd;
use aya_obj::generated::bpf_attach_type::{
    self, BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_CONNECT,
    BPF_CGROUP_INET6_GETPEERNAME, BPF_CGROUP_UDP4_RECVMSG, BPF_CGROUP_UDP4_SENDMSG,
    BPF_CGROUP_UDP6_RECVMSG, BPF_CGROUP_UDP6_SENDMSG,
};

use super::kernel::absent_is_fine;
use super::load::LoadError;
use super::words::Words;

/// A socket hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketHook {
    /// Name of its program; its stub's begins with `stub_`.
    pub(super) name: &'static str,
    /// The map of the gate that holds its program.
    pub(super) map: &'static str,
    /// What it is attached to a cgroup as.
    pub(super) attach_type: u32,
}

const fn socket(name: &'static str, map: &'static str, attach_type: bpf_attach_type) -> SocketHook {
    SocketHook {
        name,
        map,
        attach_type: attach_type as u32,
    }
}

/// The socket hooks. What undoes a translation is attached and filled before what does it, so that no socket is translated one way only.
pub(super) const SOCKETS: [SocketHook; 8] = [
    socket("recvmsg4", "gate_recvmsg4", BPF_CGROUP_UDP4_RECVMSG),
    socket("recvmsg6", "gate_recvmsg6", BPF_CGROUP_UDP6_RECVMSG),
    socket(
        "getpeername4",
        "gate_peername4",
        BPF_CGROUP_INET4_GETPEERNAME,
    ),
    socket(
        "getpeername6",
        "gate_peername6",
        BPF_CGROUP_INET6_GETPEERNAME,
    ),
    socket("connect4", "gate_connect4", BPF_CGROUP_INET4_CONNECT),
    socket("connect6", "gate_connect6", BPF_CGROUP_INET6_CONNECT),
    socket("sendmsg4", "gate_sendmsg4", BPF_CGROUP_UDP4_SENDMSG),
    socket("sendmsg6", "gate_sendmsg6", BPF_CGROUP_UDP6_SENDMSG),
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

/// An error about a slot.
fn failed(source: MapError) -> LoadError {
    LoadError::Map {
        map: "gate",
        source,
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
        result.map_err(failed)
    }

    /// Empties a side, which must not be in force: its programs, and the maps that only they use, then go.
    pub(super) fn clear(&mut self, side: u32) -> Result<(), LoadError> {
        for hook in 0..agent_common::gate::SIDE_SLOTS {
            absent_is_fine(self.slots.clear_index(&slot(side, hook))).map_err(failed)?;
        }
        for array in &mut self.sockets {
            absent_is_fine(array.clear_index(&side)).map_err(failed)?;
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

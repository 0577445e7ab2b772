//! Taking over from an agent of another layout.
//!
//! 1. *Seed*, before anything points to the new maps: everything that an agent writes is read from the old maps, which nobody writes
//!    any more, and written to the new ones. The first apply then is what it is after any restart: a diff. Numbers keep
//!    their meaning, so that entries of flows keep theirs.
//! 2. *Flip*, after the first apply: the other side of the gate gets the new programs, then one word changes all hooks at once
//!    ([`super::gate`]). From then on the new programs make all new connections, and leave packets of flows that they do not know
//!    to the old ones, whose tables are whole: no flow is between two states, however long the next step takes.
//! 3. *Move*: flows are copied to the new tables, both entries of one together. An entry counts from the instant in which it is there.
//! 4. *Settle*: the word changes again, so that what goes to services begins here, datagrams too (TCP did from the flip on, where a
//!    SYN says that it begins); and once more, so that unknown flows are unknown. After each change and a grace period, what the old
//!    programs made until then is copied. The other side is emptied, and the old maps go.
//!
//! What is left to chance: a flow of datagrams between two pods, not by service, that began during the second copy and whose first
//! answer comes during the third is judged as if the answer opened it.
//!
//! A crash in 1 leaves the old side in force, and the next start begins anew; a crash in 3 or 4 leaves the new one, and the
//! next start goes on.

mod meaning;
mod moving;
mod old;
mod seed;

use std::io;

use super::DatapathError;
use super::pins::PinError;

pub use moving::Moved;
pub(super) use moving::move_flows;
pub(super) use old::OldMaps;
pub(super) use seed::seed;

/// Why an agent could not take over from one of another layout. Nothing is lost: what was in force still is.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// An old map is not what its layout says.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A new map does not take an entry.
    #[error("taking over from layout v{layout}: {source}")]
    Write {
        /// The old layout.
        layout: u32,
        /// Why not.
        source: DatapathError,
    },
    /// An old map cannot be read, or flows cannot be copied.
    #[error("taking over map {map} from layout v{layout}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The old layout.
        layout: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Entries of the old layout need more than their fields' names to be converted.
    #[error("taking over map {map} from layout v{layout}: {why}; this is a fault of this build")]
    Conversion {
        /// The map.
        map: &'static str,
        /// The old layout.
        layout: u32,
        /// What it would take.
        why: String,
    },
}

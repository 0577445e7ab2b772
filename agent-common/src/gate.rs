//! The gate: what every attached stub goes through, whatever layout the maps behind it have.
//!
//! Stubs, their links and the gate outlive a change of [`crate::limits::LAYOUT`], so **nothing in this file may change**: an
//! agent of any later layout finds the gate of an earlier one and writes to it.
//!
//! The gate has two sides, each with a slot for each hook. One word says which side is in force; a new agent fills the other
//! one and then stores the word, so that all hooks change in one instant. Map `gate` is the program array of the TC hooks; the socket
//! hooks have an array of two slots each, since the kernel (6.18 and later) lets an array hold programs of one attach type only.

/// Slots of one side in `gate`; a hook's slot is its number ([`crate::hook`]).
pub const SIDE_SLOTS: u32 = 16;
/// Slots of `gate`.
pub const SLOTS: u32 = 2 * SIDE_SLOTS;
/// Slots of a socket hook's array: one for each side.
pub const SOCKET_SLOTS: u32 = 2;

/// The names of the maps that make the gate, all pinned beside the links and not in a layout's directory.
pub const MAPS: [&str; 10] = [
    "gate",
    "gate_word",
    "gate_connect4",
    "gate_connect6",
    "gate_sendmsg4",
    "gate_sendmsg6",
    "gate_recvmsg4",
    "gate_recvmsg6",
    "gate_peername4",
    "gate_peername6",
];

const SIDE: u64 = 1;
const HANDOVER: u64 = 1 << 1;
const ONLY_REST: u64 = 1 << 2;
const FROM: u32 = 16;
const LAYOUT: u32 = 32;

/// The single element of `gate_word`, stored and read at once.
///
/// | bits | what |
/// | --- | --- |
/// | 0 | the side in force |
/// | 1 | flows move from the other side's tables: packets of a flow that this side's programs do not know go to the other side's |
/// | 2 | with bit 1: but not packets to services, which only openers send; those begin here |
/// | 3-15 | zero |
/// | 16-31 | the layout that flows move from; 0: none |
/// | 32-63 | the layout in force; 0: none yet |
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct GateWord(pub u64);

impl GateWord {
    /// The side in force, 0 or 1.
    #[inline(always)]
    pub const fn side(self) -> u32 {
        (self.0 & SIDE) as u32
    }

    /// The side that is not in force.
    #[inline(always)]
    pub const fn other(self) -> u32 {
        self.side() ^ 1
    }

    /// Whether flows are on their way from the other side's tables.
    #[inline(always)]
    pub const fn handover(self) -> bool {
        self.0 & HANDOVER != 0
    }

    /// Whether packets to services stay on this side all the same.
    #[inline(always)]
    pub const fn only_rest(self) -> bool {
        self.0 & ONLY_REST != 0
    }

    /// The layout that flows move from; 0 where none do.
    pub const fn from(self) -> u32 {
        (self.0 >> FROM) as u32 & 0xffff
    }

    /// The layout in force; 0 before the first agent has put its programs in.
    #[inline(always)]
    pub const fn layout(self) -> u32 {
        (self.0 >> LAYOUT) as u32
    }

    /// The other side in force, for `layout`; flows move from the layout that was in force before, if there was one.
    #[must_use]
    pub const fn flipped(self, layout: u32) -> Self {
        let moves = match self.layout() {
            0 => 0,
            from => HANDOVER | (from as u64 & 0xffff) << FROM,
        };
        Self(self.other() as u64 | moves | (layout as u64) << LAYOUT)
    }

    /// The same with what is known of every service's flows moved.
    #[must_use]
    pub const fn services_moved(self) -> Self {
        Self(self.0 | ONLY_REST)
    }

    /// The same with every flow moved.
    #[must_use]
    pub const fn settled(self) -> Self {
        Self(self.0 & !(HANDOVER | ONLY_REST | 0xffff << FROM))
    }
}

/// A hook's slot of `gate` on a side.
#[inline(always)]
pub const fn slot(side: u32, hook: u32) -> u32 {
    side * SIDE_SLOTS + hook
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_changes_side_and_layout_and_says_where_flows_come_from() {
        let first = GateWord::default().flipped(2);
        assert_eq!((first.side(), first.layout()), (1, 2));
        assert!(!first.handover(), "nothing was in force before");
        let second = first.flipped(3);
        assert_eq!((second.side(), second.layout(), second.from()), (0, 3, 2));
        assert!(second.handover());
        let rest = second.services_moved();
        assert!(rest.handover() && rest.only_rest() && !second.only_rest());
        let settled = rest.settled();
        assert_eq!(
            (settled.side(), settled.layout(), settled.from()),
            (0, 3, 0)
        );
        assert!(!settled.handover() && !settled.only_rest());
    }

    #[test]
    fn the_gate_never_changes() {
        // Bits that agents of other layouts rely on.
        assert_eq!(GateWord(0).flipped(7).0, 7 << 32 | 1);
        assert_eq!(GateWord(7 << 32 | 1).flipped(8).0, 8 << 32 | 7 << 16 | 2);
        assert_eq!(GateWord(2).services_moved().0, 6);
        assert_eq!((SLOTS, slot(1, 2), SOCKET_SLOTS), (32, 18, 2));
        assert!(
            MAPS.iter()
                .all(|name| name.len() <= 15 && name.starts_with("gate"))
        );
    }
}

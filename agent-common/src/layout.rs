//! What the entries of pinned maps look like, layout by layout, so that an agent can read what one of another layout left.
//!
//! [`current`] is made from the types. Each layout that this agent can take over from stands in a file of its own, as it was: [`known`].
//! Entries are converted field by field ([`Record::conversion`]): fields keep their meaning with their name, a field
//! that is new gets its default, one that grew is extended with zeros. A change of meaning needs a new name; or, where only some entries
//! mean something else, a line in the agent's `migrate/meaning.rs`.

mod v2;
mod v3;

use core::mem::offset_of;

use crate::{
    Address, AddressEntry, Backend, Flow, GroupEntry, Head, LinkEntry, Pod, Prefix, PrefixEntry,
    RuleKey, ServiceEntry, ServiceKey, Slot, SocketReverse, SocketReverseKey, Tuple, Verdict,
    limits,
};

/// A field of a key or value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its name in the type.
    pub name: &'static str,
    /// Bytes from the start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A key or a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Bytes. (Of an LPM key: without the four of its prefix length.)
    pub size: usize,
    /// The fields; those whose name begins with `_` are always zero.
    pub fields: &'static [Field],
}

/// A map whose entries an agent takes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapLayout {
    /// Its name.
    pub name: &'static str,
    /// The key.
    pub key: Record,
    /// The value.
    pub value: Record,
}

/// All maps of one layout whose entries are taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Its number, [`limits::LAYOUT`] of its time.
    pub number: u32,
    /// Its maps.
    pub maps: &'static [MapLayout],
}

impl Layout {
    /// A map by name.
    #[must_use]
    pub fn map(&self, name: &str) -> Option<&'static MapLayout> {
        self.maps.iter().find(|map| map.name == name)
    }
}

/// This agent's own layout.
#[must_use]
pub const fn current() -> Layout {
    Layout {
        number: limits::LAYOUT,
        maps: CURRENT,
    }
}

/// A layout that this agent can take over from.
#[must_use]
pub fn known(number: u32) -> Option<&'static Layout> {
    const KNOWN: [&Layout; 2] = [&v2::LAYOUT, &v3::LAYOUT];
    KNOWN.into_iter().find(|layout| layout.number == number)
}

/// Why entries of one layout cannot become entries of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Narrowed {
    /// The field that has become smaller.
    pub field: &'static str,
}

impl core::fmt::Display for Narrowed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "field {} has become smaller", self.field)
    }
}

/// How one record becomes another, of at most [`Conversion::FIELDS`] fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conversion {
    moves: [(usize, usize, usize); Self::FIELDS],
    count: usize,
}

impl Conversion {
    /// More fields than any key or value has.
    pub const FIELDS: usize = 48;

    /// Writes the fields of `old` over `new`, which holds the defaults.
    pub fn apply(&self, old: &[u8], new: &mut [u8]) {
        for (from, to, size) in self.moves.iter().take(self.count).copied() {
            if let (Some(source), Some(target)) =
                (old.get(from..from + size), new.get_mut(to..to + size))
            {
                target.copy_from_slice(source);
            }
        }
    }
}

impl Record {
    /// How entries of this record become entries of `new`.
    ///
    /// # Errors
    /// A field has become smaller: what does not fit any more needs a decision that a list of fields cannot take.
    pub fn conversion(&self, new: &Self) -> Result<Conversion, Narrowed> {
        let mut conversion = Conversion {
            moves: [(0, 0, 0); Conversion::FIELDS],
            count: 0,
        };
        for field in new
            .fields
            .iter()
            .filter(|field| !field.name.starts_with('_'))
        {
            let Some(old) = self.fields.iter().find(|old| old.name == field.name) else {
                continue;
            };
            if old.size > field.size {
                return Err(Narrowed { field: field.name });
            }
            // Numbers are little-endian, and defaults of fields that grow are zero: what is added stands behind.
            if let Some(place) = conversion.moves.get_mut(conversion.count) {
                *place = (old.offset, field.offset, old.size);
                conversion.count += 1;
            }
        }
        Ok(conversion)
    }
}

/// The size of a field, told by a function that borrows it.
const fn width<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Bytes that fields cover together.
const fn covered(fields: &[Field]) -> usize {
    let (mut at, mut sum) = (0, 0);
    while at < fields.len() {
        sum += fields[at].size;
        at += 1;
    }
    sum
}

/// The record of a type. Every field must be named, which the sum of their sizes shows: all padding is explicit.
macro_rules! record {
    ($type:ty { $($(#[$cfg:meta])? $field:ident),* $(,)? }) => {{
        const FIELDS: &[Field] = &[$(
            $(#[$cfg])?
            Field {
                name: stringify!($field),
                offset: offset_of!($type, $field),
                size: width(|value: &$type| &value.$field),
            }
        ),*];
        const { assert!(covered(FIELDS) == size_of::<$type>() && FIELDS.len() <= Conversion::FIELDS) };
        Record { size: size_of::<$type>(), fields: FIELDS }
    }};
}

/// A number by itself: an index, an interface.
const NUMBER: Record = Record {
    size: 4,
    fields: &[Field {
        name: "number",
        offset: 0,
        size: 4,
    }],
};

const TUPLE: Record = record!(Tuple {
    source,
    destination,
    source_port_be,
    destination_port_be,
    protocol,
    _zero,
});

const FLOW: Record = record!(Flow {
    new_source,
    new_destination,
    new_source_port_be,
    new_destination_port_be,
    address_delta,
    flags,
    ifindex,
    port_delta,
    deliver,
    opener,
    responder,
    egress,
    ingress,
    backend,
    backend_generation,
    service,
    last_seen,
    created,
    path,
    fin,
    partner_fin,
    closing,
    #[cfg(feature = "layout-next")]
    _next,
});

const CURRENT: &[MapLayout] = &[
    MapLayout {
        name: "conntrack",
        key: TUPLE,
        value: FLOW,
    },
    MapLayout {
        name: "unreplied",
        key: TUPLE,
        value: FLOW,
    },
    MapLayout {
        name: "sock_reverse",
        key: record!(SocketReverseKey {
            cookie,
            address,
            port_be,
            protocol,
            _zero
        }),
        value: record!(SocketReverse {
            address,
            port_be,
            _zero,
            backend,
            backend_generation,
            service,
        }),
    },
    MapLayout {
        name: "pods",
        key: NUMBER,
        value: record!(Pod {
            egress,
            ingress,
            epoch,
            ifindex,
            flags,
            mac,
            host_mac,
            namespace,
            _zero
        }),
    },
    MapLayout {
        name: "links",
        key: NUMBER,
        value: record!(LinkEntry { slot, _zero }),
    },
    MapLayout {
        name: "addresses",
        key: record!(Address { bytes }),
        value: record!(AddressEntry {
            identity,
            slot,
            kind,
            check
        }),
    },
    MapLayout {
        name: "prefixes",
        key: record!(Prefix { bytes }),
        value: record!(PrefixEntry { identity, _zero }),
    },
    MapLayout {
        name: "groups",
        key: NUMBER,
        value: record!(GroupEntry { group, _zero }),
    },
    MapLayout {
        name: "rules",
        key: record!(RuleKey {
            set,
            group,
            protocol,
            _zero,
            port_be,
            _rest
        }),
        value: record!(Verdict {
            rule,
            priority,
            tier,
            action
        }),
    },
    MapLayout {
        name: "services",
        key: record!(ServiceKey {
            address,
            port_be,
            protocol,
            _zero
        }),
        value: record!(ServiceEntry { pool, flags, check }),
    },
    MapLayout {
        name: "heads",
        key: NUMBER,
        value: record!(Head { first, count }),
    },
    MapLayout {
        name: "slots",
        key: NUMBER,
        value: record!(Slot { backend }),
    },
    MapLayout {
        name: "backends",
        key: NUMBER,
        value: record!(Backend { address, word }),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A key, a value, a flag or a capacity that changes while its number stays would be taken for what it was.
    #[test]
    #[cfg(not(feature = "layout-next"))]
    fn the_types_are_those_of_the_layout_that_the_constant_names() {
        let frozen = known(limits::LAYOUT).expect("each layout has its file from the start");
        for (now, then) in CURRENT.iter().zip(frozen.maps) {
            assert_eq!(
                now, then,
                "raise limits::LAYOUT with a change of a map's entries, and keep the file of the layout that was"
            );
        }
        assert_eq!(CURRENT.len(), frozen.maps.len());
    }

    #[test]
    fn fields_find_their_new_places_by_name() {
        const fn field(name: &'static str, offset: usize, size: usize) -> Field {
            Field { name, offset, size }
        }
        const OLD: Record = Record {
            size: 8,
            fields: &[field("a", 0, 2), field("gone", 2, 2), field("b", 4, 4)],
        };
        const NEW: Record = Record {
            size: 16,
            fields: &[
                field("b", 0, 4),
                field("a", 4, 4),
                field("new", 8, 4),
                field("_zero", 12, 4),
            ],
        };
        let mut new = [0; 16];
        new[8] = 9;
        let conversion = OLD.conversion(&NEW).expect("nothing became smaller");
        conversion.apply(&[1, 2, 3, 4, 5, 6, 7, 8], &mut new);
        assert_eq!(new, [5, 6, 7, 8, 1, 2, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            NEW.conversion(&OLD).map(|_| ()),
            Err(Narrowed { field: "a" })
        );
    }
}

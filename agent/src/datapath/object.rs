//! The eBPF object that the agent carries, and what it says of its maps.

use aya_obj::{EbpfSectionKind, Object};

use super::pins::Shape;

/// The ELF object that `build.rs` built.
pub static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf"));

/// Capacities that the agent sets when it creates the maps; all others are the object's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Entries of `conntrack`, two per flow.
    pub conntrack: u32,
    /// Entries of `unreplied`, two per flow.
    pub unreplied: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            conntrack: agent_common::limits::CONNTRACK,
            unreplied: agent_common::limits::UNREPLIED,
        }
    }
}

impl Sizes {
    /// Map names with the capacity that differs from the object's.
    pub(super) const fn by_name(&self) -> [(&'static str, u32); 2] {
        [("conntrack", self.conntrack), ("unreplied", self.unreplied)]
    }

    /// Sets the capacity of one of these maps; no other has one here.
    pub(super) fn set(&mut self, map: &str, entries: u32) {
        match map {
            "conntrack" => self.conntrack = entries,
            "unreplied" => self.unreplied = entries,
            _ => {}
        }
    }
}

/// The object cannot be read. It is part of the binary, so this is a fault of the build.
#[derive(Debug, thiserror::Error)]
#[error("the eBPF object in this binary is broken: {0}")]
pub struct ObjectError(#[from] aya_obj::ParseError);

/// The maps of the object that are pinned, by name, with the shape they must have. (Read-only data is not: it belongs to one load.)
///
/// # Errors
/// The object cannot be read.
pub fn maps(sizes: &Sizes) -> Result<Vec<(String, Shape)>, ObjectError> {
    let object = Object::parse(BYTES)?;
    let mut maps: Vec<_> = object
        .maps
        .iter()
        .filter(|(name, map)| {
            name.as_str() != super::log::MAP
                && matches!(
                    map.section_kind(),
                    EbpfSectionKind::BtfMaps | EbpfSectionKind::Maps
                )
        })
        .map(|(name, map)| {
            let entries = sizes
                .by_name()
                .into_iter()
                .find(|(sized, _)| sized == name)
                .map_or(map.max_entries(), |(_, entries)| entries);
            let shape = Shape {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: entries,
                flags: map.map_flags(),
            };
            (name.clone(), shape)
        })
        .collect();
    maps.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(maps)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Two builds of one layout share every pinned map, also those whose entries nobody takes over: an agent refuses pins of another shape,
    /// and programs of both run at once while one replaces the other.
    #[test]
    fn every_pinned_map_has_the_shape_of_its_layout() {
        let frozen = include_str!("../../testdata/datapath/v3.txt");
        let mut now = format!("layout {}\n", agent_common::limits::LAYOUT);
        for (name, shape) in maps(&Sizes::default()).unwrap() {
            let Shape {
                kind,
                key_size,
                value_size,
                max_entries,
                flags,
            } = shape;
            writeln!(
                now,
                "{name}: kind {kind}, key {key_size}, value {value_size}, {max_entries} entries, flags {flags}"
            )
            .unwrap();
        }
        assert_eq!(
            now, frozen,
            "raise limits::LAYOUT with a change of a pinned map, and write the shapes of the new layout beside those of the old one"
        );
    }
}

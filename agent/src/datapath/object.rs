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

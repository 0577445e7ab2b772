//! The maps of another layout, as they were left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use agent_common::layout::{Conversion, Layout, MapLayout, current};
use aya::Pod;
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_LPM_TRIE};

use super::super::pins::{PinError, Pins};
use super::super::sys::raw::{self, Entries};
use super::super::sys::{self, Cursor, ObjectKind};
use super::MigrateError;

/// Bytes of the prefix length in front of a trie's key.
const PREFIX: usize = size_of::<u32>();

/// One old map, open, and how its entries become entries of this layout.
#[derive(Debug)]
pub(super) struct OldMap {
    name: &'static str,
    layout: u32,
    fd: OwnedFd,
    kind: u32,
    key: Conversion,
    value: Conversion,
    /// From this layout's keys to the old ones, where none has grown; and the old sizes.
    back: Option<Conversion>,
    key_size: usize,
    value_size: usize,
}

/// The maps of a layout that was in force before.
#[derive(Debug)]
pub(in super::super) struct OldMaps {
    layout: &'static Layout,
    maps: Vec<OldMap>,
}

impl OldMaps {
    /// Opens every map of the layout that is there, and compares it with what the layout says.
    ///
    /// # Errors
    /// A map has other sizes, or its entries cannot be converted.
    pub(in super::super) fn open(
        pins: &Pins,
        layout: &'static Layout,
    ) -> Result<Self, MigrateError> {
        let mut maps = Vec::new();
        for map in layout.maps {
            let Some(wanted) = current().map(map.name) else {
                continue;
            };
            if let Some(map) = open(pins, layout.number, map, wanted)? {
                maps.push(map);
            }
        }
        Ok(Self { layout, maps })
    }

    /// The layout's number.
    pub(in super::super) const fn number(&self) -> u32 {
        self.layout.number
    }

    /// A map by name; None where the old agent had none.
    pub(super) fn map(&self, name: &str) -> Option<&OldMap> {
        self.maps.iter().find(|map| map.name == name)
    }

    /// Reads everything of a map, in this layout's types.
    pub(super) fn read<K: Pod, V: Pod>(
        &self,
        name: &str,
        key: K,
        value: V,
    ) -> Result<Vec<(u32, K, V)>, MigrateError> {
        match self.map(name) {
            Some(map) => map.read(key, value),
            None => Ok(Vec::new()),
        }
    }
}

fn open(
    pins: &Pins,
    number: u32,
    old: &'static MapLayout,
    new: &'static MapLayout,
) -> Result<Option<OldMap>, MigrateError> {
    let path: PathBuf = pins.map_of(number, old.name);
    let failed = |source| PinError::io(&path, source);
    let Some((kind, fd)) = sys::open_pin(&path).map_err(failed)? else {
        return Ok(None);
    };
    if kind != ObjectKind::Map {
        let differences = vec![format!("kind: {} pinned, map wanted", kind.name())];
        return Err(pins.differs(path, differences).into());
    }
    let info = sys::map_info(fd.as_fd()).map_err(failed)?;
    let trie = info.kind == BPF_MAP_TYPE_LPM_TRIE as u32;
    let prefix = if trie { PREFIX } else { 0 };
    let sizes = [
        ("key size", info.key_size as usize, old.key.size + prefix),
        ("value size", info.value_size as usize, old.value.size),
    ];
    let differences: Vec<String> = sizes
        .iter()
        .filter(|(_, pinned, known)| pinned != known)
        .map(|(what, pinned, known)| format!("{what}: {pinned} pinned, {known} known"))
        .collect();
    if !differences.is_empty() {
        return Err(pins.differs(path, differences).into());
    }
    let conversion = |why| MigrateError::Conversion {
        map: old.name,
        layout: number,
        why,
    };
    if trie && old.key != new.key {
        let why = "a trie's key has its meaning by the order of its bits";
        return Err(conversion(why.to_owned()));
    }
    let convert = |old: &agent_common::layout::Record, new| {
        old.conversion(new)
            .map_err(|narrowed| conversion(narrowed.to_string()))
    };
    Ok(Some(OldMap {
        name: old.name,
        layout: number,
        fd,
        kind: info.kind,
        back: new.key.conversion(&old.key).ok(),
        key_size: old.key.size,
        value_size: old.value.size,
        key: convert(&old.key, &new.key)?,
        value: convert(&old.value, &new.value)?,
    }))
}

impl OldMap {
    /// The map's name.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// The layout that it is of.
    pub(super) const fn layout(&self) -> u32 {
        self.layout
    }

    /// An error about this map.
    pub(super) const fn failed(&self, source: io::Error) -> MigrateError {
        MigrateError::Map {
            map: self.name,
            layout: self.layout,
            source,
        }
    }

    fn read<K: Pod, V: Pod>(&self, key: K, value: V) -> Result<Vec<(u32, K, V)>, MigrateError> {
        let map = self.fd.as_fd();
        let trie = self.kind == BPF_MAP_TYPE_LPM_TRIE as u32;
        let entries = if self.kind == BPF_MAP_TYPE_ARRAY as u32 {
            raw::array(map)
        } else {
            raw::all(map)
        };
        let entries = entries.map_err(|source| self.failed(source))?;
        let converted = entries.iter().map(|(old_key, old_value)| {
            let (prefix, old_key) = old_key.split_at(if trie { PREFIX } else { 0 });
            let prefix = prefix.try_into().map_or(0, u32::from_ne_bytes);
            (
                prefix,
                convert(&self.key, old_key, key),
                convert(&self.value, old_value, value),
            )
        });
        Ok(converted.collect())
    }

    /// Looks up one entry of a hash map; None where there is none, or where keys have grown and none can be told.
    pub(super) fn lookup<K: Pod, V: Pod>(&self, key: &K, value: V) -> io::Result<Option<V>> {
        let Some(back) = &self.back else {
            return Ok(None);
        };
        let mut old_key = vec![0; self.key_size];
        back.apply(bytes(key), &mut old_key);
        let mut old_value = vec![0; self.value_size];
        let found = raw::lookup(self.fd.as_fd(), &old_key, &mut old_value)?;
        Ok(found.then(|| convert(&self.value, &old_value, value)))
    }

    /// Visits the entries of a hash map that programs are writing to, in batches.
    pub(super) fn for_each<K: Pod, V: Pod>(
        &self,
        key: K,
        value: V,
        mut visit: impl FnMut(K, V) -> io::Result<()>,
    ) -> Result<(), MigrateError> {
        /// Entries read by one call.
        const BATCH: usize = 1_024;
        let failed = |source| self.failed(source);
        let mut cursor = Cursor::default();
        let mut entries = Entries::default();
        loop {
            let more =
                raw::batch(self.fd.as_fd(), &mut cursor, BATCH, &mut entries).map_err(failed)?;
            for (old_key, old_value) in entries.iter() {
                visit(
                    convert(&self.key, old_key, key),
                    convert(&self.value, old_value, value),
                )
                .map_err(failed)?;
            }
            if !more {
                return Ok(());
            }
        }
    }
}

/// The bytes of a value.
fn bytes<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: plain data without padding (Pod), borrowed as long as the value is.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// The fields of an old record over defaults.
fn convert<T: Pod>(conversion: &Conversion, old: &[u8], mut defaults: T) -> T {
    let place = std::ptr::from_mut(&mut defaults).cast::<u8>();
    // SAFETY: the bytes of a value that lives here; it is plain data without padding, and every bit pattern is a value (Pod).
    let new = unsafe { std::slice::from_raw_parts_mut(place, size_of::<T>()) };
    conversion.apply(old, new);
    defaults
}

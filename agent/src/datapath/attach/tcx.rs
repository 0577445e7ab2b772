//! Links of tcx, pinned as `tcx-NETNS-IFINDEX-SIDE`.
//!
//! An interface's index is used again after it is gone, and a network namespace of a pin root may be another one tomorrow. The
//! kernel tells which interface a link is on, 0 once that is gone; the name tells the namespace's cookie, which is never used twice.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};

use super::super::drift::Found;
use super::super::held::Held;
use super::super::load::LoadError;
use super::super::pins::make_directory;
use super::super::sys::{self, LinkTarget, ObjectKind};
use super::{AttachError, Place, Side};

/// An interface index that no interface has, to ask whether the kernel knows tcx.
const NO_INTERFACE: u32 = i32::MAX as u32;

#[derive(Debug)]
pub(super) struct Tcx {
    directory: PathBuf,
    netns: u64,
    /// Held beside their pins: when a pin is removed by hand, the program stays where it is.
    links: BTreeMap<Place, Held>,
}

const fn attach_type(side: Side) -> u32 {
    match side {
        Side::Ingress => BPF_TCX_INGRESS as u32,
        Side::Egress => BPF_TCX_EGRESS as u32,
    }
}

/// What a live link at a place says that it is attached to.
const fn target(place: Place) -> LinkTarget {
    LinkTarget::Tcx {
        ifindex: place.ifindex,
        attach_type: attach_type(place.side),
    }
}

const fn side_name(side: Side) -> &'static str {
    match side {
        Side::Ingress => "ingress",
        Side::Egress => "egress",
    }
}

/// Whether the kernel has tcx: it then misses the interface, and otherwise does not know the attach type.
pub(super) fn supported(stub: &Held) -> Result<bool, AttachError> {
    match sys::link_create(stub.fd.as_fd(), NO_INTERFACE, attach_type(Side::Ingress)) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV) => Ok(true),
            Some(libc::EINVAL | libc::ENOTSUP) => Ok(false),
            _ => Err(AttachError::io("asking the kernel for tcx")(error)),
        },
    }
}

impl Tcx {
    pub(super) const fn new(directory: PathBuf, netns: u64) -> Self {
        Self {
            directory,
            netns,
            links: BTreeMap::new(),
        }
    }

    fn name(&self, place: Place) -> String {
        format!(
            "tcx-{:x}-{}-{}",
            self.netns,
            place.ifindex,
            side_name(place.side)
        )
    }

    /// The place that a pin's name speaks of, if it is one of this namespace's.
    fn place(&self, name: &str) -> Option<Place> {
        let mut parts = name.strip_prefix("tcx-")?.split('-');
        let netns = u64::from_str_radix(parts.next()?, 16).ok()?;
        let ifindex = parts.next()?.parse().ok()?;
        let side = match parts.next()? {
            "ingress" => Side::Ingress,
            "egress" => Side::Egress,
            _ => return None,
        };
        (netns == self.netns && parts.next().is_none()).then_some(Place { ifindex, side })
    }

    /// Live links by place, with their program's number; they are held from now on. Pins of links that are on no interface any
    /// more are removed, and links that lost their pin are pinned again.
    pub(super) fn attached(
        &mut self,
        found: &mut Found,
    ) -> Result<BTreeMap<Place, u32>, AttachError> {
        let mut pinned = self.pinned()?;
        let mut live = BTreeMap::new();
        let mut held = BTreeMap::new();
        for (place, link) in std::mem::take(&mut self.links) {
            let info = sys::link_info(link.fd.as_fd()).map_err(self.failed("reading a link in"))?;
            if info.target != target(place) {
                // Its interface is gone, or somebody detached it. What is pinned in its place is told below.
                continue;
            }
            pinned.remove(&place);
            let path = self.directory.join(self.name(place));
            if !crate::mutant::removed("unpinned-links") {
                link.keep_pinned(&path, found);
            }
            live.insert(place, info.program);
            held.insert(place, link);
        }
        for (place, (link, program)) in pinned {
            live.insert(place, program);
            held.insert(place, link);
        }
        self.links = held;
        Ok(live)
    }

    fn failed(&self, what: &str) -> impl Fn(io::Error) -> AttachError + use<> {
        let what = format!("{what} {}", self.directory.display());
        move |error| AttachError::io(what.clone())(error)
    }

    /// Live links that are pinned, with their program's number; other pins of this namespace, and those of others, go.
    fn pinned(&self) -> Result<BTreeMap<Place, (Held, u32)>, AttachError> {
        let mut live = BTreeMap::new();
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            // Removed by hand, with everything in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(&self.directory).map_err(LoadError::from)?;
                return Ok(live);
            }
            Err(error) => return Err(self.failed("reading")(error)),
        };
        for entry in entries {
            let entry = entry.map_err(self.failed("reading"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("tcx-") {
                continue;
            }
            let path = entry.path();
            if let Some(place) = self.place(&name)
                && let Some((ObjectKind::Link, fd)) =
                    sys::open_pin(&path).map_err(self.failed("opening a link in"))?
            {
                let info = sys::link_info(fd.as_fd()).map_err(self.failed("reading a link in"))?;
                if info.target == target(place) {
                    let id = info.id;
                    let kind = ObjectKind::Link;
                    live.insert(place, (Held { kind, fd, id }, info.program));
                    continue;
                }
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed("removing a dead link from")(error));
                }
                _ => {}
            }
        }
        Ok(live)
    }

    /// Attaches a stub behind what is there, or puts it into the link that is.
    pub(super) fn attach(
        &mut self,
        place: Place,
        stub: &Held,
        replaces: bool,
    ) -> Result<(), AttachError> {
        let failed = |what| {
            move |source: io::Error| AttachError::Interface {
                ifindex: place.ifindex,
                what,
                source,
            }
        };
        if replaces && let Some(link) = self.links.get(&place) {
            return sys::link_update(link.fd.as_fd(), stub.fd.as_fd())
                .map_err(failed("replacing its tcx program"));
        }
        let fd = sys::link_create(stub.fd.as_fd(), place.ifindex, attach_type(place.side))
            .map_err(failed("attaching by tcx"))?;
        // Not pinned, the link goes with its descriptor: no half of this stays.
        if !crate::mutant::removed("unpinned-links") {
            sys::pin(fd.as_fd(), &self.directory.join(self.name(place)))
                .map_err(failed("pinning its tcx link"))?;
        }
        let link = Held::new(ObjectKind::Link, fd).map_err(failed("reading its tcx link"))?;
        self.links.insert(place, link);
        Ok(())
    }

    /// Removes a link: nothing holds it but its pin and this.
    pub(super) fn detach(&mut self, place: Place) -> Result<(), AttachError> {
        let path = self.directory.join(self.name(place));
        self.links.remove(&place);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AttachError::io(format!(
                "removing {}",
                path.display()
            ))(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_namespace_interface_and_side() {
        let tcx = Tcx::new(PathBuf::from("/nowhere"), 0x1f);
        let place = Place {
            ifindex: 12,
            side: Side::Egress,
        };
        assert_eq!(tcx.name(place), "tcx-1f-12-egress");
        assert_eq!(tcx.place("tcx-1f-12-egress"), Some(place));
        assert_eq!(tcx.place("tcx-20-12-egress"), None);
        assert_eq!(tcx.place("tcx-1f-12-egress-1"), None);
        assert_eq!(tcx.place("cgroup-connect4"), None);
    }
}

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

use super::super::sys::{self, LinkTarget};
use super::stub::Stub;
use super::{AttachError, Place, Side};

/// An interface index that no interface has, to ask whether the kernel knows tcx.
const NO_INTERFACE: u32 = i32::MAX as u32;

#[derive(Debug)]
pub(super) struct Tcx {
    directory: PathBuf,
    netns: u64,
}

const fn attach_type(side: Side) -> u32 {
    match side {
        Side::Ingress => BPF_TCX_INGRESS as u32,
        Side::Egress => BPF_TCX_EGRESS as u32,
    }
}

const fn side_name(side: Side) -> &'static str {
    match side {
        Side::Ingress => "ingress",
        Side::Egress => "egress",
    }
}

/// Whether the kernel has tcx: it then misses the interface, and otherwise does not know the attach type.
pub(super) fn supported(stub: &Stub) -> Result<bool, AttachError> {
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
        Self { directory, netns }
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

    /// Live links by place, with their program's number. Pins of links that are on no interface any more are removed.
    pub(super) fn attached(&self) -> Result<BTreeMap<Place, u32>, AttachError> {
        let failed = |what: &str| AttachError::io(format!("{what} {}", self.directory.display()));
        let mut live = BTreeMap::new();
        for entry in fs::read_dir(&self.directory).map_err(failed("reading"))? {
            let entry = entry.map_err(failed("reading"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("tcx-") {
                continue;
            }
            let path = entry.path();
            if let Some(place) = self.place(&name)
                && let Some((sys::ObjectKind::Link, fd)) =
                    sys::open_pin(&path).map_err(failed("opening a link in"))?
            {
                let info = sys::link_info(fd.as_fd()).map_err(failed("reading a link in"))?;
                let expected = LinkTarget::Tcx {
                    ifindex: place.ifindex,
                    attach_type: attach_type(place.side),
                };
                if info.target == expected {
                    live.insert(place, info.program);
                    continue;
                }
            }
            fs::remove_file(&path).map_err(failed("removing a dead link from"))?;
        }
        Ok(live)
    }

    /// Attaches a stub behind what is there, or puts it into the link that is.
    pub(super) fn attach(
        &self,
        place: Place,
        stub: &Stub,
        replaces: bool,
    ) -> Result<(), AttachError> {
        let path = self.directory.join(self.name(place));
        let failed = |what| {
            move |source: io::Error| AttachError::Interface {
                ifindex: place.ifindex,
                what,
                source,
            }
        };
        if replaces {
            let (_, link) = sys::open_pin(&path)
                .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .map_err(failed("opening its tcx link"))?;
            return sys::link_update(link.as_fd(), stub.fd.as_fd())
                .map_err(failed("replacing its tcx program"));
        }
        let link = sys::link_create(stub.fd.as_fd(), place.ifindex, attach_type(place.side))
            .map_err(failed("attaching by tcx"))?;
        // Not pinned, the link goes with its descriptor: no half of this stays.
        sys::pin(link.as_fd(), &path).map_err(failed("pinning its tcx link"))
    }

    /// Removes a link: nothing holds it but its pin.
    pub(super) fn detach(&self, place: Place) -> Result<(), AttachError> {
        let path = self.directory.join(self.name(place));
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

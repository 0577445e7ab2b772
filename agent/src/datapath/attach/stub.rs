//! A pinned stub.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use super::super::load::LoadError;
use super::super::pins::Pins;
use super::super::programs::Programs;
use super::super::sys::{self, ObjectKind};
use super::{AttachError, StubName};

/// A stub program that is pinned, and so the same from one agent of this layout to the next.
#[derive(Debug)]
pub(super) struct Stub {
    pub(super) fd: OwnedFd,
    /// The kernel's number of it, by which links and filters name it.
    pub(super) id: u32,
}

impl Stub {
    /// The pinned stub if it tail-calls through the pinned program array, else this binary's own, pinned in its place. (The
    /// array may have been removed by hand and made again: an old stub would then call into nothing for ever.)
    pub(super) fn adopt(
        pins: &Pins,
        programs: &Programs,
        name: StubName,
    ) -> Result<Self, AttachError> {
        let path = pins.program(name.program());
        let failed = |what: &str| AttachError::io(format!("{what} {}", path.display()));
        if let Some((kind, fd)) = sys::open_pin(&path).map_err(failed("opening"))? {
            if kind == ObjectKind::Program {
                let info = sys::program_info(fd.as_fd()).map_err(failed("reading"))?;
                if info.maps.contains(&programs.array_id) {
                    return Ok(Self { fd, id: info.id });
                }
            }
            fs::remove_file(&path).map_err(failed("removing"))?;
        }
        let program = programs.classifier(name.program())?;
        let fd = program
            .fd()
            .map_err(|source| LoadError::Program {
                program: name.program().to_owned(),
                source,
            })?
            .as_fd()
            .try_clone_to_owned()
            .map_err(failed("keeping"))?;
        sys::pin(fd.as_fd(), &path).map_err(failed("pinning"))?;
        let id = sys::program_info(fd.as_fd()).map_err(failed("reading"))?.id;
        Ok(Self { fd, id })
    }
}

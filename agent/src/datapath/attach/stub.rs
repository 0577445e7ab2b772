//! A pinned stub: the same from one agent to the next, whatever their layouts.

use std::fs;
use std::os::fd::AsFd;

use super::super::held::Held;
use super::super::load::LoadError;
use super::super::pins::Pins;
use super::super::programs::Programs;
use super::super::sys::{self, ObjectKind};
use super::{AttachError, StubName};

/// The pinned stub if it tail-calls through the pinned gate, else this binary's own, pinned in its place. (The gate may have been removed by
/// hand and made again: an old stub would then call into nothing for ever.)
pub(super) fn adopt(pins: &Pins, programs: &Programs, name: StubName) -> Result<Held, AttachError> {
    let path = pins.program(name.program());
    let failed = |what: &str| AttachError::io(format!("{what} {}", path.display()));
    if let Some((kind, fd)) = sys::open_pin(&path).map_err(failed("opening"))? {
        if kind == ObjectKind::Program {
            let info = sys::program_info(fd.as_fd()).map_err(failed("reading"))?;
            if info.maps.contains(&programs.gate_id) {
                let id = info.id;
                return Ok(Held { kind, fd, id });
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
    Held::new(ObjectKind::Program, fd).map_err(failed("reading"))
}

//! Programs made of instructions by hand, and runs of a program that only counts time: what aya, which takes whole objects, has no
//! call for. Sources: `include/uapi/linux/bpf.h` of Linux, `Documentation/bpf/standardization/instruction-set.rst`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Commands of `bpf(2)`.
mod command {
    pub(super) const MAP_CREATE: libc::c_int = 0;
    pub(super) const MAP_UPDATE_ELEM: libc::c_int = 2;
    pub(super) const PROG_LOAD: libc::c_int = 5;
    pub(super) const PROG_TEST_RUN: libc::c_int = 10;
}

/// `BPF_MAP_TYPE_PROG_ARRAY`.
const PROGRAM_ARRAY: u32 = 3;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u32 = 3;
/// `BPF_FUNC_tail_call`.
const TAIL_CALL: i32 = 12;
/// Offsets in `struct __sk_buff`.
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// `TC_ACT_UNSPEC`: on to the next program.
pub const NEXT: i32 = -1;
/// `TC_ACT_SHOT`: dropped.
pub const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: i32 = 7;
/// The verifier's log, should it refuse.
const LOG: usize = 64 << 10;

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// `to = from`, 64 bits.
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = value`, 64 bits.
const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// A program that does nothing: what every packet costs on its way into any program.
pub fn empty() -> [Instruction; 2] {
    [set(0, NEXT), EXIT]
}

/// A program that writes these bytes over the packet's first ones and goes on to the first program of an array: `repeat` feeds a program
/// its own output, and so a translated packet would be another one the second time. A packet that is too short is dropped, which the
/// caller sees by the verdict.
pub fn restore_and_call(bytes: &[u8], array: RawFd) -> Vec<Instruction> {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    let mut code = vec![
        copy(6, 1),
        instruction(0x61, 7, 1, DATA, 0),
        instruction(0x61, 8, 1, DATA_END, 0),
        copy(2, 7),
        // r2 += length
        instruction(0x07, 2, 0, 0, length),
    ];
    let mut stores = Vec::new();
    let mut offset = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        // The widest store with an immediate that the whole of it says: a word.
        let (code, size) = match rest.len() {
            4.. => (0x62, 4),
            2.. => (0x6a, 2),
            _ => (0x72, 1),
        };
        let (now, later) = rest.split_at(size);
        let mut value = [0; 4];
        value[..size].copy_from_slice(now);
        stores.push(instruction(code, 7, 0, offset, i32::from_le_bytes(value)));
        offset += i16::try_from(size).unwrap_or(0);
        rest = later;
    }
    let call = [
        copy(1, 6),
        // r2 = the array, by its descriptor (BPF_PSEUDO_MAP_FD), in two places.
        instruction(0x18, 2, 1, 0, array),
        instruction(0, 0, 0, 0, 0),
        set(3, 0),
        instruction(0x85, 0, 0, 0, TAIL_CALL),
    ];
    let over = i16::try_from(stores.len() + call.len()).unwrap_or(i16::MAX);
    // if r2 > r8: over all of it
    code.push(instruction(0x2d, 2, 8, over, 0));
    code.extend(stores);
    code.extend(call);
    code.extend([set(0, SHOT), EXIT]);
    code
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

/// One call of `bpf(2)`; what it answers where that is not negative.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are a local of the caller, in the layout of their command, and pointers in them are to locals that outlive
    // the call; the kernel reads as many bytes as it is told, and takes those behind them for zero.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<()>() as u64
}

/// Loads a classifier.
///
/// # Errors
/// The verifier refuses it: its words are in the error.
pub fn load(name: &str, code: &[Instruction]) -> Result<OwnedFd> {
    let mut log = vec![0_u8; LOG];
    let mut short = [0; 16];
    // The last byte stays zero: it ends the name.
    for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let license = c"GPL";
    let mut attributes = ProgramLoad {
        kind: CLASSIFIER,
        count: u32::try_from(code.len())?,
        instructions: address(code),
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(LOG)?,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name: short,
    };
    match bpf(command::PROG_LOAD, &mut attributes) {
        Ok(fd) => Ok(owned(fd)),
        Err(error) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(LOG);
            let words = String::from_utf8_lossy(&log[..end]).into_owned();
            Err(error).with_context(|| format!("loading the program {name}:\n{words}"))
        }
    }
}

/// A program array with one place, and a program in it.
///
/// # Errors
/// The kernel refuses.
pub fn array_of(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut create = MapCreate {
        kind: PROGRAM_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
    };
    let array = owned(bpf(command::MAP_CREATE, &mut create).context("making a program array")?);
    let (key, value) = (0_u32, raw(program));
    let mut update = MapUpdate {
        map: raw(array.as_fd()),
        _pad: 0,
        key: address(&key),
        value: address(&value),
        flags: 0,
    };
    bpf(command::MAP_UPDATE_ELEM, &mut update).context("filling a program array")?;
    Ok(array)
}

/// Where in its context a run of a classifier takes place.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The interface that it is attached to.
    pub ifindex: u32,
    /// The interface that brought the packet; 0: none.
    pub ingress_ifindex: u32,
}

/// What came of runs.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What the last run returned.
    pub verdict: i32,
    /// The time of a run, by the kernel's clock around all of them, in whole nanoseconds.
    pub each: Duration,
    /// The packet as the last run left it.
    pub frame: Vec<u8>,
}

/// Bytes of `struct __sk_buff`, and the fields that a caller may set.
const CONTEXT: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
/// Room for a packet that grew.
const ROOM: usize = 4_096;

/// Runs a classifier on a packet so many times, each on what the last left (`BPF_PROG_TEST_RUN`).
///
/// # Errors
/// The kernel refuses, or the interface is not in this thread's namespace.
pub fn run(program: BorrowedFd<'_>, place: Place, packet: &[u8], repeat: u32) -> Result<Ran> {
    ensure!(repeat > 0, "a program that never runs has no cost");
    let mut context = [0_u8; CONTEXT];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&place.ifindex.to_ne_bytes());
    context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4]
        .copy_from_slice(&place.ingress_ifindex.to_ne_bytes());
    let mut frame = vec![0_u8; ROOM];
    let mut attributes = TestRun {
        program: raw(program),
        data_size_in: u32::try_from(packet.len())?,
        data_size_out: u32::try_from(ROOM)?,
        data_in: packet.as_ptr() as u64,
        data_out: frame.as_mut_ptr() as u64,
        repeat,
        context_size_in: u32::try_from(CONTEXT)?,
        context_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    bpf(command::PROG_TEST_RUN, &mut attributes).context("BPF_PROG_TEST_RUN")?;
    frame.truncate(usize::try_from(attributes.data_size_out)?);
    Ok(Ran {
        verdict: attributes.verdict.cast_signed(),
        each: Duration::from_nanos(attributes.duration.into()),
        frame,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_kernels_layout() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<ProgramLoad>(), 64);
        assert_eq!(size_of::<TestRun>(), 64);
        assert_eq!(size_of::<MapUpdate>(), 32);
        let load = instruction(0x61, 7, 1, DATA, 0);
        assert_eq!(load.registers, 0x17);
    }

    #[test]
    fn every_byte_is_restored_and_the_jump_leads_to_the_end() {
        for length in [14, 54, 55, 57] {
            let bytes: Vec<u8> = (1..=length).collect();
            let code = restore_and_call(&bytes, 9);
            let mut packet = vec![0; bytes.len()];
            for store in code.iter().filter(|i| matches!(i.code, 0x62 | 0x6a | 0x72)) {
                let size = match store.code {
                    0x62 => 4,
                    0x6a => 2,
                    _ => 1,
                };
                let at = usize::try_from(store.offset).unwrap();
                packet[at..at + size].copy_from_slice(&store.immediate.to_le_bytes()[..size]);
            }
            assert_eq!(packet, bytes);
            let jump = code.iter().position(|i| i.code == 0x2d).unwrap();
            let target = jump + 1 + usize::try_from(code[jump].offset).unwrap();
            assert_eq!(code[target..], [set(0, SHOT), EXIT]);
        }
    }
}

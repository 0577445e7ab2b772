//! What the kernel counts of programs: how often they ran, and for how long. It counts while somebody asks it to (`BPF_ENABLE_STATS`,
//! Linux 5.8), which costs each run two readings of the clock: so the windows that are timed run without it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};

/// Lets the kernel count, as long as it lives.
///
/// # Errors
/// The kernel refuses: it is older, or this is not root.
pub fn count() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("letting the kernel count the programs' runs")
}

/// What a program has done since it was loaded, in so far as the kernel counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Runs {
    /// How often it ran. Programs that it tail-calls are part of a run.
    pub count: u64,
    /// For how long, in nanoseconds.
    pub nanoseconds: u64,
}

impl Runs {
    /// What was done since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            nanoseconds: self.nanoseconds.saturating_sub(earlier.nanoseconds),
        }
    }

    /// Nanoseconds of a run; 0 where there was none.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn each(self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.nanoseconds as f64 / self.count as f64
        }
    }

    /// Reads what a program has done, from what /proc tells of its descriptor.
    ///
    /// # Errors
    /// It is no program's, or the kernel does not count (before 5.1).
    pub fn of(program: BorrowedFd<'_>) -> Result<Self> {
        Ok(read(program)?.1)
    }
}

/// `BPF_PROG_TYPE_SCHED_CLS`, as /proc numbers it.
const CLASSIFIER: u64 = 3;

/// A program's type, and what it has done.
fn read(program: BorrowedFd<'_>) -> Result<(u64, Runs)> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse(&text).with_context(|| format!("no run_cnt and run_time_ns in {path}:\n{text}"))
}

fn parse(fdinfo: &str) -> Option<(u64, Runs)> {
    let field = |name: &str| -> Option<u64> {
        let rest = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().parse().ok()
    };
    let runs = Runs {
        count: field("run_cnt:")?,
        nanoseconds: field("run_time_ns:")?,
    };
    Some((field("prog_type:")?, runs))
}

/// A program that is pinned, and open.
#[derive(Debug)]
pub struct Pinned(aya::programs::ProgramFd);

impl Pinned {
    /// Opens a pinned program.
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> Result<_> { Ok(ProgramInfo::from_pin(path)?.fd()?) };
        let program = open().with_context(|| format!("opening the program {}", path.display()))?;
        Ok(Self(program))
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// As [`Runs::of`].
    pub fn runs(&self) -> Result<Runs> {
        Runs::of(self.fd())
    }
}

/// How often each classifier of this machine ran so far, whoever loaded it, by its number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Classifiers(BTreeMap<u32, u64>);

impl Classifiers {
    /// Reads them all.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn read() -> Result<Self> {
        let mut counts = BTreeMap::new();
        for info in loaded_programs() {
            let info = info.context("listing the programs")?;
            // One that went meanwhile runs no more.
            let Ok(fd) = info.fd() else { continue };
            let (kind, runs) = read(fd.as_fd())?;
            if kind == CLASSIFIER {
                counts.insert(info.id(), runs.count);
            }
        }
        Ok(Self(counts))
    }

    /// Runs since an earlier reading; those of programs that went meanwhile are lost.
    pub fn since(&self, earlier: &Self) -> u64 {
        let before = |id: &u32| earlier.0.get(id).copied().unwrap_or(0);
        let runs = self.0.iter();
        runs.map(|(id, now)| now.saturating_sub(before(id))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t02000002\nprog_type:\t3\nprog_jited:\t1\nprog_tag:\tab\nmemlock:\t4096\nprog_id:\t7\n\
                          run_time_ns:\t5200\nrun_cnt:\t52\nrecursion_misses:\t0\n";

    #[test]
    fn the_kernels_words_are_read() {
        let (kind, runs) = parse(FDINFO).unwrap();
        assert_eq!(kind, CLASSIFIER);
        assert_eq!((runs.count, runs.nanoseconds), (52, 5_200));
        assert!((runs.each() - 100.0).abs() < 1e-9);
        assert!(parse("pos: 0\n").is_none());
    }

    #[test]
    fn only_what_was_done_since_counts() {
        let [before, after] =
            [(2, 100), (12, 1_100)].map(|(count, nanoseconds)| Runs { count, nanoseconds });
        assert!((after.since(before).each() - 100.0).abs() < 1e-9);
        assert!(before.since(before).each().abs() < 1e-9);
    }

    #[test]
    fn programs_that_come_and_go_do_not_confuse_the_count() {
        let counts = |all: &[(u32, u64)]| Classifiers(all.iter().copied().collect());
        let before = counts(&[(1, 10), (2, 500)]);
        assert_eq!(counts(&[(1, 10), (3, 0)]).since(&before), 0);
        assert_eq!(counts(&[(1, 12), (3, 5)]).since(&before), 7);
    }
}

//! Whether this machine can carry the datapath: one clear line for each thing that is missing.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The oldest kernel that has every helper and map kind that Sluice uses.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// The kernel's own types, which programs are relocated by.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Capabilities that the agent cannot do without (`include/uapi/linux/capability.h`).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// Stands for CAP_PERFMON and CAP_BPF.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_NET_ADMIN: u32 = 12;

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Too old.
    #[error("kernel {found} is too old: Sluice needs Linux 5.15 or newer")]
    Kernel {
        /// The release that the kernel names.
        found: String,
    },
    /// Not allowed to.
    #[error(
        "missing {0}: run the agent as root, or with these capabilities in the first user namespace"
    )]
    Capabilities(String),
    /// No type information.
    #[error(
        "the kernel has no BTF ({KERNEL_BTF} is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    Btf,
    /// No cgroup v2.
    #[error(
        "no cgroup v2 file system is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or name one with --cgroup"
    )]
    NoCgroup2,
    /// Not a cgroup.
    #[error("{0} is not a cgroup v2 directory: give --cgroup a directory on a cgroup2 file system")]
    NotCgroup2(PathBuf),
    /// The system could not be asked.
    #[error("{what}: {source}")]
    Io {
        /// What was asked.
        what: &'static str,
        /// What went wrong.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Io { what, source }
}

/// Kernel, capabilities and BTF.
///
/// # Errors
/// The first thing that is missing.
pub fn check() -> Result<(), HostError> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(failed("reading /proc/self/status"))?;
    let missing = missing_capabilities(&status);
    if !missing.is_empty() {
        return Err(HostError::Capabilities(missing.join(", ")));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(failed("reading /proc/sys/kernel/osrelease"))?;
    if version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(HostError::Kernel {
            found: release.trim().to_owned(),
        });
    }
    if !Path::new(KERNEL_BTF).exists() {
        return Err(HostError::Btf);
    }
    Ok(())
}

/// Raises the limit of open files as far as it goes: the agent holds a descriptor of each link, two for each pod, and the customary 1,024
/// are too few for a full node.
///
/// # Errors
/// The kernel refused.
pub fn raise_file_limit() -> Result<(), HostError> {
    let failed = failed("raising the limit of open files");
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a local that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above; the kernel only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(())
}

/// Names of the capabilities that `CapEff` in `/proc/self/status` lacks.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & (1 << bit) != 0;
    CAPABILITIES
        .into_iter()
        .filter(|&(_, bit)| !(has(bit) || bit != CAP_NET_ADMIN && has(CAP_SYS_ADMIN)))
        .map(|(name, _)| name)
        .collect()
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The cgroup to attach to: the one asked for, or the root of the first cgroup2 file system that is mounted.
///
/// # Errors
/// There is none, or what was asked for is none.
pub fn cgroup(asked: Option<&Path>) -> Result<PathBuf, HostError> {
    let mounts = fs::read_to_string("/proc/mounts").map_err(failed("reading /proc/mounts"))?;
    let mut mounted = cgroup2_mounts(&mounts);
    let Some(asked) = asked else {
        return mounted.next().ok_or(HostError::NoCgroup2);
    };
    let found = nix::sys::statfs::statfs(asked)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
    if found && asked.is_dir() {
        Ok(asked.to_path_buf())
    } else {
        Err(HostError::NotCgroup2(asked.to_path_buf()))
    }
}

/// Mount points of cgroup2 file systems. (Spaces and the like are octal escapes in `/proc/mounts`.)
fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(place)))
    })
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok())
        {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// Cookie of the calling thread's network namespace, as `bpf_get_netns_cookie` gives it (Linux 5.14).
///
/// # Errors
/// The kernel refused.
pub fn netns_cookie() -> Result<u64, HostError> {
    let failed = failed("reading the network namespace's cookie");
    let probe = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer has the eight bytes that the option writes, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            probe.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(cookie)
}

/// `SO_NETNS_COOKIE` (`include/uapi/asm-generic/socket.h`; the same on x86 and arm64).
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(
            missing_capabilities("CapEff:\t0000000000000000\n"),
            ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]
        );
        assert!(missing_capabilities("CapEff:\t000001ffffffffff\n").is_empty());
        let old = format!("CapEff:\t{:016x}\n", 1u64 << CAP_SYS_ADMIN);
        assert_eq!(missing_capabilities(&old), ["CAP_NET_ADMIN"]);
        let exact = format!("CapEff:\t{:016x}\n", (1u64 << 12) | (1 << 38) | (1 << 39));
        assert!(missing_capabilities(&exact).is_empty());
    }

    #[test]
    fn releases_compare_by_number() {
        assert_eq!(version("6.1.0-13-cloud-amd64\n"), Some((6, 1)));
        assert!(version("5.4.0").is_some_and(|v| v < OLDEST_KERNEL));
        assert!(version("10.0-rc1").is_some_and(|v| v > OLDEST_KERNEL));
    }

    #[test]
    fn cgroup2_is_found_wherever_it_is() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/my\\040group cgroup2 rw 0 0\n";
        let found: Vec<_> = cgroup2_mounts(mounts).collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/my group")]);
    }

    #[test]
    fn an_ordinary_directory_is_no_cgroup() {
        let error = cgroup(Some(Path::new("/proc"))).expect_err("refused");
        assert!(error.to_string().contains("not a cgroup v2 directory"));
    }
}

//! What the tier `vm` boots: QEMU, and the kernel of a Debian package, unpacked into the cache and never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{State, apt};
use crate::{shell, workspace};

/// The emulator. Always by software: where a virtual machine has `/dev/kvm`, using it may hang.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Debian's name of its package.
const QEMU_PACKAGE: &str = "qemu-system-x86";
/// Kernel packages of Debian 12 for virtual machines: what is before the build's number, and behind it.
const KERNEL_PACKAGE: (&str, &str) = ("linux-image-6.1.0-", "-cloud-amd64");
/// The variable that names a directory with an unpacked kernel package, for machines whose packages have none.
const KERNEL_VARIABLE: &str = "SLUICE_VM_KERNEL";

/// An unpacked kernel package.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kernel {
    /// `boot/vmlinuz-RELEASE`.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, or below `usr`.
    pub(crate) modules: PathBuf,
    /// What the kernel calls itself (`uname -r`).
    pub(crate) release: String,
}

impl Kernel {
    /// The kernel whose package was unpacked in a directory.
    fn in_directory(directory: &Path) -> Option<Self> {
        let images = std::fs::read_dir(directory.join("boot")).ok()?;
        images
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let release = name.strip_prefix("vmlinuz-")?.to_owned();
                let modules = ["lib/modules", "usr/lib/modules"]
                    .map(|below| directory.join(below).join(&release))
                    .into_iter()
                    .find(|modules| modules.is_dir())?;
                Some(Self {
                    image: entry.path(),
                    modules,
                    release,
                })
            })
            .max_by(|a, b| a.release.cmp(&b.release))
    }
}

/// The kernel that there is: what the variable names, else the newest in the cache.
///
/// # Errors
/// There is none; the line says how to get one.
pub(crate) fn kernel() -> Result<Kernel> {
    if let Some(named) = std::env::var_os(KERNEL_VARIABLE) {
        let named = PathBuf::from(named);
        return Kernel::in_directory(&named).with_context(|| {
            format!(
                "{KERNEL_VARIABLE} names {}, which holds no boot/vmlinuz-RELEASE with its lib/modules/RELEASE",
                named.display()
            )
        });
    }
    let cached = std::fs::read_dir(workspace::cache("vm")?)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let build = build_number(entry.file_name().to_str()?)?;
            Some((build, Kernel::in_directory(&entry.path())?))
        })
        .max_by_key(|(build, _)| *build);
    cached.map(|(_, kernel)| kernel).with_context(|| {
        let (before, behind) = KERNEL_PACKAGE;
        format!("no kernel {before}*{behind} in the cache: run `cargo xtask setup` on Debian, or unpack that package (dpkg-deb -x) and name the directory in {KERNEL_VARIABLE}")
    })
}

/// The build's number in a package's name.
fn build_number(package: &str) -> Option<u32> {
    let (before, behind) = KERNEL_PACKAGE;
    package
        .strip_prefix(before)?
        .strip_suffix(behind)?
        .parse()
        .ok()
}

/// What the host's programs, which run in the machine too, must be built for.
fn fits_this_machine() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the kernel is one for x86-64, and this machine's programs are not"
    );
    Ok(())
}

pub(super) fn check() -> State {
    if let Err(error) = fits_this_machine() {
        return State::Missing(format!("{error:#}"));
    }
    let Some(qemu) = shell::output(Command::new(QEMU).arg("--version")) else {
        return State::Missing(format!("{QEMU} is not installed"));
    };
    match kernel() {
        Ok(kernel) => {
            let version = qemu.lines().next().unwrap_or_default();
            State::Ready(format!("{version}; Linux {}", kernel.release))
        }
        Err(error) => State::Missing(format!("{error:#}")),
    }
}

pub(super) fn install() -> Result<()> {
    fits_this_machine()?;
    if shell::find(QEMU).is_none() {
        apt::install(&[QEMU_PACKAGE])?;
    }
    if kernel().is_err() {
        unpack()?;
    }
    Ok(())
}

/// Fetches the newest kernel package and unpacks it into the cache.
fn unpack() -> Result<()> {
    let cache = workspace::cache("vm")?;
    let package = newest()?;
    // Unpacked under another name and then renamed: a directory with the package's name is whole.
    let unfinished = cache.join(format!("unfinished-{}", std::process::id()));
    std::fs::create_dir_all(&unfinished)
        .with_context(|| format!("cannot create {}", unfinished.display()))?;
    let outcome = fetch(&package, &unfinished).and_then(|()| {
        let directory = cache.join(&package);
        match std::fs::rename(unfinished.join("root"), &directory) {
            // Another run was faster.
            Err(_) if directory.is_dir() => Ok(()),
            renamed => renamed.with_context(|| format!("cannot put it at {}", directory.display())),
        }
    });
    let _left_to_the_next_run = std::fs::remove_dir_all(&unfinished);
    outcome
}

/// The newest of the packages that apt knows.
fn newest() -> Result<String> {
    let (before, behind) = KERNEL_PACKAGE;
    if shell::find("apt-cache").is_none() {
        bail!(
            "this machine has no apt: unpack Debian's {before}*{behind} (dpkg-deb -x) and name the directory in {KERNEL_VARIABLE}"
        );
    }
    let known = || {
        let listed = shell::output(Command::new("apt-cache").args(["pkgnames", before]))?;
        listed
            .lines()
            .filter_map(|name| Some((build_number(name)?, name.to_owned())))
            .filter(|(_, name)| apt::candidate(name).is_some())
            .max()
    };
    let mut found = known();
    if found.is_none() && apt::update().is_ok() {
        found = known();
    }
    found.map(|(_, name)| name).with_context(|| {
        format!("apt knows no package {before}*{behind} (Debian 12 has them): name a directory with an unpacked one in {KERNEL_VARIABLE}")
    })
}

/// Downloads a package into a directory and unpacks it into `root` there.
fn fetch(package: &str, directory: &Path) -> Result<()> {
    let log = workspace::target().join("xtask").join("vm-kernel.log");
    println!("setup: fetching {package}");
    shell::run_quietly(
        Command::new("apt-get")
            .current_dir(directory)
            .args(["download", package]),
        &log,
    )?;
    let archive = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    shell::run_quietly(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(directory.join("root")),
        &log,
    )
}

#[cfg(test)]
mod tests {
    use super::{Kernel, build_number};

    #[test]
    fn builds_are_told_from_other_packages_and_ordered_by_number() {
        assert_eq!(build_number("linux-image-6.1.0-56-cloud-amd64"), Some(56));
        assert_eq!(build_number("linux-image-6.1.0-56-cloud-amd64-dbg"), None);
        assert_eq!(build_number("linux-image-6.12-cloud-amd64"), None);
        assert!(
            build_number("linux-image-6.1.0-9-cloud-amd64")
                < build_number("linux-image-6.1.0-10-cloud-amd64")
        );
    }

    #[test]
    fn a_directory_without_modules_holds_no_kernel() {
        let directory = std::env::temp_dir().join(format!("sluice-vm-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("boot")).unwrap();
        std::fs::write(directory.join("boot/vmlinuz-6.1.0-1-x"), "").unwrap();
        let without = Kernel::in_directory(&directory);
        std::fs::create_dir_all(directory.join("usr/lib/modules/6.1.0-1-x")).unwrap();
        let with = Kernel::in_directory(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(without, None);
        assert_eq!(with.unwrap().release, "6.1.0-1-x");
    }
}

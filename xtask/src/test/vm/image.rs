//! An initial file system in memory: programs of this machine with the libraries they load, as a cpio archive.
//!
//! The format is the kernel's "newc" (Documentation/driver-api/early-userspace/buffer-format.rst): numbers as eight
//! hexadecimal digits, everything padded to four bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// `S_IFDIR` and rwxr-xr-x.
const DIRECTORY: u32 = 0o040_755;
/// `S_IFREG` and rwxr-xr-x.
const FILE: u32 = 0o100_755;
/// `S_IFCHR` and rw-------.
const DEVICE: u32 = 0o020_600;
/// The device `console`, which the kernel opens for the first process: major and minor.
const CONSOLE: (u32, u32) = (5, 1);
/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Everything in an archive begins at a multiple of this.
const ALIGNMENT: usize = 4;

/// What an entry of the archive holds.
#[derive(Debug)]
enum Content {
    Directory,
    /// A file of this machine.
    From(PathBuf),
    /// A file written here.
    Bytes(Vec<u8>),
}

/// The files of an image, by absolute path.
#[derive(Debug, Default)]
pub(super) struct Image {
    entries: BTreeMap<PathBuf, Content>,
}

impl Image {
    /// Adds an empty directory, with those above it.
    pub(super) fn directory(&mut self, path: &Path) {
        for above in path.ancestors().filter(|above| above.parent().is_some()) {
            self.entries
                .entry(above.to_owned())
                .or_insert(Content::Directory);
        }
    }

    /// Adds a file with these bytes.
    pub(super) fn bytes(&mut self, path: &Path, bytes: Vec<u8>) {
        self.put(path, Content::Bytes(bytes));
    }

    /// Adds a file of this machine at another path.
    pub(super) fn file(&mut self, source: &Path, path: &Path) {
        self.put(path, Content::From(source.to_owned()));
    }

    /// Adds a program of this machine at another path, with the libraries it loads at their own.
    pub(super) fn program(&mut self, source: &Path, path: &Path) -> Result<()> {
        self.file(source, path);
        self.libraries_of(source)
    }

    /// Adds the libraries that a program or library loads.
    pub(super) fn libraries_of(&mut self, source: &Path) -> Result<()> {
        // A static program has none, and ldd ends with an error then.
        let listed = shell::output(Command::new("ldd").arg(source)).unwrap_or_default();
        for library in libraries(&listed) {
            // As the loader opens it; what a symbolic link leads to is stored under the link's name.
            self.file(&library, &library);
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, content: Content) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entries.insert(path.to_owned(), content);
    }

    /// Writes the archive.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<()> {
        let mut archive = Archive { to, number: 0 };
        for (path, content) in &self.entries {
            match content {
                Content::Directory => archive.entry(path, DIRECTORY, (0, 0), &[])?,
                Content::Bytes(bytes) => archive.entry(path, FILE, (0, 0), bytes)?,
                Content::From(source) => {
                    let bytes = std::fs::read(source)
                        .with_context(|| format!("cannot read {}", source.display()))?;
                    archive.entry(path, FILE, (0, 0), &bytes)?;
                }
            }
        }
        archive.entry(Path::new("/dev/console"), DEVICE, CONSOLE, &[])?;
        archive.entry(Path::new(TRAILER), 0, (0, 0), &[])
    }
}

/// The paths in what `ldd` prints: `name => /path (address)` and `/path (address)`.
fn libraries(listed: &str) -> Vec<PathBuf> {
    listed
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from)
        })
        .collect()
}

struct Archive<'a, W> {
    to: &'a mut W,
    number: u32,
}

impl<W: Write> Archive<'_, W> {
    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.number += 1;
        let name = path.to_string_lossy();
        let name = name.trim_start_matches('/');
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is larger than an archive's file can be"))?;
        let length = u32::try_from(name.len() + 1).context("a path's length")?;
        // Magic; inode, mode, owner, group, links, time, size; device of the file; device that it is; name, checksum.
        let fields = [
            self.number,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            length,
            0,
        ];
        let mut head = b"070701".to_vec();
        for field in fields {
            write!(head, "{field:08x}")?;
        }
        head.extend_from_slice(name.as_bytes());
        head.push(0);
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        let padding = content.len().next_multiple_of(ALIGNMENT) - content.len();
        self.to
            .write_all(&head)
            .and_then(|()| self.to.write_all(content))
            .and_then(|()| self.to.write_all(&[0; ALIGNMENT][..padding]))
            .context("cannot write the image")
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Image, libraries};

    #[test]
    fn an_archive_holds_directories_before_what_is_in_them_and_is_aligned() {
        let mut image = Image::default();
        image.bytes(Path::new("/a/b"), b"12345".to_vec());
        let mut bytes = Vec::new();
        image.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let heads: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(heads.len(), 4, "a, a/b, dev/console, the end: {text}");
        assert!(heads.iter().all(|at| at % 4 == 0), "{heads:?}");
        // The head is 110 bytes, then the name.
        let name = |at: usize| text[at + 110..].split('\0').next().unwrap().to_owned();
        let names: Vec<String> = heads.into_iter().map(name).collect();
        assert_eq!(names, ["a", "a/b", "dev/console", "TRAILER!!!"]);
        assert!(text.contains("12345\0"));
    }

    #[test]
    fn libraries_are_read_with_and_without_an_arrow() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n\tlibx.so => not found\n";
        assert_eq!(
            libraries(listed),
            [PathBuf::from("/lib/libc.so.6"), "/lib64/ld.so.2".into()]
        );
    }
}

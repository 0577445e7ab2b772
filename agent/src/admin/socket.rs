//! The socket's file: made private, never taken from a living agent.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixSocket};

/// Only the owner may ask.
const MODE: u32 = 0o600;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent has it.
    #[error("another agent answers at {0}: stop it, or give this one its own with --socket")]
    Taken(PathBuf),
    /// Something else lies there.
    #[error(
        "{0} is there already and is no socket: remove it, or choose another path with --socket"
    )]
    NoSocket(PathBuf),
    /// The system refused.
    #[error(
        "cannot {what} {path}: {source}; check that the directory may be written to, or choose another path with --socket"
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SocketError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// A socket that listens. Dropping it removes the file, if it is still this one.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
    /// Held as long as the agent lives: the kernel lets go of it at its death, however that comes.
    _lock: Flock<File>,
}

impl Listening {
    /// Makes the socket and its directory. What a dead agent left is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, SocketError> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(SocketError::io("make the directory", parent))?;
        }
        let lock = lock(path)?;
        remove_stale(path)?;
        let socket =
            UnixSocket::new_stream().map_err(SocketError::io("make a socket for", path))?;
        socket.bind(path).map_err(SocketError::io("bind", path))?;
        // Before it listens: until then nobody can connect, whatever the umask made of the mode.
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))
            .map_err(SocketError::io("set the mode of", path))?;
        let listener = socket
            .listen(BACKLOG)
            .map_err(SocketError::io("listen at", path))?;
        let file = fs::symlink_metadata(path).map_err(SocketError::io("look at", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: (file.dev(), file.ino()),
            _lock: lock,
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

/// The lock beside the socket: of two agents that start at once, one gets it.
fn lock(path: &Path) -> Result<Flock<File>, SocketError> {
    let lock = lock_path(path);
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(&lock)
        .map_err(SocketError::io("open", &lock))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => SocketError::Taken(path.to_owned()),
        errno => SocketError::Io {
            what: "lock",
            path: lock,
            source: errno.into(),
        },
    })
}

/// What a dead agent left: its socket and the lock beside it.
#[derive(Debug)]
pub struct Leftover {
    path: PathBuf,
    /// None where there is nothing, or an agent has it and it is to go all the same.
    lock: Option<Flock<File>>,
}

impl Leftover {
    /// Looks at a socket that is to go. Nothing is changed.
    ///
    /// # Errors
    /// An agent has it and `force` is not given, or something else lies there.
    pub fn claim(path: &Path, force: bool) -> Result<Self, SocketError> {
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        if let Ok(file) = fs::symlink_metadata(path)
            && !file.file_type().is_socket()
        {
            return Err(SocketError::NoSocket(path.to_owned()));
        }
        let lock = match (there(path) || there(&lock_path(path))).then(|| lock(path)) {
            None => None,
            Some(Ok(lock)) => Some(lock),
            Some(Err(SocketError::Taken(_))) if force => None,
            Some(Err(error)) => return Err(error),
        };
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// Removes it, and the directory that agents make by default. What was tried, and how it went.
    pub fn remove(self) -> Vec<(PathBuf, io::Result<()>)> {
        let lock = lock_path(&self.path);
        let mut done = vec![(self.path.clone(), fs::remove_file(&self.path))];
        // The lock of an agent that runs stays: another one would not see it.
        if self.lock.is_some() {
            done.push((lock.clone(), fs::remove_file(&lock)));
        }
        if self.path == Path::new(super::DEFAULT_SOCKET)
            && let Some(parent) = self.path.parent()
            && fs::read_dir(parent).is_ok_and(|mut entries| entries.next().is_none())
        {
            done.push((parent.to_owned(), fs::remove_dir(parent)));
        }
        done
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::io("look at", path)(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(SocketError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    // The lock was free, so no agent of this kind lives; whoever answers without it is left alone too.
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::Taken(path.to_owned()));
    }
    fs::remove_file(path).map_err(SocketError::io("remove the dead agent's socket", path))
}

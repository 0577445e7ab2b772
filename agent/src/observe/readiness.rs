//! Readiness: what is still missing, by name; and telling the service manager.
//!
//! Each part of the start holds a [`Guard`] until it is done. Whoever waits, waits for the last; whoever asks, gets the names of
//! those that are held, and of what was there and is lost: the agent is not ready again until it is back, though the start is over, and
//! all that it served stays in force.

use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;

use tokio::sync::watch;

/// The variable that names the service manager's socket (`sd_notify(3)`).
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

#[derive(Default, Debug)]
struct Missing {
    next: u64,
    held: BTreeMap<u64, String>,
    /// Was there, and is lost.
    lost: Option<String>,
}

/// What the agent still waits for. Clones share it. Without any guard it is ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    missing: Arc<watch::Sender<Missing>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            missing: Arc::new(watch::Sender::new(Missing::default())),
        }
    }
}

impl Readiness {
    /// Not ready until the guard is dropped. `what` stands behind "waits for": `the first apply`.
    pub fn wait_for(&self, what: impl Into<String>) -> Guard {
        let mut id = 0;
        self.missing.send_modify(|missing| {
            id = missing.next;
            missing.next += 1;
            missing.held.insert(id, what.into());
        });
        Guard {
            id,
            missing: Arc::clone(&self.missing),
        }
    }

    /// What was there is lost, or (None) nothing is any more. True where that is news.
    pub fn lost(&self, what: Option<String>) -> bool {
        self.missing.send_if_modified(|missing| {
            let news = missing.lost != what;
            missing.lost = what;
            news
        })
    }

    /// What is missing, in the order in which it was asked for, and then what is lost.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let missing = self.missing.borrow();
        missing
            .held
            .values()
            .chain(&missing.lost)
            .cloned()
            .collect()
    }

    /// Waits until the start is over. What is lost since does not count: a service manager is told once.
    pub async fn ready(&self) {
        let mut missing = self.missing.subscribe();
        // It fails only where the sender is gone, which `self` holds.
        drop(missing.wait_for(|missing| missing.held.is_empty()).await);
    }
}

/// Something that is missing until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it says that it is there"]
pub struct Guard {
    id: u64,
    missing: Arc<watch::Sender<Missing>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.missing.send_modify(|missing| {
            missing.held.remove(&self.id);
        });
    }
}

/// What a service manager is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The start is over.
    Ready,
    /// One line that `systemctl status` shows.
    Status(String),
    /// The end has begun.
    Stopping,
}

impl Notice {
    fn text(&self) -> String {
        match self {
            Self::Ready => "READY=1\n".to_owned(),
            Self::Status(line) => format!("STATUS={}\n", line.replace('\n', " ")),
            Self::Stopping => "STOPPING=1\n".to_owned(),
        }
    }
}

/// Tells the service manager that `$NOTIFY_SOCKET` names; nothing where it names none.
///
/// # Errors
/// The socket does not take it.
pub fn notify(notice: &Notice) -> io::Result<()> {
    match std::env::var_os(NOTIFY_SOCKET) {
        Some(path) if !path.is_empty() => send(path.as_bytes(), notice),
        _ => Ok(()),
    }
}

/// A name that begins with `@` is one of the abstract namespace (unix(7)).
fn send(name: &[u8], notice: &Notice) -> io::Result<()> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A service manager that does not read must not hold the agent up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(notice.text().as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_is_gone() {
        let readiness = Readiness::default();
        let first = readiness.wait_for("Pod of manifests");
        let second = readiness.wait_for("the first apply");
        assert_eq!(readiness.missing(), ["Pod of manifests", "the first apply"]);
        drop(first);
        assert_eq!(readiness.missing(), ["the first apply"]);
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        assert!(readiness.missing().is_empty());
    }

    #[tokio::test]
    async fn what_is_lost_is_missing_but_the_start_is_over() {
        let readiness = Readiness::default();
        let guard = readiness.wait_for("the first apply");
        assert!(readiness.lost(Some("manifests".to_owned())));
        assert!(!readiness.lost(Some("manifests".to_owned())));
        assert_eq!(readiness.missing(), ["the first apply", "manifests"]);
        drop(guard);
        readiness.ready().await;
        assert_eq!(readiness.missing(), ["manifests"]);
        assert!(readiness.lost(None));
        assert!(readiness.missing().is_empty());
    }

    #[test]
    fn the_service_manager_hears_it_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("sluice-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.as_os_str().as_bytes().to_vec(),
            ),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into_bytes(),
            ),
        ];
        for (socket, name) in sockets {
            for (notice, text) in [
                (Notice::Ready, "READY=1\n"),
                (Notice::Status("a\nb".to_owned()), "STATUS=a b\n"),
                (Notice::Stopping, "STOPPING=1\n"),
            ] {
                send(&name, &notice).unwrap();
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], text.as_bytes());
            }
        }
    }
}

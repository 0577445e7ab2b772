//! The ring of events, as something to await.

use std::io;

use agent_common::Event;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The ring before a runtime reads it.
pub struct EventRing {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for EventRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRing").finish_non_exhaustive()
    }
}

impl EventRing {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Registers the ring with the current tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the descriptor.
    pub fn into_events(self) -> io::Result<Events> {
        // SAFETY: the ring owns its descriptor, gives the same one each time, and closes it only when it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(self.ring, Interest::READABLE) };
        Ok(Events { ring: ring? })
    }
}

/// Reads events as they come. One reader for all; others are fed by it.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// The next event. Cancel-safe: an event is either returned or still in the ring.
    ///
    /// # Errors
    /// The runtime cannot wait for the descriptor any more.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let ring = guard.get_inner_mut();
            while let Some(item) = ring.next() {
                if let Some(event) = decode(&item) {
                    return Ok(event);
                }
            }
            guard.clear_ready();
        }
    }
}

/// An event from a record; None for a record that is too short, which no program of this layout writes.
fn decode(record: &[u8]) -> Option<Event> {
    let bytes = record.get(..size_of::<Event>())?;
    // SAFETY: the slice has an event's size, and every bit pattern is an event (Pod).
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn short_record_is_no_event() {
        assert!(decode(&[0; 95]).is_none());
        assert_eq!(decode(&[0; 96]).map(|event| event.kind), Some(0));
    }
}

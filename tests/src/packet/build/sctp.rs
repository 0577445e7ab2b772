//! SCTP packets, RFC 9260. Tags are verification tags: who asks for one in an INIT or INIT ACK gets it in all that comes to it.

use std::net::SocketAddr;

use super::{Body, Packet};

/// Types of chunks, RFC 9260 3.2.
pub mod chunk {
    /// DATA.
    pub const DATA: u8 = 0;
    /// INIT.
    pub const INIT: u8 = 1;
    /// INIT ACK.
    pub const INIT_ACK: u8 = 2;
    /// ABORT.
    pub const ABORT: u8 = 6;
    /// COOKIE ECHO.
    pub const COOKIE_ECHO: u8 = 10;
    /// SHUTDOWN COMPLETE.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
    /// The flag T of the two that end an association: the tag is reflected.
    pub const T: u8 = 1;
}

/// What INIT and INIT ACK say: the tag that is asked for, then a window, streams out and in, the first number (RFC 9260 3.3.2).
fn asks_for(tag: u32) -> [u8; 16] {
    let [a, b, c, d] = tag.to_be_bytes();
    [a, b, c, d, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]
}

impl Packet {
    /// The first packet of an association.
    pub fn sctp_init(from: SocketAddr, to: SocketAddr, asked: u32) -> Self {
        Self::sctp(from, to).chunk(chunk::INIT, 0, &asks_for(asked))
    }

    /// The answer to the first.
    pub fn sctp_init_ack(from: SocketAddr, to: SocketAddr, tag: u32, asked: u32) -> Self {
        Self::sctp(from, to)
            .tag(tag)
            .chunk(chunk::INIT_ACK, 0, &asks_for(asked))
    }

    /// A packet of an association, with data.
    pub fn sctp_data(from: SocketAddr, to: SocketAddr, tag: u32, data: &[u8]) -> Self {
        // Number, stream, number in the stream, protocol (RFC 9260 3.3.1); the flags say that it is all of a message.
        let value = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], data].concat();
        Self::sctp(from, to).tag(tag).chunk(chunk::DATA, 3, &value)
    }

    /// A packet that ends an association: `kind` is ABORT or SHUTDOWN COMPLETE.
    pub fn sctp_end(from: SocketAddr, to: SocketAddr, tag: u32, kind: u8, flags: u8) -> Self {
        Self::sctp(from, to).tag(tag).chunk(kind, flags, &[])
    }

    /// Sets SCTP's verification tag.
    pub fn tag(mut self, with: u32) -> Self {
        if let Body::Sctp { tag, .. } = &mut self.body {
            *tag = with;
        }
        self
    }

    /// Adds a chunk behind what is there, padded to four bytes.
    pub fn chunk(mut self, kind: u8, flags: u8, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.data.extend([kind, flags]);
        self.data.extend(length.to_be_bytes());
        self.data.extend(value);
        self.data.resize(self.data.len().next_multiple_of(4), 0);
        self
    }

    /// Leaves SCTP's checksum to somebody else: its field is zero.
    pub fn unsummed(mut self) -> Self {
        if let Body::Sctp { summed, .. } = &mut self.body {
            *summed = false;
        }
        self
    }
}

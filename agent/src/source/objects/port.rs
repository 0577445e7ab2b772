//! Ports and protocols.

use std::fmt::Display;

use super::Fault;
use crate::model::{Protocol, Text, intern};

/// A protocol; TCP where the object has none, as the API server defaults it.
pub(super) fn protocol(field: impl Display, text: Option<&str>) -> Result<Protocol, Fault> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Fault::new(
            field,
            format_args!("{other:?} is an unknown protocol; write TCP, UDP or SCTP"),
        )),
    }
}

/// A port number that is not 0.
pub(super) fn number(field: impl Display, port: i32) -> Result<u16, Fault> {
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Fault::new(
            field,
            format_args!("{port} is no port; write a number from 1 to 65535"),
        )),
    }
}

/// A port number, or 0 for none.
pub(super) fn number_or_none(field: impl Display, port: Option<i32>) -> Result<u16, Fault> {
    match port {
        None | Some(0) => Ok(0),
        Some(port) => number(field, port),
    }
}

/// Characters of a port name at most (`IsValidPortName`, RFC 6335).
const NAME_MAX: usize = 15;

/// The name of a container port: RFC 6335's service name, in lower case.
pub(super) fn name(field: impl Display, text: &str) -> Result<Text, Fault> {
    let characters = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let letter = text.bytes().any(|b| b.is_ascii_lowercase());
    let hyphens = text.starts_with('-') || text.ends_with('-') || text.contains("--");
    if text.len() > NAME_MAX || !characters || !letter || hyphens {
        return Err(Fault::new(
            field,
            format_args!(
                "{text:?} is no port name; write at most {NAME_MAX} of a-z, 0-9 and single inner '-', at least one letter, or a number without quotes"
            ),
        ));
    }
    Ok(intern(text))
}

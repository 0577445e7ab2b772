//! Free ports for servers whose port must be known before they start.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, TcpListener};
use std::ops::Range;

use anyhow::{Context as _, Result};

/// Below Linux's ephemeral ports (32768 on) and Kubernetes' node ports (30000 on), so that no outgoing
/// connection takes a port between its choice and its use, or while the API server restarts.
const RANGE: Range<u16> = 20_000..30_000;

/// `N` different TCP ports that nobody listens on at `address`. They are not held: whoever binds them first has
/// them.
pub(super) fn free<const N: usize>(address: IpAddr) -> Result<[u16; N]> {
    // A start of its own for each call, so that tests at the same time do not try the same ports.
    let length = RANGE.len();
    let start = usize::try_from(RandomState::new().hash_one(()) % length as u64)?;
    let mut held = Vec::with_capacity(N);
    for port in RANGE.cycle().skip(start).take(length) {
        if held.len() == N {
            break;
        }
        if let Ok(listener) = TcpListener::bind((address, port)) {
            held.push(listener);
        }
    }
    let ports = held
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect::<Result<Vec<_>>>()?;
    ports.try_into().ok().with_context(|| {
        format!("fewer than {N} free ports at {address} in {RANGE:?}: does this network namespace own the address?")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn ports_differ_and_can_be_bound() -> Result<()> {
        let ports: [u16; 3] = free(Ipv4Addr::LOCALHOST.into())?;
        assert_eq!(BTreeSet::from(ports).len(), ports.len());
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        }
        Ok(())
    }

    #[test]
    fn an_address_of_nobody_is_an_error() {
        // TEST-NET-1 of RFC 5737: no machine owns it.
        assert!(free::<1>(Ipv4Addr::new(192, 0, 2, 1).into()).is_err());
    }
}

//! What the kernel counted in a namespace: `/proc/net/snmp`, `/proc/net/netstat`, `/proc/net/snmp6`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::lab::netns::Netns;

/// Every protocol counter of a namespace at one moment, named as `nstat` does: `TcpRetransSegs`, `UdpInErrors`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// Reads the counters of a namespace.
    ///
    /// # Errors
    /// `/proc` is not what it should be.
    pub fn read(netns: &Netns) -> Result<Self> {
        netns.run(Self::read_here)?
    }

    /// Reads the counters of the calling thread's namespace.
    ///
    /// # Errors
    /// As [`Counters::read`].
    pub fn read_here() -> Result<Self> {
        let mut counters = BTreeMap::new();
        for table in ["snmp", "netstat"] {
            parse_pairs(&read(table)?, &mut counters);
        }
        parse_lines(&read("snmp6")?, &mut counters);
        Ok(Self(counters))
    }

    /// One counter; one that the kernel does not have is 0.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// How much one counter rose since `earlier`.
    pub fn since(&self, earlier: &Self, name: &str) -> i64 {
        self.get(name) - earlier.get(name)
    }

    /// TCP segments that had to be sent again since `earlier`, SYNs included (`TcpRetransSegs`): less those that the other end says it had got
    /// already (`TcpExtTCPDSACKRecv`, RFC 2883), which were only late, by a machine that stood still for 200 ms.
    pub fn retransmits_since(&self, earlier: &Self) -> i64 {
        let again = self.since(earlier, "TcpRetransSegs");
        (again - self.since(earlier, "TcpExtTCPDSACKRecv")).max(0)
    }

    /// All counters that changed since `earlier`, for messages.
    pub fn changes_since(&self, earlier: &Self) -> BTreeMap<String, i64> {
        let change = |name: &String| (name.clone(), self.since(earlier, name));
        self.0
            .keys()
            .map(change)
            .filter(|(_, by)| *by != 0)
            .collect()
    }
}

/// `/proc/net` is the main thread's; the calling thread's own is behind `thread-self`.
fn read(table: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{table}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

/// Two lines a group: `Tcp: RtoAlgorithm ...`, `Tcp: 1 ...`.
fn parse_pairs(text: &str, into: &mut BTreeMap<String, i64>) {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let mut names = names.split_whitespace();
        let group = names.next().unwrap_or_default().trim_end_matches(':');
        for (name, value) in names.zip(values.split_whitespace().skip(1)) {
            if let Ok(value) = value.parse() {
                into.insert(format!("{group}{name}"), value);
            }
        }
    }
}

/// One line a counter: `Ip6InReceives 12`.
fn parse_lines(text: &str, into: &mut BTreeMap<String, i64>) {
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(char::is_whitespace)
            && let Ok(value) = value.trim().parse()
        {
            into.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_differences_are_told() {
        let mut before = BTreeMap::new();
        parse_pairs("Tcp: MaxConn RetransSegs\nTcp: -1 3\n", &mut before);
        parse_lines("Udp6InErrors                    \t4\n", &mut before);
        let mut after = before.clone();
        after.insert("TcpRetransSegs".to_owned(), 6);
        after.insert("TcpExtTCPDSACKRecv".to_owned(), 1);
        let (before, after) = (Counters(before), Counters(after));
        assert_eq!(before.get("TcpMaxConn"), -1);
        assert_eq!(before.get("Udp6InErrors"), 4);
        assert_eq!(after.retransmits_since(&before), 2);
        assert_eq!(after.changes_since(&before).len(), 2);
    }
}

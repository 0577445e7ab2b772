//! Every capacity and timeout, in one place, with its reason.
//!
//! Capacities are entries. The agent may raise or lower those of hash maps and tries at load time; arrays that are
//! mapped into the agent keep these sizes.

/// Version of everything that two builds must agree on to share pinned maps: raised with every change of a key, a value,
/// a flag or a capacity that is not settable. Stands in the name of the pin directory, and in [`crate::gate::GateWord`]. What entries look
/// like stands in `layout`, where a test holds it against this number.
pub const LAYOUT: u32 = if cfg!(feature = "layout-next") { 4 } else { 3 };

/// Conntrack entries (two per flow) where nobody asks for another number. 262,144 are 131,072 flows, kube-proxy's own minimum
/// (`conntrack-min`), in about 50 MiB. What the agent asks for by default comes from the machine's memory, see below.
pub const CONNTRACK: u32 = 262_144;
/// Entries of a flow, in either table: one for each direction.
pub const ENTRIES_PER_FLOW: u32 = 2;
/// Bytes that an entry of `conntrack` or `unreplied` takes in the kernel, at most (`htab_map_mem_usage`): 40 of key, 104 of value, 48 of
/// the kernel's own, and a bucket of 16, of which there are up to twice as many as entries. Held against the kernel's word in the
/// kernel tier.
pub const CONNTRACK_ENTRY_BYTES: u64 = 224;
/// Both tables together get one part in so many of the machine's memory: 0.4 %, between Cilium's 0.25 % for all its maps
/// (`bpf-map-dynamic-size-ratio`) and the 0.8 % that kube-proxy's 32,768 connections a core come to on 4 GiB a core.
pub const CONNTRACK_MEMORY_PART: u64 = 256;
/// Flows that they have room for on a machine with little memory, and on one with much: kube-proxy's minimum, and eight times that,
/// where a pass through all entries still takes well under a second.
pub const CONNTRACK_FLOWS: core::ops::RangeInclusive<u32> = 131_072..=1_048_576;
/// But never more than one part in so many of the memory, whatever the minimum.
pub const CONNTRACK_MEMORY_MOST: u64 = 16;
/// And of the agent's own cgroup's limit, which maps count against: one part in so many.
pub const CONNTRACK_CGROUP_MOST: u64 = 4;
/// Fewer flows than this are of no use to any node.
pub const CONNTRACK_FLOWS_LEAST: u32 = 1_024;
/// Percent of `conntrack` that the flows of one pod may take: whatever one pod does, half of it is for the others.
pub const CONNTRACK_SHARE_PERCENT: u32 = 50;
/// Flows not answered yet, two entries each. Half of conntrack: a scan fills this table, never the other.
pub const UNREPLIED: u32 = 131_072;
/// Local pods. Kubernetes' own bound is 110 to 250 pods a node; slots must not run out while ids rest in their grace period.
pub const PODS: u32 = 4_096;
/// Interfaces with a slot.
pub const LINKS: u32 = PODS;
/// Backends: twice the 250,000 endpoints that a node must carry, at 24 bytes each.
pub const BACKENDS: u32 = 524_288;
/// Service frontends: 10,000 services of a few ports, two families and some external addresses each.
pub const SERVICES: u32 = 131_072;
/// Backend pools, one per service port, family and endpoint set.
pub const HEADS: u32 = 131_072;
/// Slots that pools take in runs of powers of two: 250,000 endpoints in pools that have just grown need 500,000.
pub const SLOTS: u32 = 1_048_576;
/// Addresses of pods, nodes and services: 150,000 pods (Kubernetes' own threshold) with two families, less the rare.
pub const ADDRESSES: u32 = 524_288;
/// CIDR prefixes of all ipBlocks and their exceptions.
pub const PREFIXES: u32 = 131_072;
/// Identities, pods' and CIDRs' together.
pub const IDENTITIES: u32 = 262_144;
/// Policy rules of all sets, after groups and port prefixes were multiplied out.
pub const RULES: u32 = 1_048_576;
/// Sockets of host processes whose destination was translated.
pub const SOCKET_REVERSE: u32 = 65_536;
/// Clients with session affinity.
pub const AFFINITY: u32 = 65_536;
/// Source ranges of load-balancer services.
pub const SOURCE_RANGES: u32 = 65_536;
/// Entries of all Maglev tables.
pub const MAGLEV: u32 = 2_097_152;
/// Places of fragments that are to come, one for each datagram whose fragments are under way, at each hook that they pass: 2 MiB. The fragments of one follow each other within
/// microseconds; a datagram of which one is lost leaves its entry until it is evicted, so this is how many lost ones it takes to disturb others.
pub const FRAGMENTS: u32 = 16_384;
/// Seconds that the fragments of one datagram may take (RFC 8200 4.5; Linux waits as long in IPv6, and half of it in IPv4).
pub const REASSEMBLY_SECONDS: u32 = 60;
/// IPv6 extension headers of one packet that are walked. RFC 8200 4.1 names six that may stand before the transport (hop-by-hop, destination
/// options twice, routing, fragment, authentication), and real packets have one or two; each costs the verifier one more round.
pub const EXTENSION_HEADERS: u32 = 6;
/// Bytes of extension headers that are walked. Kernels and routers give up far earlier (RFC 7872, RFC 9098), and Linux itself takes no
/// more than eight options of a header (`net.ipv6.max_hbh_opts_number`); translation must reach the ports behind them.
pub const EXTENSION_BYTES: u32 = 256;
/// Ports of node addresses that source rewriting has lent out.
pub const SOURCE_PORTS: u32 = 131_072;
/// Recently seen flows, for `policy preview`.
pub const SEEN_FLOWS: u32 = 65_536;
/// Bytes of the event ring: at 128 bytes an event, 4,096 events between two wakes of the reader.
pub const EVENTS_BYTES: u32 = 524_288;
/// Slots of the program array, see [`crate::hook`].
pub const PROGRAMS: u32 = 32;

/// Drop events a CPU may put into the ring per second; more are counted as suppressed. A person reads far fewer.
pub const EVENTS_PER_SECOND: u32 = 1_000;
/// Drop events that may come at once.
pub const EVENT_BURST: u32 = 2_000;
/// Rejections (RST, ICMP unreachable) a CPU may send per second, as hosts do (`net.ipv4.icmp_msgs_per_sec` is 1,000 for the machine).
/// A client that retries is answered within a second.
pub const REJECTS_PER_SECOND: u32 = 10_000;

/// Backends that a new flow tries before it rewrites the client's port.
pub const BACKEND_TRIES: u32 = 4;
/// Client ports that a clashing flow tries before it is dropped.
pub const PORT_TRIES: u32 = 8;
/// First port used when a client's port must be rewritten: above the default ephemeral range (32768-60999), which
/// clients use themselves, and so the least likely to clash.
pub const PORT_FLOOR: u16 = 61_000;

/// Seconds an established TCP flow may be idle: kube-proxy's `conntrack-tcp-timeout-established`, 24 h.
pub const TCP_ESTABLISHED_SECONDS: u32 = 86_400;
/// Seconds a TCP flow stays after a FIN or RST: Linux's TIME_WAIT (60 s) and some for a last retransmission. An association of SCTP that ended likewise:
/// a last SHUTDOWN ACK or its answer may be lost and come again.
pub const TCP_CLOSING_SECONDS: u32 = 90;
/// Seconds an unanswered SYN stays: the client's own retries end after 127 s (`tcp_syn_retries` 6).
pub const TCP_UNREPLIED_SECONDS: u32 = 130;
/// Seconds an answered UDP flow may be idle (`nf_conntrack_udp_timeout_stream`).
pub const UDP_SECONDS: u32 = 120;
/// Seconds an unanswered UDP flow may be idle (`nf_conntrack_udp_timeout`).
pub const UDP_UNREPLIED_SECONDS: u32 = 30;
/// Seconds any other flow may be idle (`nf_conntrack_generic_timeout`). An association of SCTP never is for so long while it lives: its ends send a HEARTBEAT every 30 s
/// or so (RFC 9260 8.3, 16), and Linux's own conntrack gives it 210.
pub const OTHER_SECONDS: u32 = 600;
/// Seconds an echo may be idle (`nf_conntrack_icmp_timeout`).
pub const ECHO_SECONDS: u32 = 30;

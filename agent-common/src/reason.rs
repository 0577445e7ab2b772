//! Why a packet was dropped or rejected, and what else is counted.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a packet did not pass. The numbers and names are a contract: counters, events, metrics and the CLI share them,
        /// and a number is never given to another meaning.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "user", derive(Debug))]
        pub enum Reason {
            $($(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// Every reason, in the order of numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name that metrics and the CLI show.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The reason of a number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// The opener's egress policies do not allow the flow.
    PolicyEgress = 1, "policy-egress";
    /// The responder's ingress policies do not allow the flow.
    PolicyIngress = 2, "policy-ingress";
    /// A pod sent from an address that is not its own.
    SourceSpoofed = 3, "source-spoofed";
    /// A packet from the uplink bore a source that cannot be there: this node's, a local pod's, a ClusterIP, unspecified, loopback, multicast;
    /// somebody else's packet bore the tuple of a flow of this host's; or a service's answer came whose flow has lost the half that asked.
    SourceMartian = 4, "source-martian";
    /// A header is cut short or contradicts itself.
    Malformed = 5, "malformed";
    /// A fragment that does not begin where the last one of its datagram ended, or a first one without whole ports; or a first one of SCTP that needs other ports.
    Fragment = 6, "fragment";
    /// IPv6 extension headers that are too many, in no order, or lead elsewhere (routing), where policy or a service would have to judge them.
    ExtensionHeader = 7, "extension-header";
    /// An ICMP error about no flow that is known, where policy is in force or a ClusterIP is the target; or about one that is to be judged again.
    IcmpError = 8, "icmp-error";
    /// A VLAN tag, where policy is in force; priority tags one in another, always.
    Vlan = 9, "vlan";
    /// Neither IPv4, IPv6 nor ARP, where policy is in force.
    Ethertype = 10, "ethertype";
    /// The service has no endpoint: rejected (TCP RST, ICMP port unreachable).
    NoEndpoint = 11, "no-endpoint";
    /// The service has endpoints, but its traffic policy leaves none here: dropped.
    NoLocalEndpoint = 12, "no-local-endpoint";
    /// A ClusterIP, but no service has this port and protocol: rejected.
    NoServicePort = 13, "no-service-port";
    /// The flow's backend is gone: rejected, so that the client connects anew.
    BackendGone = 14, "backend-gone";
    /// The middle of a TCP connection that nothing knows and no orientation of which is allowed.
    Midstream = 15, "midstream";
    /// Every tried backend and client port clashes with a live flow.
    PortClash = 16, "port-clash";
    /// Conntrack took no entry.
    ConntrackFull = 17, "conntrack-full";
    /// The time to live ended here, on a path that leaves out the stack.
    TtlExceeded = 18, "ttl-exceeded";
    /// No source knows the pod yet, and `--unknown-pod=deny` holds.
    UnknownPod = 19, "unknown-pod";
    /// A kernel helper refused to rewrite or redirect the packet, or the program to go on with is not in its slot.
    RewriteFailed = 20, "rewrite-failed";
    /// A service over a protocol without ports, which nothing translates.
    ServiceProtocol = 21, "service-protocol";
    /// An ARP, neighbour discovery or router message with somebody else's address, or a router's from a pod that is none.
    NeighbourSpoofed = 22, "neighbour-spoofed";
    /// A ClusterIP from outside the cluster: rejected, or dropped where its sender can be told nothing; and one that comes round to a pod's link,
    /// past all translation: dropped.
    ClusterIpFromOutside = 23, "cluster-ip-from-outside";
    /// The source is in none of the service's `loadBalancerSourceRanges`.
    SourceRange = 24, "source-range";
    /// A loopback address as the destination of what came in by a link, where none may be (RFC 1122 3.2.1.3, RFC 4291 2.5.3). The stack refuses
    /// it too, unless `route_localnet` is set, as kube-proxy sets and leaves it (CVE-2020-8558).
    DestinationMartian = 25, "destination-martian";
}

/// Room for reasons in the counters, of each hook.
pub const REASONS: u32 = 64;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What is counted besides drops.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "user", derive(Debug))]
        pub enum Count {
            $($(#[$doc])* $name = $number,)*
        }

        impl Count {
            /// Everything that is counted, in the order of numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name that metrics and the CLI show.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

counts! {
    /// A flow was made.
    FlowCreated = 0, "flow-created";
    /// A flow was answered for the first time, and moved to `conntrack`.
    FlowReplied = 1, "flow-replied";
    /// A flow was judged again, because an epoch rose.
    FlowRejudged = 2, "flow-rejudged";
    /// A new flow chose a backend.
    BackendChosen = 3, "backend-chosen";
    /// A new flow met a clash and chose another backend or port.
    Clash = 4, "clash";
    /// An event found no room in the ring.
    EventLost = 5, "event-lost";
    /// An event was left out by the rate limit.
    EventSuppressed = 6, "event-suppressed";
    /// A rejection was left out by the rate limit; the packet was dropped with its reason.
    RejectSuppressed = 7, "reject-suppressed";
    /// A host process's socket was translated.
    SocketTranslated = 8, "socket-translated";
    /// A flow passed only because the policies that deny it are audited.
    Audited = 9, "audited";
    /// A flow was picked up in the middle.
    MidstreamAdmitted = 10, "midstream-admitted";
    /// An entry moved to `conntrack` found it full of younger ones. (The kernel evicts in silence; this counts failed inserts.)
    InsertFailed = 11, "insert-failed";
    /// A flow was answered and stayed in `unreplied`, because its pod holds its share of `conntrack`.
    ConntrackShare = 12, "conntrack-share";
    /// An entry of `conntrack` was removed by a program: of a flow that was over, or whose backend or link is gone.
    ConntrackRemoved = 13, "conntrack-removed";
    /// An entry of `unreplied` was removed by a program: likewise, or because it moved to `conntrack`.
    UnrepliedRemoved = 14, "unreplied-removed";
}

/// Index in `counters` of what [`Count`] counts; drops by hook and reason stand before.
#[inline(always)]
pub const fn count_index(count: Count) -> u32 {
    crate::hook::HOOKS * REASONS + count as u32
}

/// Index in `counters` of the packets a hook dropped for a reason.
#[inline(always)]
pub const fn drop_index(hook: u32, reason: Reason) -> u32 {
    hook * REASONS + reason as u32
}

/// Entries of `counters`.
pub const COUNTERS: u32 = crate::hook::HOOKS * REASONS + REASONS;

/// Value of `counters`, on each CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

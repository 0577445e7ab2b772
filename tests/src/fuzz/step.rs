//! What a sequence is made of. A step names what it speaks of, and does nothing where that is not there: so a sequence stays one when steps
//! are taken out of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::model::policy::Rule;
use super::wire;
use crate::packet::address::Family;

/// Where a packet enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Sent by this pod.
    FromPod(u8),
    /// To this pod through the stack, by what brought it.
    ToPod(u8, By),
    /// From outside the node.
    Uplink,
}

/// What brought a packet to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// This host made it.
    Host,
    /// The uplink.
    Uplink,
    /// This pod's link.
    Pod(u8),
}

/// Who makes an ICMP error about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// Whom it reached.
    End,
    /// A router outside, of the packet as it left the node.
    Router,
    /// This host, which was to forward it.
    Host,
    /// Somebody outside; what he quotes has been translated back already.
    Through,
    /// This pod, which never had it.
    Stranger(u8),
}

/// What a packet is made from.
#[derive(Clone)]
pub enum Origin {
    /// This frame.
    Frame(Place, Vec<u8>),
    /// What came out of an earlier packet, answered by whom it reached.
    AnswerTo(usize),
    /// The packet that went in, once more.
    Again(usize),
    /// What came out of an earlier packet that was left to the stack, where the stack takes it.
    Onward(usize),
    /// An ICMP error about an earlier packet: who makes it, of which type, and how many bytes of the transport it quotes.
    Error(usize, Teller, usize, usize),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(place, frame) => {
                write!(f, "Frame({place:?}, hex!(\"")?;
                for byte in frame {
                    write!(f, "{byte:02x}")?;
                }
                write!(f, "\"))")
            }
            Self::AnswerTo(id) => write!(f, "AnswerTo({id})"),
            Self::Again(id) => write!(f, "Again({id})"),
            Self::Onward(id) => write!(f, "Onward({id})"),
            Self::Error(id, teller, kind, bytes) => {
                write!(f, "Error({id}, {teller:?}, {kind}, {bytes})")
            }
        }
    }
}

/// A change of a packet before it goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// TCP's flags, the sums made right.
    Flags(u8),
    /// SCTP's first chunk, its flags, the verification tag and the tag that it asks for, the sums made right.
    Chunk(u8, u8, u32, u32),
    /// The byte at an offset.
    Set(usize, u8),
    /// Bits of the byte at an offset.
    Flip(usize, u8),
    /// So many bytes at most.
    Cut(usize),
    /// So many bytes more behind it.
    Pad(usize),
    /// Every sum made right.
    Seal,
    /// Source and destination swapped.
    Turn,
    /// It enters somewhere else.
    At(Place),
}

/// The kernel makes no packet of less, whatever its type.
const LEAST: usize = wire::ETHERNET + 40;
/// The kernel makes no packet of more than a page with its own parts.
const MOST: usize = 2_000;

impl Edit {
    /// Changes the frame.
    pub fn apply(self, frame: &mut Vec<u8>) {
        match self {
            Self::Flags(flags) => {
                let wire = wire::read(frame);
                if wire.ends.protocol == wire::TCP && wire.kind == wire::Kind::Flow {
                    frame[wire.transport() + 13] = flags;
                    wire::seal(frame);
                }
            }
            Self::Chunk(kind, flags, tag, asked) => {
                let wire = wire::read(frame);
                let at = wire.transport();
                let room = wire.ends.protocol == wire::SCTP && wire.total >= wire.header + 20;
                if room && wire.kind == wire::Kind::Flow {
                    frame[at + 4..at + 8].copy_from_slice(&tag.to_be_bytes());
                    frame[at + 12..at + 14].copy_from_slice(&[kind, flags]);
                    frame[at + 16..at + 20].copy_from_slice(&asked.to_be_bytes());
                    wire::seal(frame);
                }
            }
            Self::Set(at, value) => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            Self::Flip(at, bits) => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Self::Cut(length) => frame.truncate(length),
            Self::Pad(bytes) => frame.resize((frame.len() + bytes).min(MOST), 0xa5),
            Self::Seal => wire::seal(frame),
            Self::Turn => *frame = wire::turn(frame),
            Self::At(_) => {}
        }
        if frame.len() < LEAST && self != Self::Seal {
            frame.resize(LEAST, 0);
        }
    }
}

/// A packet.
#[derive(Clone, Debug)]
pub struct PacketStep {
    /// By which later packets name it.
    pub id: usize,
    /// What it is made from.
    pub origin: Origin,
    /// What is changed of it.
    pub edits: Vec<Edit>,
}

/// A step of a sequence. Pods go by number; services and their backends by the order in which they were made.
#[derive(Clone, Debug)]
pub enum Step {
    /// Local pod, with an address of each family.
    Pod(u8),
    /// A pod of another node.
    Remote(Family, u8),
    /// A service: frontend, protocol, backends, whether it drops when it is empty.
    Service(SocketAddr, u8, Vec<SocketAddr>, bool),
    /// A ClusterIP without a service.
    ClusterIp(IpAddr),
    /// A pod is isolated, in egress or else ingress, by a set.
    Isolate(u8, bool, u32),
    /// It is not any more.
    Open(u8, bool),
    /// No source knows a pod, and unknown pods are denied.
    Unknown(u8),
    /// A rule of a set comes.
    Allow(u32, Rule),
    /// It goes.
    Withdraw(u32, Rule),
    /// The identity of an address comes into a group.
    Group(IpAddr, u32),
    /// A prefix: network, bits, identity, group.
    Prefix(IpAddr, u32, u32, u32),
    /// Whether ipBlocks match pods and nodes, and whether new flows are told.
    Features(bool, bool),
    /// Something was taken from a pod.
    Epoch(u8),
    /// Whether a pod's link takes redirects, and whether it sends from any address.
    Flags(u8, bool, bool),
    /// The state of a service's backend.
    State(usize, usize, u8),
    /// A backend's number goes to another.
    Reborn(usize, usize),
    /// How many of its slots a service uses.
    Resize(usize, usize),
    /// A service's slot gets one of its backends.
    Slot(usize, usize, usize),
    /// An address goes to a pod.
    Move(IpAddr, u8),
    /// An address is nobody's.
    Forget(IpAddr),
    /// A pod's link leads nowhere.
    Detach(u8),
    /// A pod has ended.
    Ended(u8),
    /// Flows that a pod may have answered, beside those that it has.
    Share(u8, u32),
    /// So many ticks go by without a packet.
    Age(u32),
    /// The kernel evicts a packet's half of its flow, or else the other.
    Evict(usize, bool),
    /// The limits of events and refusals are spent.
    Spend,
    /// Every port that a flow's client could be given is taken.
    TakePorts(usize),
    /// A packet.
    Packet(PacketStep),
}

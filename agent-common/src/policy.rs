//! Policy: who an address is, and what a set says of it.
//!
//! address -> identity (`addresses`, else `prefixes`) -> group (`groups`) -> verdict (`rules`, in a pod's set of one direction).

/// The group that every rule for "any peer" names. An identity that no selector in use matches has this group too:
/// only rules for any peer speak of it.
pub const GROUP_ANY: u32 = 0;
/// The identity of an address that nothing knows.
pub const IDENTITY_UNKNOWN: u32 = 0;

/// What an address is.
pub mod address_kind {
    /// A pod on this node; the entry names its slot.
    pub const LOCAL_POD: u8 = 1;
    /// A pod on another node.
    pub const REMOTE_POD: u8 = 2;
    /// Another node (its host-network pods included).
    pub const NODE: u8 = 3;
    /// This node.
    pub const HOST: u8 = 4;
    /// A ClusterIP: whatever `services` does not know there is rejected, not routed.
    pub const CLUSTER_IP: u8 = 5;
    /// An external or load-balancer address of a service: what `services` does not know there is passed on.
    pub const EXTERNAL: u8 = 6;
}

/// No slot in an [`AddressEntry`].
pub const NO_ADDRESS_SLOT: u16 = u16::MAX;

/// Value of `addresses`, in one aligned word that is read once: the kernel may give the element to another address
/// under a reader, and `check` is how the reader notices.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct AddressEntry {
    /// Identity number, an index of `groups`.
    pub identity: u32,
    /// Slot of a local pod, else [`NO_ADDRESS_SLOT`].
    pub slot: u16,
    /// See [`address_kind`].
    pub kind: u8,
    /// [`crate::Address::check`] of the key.
    pub check: u8,
}

impl AddressEntry {
    /// The entry in a word that was read from the map at once.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        let b = raw.to_ne_bytes();
        Self {
            identity: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            slot: u16::from_ne_bytes([b[4], b[5]]),
            kind: b[6],
            check: b[7],
        }
    }
}

/// Data of `prefixes`' key, behind the prefix length (96 more than the IPv4 length for IPv4). Not aligned, because
/// the kernel puts a 32-bit length before it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Prefix {
    /// The prefix in network order, IPv4 mapped, host bits zero.
    pub bytes: [u8; 16],
}

/// Value of `prefixes`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct PrefixEntry {
    /// Identity number of the CIDR, an index of `groups`.
    pub identity: u32,
    /// Always zero.
    pub _zero: u32,
}

/// Value of `groups`, index is the identity.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct GroupEntry {
    /// As below: the tests' next layout has the fields the other way round.
    #[cfg(feature = "layout-next")]
    pub _zero: u32,
    /// Group number.
    pub group: u32,
    /// Always zero.
    #[cfg(not(feature = "layout-next"))]
    pub _zero: u32,
}

/// Data of `rules`' key, behind the prefix length. How many bits count says how much the rule fixes, see [`rule_bits`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct RuleKey {
    /// The set: one per distinct list of policies that select a pod in one direction.
    pub set: u32,
    /// The peer's group, or [`GROUP_ANY`].
    pub group: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero, and always fixed with the protocol.
    pub _zero: u8,
    /// Destination port, network order, so that a prefix of its bits is a range.
    pub port_be: u16,
    /// Always zero, never fixed.
    pub _rest: u32,
}

/// Prefix lengths of [`RuleKey`].
pub mod rule_bits {
    /// The set's default: what holds where no rule matches.
    pub const SET: u32 = 32;
    /// Any protocol and port from the group.
    pub const GROUP: u32 = 64;
    /// One protocol, any port.
    pub const PROTOCOL: u32 = 80;
    /// One protocol and one port. Lengths between [`PROTOCOL`] and this are port ranges.
    pub const PORT: u32 = 96;
}

impl RuleKey {
    /// The key that a packet asks with: everything is fixed. `port_be` is in network order.
    #[inline(always)]
    pub const fn packet(set: u32, group: u32, protocol: u8, port_be: u16) -> Self {
        Self {
            set,
            group,
            protocol,
            _zero: 0,
            port_be,
            _rest: 0,
        }
    }
}

/// What a verdict does.
pub mod action {
    /// Let the connection pass.
    pub const ALLOW: u8 = 1;
    /// Drop it.
    pub const DENY: u8 = 2;
    /// Leave it to the next tier (ClusterNetworkPolicy `Pass`). Compiled away where the next tier is known.
    pub const PASS: u8 = 3;
    /// Bit beside the action: the denial is only reported, not enforced.
    pub const AUDIT: u8 = 1 << 7;
    /// The bits that hold the action.
    pub const MASK: u8 = 0x0f;
}

/// Tiers, strongest first (KEP/NPEP ClusterNetworkPolicy v1alpha2).
pub mod tier {
    /// ClusterNetworkPolicy, tier Admin.
    pub const ADMIN: u8 = 0;
    /// networking.k8s.io/v1 NetworkPolicy.
    pub const NETWORK_POLICY: u8 = 1;
    /// ClusterNetworkPolicy, tier Baseline.
    pub const BASELINE: u8 = 2;
    /// Where nothing decides.
    pub const NONE: u8 = 3;
}

/// Priority of a NetworkPolicy allow rule within its tier. All are equal; a lower number is stronger.
pub const PRIORITY_RULE: u16 = 0;
/// Priority of a set's default within its tier: weaker than every rule.
pub const PRIORITY_DEFAULT: u16 = u16::MAX;

/// Value of `rules`: one verdict in one aligned word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Verdict {
    /// Number of the policy rule, or of the set's default, that says so. Derived from the policy's name and the rule's place,
    /// so that it means the same after a restart.
    pub rule: u32,
    /// Within the tier; lower is stronger.
    pub priority: u16,
    /// See [`tier`].
    pub tier: u8,
    /// See [`action`].
    pub action: u8,
}

impl Verdict {
    /// Nothing isolates the pod in this direction.
    pub const OPEN: Self = Self {
        rule: 0,
        priority: PRIORITY_DEFAULT,
        tier: tier::NONE,
        action: action::ALLOW,
    };
    /// An isolated set without an answer, which a whole set always has (its default): deny.
    pub const CLOSED: Self = Self {
        rule: 0,
        priority: PRIORITY_DEFAULT,
        tier: tier::NONE,
        action: action::DENY,
    };

    /// Tier and priority in one number; lower is stronger.
    #[inline(always)]
    pub const fn rank(&self) -> u32 {
        ((self.tier as u32) << 16) | self.priority as u32
    }

    /// Whether the connection passes: allowed, or its denial is only reported.
    #[inline(always)]
    pub const fn passes(&self) -> bool {
        self.action & action::MASK == action::ALLOW || self.action & action::AUDIT != 0
    }

    /// The stronger of two verdicts. At equal rank, allow wins over deny: NetworkPolicies add up.
    #[inline(always)]
    pub const fn stronger(self, other: Self) -> Self {
        let (a, b) = (self.rank(), other.rank());
        if b < a
            || (b == a
                && other.action & action::MASK == action::ALLOW
                && self.action & action::MASK != action::ALLOW)
        {
            other
        } else {
            self
        }
    }
}

/// A pod's set of one direction, in one aligned word that is stored atomically: what makes a policy change live.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SetWord {
    /// Set number, the first field of [`RuleKey`].
    pub set: u32,
    /// See [`set_flag`].
    pub flags: u32,
}

/// Flags of a [`SetWord`].
pub mod set_flag {
    /// The pod is isolated in this direction: what the set does not allow is dropped. Without it the set is not read.
    pub const ISOLATED: u32 = 1 << 0;
    /// The set has verdicts of more than one rank above its default: an allow does not end the search.
    pub const TIERED: u32 = 1 << 1;
    /// The pod is not known yet and `--unknown-pod=deny` holds: everything but the host is dropped.
    pub const UNKNOWN: u32 = 1 << 2;
}

const _: () = {
    assert!(size_of::<AddressEntry>() == 8);
    assert!(size_of::<Prefix>() == 16);
    assert!(size_of::<PrefixEntry>() == 8);
    assert!(size_of::<GroupEntry>() == 8);
    assert!(size_of::<RuleKey>() == 16);
    assert!(size_of::<Verdict>() == 8);
    assert!(size_of::<SetWord>() == 8);
};

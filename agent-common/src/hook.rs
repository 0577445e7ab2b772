//! Hooks and the slots of the program array.

/// Host side of a pod's link, TC ingress: what the pod sends.
pub const FROM_POD: u32 = 0;
/// Host side of a pod's link, TC egress: what reaches the pod through the stack.
pub const TO_POD: u32 = 1;
/// Uplink, TC ingress.
pub const FROM_UPLINK: u32 = 2;
/// Uplink, TC egress.
pub const TO_UPLINK: u32 = 3;
/// The socket programs of the cgroup, as one.
pub const SOCKET: u32 = 4;
/// How many hooks there are.
pub const HOOKS: u32 = 5;

/// The name that counters, events and the CLI show.
pub const fn name(hook: u32) -> &'static str {
    match hook {
        FROM_POD => "from-pod",
        TO_POD => "to-pod",
        FROM_UPLINK => "from-uplink",
        TO_UPLINK => "to-uplink",
        SOCKET => "socket",
        _ => "unknown",
    }
}

/// Slots of the array `programs`, by which the programs of one layout tail-call each other. (What is attached is a stub, which tail-calls
/// through the gate: [`crate::gate`]; the slots up to 7 are empty.)
pub mod slot {
    /// A pod's packet without a valid entry: find out, judge, make the flow.
    pub const NEW_FROM_POD: u32 = 8;
    /// A packet to a pod without a valid entry.
    pub const NEW_TO_POD: u32 = 9;
    /// A packet from the uplink without a valid entry.
    pub const NEW_FROM_UPLINK: u32 = 10;
    /// Turn the packet into its own rejection.
    pub const REJECT: u32 = 12;
    /// Find the flow that an ICMP error is about, and translate what it quotes.
    pub const ICMP_ERROR: u32 = 13;
    /// Walk a chain of IPv6 extension headers, and go back to the hook's program above.
    pub const EXTENSION: u32 = 16;
    /// Find the flow of a fragment, and go back likewise.
    pub const FRAGMENT: u32 = 17;
}

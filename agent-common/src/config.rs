//! What the agent tells the programs: the single element of `config`.

/// Features, bits of [`Config::features`].
pub mod feature {
    /// Put an event of each allowed new flow into the ring.
    pub const EVENTS_ALLOWED: u64 = 1 << 0;
    /// ipBlocks match what the CIDR says, pods and nodes included (`--ip-block-mode=literal`).
    pub const LITERAL: u64 = 1 << 1;
    /// Translate host processes' sockets.
    pub const SOCKET_HOST: u64 = 1 << 2;
    /// Unknown pods are under deny (`--unknown-pod=deny`).
    pub const UNKNOWN_DENY: u64 = 1 << 3;
}

/// Value of `config`; each field is stored atomically by itself.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Config {
    /// Cookie of the network namespace whose host processes are translated: a cgroup may hold processes of others.
    pub netns_cookie: u64,
    /// See [`feature`].
    pub features: u64,
    /// [`crate::limits::LAYOUT`] of the agent that wrote it.
    pub layout: u64,
}

/// Value of `budget`: per-CPU token buckets of the rare and costly.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Budget {
    /// Coarse monotonic clock at the last refill, nanoseconds.
    pub refilled_ns: u64,
    /// Tokens left.
    pub tokens: u64,
}

/// Indices of `budget`.
pub mod budget {
    /// Drop events.
    pub const EVENTS: u32 = 0;
    /// Rejections.
    pub const REJECTS: u32 = 1;
    /// How many there are.
    pub const BUDGETS: u32 = 2;
}

const _: () = {
    assert!(size_of::<Config>() == 24);
    assert!(size_of::<Budget>() == 16);
};

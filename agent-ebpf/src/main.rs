//! Sluice's eBPF programs: entry points only.
//!
//! What is attached is a stub, which goes on in the program that the gate holds for its hook (gate.rs): an upgrade writes the gate
//! and touches no link. A hook's program answers for established flows; what it cannot
//! answer goes on, by tail call, in the program for the rare cases of that hook.
//!
//! The path of a packet: `parse` (packet.rs), the flow's entry (conntrack.rs), else source check, service (service.rs), judgement
//! (policy.rs) and a new entry (flow.rs); then translation (nat.rs) and delivery (deliver.rs).
#![no_std]
#![no_main]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "keys are borrowed from a map's memory: by value each would be forty bytes more of a 512-byte stack"
)]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "a binary reaches nothing: pub marks what a module offers to the others; and the entry points' macros lose their docs"
)]

mod conntrack;
mod deliver;
mod extension;
mod flow;
mod fragment;
mod from_pod;
mod from_uplink;
mod gate;
mod icmp_error;
#[cfg(feature = "log")]
mod log;
mod maps;
mod mutant;
mod nat;
mod packet;
mod policy;
mod quote;
mod reject;
mod report;
mod role;
mod sctp;
mod service;
mod socket;
mod tables;
mod to_pod;
mod walk;
mod work;

use agent_common::hook;
use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

/// Attached to the ingress of a pod link's host side.
#[classifier]
pub fn stub_from_pod(ctx: TcContext) -> i32 {
    gate::enter(&ctx, hook::FROM_POD)
}

/// Attached to the egress of a pod link's host side.
#[classifier]
pub fn stub_to_pod(ctx: TcContext) -> i32 {
    gate::enter(&ctx, hook::TO_POD)
}

/// Attached to the ingress of an uplink.
#[classifier]
pub fn stub_from_uplink(ctx: TcContext) -> i32 {
    gate::enter(&ctx, hook::FROM_UPLINK)
}

/// What a pod sends: established flows.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    deliver::leave(from_pod::established(&ctx))
}

/// What reaches a pod through the stack: established flows.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    deliver::leave(to_pod::established(&ctx))
}

/// What comes from outside: established flows.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    deliver::leave(from_uplink::established(&ctx))
}

/// What a pod sends: the rest.
#[classifier]
#[inline(always)]
pub fn new_from_pod(ctx: TcContext) -> i32 {
    deliver::leave(fragment::settle(&ctx, from_pod::new(&ctx)))
}

/// What reaches a pod through the stack: the rest.
#[classifier]
#[inline(always)]
pub fn new_to_pod(ctx: TcContext) -> i32 {
    deliver::leave(fragment::settle(&ctx, to_pod::new(&ctx)))
}

/// What comes from outside: the rest.
#[classifier]
pub fn new_from_uplink(ctx: TcContext) -> i32 {
    deliver::leave(from_uplink::new(&ctx))
}

/// Walks a chain of IPv6 extension headers, for the program of the hook's rare cases.
#[classifier]
pub fn extension(ctx: TcContext) -> i32 {
    deliver::leave(extension::walk(&ctx))
}

/// Finds the flow of a fragment, likewise.
#[classifier]
pub fn fragment(ctx: TcContext) -> i32 {
    deliver::leave(fragment::walk(&ctx))
}

/// Turns a packet into its own rejection.
#[classifier]
pub fn reject(ctx: TcContext) -> i32 {
    reject::answer(&ctx)
}

/// An ICMP error follows the flow that it is about.
#[classifier]
pub fn icmp_error(ctx: TcContext) -> i32 {
    deliver::leave(icmp_error::follow(&ctx))
}

/// Attached to `connect` of the host's own processes, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn stub_connect4(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_CONNECT4)
}

/// The host's own `connect`, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect_v4(&ctx)
}

/// Attached to `connect` of the host's own processes, IPv6.
#[cgroup_sock_addr(connect6)]
pub fn stub_connect6(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_CONNECT6)
}

/// The host's own `connect`, IPv6.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect_v6(&ctx)
}

/// Attached to `sendmsg` of the host's own processes, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn stub_sendmsg4(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_SENDMSG4)
}

/// The host's own `sendmsg`, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::connect_v4(&ctx)
}

/// Attached to `sendmsg` of the host's own processes, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn stub_sendmsg6(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_SENDMSG6)
}

/// The host's own `sendmsg`, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::connect_v6(&ctx)
}

/// Attached to `recvmsg` of the host's own processes, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn stub_recvmsg4(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_RECVMSG4)
}

/// The host's own `recvmsg`, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::reverse_v4(&ctx, &maps::GATE_RECVMSG4)
}

/// Attached to `recvmsg` of the host's own processes, IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn stub_recvmsg6(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_RECVMSG6)
}

/// The host's own `recvmsg`, IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::reverse_v6(&ctx, &maps::GATE_RECVMSG6)
}

/// Attached to `getpeername` of the host's own processes, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn stub_getpeername4(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_PEERNAME4)
}

/// The host's own `getpeername`, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::reverse_v4(&ctx, &maps::GATE_PEERNAME4)
}

/// Attached to `getpeername` of the host's own processes, IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn stub_getpeername6(ctx: SockAddrContext) -> i32 {
    gate::enter_socket(&ctx, &maps::GATE_PEERNAME6)
}

/// The host's own `getpeername`, IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::reverse_v6(&ctx, &maps::GATE_PEERNAME6)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers that the programs call want a licence that the kernel takes for compatible with its own.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Which end of a TCP connection opened it, where nothing else tells: the pod's own sockets do.
//!
//! A connection that was made while no program looked, because its pod's link came when the agent was away, shows neither its SYN nor
//! who sent it. Policy needs to know: what the pod takes is one thing, what it may open another. The kernel lets a program look up
//! sockets in the namespace at a link's other end.

use core::ffi::c_void;

use agent_common::{Address, pod_flag};
use aya_ebpf::{
    bindings::bpf_sock_tuple,
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp},
};

use crate::{tables::pod, work::Work};

/// What the pod at the hook's link is to a connection.
pub mod end {
    /// It cannot be told: the pod has no such socket (it sends on for somebody else), or its namespace is not known.
    pub const UNKNOWN: u32 = 0;
    /// It listens on its port of it.
    pub const RESPONDER: u32 = 1;
    /// It has the connection, and does not listen.
    pub const OPENER: u32 = 2;
}

/// A listening socket's state (`TCP_LISTEN`, include/net/tcp_states.h in Linux).
const LISTENS: u32 = 10;
/// No socket.
const NONE: u32 = 0;
/// Bytes of `struct bpf_sock_tuple` that stand for IPv4, and for IPv6: the length tells the kernel which.
const V4: u32 = 12;
/// See [`V4`].
const V6: u32 = 36;

/// See [`end`]. `ctx` is the program's context; `work.tuple` and `work.here` say which connection and which pod. Uses the memory of
/// `work.reply_key`.
#[inline(never)]
pub fn role_of(ctx: *mut c_void, work: &mut Work) -> u32 {
    let Some(pod) = pod(work.here) else {
        return end::UNKNOWN;
    };
    if pod.namespace == 0
        || pod.flags & pod_flag::ANY_SOURCE != 0
        || crate::mutant::removed!("either-end")
    {
        return end::UNKNOWN;
    }
    let namespace = (pod.namespace - 1) as u64;
    // As packets look that reach the pod.
    if work.here_responds == 0 {
        work.reply_key = work.tuple.reversed();
    } else {
        work.reply_key = work.tuple;
    }
    let (remote, local) = (work.reply_key.source, work.reply_key.destination);
    let ports = [
        work.reply_key.source_port_be,
        work.reply_key.destination_port_be,
    ];
    // A listener takes connections from any port; the connection itself is not looked for.
    if state(ctx, work, &remote, &local, [0, ports[1]], namespace) == LISTENS {
        return end::RESPONDER;
    }
    match state(ctx, work, &remote, &local, ports, namespace) {
        NONE => end::UNKNOWN,
        _ => end::OPENER,
    }
}

/// The state of the socket that a packet between these ends reaches.
#[inline(always)]
fn state(
    ctx: *mut c_void,
    work: &mut Work,
    remote: &Address,
    local: &Address,
    [remote_port_be, local_port_be]: [u16; 2],
    namespace: u64,
) -> u32 {
    const {
        assert!(size_of::<agent_common::Tuple>() >= size_of::<bpf_sock_tuple>());
        assert!(size_of::<bpf_sock_tuple>() == V6 as usize);
    };
    let tuple = (&raw mut work.reply_key).cast::<bpf_sock_tuple>();
    let (from, to) = (remote.words(), local.words());
    let length = if work.v4 != 0 { V4 } else { V6 };
    // SAFETY: the tuple lies in the working memory, which is longer and aligned for it; the kernel reads as much of it as it is told, takes
    // the context that the program was given, and the socket that it answers is released before anything else.
    unsafe {
        if length == V4 {
            let ends = &raw mut (*tuple).__bindgen_anon_1.ipv4;
            (*ends).saddr = from[3];
            (*ends).daddr = to[3];
            (*ends).sport = remote_port_be;
            (*ends).dport = local_port_be;
        } else {
            let ends = &raw mut (*tuple).__bindgen_anon_1.ipv6;
            (*ends).saddr = from;
            (*ends).daddr = to;
            (*ends).sport = remote_port_be;
            (*ends).dport = local_port_be;
        }
        let socket = bpf_skc_lookup_tcp(ctx, tuple, length, namespace, 0);
        if socket.is_null() {
            return NONE;
        }
        let state = core::ptr::read_volatile(&raw const (*socket).state);
        bpf_sk_release(socket.cast());
        state
    }
}

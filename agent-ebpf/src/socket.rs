//! The host's own connections to services, translated where the process connects or sends: no packet of theirs bears a
//! service address. Only processes of the agent's network namespace; pods are served packet by packet.

use agent_common::{
    Address, Count, Reason, ServiceKey, SocketReverse, SocketReverseKey, feature, hook, lookup,
    lookup::Tables, lookup::Target, protocol,
};
use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, generated::bpf_set_retval,
    },
    programs::SockAddrContext,
};

use crate::{
    gate::{SocketGate, hand_over_socket},
    maps::{CONFIG, SOCK_REVERSE},
    report::{count, count_drop},
    tables::Maps,
};

/// Let the call go on.
const PROCEED: i32 = 1;
/// Fail the call.
const FAIL: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Whether the kernel has `bpf_set_retval` for these programs (5.18); set by the agent before loading.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 0;

#[inline(always)]
fn has_set_retval() -> bool {
    // SAFETY: read-only data, read as it was loaded and not as it was compiled.
    unsafe { core::ptr::read_volatile(&raw const HAS_SET_RETVAL) != 0 }
}

#[inline(always)]
#[expect(
    clippy::mut_from_ref,
    reason = "the context is the kernel's, and this program its only user while it runs"
)]
fn raw(ctx: &SockAddrContext) -> &mut bpf_sock_addr {
    // SAFETY: the kernel passes a valid context for the program's whole run, to this program alone.
    unsafe { &mut *ctx.sock_addr }
}

/// Whether the process is one of this node's own.
#[inline(always)]
fn ours(ctx: &SockAddrContext) -> bool {
    let Some(config) = CONFIG.get_ptr(0) else {
        return false;
    };
    // SAFETY: a map value, words read once; the helper takes the context as it is.
    unsafe {
        core::ptr::read_volatile(&raw const (*config).features) & feature::SOCKET_HOST != 0
            && (crate::mutant::removed!("any-netns")
                || bpf_get_netns_cookie(ctx.as_ptr())
                    == core::ptr::read_volatile(&raw const (*config).netns_cookie))
    }
}

#[inline(always)]
fn refuse(reason: Reason) -> i32 {
    count_drop(hook::SOCKET, reason as u32, 0);
    if has_set_retval() {
        // SAFETY: takes a number. Without it the process sees EPERM.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    FAIL
}

/// What a connection to a destination becomes.
enum Answer {
    /// It goes where it says.
    Untouched,
    /// It is refused.
    Refused(Reason),
    /// It goes to a backend: address and port in network order.
    Backend(Address, u16),
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, address: Address, port_be: u16) -> Answer {
    let kind = raw(ctx).protocol as u8;
    if kind != protocol::TCP && kind != protocol::UDP {
        return Answer::Untouched;
    }
    let key = ServiceKey::new(address, port_be, kind);
    let entry = Maps.address(&address);
    match lookup::target(&Maps, &key, entry) {
        Target::Direct => Answer::Untouched,
        Target::NoEndpoint => Answer::Refused(Reason::NoEndpoint),
        Target::NoLocalEndpoint => Answer::Refused(Reason::NoLocalEndpoint),
        Target::NoServicePort => Answer::Refused(Reason::NoServicePort),
        Target::Pool { pool, head, .. } => {
            // SAFETY: takes nothing, changes nothing but the generator.
            let random = unsafe { bpf_get_prandom_u32() };
            let Some((number, backend)) = lookup::backend_at(&Maps, head, random) else {
                return Answer::Refused(Reason::NoEndpoint);
            };
            // SAFETY: the helper takes the context as it is.
            let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
            let reverse = SocketReverseKey {
                cookie,
                address: backend.address,
                port_be: backend.word.port_be,
                protocol: kind,
                _zero: [0; 5],
            };
            let service = SocketReverse {
                address,
                port_be,
                _zero: [0; 2],
                backend: number,
                backend_generation: backend.word.generation,
                service: pool,
            };
            // Without this entry a datagram's answer would show the backend's address: better to refuse.
            if SOCK_REVERSE.insert(&reverse, &service, 0).is_err() {
                return Answer::Refused(Reason::ConntrackFull);
            }
            count(Count::SocketTranslated);
            Answer::Backend(backend.address, backend.word.port_be)
        }
    }
}

/// `connect` and `sendmsg` on an IPv4 socket.
#[inline(always)]
pub fn connect_v4(ctx: &SockAddrContext) -> i32 {
    if !ours(ctx) {
        return PROCEED;
    }
    let sock = raw(ctx);
    let address = Address::v4(sock.user_ip4.to_ne_bytes());
    match translate(ctx, address, sock.user_port as u16) {
        Answer::Untouched => PROCEED,
        Answer::Refused(reason) => refuse(reason),
        Answer::Backend(address, port_be) => {
            sock.user_ip4 = address.words()[3];
            sock.user_port = port_be as u32;
            PROCEED
        }
    }
}

/// `connect` and `sendmsg` on an IPv6 socket; it may speak to a mapped IPv4 address.
#[inline(always)]
pub fn connect_v6(ctx: &SockAddrContext) -> i32 {
    if !ours(ctx) {
        return PROCEED;
    }
    let sock = raw(ctx);
    let words = [
        sock.user_ip6[0],
        sock.user_ip6[1],
        sock.user_ip6[2],
        sock.user_ip6[3],
    ];
    match translate(ctx, Address::from_words(words), sock.user_port as u16) {
        Answer::Untouched => PROCEED,
        Answer::Refused(reason) => refuse(reason),
        Answer::Backend(address, port_be) => {
            let words = address.words();
            sock.user_ip6[0] = words[0];
            sock.user_ip6[1] = words[1];
            sock.user_ip6[2] = words[2];
            sock.user_ip6[3] = words[3];
            sock.user_port = port_be as u32;
            PROCEED
        }
    }
}

/// The service address behind the backend that a socket hears from.
#[inline(always)]
fn reverse(ctx: &SockAddrContext, address: Address, port_be: u16) -> Option<SocketReverse> {
    let key = SocketReverseKey {
        // SAFETY: the helper takes the context as it is.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        address,
        port_be,
        protocol: raw(ctx).protocol as u8,
        _zero: [0; 5],
    };
    let found = SOCK_REVERSE.get_ptr(&key)?;
    // SAFETY: a map value, copied whole.
    let found = unsafe { *found };
    Some(found)
}

/// `recvmsg` and `getpeername` on an IPv4 socket; `gate` is the hook's own.
#[inline(always)]
pub fn reverse_v4(ctx: &SockAddrContext, gate: &SocketGate) -> i32 {
    if !ours(ctx) {
        return PROCEED;
    }
    let sock = raw(ctx);
    let address = Address::v4(sock.user_ip4.to_ne_bytes());
    if let Some(service) = reverse(ctx, address, sock.user_port as u16) {
        sock.user_ip4 = service.address.words()[3];
        sock.user_port = service.port_be as u32;
    } else {
        hand_over_socket(ctx, gate);
    }
    PROCEED
}

/// `recvmsg` and `getpeername` on an IPv6 socket.
#[inline(always)]
pub fn reverse_v6(ctx: &SockAddrContext, gate: &SocketGate) -> i32 {
    if !ours(ctx) {
        return PROCEED;
    }
    let sock = raw(ctx);
    let words = [
        sock.user_ip6[0],
        sock.user_ip6[1],
        sock.user_ip6[2],
        sock.user_ip6[3],
    ];
    if let Some(service) = reverse(ctx, Address::from_words(words), sock.user_port as u16) {
        let words = service.address.words();
        sock.user_ip6[0] = words[0];
        sock.user_ip6[1] = words[1];
        sock.user_ip6[2] = words[2];
        sock.user_ip6[3] = words[3];
        sock.user_port = service.port_be as u32;
    } else {
        hand_over_socket(ctx, gate);
    }
    PROCEED
}

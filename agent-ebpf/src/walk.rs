//! From a hook's program to a walker and back.
//!
//! What the programs for the rare cases cannot parse in place goes by tail call to a *walker* (extension.rs, fragment.rs), which fills the
//! working memory and goes back to the program that asked it. That one then does with the packet what it does with any other.
//! TC programs run with bottom halves off and to their end, so nothing else uses the memory in between.

use agent_common::{Flow, NO_SLOT, Reason, Verdict, hook, hook::slot};
use aya_ebpf::programs::TcContext;

use crate::{
    deliver::{drop_packet, tail_call},
    fragment::kind,
    packet::{HEADERS, Header, Parsed, parse, pull, skb},
    sctp::note,
    work::Work,
};

/// Begins with a packet, or goes on with one that a walker comes back with: fills the working memory, and tells what was parsed.
///
/// The answer is read back from memory, so that for the verifier all ways through the parser end in one state: without that it would walk what follows
/// for each of them anew.
#[inline(always)]
pub fn begin(ctx: &TcContext, work: &mut Work, hook: u32) -> Parsed {
    let found = work.resumed;
    work.resumed = 0;
    if found == 0 {
        pull(ctx, HEADERS);
        let mut header = Header::new();
        let parsed = parse(ctx, &mut header);
        work.tuple = header.tuple;
        work.l4 = header.l4;
        work.v4 = header.v4 as u32;
        work.tcp_flags = header.tcp_flags;
        work.fragment = kind::NONE;
        work.extensions = 0;
        work.again = 0;
        work.parsed = parsed.number();
    } else {
        work.parsed = found;
    }
    work.forward_key = work.tuple;
    work.length = ctx.len();
    work.ifindex = skb(ctx).ifindex;
    work.hook = hook;
    work.here = NO_SLOT;
    work.here_responds = 0;
    work.reason = 0;
    work.flags = 0;
    work.forward = Flow::NONE;
    work.egress = Verdict::OPEN;
    work.ingress = Verdict::OPEN;
    note(ctx, work);
    // SAFETY: this CPU's own memory.
    Parsed::of(unsafe { core::ptr::read_volatile(&raw const work.parsed) })
}

/// Asks a walker. Comes back only where it is not there: the packet is dropped then, with nothing judged.
#[inline(always)]
pub fn ask(ctx: &TcContext, work: &Work, walker: u32) -> i32 {
    tail_call(ctx, work.hook, walker)
}

/// Goes back to the program that asked, with this answer.
#[inline(always)]
pub fn answer(ctx: &TcContext, work: &mut Work, parsed: Parsed) -> i32 {
    work.resumed = parsed.number();
    let asked = match work.hook {
        hook::FROM_POD => slot::NEW_FROM_POD,
        hook::TO_POD => slot::NEW_TO_POD,
        _ => slot::NEW_FROM_UPLINK,
    };
    let verdict = tail_call(ctx, work.hook, asked);
    // Nobody took it.
    work.resumed = 0;
    verdict
}

/// Looks at the packet once more, where a flow with its ends was in the way of the one that it was to open: another CPU has made the same, or what is
/// left of one that was evicted is gone now. Once only: the ends may also be those of a live flow of others, and then they stay in the way.
#[inline(always)]
pub fn look_again(ctx: &TcContext, work: &mut Work) -> i32 {
    if work.again != 0 && !crate::mutant::removed!("again-and-again") {
        return drop_packet(ctx, work, Reason::PortClash);
    }
    work.again = 1;
    answer(ctx, work, Parsed::Flow)
}

/// Whether the packet is a fragment without a transport header: it follows a flow, and opens none.
#[inline(always)]
pub fn follows(work: &Work) -> bool {
    work.fragment == kind::LATER
}

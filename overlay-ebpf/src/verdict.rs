//! The outcome of a packet, and the one place where it becomes the kernel's verdict and a count.
use aya_ebpf::bindings::{
    TC_ACT_SHOT, TC_ACT_UNSPEC,
    xdp_action::{XDP_DROP, XDP_PASS},
};
use overlay_common::{Hook, Reason, Verdict};

use crate::{
    count::{self, Size},
    packet::Packet,
};

/// Verdict that passes the frame on to whatever else is attached here, and then up the stack: TCX_NEXT, and the same number
/// for cls_bpf.
pub(crate) const NEXT: i32 = TC_ACT_UNSPEC;

/// What a step or a whole program answers about a packet: its result, or why the program ends here.
pub(crate) type Answer<T> = Result<T, Exit>;

/// Why a program ends without carrying the packet.
pub(crate) enum Exit {
    /// The packet is not ours, or is left to another hook: it passes untouched and uncounted.
    NotOurs,
    /// The packet is ours, and this is why it is left to the stack or dropped.
    Because(Reason),
}

impl From<Reason> for Exit {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Because(reason)
    }
}

/// What a TC program has done with a packet of ours.
pub(crate) enum Outcome {
    /// The packet goes its way, by this verdict.
    Carried(i32),
    /// Something else happens by this verdict: an answer is sent in the packet's place, or overlay0 receives the packet.
    Instead(i32, Reason),
}

/// The only place where a TC program's answer becomes a verdict: so each packet of ours is counted exactly once per hook.
#[inline(always)]
pub(crate) fn conclude(packet: &Packet<'_>, hook: Hook, size: Size, answer: Answer<Outcome>) -> i32 {
    let (reason, action) = match answer {
        Err(Exit::NotOurs) => return NEXT,
        Ok(Outcome::Carried(action)) => (Reason::Carried, action),
        Ok(Outcome::Instead(action, reason)) => (reason, action),
        Err(Exit::Because(reason)) => (reason, if goes_on(hook, reason) { NEXT } else { TC_ACT_SHOT }),
    };
    count::add(hook, reason, size);
    if matches!(reason.verdict_at(hook), Verdict::Drop) {
        count::report(packet.context(), hook, reason);
    }
    action
}

#[inline(always)]
fn goes_on(hook: Hook, reason: Reason) -> bool {
    matches!(reason.verdict_at(hook), Verdict::Stack | Verdict::Carried)
}

/// The same for XDP programs. They count what they drop; TC classifies and counts what they pass on.
#[inline(always)]
pub(crate) fn conclude_xdp(size: Size, answer: Answer<u32>) -> u32 {
    match answer {
        Err(Exit::NotOurs) => XDP_PASS,
        Ok(action) => action,
        Err(Exit::Because(reason)) => {
            count::add(Hook::Xdp, reason, size);
            XDP_DROP
        }
    }
}

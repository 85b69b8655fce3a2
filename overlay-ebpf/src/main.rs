//! The kernel programs: entry points, and the one place where an outcome becomes a verdict and a count.
//!
//! | program          | hook                                   | what passes there                                  |
//! |------------------|----------------------------------------|----------------------------------------------------|
//! | `overlay_encap`  | TC ingress of a container's veth       | what a container sends                             |
//! | `overlay_bridge` | TC ingress of the bridge               | what its ports send up the stack, taps' too        |
//! | `overlay_xdp`    | XDP of the underlay device, if asked   | what peers send; hands it to the container's veth  |
//! | `overlay_xdp_strip` | the same, the other way to use it   | what peers send; unwraps it for GRO and TC         |
//! | `overlay_decap`  | TC ingress of the underlay device      | what peers send                                    |
//! | `overlay_send`   | TC egress of overlay0                  | what the stack sends to peers                      |
//! | `overlay_receive`| TC ingress of overlay0                 | what the kernel's own tunnel decapsulated, or the agent's socket took |
//! | `overlay_note`   | TC egress of a container's veth        | what the stack delivers to a container             |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod check;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod decap;
#[cfg(target_arch = "bpf")]
mod ecn;
#[cfg(target_arch = "bpf")]
mod encap;
#[cfg(target_arch = "bpf")]
mod fib;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod ipv4;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod outer;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod settings;
#[cfg(target_arch = "bpf")]
mod stack;
#[cfg(target_arch = "bpf")]
mod xdp;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{
            TC_ACT_SHOT, TC_ACT_UNSPEC,
            xdp_action::{XDP_DROP, XDP_PASS},
        },
        macros::{classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use overlay_common::{Hook, Reason, Verdict, wire::ETHERNET};

    use crate::{
        count, decap, encap, flow,
        packet::{Packet, Size},
        settings, stack,
        xdp::{self, XdpFrame},
    };

    /// Goes on to whatever else is attached here, and then up the stack: TCX_NEXT, and the same number for cls_bpf.
    const NEXT: i32 = TC_ACT_UNSPEC;

    /// What a program made of a packet that is ours.
    pub(crate) enum Outcome {
        /// Not ours: untouched, uncounted.
        NotOurs,
        /// Took it: this is the helper's verdict.
        Carried(i32),
        /// Something else was done, by this verdict: an answer sent in its stead, or the packet handed to overlay0.
        Instead(i32, Reason),
    }

    /// The only place where outcomes become verdicts, but for XDP's: so that each packet of ours is counted exactly once
    /// per hook.
    #[inline(always)]
    fn conclude(packet: &Packet, hook: Hook, before: Size, result: Result<Outcome, Reason>) -> i32 {
        let (reason, action) = match result {
            Ok(Outcome::NotOurs) => return NEXT,
            Ok(Outcome::Carried(action)) => (Reason::Carried, action),
            Ok(Outcome::Instead(action, reason)) => (reason, action),
            Err(reason) => (reason, if goes_on(hook, reason) { NEXT } else { TC_ACT_SHOT }),
        };
        count::add(hook, reason, before);
        if matches!(reason.verdict_at(hook), Verdict::Drop) {
            count::report(packet, hook, reason);
        }
        action
    }

    #[inline(always)]
    fn goes_on(hook: Hook, reason: Reason) -> bool {
        matches!(reason.verdict_at(hook), Verdict::Stack | Verdict::Carried)
    }

    /// Container to underlay, at the container's own port.
    #[classifier]
    fn overlay_encap(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let before = packet.size(ETHERNET);
        let result = encap::encap(&packet);
        conclude(&packet, Hook::Encap, before, result)
    }

    /// What the bridge hands up the stack, from whichever port: no container here speaks in another host's name.
    #[classifier]
    fn overlay_bridge(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let before = packet.size(ETHERNET);
        let result = encap::bridge(&packet);
        conclude(&packet, Hook::Encap, before, result)
    }

    /// Underlay to container.
    #[classifier]
    fn overlay_decap(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let stripped = packet.stripped();
        let headers = match stripped {
            None if !decap::is_plain(&packet) => settings::overhead(),
            _ => 0,
        };
        let before = packet.size(ETHERNET + headers);
        let result = match stripped {
            Some(slot) => decap::deliver(&packet, slot),
            None => decap::decap(&packet),
        };
        conclude(&packet, Hook::Decap, before, result)
    }

    /// Underlay to container, before there is a packet buffer.
    #[xdp(frags)]
    fn overlay_xdp(ctx: XdpContext) -> u32 {
        let frame = XdpFrame::new(&ctx);
        let result = xdp::redirect(&frame);
        if let Some(Ok(_)) = result {
            count::add(Hook::Xdp, Reason::Carried, frame.size());
        }
        conclude_xdp(&frame, result)
    }

    /// Underlay to TC, without its wrapping. What is passed on is counted there.
    #[xdp(frags)]
    fn overlay_xdp_strip(ctx: XdpContext) -> u32 {
        let frame = XdpFrame::new(&ctx);
        let result = xdp::strip(&frame);
        conclude_xdp(&frame, result)
    }

    /// What XDP did not take is TC's to judge and to count.
    #[inline(always)]
    fn conclude_xdp(frame: &XdpFrame<'_>, result: Option<Result<u32, Reason>>) -> u32 {
        match result {
            None => XDP_PASS,
            Some(Ok(action)) => action,
            Some(Err(reason)) => {
                count::add(Hook::Xdp, reason, frame.size());
                XDP_DROP
            }
        }
    }

    /// Stack to peer: tells the kernel's tunnel where to, or takes the packet there.
    #[classifier]
    fn overlay_send(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let before = packet.size(settings::device_header());
        let result = stack::send(&packet);
        conclude(&packet, Hook::Send, before, result)
    }

    /// Peer to stack: no frame enters unchecked.
    #[classifier]
    fn overlay_receive(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let before = packet.size(settings::device_header() + stack::wrapping(&packet));
        let result = stack::receive(&packet);
        conclude(&packet, Hook::Receive, before, result)
    }

    /// Stack to container: remembers the connection, so that the replies take the stack too.
    #[classifier]
    fn overlay_note(ctx: TcContext) -> i32 {
        flow::note_delivery(&Packet::new(&ctx));
        NEXT
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel hands helpers such as `bpf_skb_set_tunnel_key` to programs under a GPL-compatible licence only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

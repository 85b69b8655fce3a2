//! The kernel programs' entry points.
//!
//! | program             | hook                                 | what passes there                                             |
//! |---------------------|--------------------------------------|---------------------------------------------------------------|
//! | `overlay_encap`     | TC ingress of a container's veth     | what a container sends                                        |
//! | `overlay_bridge`    | TC ingress of the bridge             | what its ports send up the stack, taps and physical ones too  |
//! | `overlay_xdp`       | XDP of the underlay device, if asked | what peers send; this program hands it to the container's veth |
//! | `overlay_xdp_strip` | the same hook, in its place          | what peers send; this program decapsulates it for GRO and TC  |
//! | `overlay_decap`     | TC ingress of the underlay device    | what peers send                                               |
//! | `overlay_send`      | TC egress of overlay0                | what the stack sends to peers                                 |
//! | `overlay_receive`   | TC ingress of overlay0               | what the kernel's own tunnel decapsulated, or the agent's socket took |
//! | `overlay_track`     | TC egress of a container's veth      | what the stack delivers to a container                        |
//!
//! Each of TC's programs hands packets of IPv6 on, by a tail call, to one with a 6 at the end of its name, which takes the same steps
//! for that family (`overlay-common/src/ipv6.rs` says why). Only the former are attached.
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
mod helpers;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod ip;
#[cfg(target_arch = "bpf")]
mod ipv4;
#[cfg(target_arch = "bpf")]
mod ipv6;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod same_host;
#[cfg(target_arch = "bpf")]
mod settings;
#[cfg(target_arch = "bpf")]
mod stack;
#[cfg(target_arch = "bpf")]
mod tunnel;
#[cfg(target_arch = "bpf")]
mod udp;
#[cfg(target_arch = "bpf")]
mod verdict;
#[cfg(target_arch = "bpf")]
mod xdp;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use overlay_common::{Hook, Ipv6Program, Reason, SETTING_IPV6, wire::ETHERNET};

    use crate::{
        count, decap, encap, flow,
        ip::Family,
        ipv4::V4,
        ipv6::V6,
        maps,
        packet::Packet,
        settings, stack, tunnel,
        verdict::{Exit, NEXT, conclude, conclude_xdp},
        xdp::{self, XdpFrame},
    };

    /// From a container to the underlay, at the container's own port.
    #[classifier]
    #[inline(always)]
    fn overlay_encap(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        go_on_if_ipv6(&packet, Ipv6Program::Encap);
        let size = packet.size(ETHERNET);
        let answer = encap::encap::<V4>(&packet, size);
        conclude(&packet, Hook::Encap, size, answer)
    }

    /// What the bridge hands up the stack, from whichever port. No container here may speak in another host's name.
    #[classifier]
    fn overlay_bridge(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        go_on_if_ipv6(&packet, Ipv6Program::Bridge);
        let size = packet.size(ETHERNET);
        let answer = encap::bridge::<V4>(&packet);
        conclude(&packet, Hook::Encap, size, answer)
    }

    /// From the underlay to a container.
    #[classifier]
    #[inline(always)]
    fn overlay_decap(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        go_on_if_ipv6(&packet, Ipv6Program::Decap);
        let stripped = packet.stripped::<V4>();
        let outer_length = match stripped {
            None if !decap::is_unencapsulated::<V4>(&packet) => tunnel::length::<V4>(),
            _ => 0,
        };
        let size = packet.size(ETHERNET + outer_length);
        let answer = match stripped {
            Some(slot) => decap::deliver::<V4>(&packet, slot, size),
            None => decap::decap::<V4>(&packet, size),
        };
        // What the tunnel does not know is looked at once more: what comes by the tunnel must not pay for it.
        if matches!(answer, Err(Exit::NotOurs)) && decap::is_forged::<V4>(&packet) {
            let forged = Err(Reason::NotEncapsulated.into());
            return conclude(&packet, Hook::Decap, packet.size(ETHERNET), forged);
        }
        conclude(&packet, Hook::Decap, size, answer)
    }

    /// From the underlay to a container, before there is a packet buffer.
    #[xdp(frags)]
    fn overlay_xdp(ctx: XdpContext) -> u32 {
        let frame = XdpFrame::new::<V4>(&ctx);
        let answer = xdp::redirect::<V4>(&frame);
        if answer.is_ok() {
            count::add(Hook::Xdp, Reason::Carried, frame.size());
        }
        conclude_xdp(frame.size(), answer)
    }

    /// From the underlay to TC, without the outer headers. TC counts what is passed on.
    #[xdp(frags)]
    fn overlay_xdp_strip(ctx: XdpContext) -> u32 {
        let frame = XdpFrame::new::<V4>(&ctx);
        let answer = xdp::strip::<V4>(&frame);
        conclude_xdp(frame.size(), answer)
    }

    /// From the stack to a peer: tells the kernel's tunnel device which one, or takes the packet there.
    #[classifier]
    fn overlay_send(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        go_on_if_ipv6(&packet, Ipv6Program::Send);
        let size = packet.size(stack::link_header::<V4>());
        let answer = stack::send::<V4>(&packet);
        conclude(&packet, Hook::Send, size, answer)
    }

    /// From a peer to the stack. No frame enters it unchecked.
    #[classifier]
    fn overlay_receive(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        go_on_if_ipv6(&packet, Ipv6Program::Receive);
        let size = packet.size(stack::link_header::<V4>() + stack::outer_length::<V4>(&packet));
        let answer = stack::receive::<V4>(&packet);
        conclude(&packet, Hook::Receive, size, answer)
    }

    /// From the stack to a container: records the connection as a stack flow, so that the replies take the stack too.
    #[classifier]
    fn overlay_track(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        go_on_if_ipv6(&packet, Ipv6Program::Track);
        flow::track::<V4>(&packet);
        NEXT
    }

    /// As `overlay_encap`, of IPv6.
    #[classifier]
    fn overlay_encap6(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let size = packet.size(ETHERNET);
        let answer = encap::encap::<V6>(&packet, size);
        conclude(&packet, Hook::Encap, size, answer)
    }

    /// Answers what `overlay_encap6` cannot send on.
    #[classifier]
    fn overlay_answer6(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let size = packet.size(ETHERNET);
        let answer = encap::answer::<V6>(&packet);
        conclude(&packet, Hook::Encap, size, answer)
    }

    /// As `overlay_bridge`, of IPv6.
    #[classifier]
    fn overlay_bridge6(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let size = packet.size(ETHERNET);
        let answer = encap::bridge::<V6>(&packet);
        conclude(&packet, Hook::Encap, size, answer)
    }

    /// As `overlay_decap`, of IPv6. No program at XDP takes IPv6, so nothing has been decapsulated before.
    #[classifier]
    fn overlay_decap6(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let outer_length = if decap::is_unencapsulated::<V6>(&packet) { 0 } else { tunnel::length::<V6>() };
        let size = packet.size(ETHERNET + outer_length);
        let answer = decap::decap::<V6>(&packet, size);
        if matches!(answer, Err(Exit::NotOurs)) && decap::is_forged::<V6>(&packet) {
            let forged = Err(Reason::NotEncapsulated.into());
            return conclude(&packet, Hook::Decap, packet.size(ETHERNET), forged);
        }
        conclude(&packet, Hook::Decap, size, answer)
    }

    /// As `overlay_send`, of IPv6.
    #[classifier]
    fn overlay_send6(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let size = packet.size(stack::link_header::<V6>());
        let answer = stack::send::<V6>(&packet);
        conclude(&packet, Hook::Send, size, answer)
    }

    /// As `overlay_receive`, of IPv6.
    #[classifier]
    fn overlay_receive6(ctx: TcContext) -> i32 {
        let packet = Packet::new(&ctx);
        let size = packet.size(stack::link_header::<V6>() + stack::outer_length::<V6>(&packet));
        let answer = stack::receive::<V6>(&packet);
        conclude(&packet, Hook::Receive, size, answer)
    }

    /// As `overlay_track`, of IPv6.
    #[classifier]
    fn overlay_track6(ctx: TcContext) -> i32 {
        flow::track::<V6>(&Packet::new(&ctx));
        NEXT
    }

    /// Hands a packet of IPv6 on to the program for it. Where the network has no IPv6, the verifier removes this.
    #[inline(always)]
    fn go_on_if_ipv6(packet: &Packet<'_>, program: Ipv6Program) {
        if settings::has(SETTING_IPV6) && packet.is(V6::ETHERTYPE) {
            maps::go_on_in(packet.context(), program);
        }
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

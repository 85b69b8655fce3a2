//! Underlay to container before there is a packet buffer: the classification of `decap.rs`, carried out on the driver's frame.
//!
//! What these programs do not take passes untouched and uncounted: TC classifies it again, and counts it.
mod frame;

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use overlay_common::{
    ENDPOINT_FOREIGN_EGRESS, Reason, StripMark, checksum,
    header::{ethernet, protocol, tcp, udp},
    wire::{ETHERNET, UDP},
};

pub(crate) use self::frame::XdpFrame;
use crate::{
    count,
    decap::{self, Delivery},
    frame::Frame as _,
    ip::{Family, Header as _, ICMP_HEADER},
    maps, settings,
    verdict::{Answer, Exit},
};

/// Hands the packet to the container's veth.
#[inline(always)]
pub(crate) fn redirect<F: Family>(frame: &XdpFrame<'_>) -> Answer<u32> {
    let delivery = classify::<F>(frame)?;
    // What XDP redirects passes no egress.
    let is_foreign = delivery.endpoint.flags & ENDPOINT_FOREIGN_EGRESS != 0;
    if is_foreign || !is_finished(frame, &delivery) {
        return Err(Exit::NotOurs);
    }
    // Asked before the frame is changed: what no interface takes must still be whole for TC.
    let action = maps::redirect(delivery.endpoint.ifindex).ok_or(Exit::NotOurs)?;
    frame.remove_headers(delivery.outer_length).ok_or(Exit::NotOurs)?;
    finish(frame, &delivery)?;
    count::add_received(delivery.slot, frame.size());
    Ok(action)
}

/// Decapsulates the packet and passes it on, so that GRO merges what was inside before TC delivers it. The frame has the
/// container's address already: should no program be at TC, the stack drops it as another host's (PACKET_OTHERHOST).
#[inline(always)]
pub(crate) fn strip<F: Family>(frame: &XdpFrame<'_>) -> Answer<u32> {
    let mark_size = size_of::<StripMark<F::Address>>() as i32;
    let delivery = classify::<F>(frame)?;
    if delivery.outer_length == 0 {
        return Err(Exit::NotOurs);
    }
    // An outer checksum may be one that a device is still to finish, at a place that will be gone. And whoever has vouched
    // for the outer one, zero or not (CHECKSUM_UNNECESSARY, which travels through veths and bridges), would be believed of
    // the inner one, by GRO and by the container: so the inner one must be right.
    if !delivery.is_unchecked || !is_finished(frame, &delivery) || !is_right(frame, &delivery) {
        return Err(Exit::NotOurs);
    }
    frame.make_mark_space(mark_size).ok_or(Exit::NotOurs)?;
    if frame.remove_headers(delivery.outer_length).is_none() {
        // The space was there a moment ago, so it can be given back.
        let _ = frame.make_mark_space(-mark_size);
        return Err(Exit::NotOurs);
    }
    frame.write_mark(settings::strip_mark::<F::Address>(delivery.slot))?;
    finish(frame, &delivery)?;
    Ok(XDP_PASS)
}

/// A packet that is to be delivered, and of a kind that XDP understands. Whatever else there is to say of a packet, TC says.
#[inline(always)]
fn classify<F: Family>(frame: &XdpFrame<'_>) -> Answer<Delivery<F>> {
    let delivery = decap::classify::<F>(frame).map_err(|_| Exit::NotOurs)?;
    is_known(frame, &delivery).then_some(delivery).ok_or(Exit::NotOurs)
}

/// Writes the container's addresses and the congestion mark into the frame, whose packet is right behind the Ethernet header
/// now.
#[inline(always)]
fn finish<F: Family>(frame: &XdpFrame<'_>, delivery: &Delivery<F>) -> Result<(), Reason> {
    frame.store(0, &decap::macs(&delivery.endpoint))?;
    // Where the packet had no Ethernet header, outer bytes stand in its place.
    frame.store(ethernet::offset::ETHERTYPE, &F::ETHERTYPE)?;
    if delivery.tos != delivery.inner.tos() {
        delivery.inner.store_tos(frame, ETHERNET, delivery.tos)?;
    }
    Ok(())
}

/// Where the transport header begins.
#[inline(always)]
fn transport<F: Family>(delivery: &Delivery<F>) -> usize {
    ETHERNET + delivery.outer_length + F::HEADER
}

/// Whether the packet is of a protocol of which it is known what an unfinished checksum looks like, with enough of it in the
/// first buffer to tell its connection. Of ICMP only echoes are: an error's connection is told by what it quotes.
#[inline(always)]
fn is_known<F: Family>(frame: &XdpFrame<'_>, delivery: &Delivery<F>) -> bool {
    let transport = transport(delivery);
    match delivery.inner.protocol() {
        protocol::TCP => frame.pull(transport + tcp::LENGTH),
        protocol::UDP => frame.pull(transport + UDP),
        protocol if protocol == F::ICMP => {
            frame.read::<[u8; ICMP_HEADER]>(transport).is_some_and(|[kind, ..]| F::is_echo(kind))
        }
        _ => false,
    }
}

/// Whether the inner transport checksum fits the data, all of which must lie in the first buffer.
#[inline(always)]
fn is_right<F: Family>(frame: &XdpFrame<'_>, delivery: &Delivery<F>) -> bool {
    let (inner, transport) = (&delivery.inner, transport(delivery));
    let length = inner.length() - F::HEADER as u16;
    if inner.protocol() == protocol::UDP && frame.read(transport + udp::offset::CHECKSUM) == Some([0u8; 2]) {
        return true;
    }
    let pseudo_header = inner.pseudo_header(length);
    frame.sum(transport, length).is_some_and(|sum| checksum::finish(pseudo_header + sum) == 0)
}

/// Whether the inner checksum is finished. A frame from a virtual device may have one that a device was still to finish
/// (CHECKSUM_PARTIAL): a redirected frame loses what says so, and the container would see a wrong sum.
#[inline(always)]
fn is_finished<F: Family>(frame: &XdpFrame<'_>, delivery: &Delivery<F>) -> bool {
    let (inner, transport) = (&delivery.inner, transport(delivery));
    let field = match inner.protocol() {
        protocol::TCP => frame.read::<[u8; 2]>(transport + tcp::offset::CHECKSUM),
        protocol::UDP => frame.read::<[u8; 2]>(transport + udp::offset::CHECKSUM),
        _ => return true,
    };
    let Some(field) = field else { return false };
    // "All zero [...] means that the transmitter generated no checksum" (RFC 768).
    if inner.protocol() == protocol::UDP && field == [0; 2] {
        return true;
    }
    let pseudo_header = inner.pseudo_header(inner.length() - F::HEADER as u16);
    !checksum::is_unfinished(u16::from_be_bytes(field), pseudo_header)
}

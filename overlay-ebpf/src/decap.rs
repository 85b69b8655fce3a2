//! Underlay to container, top to bottom. The steps are those of docs/packet-flow.md, "In". Steps 1 to 3 are the
//! classification, which XDP shares; 4 and 5 are TC's.
use overlay_common::{
    ENDPOINT_FOREIGN_EGRESS, ENDPOINT_FOREIGN_INGRESS, EndpointEntry, FAST_PATH_OFF, Reason,
    SETTING_DEVICE_DOWN, SETTING_DIRECT, Verdict,
    header::protocol,
    wire::{ETHERNET, UDP},
};

use crate::{
    check,
    count::{self, Size},
    ecn, fib, flow,
    frame::Frame,
    ip::{Family, Header as _},
    maps::Lookups as _,
    packet::Packet,
    settings::{self, Prefixes},
    stack,
    tunnel::{self, Format},
    udp::Udp,
    verdict::{Answer, Exit, Outcome},
};

/// A packet that is for a container here, and to be delivered past the stack.
pub(crate) struct Delivery<F: Family> {
    pub(crate) inner: F::Header,
    pub(crate) endpoint: EndpointEntry,
    /// Counters' slot of the peer that sent it.
    pub(crate) slot: u32,
    /// The inner type of service byte to deliver.
    pub(crate) tos: u8,
    /// The outer UDP checksum is zero: nobody can have vouched for it.
    pub(crate) is_unchecked: bool,
    /// Bytes of headers between the Ethernet header and the packet, which are to be removed. Zero for a packet that came
    /// without encapsulation.
    pub(crate) outer_length: usize,
}

/// Whether and how a frame is to be delivered. Changes nothing.
#[inline(always)]
pub(crate) fn classify<F: Family>(frame: &impl Frame) -> Answer<Delivery<F>> {
    // In 1. Anything but a whole datagram to our address and port, with our VNI where there is one, passes untouched: the
    // socket that holds the port takes what is to it, reassembles fragments, and the result gets to overlay_receive.
    if !frame.carries(F::ETHERTYPE) || !frame.is_for_us() || !frame.pull(ETHERNET + F::HEADER) {
        return Err(Exit::NotOurs);
    }
    if is_unencapsulated::<F>(frame) {
        return classify_unencapsulated(frame);
    }
    let outer = F::Header::checked(frame, ETHERNET).map_err(|_| Exit::NotOurs)?;
    if outer.protocol() != protocol::UDP || outer.destination() != F::Address::local() || outer.is_fragment()
    {
        return Err(Exit::NotOurs);
    }
    if !frame.pull(ETHERNET + F::HEADER + UDP) {
        return Err(Exit::NotOurs);
    }
    let udp = Udp::read(frame, ETHERNET + F::HEADER).ok_or(Exit::NotOurs)?;
    let is_whole = usize::from(udp.length()) + F::HEADER == usize::from(outer.length());
    if udp.destination_port() != settings::port() || !is_whole {
        return Err(Exit::NotOurs);
    }

    // In 2. Sent by a peer, and from that peer's own subnet.
    let (inner, sender) = tunnel::parse::<F>(frame, &outer)?;
    // What is sent to such a peer takes the stack (Out 6), so all of the connection must.
    if !tunnel::takes_zero_checksum::<F>(sender.flags) {
        return Err(Reason::WantsChecksum.into());
    }

    // In 3. For a container here that is learned, whose connection is no stack flow, and whose veth still exists.
    let outer_length = tunnel::length::<F>();
    let endpoint = receiver::<F>(frame, &inner, outer_length)?;
    let tos = ecn::decapsulated(outer.tos(), inner.tos())?;
    let slot = sender.slot;
    Ok(Delivery { inner, endpoint, slot, tos, is_unchecked: udp.is_unchecked(), outer_length })
}

/// Under direct routing: a packet to the own subnet that came without encapsulation.
#[inline(always)]
pub(crate) fn is_unencapsulated<F: Family>(frame: &impl Frame) -> bool {
    settings::has(SETTING_DIRECT)
        && frame.pull(ETHERNET + F::HEADER)
        && frame.read::<F::Address>(ETHERNET + F::DESTINATION).is_some_and(Prefixes::in_subnet)
}

/// Without direct routing: whether a packet that came without encapsulation is in the name of a container. No program at XDP
/// asks: it passes on whatever it does not deliver.
#[inline(always)]
pub(crate) fn is_forged<F: Family>(packet: &Packet<'_>) -> bool {
    if settings::has(SETTING_DIRECT)
        || !packet.reaches_stack(F::ETHERTYPE)
        || !packet.pull(ETHERNET + F::HEADER)
    {
        return false;
    }
    let source = packet.read::<F::Address>(ETHERNET + F::SOURCE);
    let destination = packet.read::<F::Address>(ETHERNET + F::DESTINATION);
    matches!((source, destination), (Some(source), Some(destination))
        if check::is_forged(source, destination, || fib::is_beside_overlay(packet, source)))
}

/// In 1 to 3 of such a packet. What the underlay's own hosts send is not ours; what has a source inside Network must have one
/// in a peer's subnet.
#[inline(always)]
fn classify_unencapsulated<F: Family>(frame: &impl Frame) -> Answer<Delivery<F>> {
    let source: F::Address = frame.read(ETHERNET + F::SOURCE).ok_or(Exit::NotOurs)?;
    let slot = check::unencapsulated(source)?;
    let inner = F::Header::checked(frame, ETHERNET).map_err(Reason::from)?;
    let endpoint = receiver::<F>(frame, &inner, 0)?;
    Ok(Delivery { inner, endpoint, slot, tos: inner.tos(), is_unchecked: true, outer_length: 0 })
}

/// In 3: the endpoint of a packet that begins `outer_length` bytes behind the Ethernet header.
#[inline(always)]
fn receiver<F: Family>(
    frame: &impl Frame,
    inner: &F::Header,
    outer_length: usize,
) -> Result<EndpointEntry, Reason> {
    if !inner.destination().in_subnet() {
        return Err(Reason::NotOurSubnet);
    }
    let fast_path = F::Address::fast_path();
    if fast_path == FAST_PATH_OFF {
        return Err(Reason::StackOnly);
    }
    if inner.is_fragment() {
        return Err(Reason::InnerFragment);
    }
    // The stack answers time exceeded: this host is a router too, though the fast path takes nothing from the TTL here.
    if inner.ttl() <= 1 {
        return Err(Reason::TtlExpired);
    }
    let endpoint = inner.destination().endpoint().ok_or(Reason::Unlearned)?;
    // The answers take the stack, where somebody else's filter sees them (Out 2), so all of the connection must.
    if endpoint.flags & ENDPOINT_FOREIGN_INGRESS != 0 {
        return Err(Reason::ForeignFilter);
    }
    flow::keeps_to_stack::<F>(frame, ETHERNET + outer_length, inner, fast_path)?;
    if !frame.fits(endpoint.ifindex, inner.length(), outer_length) {
        return Err(Reason::EndpointGone);
    }
    Ok(endpoint)
}

/// `size` is the inner packet's, as it is counted.
#[inline(always)]
pub(crate) fn decap<F: Family>(packet: &Packet<'_>, size: Size) -> Answer<Outcome> {
    let Delivery { inner, endpoint, slot, tos, is_unchecked, outer_length } = match classify::<F>(packet) {
        Ok(delivery) => delivery,
        Err(Exit::NotOurs) => return Err(Exit::NotOurs),
        Err(Exit::Because(reason)) => return leave::<F>(packet, reason),
    };

    // In 4. On refusal the frame is as it was, and the stack's. So are the datagrams of one frame (UDP_SEGMENT, or merged
    // by GRO): what bpf_skb_adjust_room leaves of the tunnel's marks (SKB_GSO_UDP_TUNNEL, skb->encapsulation) keeps the
    // kernel from cutting them apart before the socket, where it drops them without a count.
    if outer_length != 0 {
        if packet.gso_size() != 0 && inner.protocol() == protocol::UDP {
            return leave::<F>(packet, Reason::HeadroomRefused);
        }
        if let Err(reason) = tunnel::decapsulate::<F>(packet, is_unchecked) {
            return leave::<F>(packet, reason);
        }
    }

    // In 5. From here on the frame is ours alone.
    packet.write_addresses(&addresses(&endpoint))?;
    if tos != inner.tos() {
        inner.store_tos(packet, ETHERNET, tos)?;
    }
    // The frame is marked as addressed to this host already: overlay_decap takes no other (`is_for_us`).
    count::add_received(slot, size);
    Ok(Outcome::Carried(hand_to_container(packet, &endpoint)))
}

/// Leaves a packet to the stack, untouched: a VXLAN frame to the kernel's tunnel socket, anything else to overlay0. What the
/// stack received as the underlay device's, reverse path filters and the host's firewall would refuse.
#[inline(always)]
fn leave<F: Family>(packet: &Packet<'_>, reason: Reason) -> Answer<Outcome> {
    let is_unencapsulated = is_unencapsulated::<F>(packet);
    if matches!(reason, Reason::HeadroomRefused | Reason::EndpointGone) {
        let outer_length = if is_unencapsulated { 0 } else { tunnel::length::<F>() };
        flow::keep::<F>(packet, ETHERNET + outer_length);
    }
    let is_sockets = matches!(tunnel::format::<F>(), Format::Vxlan) && !is_unencapsulated;
    // While a host is moved from flannel, flannel's routes still lead where such a packet came from, so that reverse path filters
    // let it pass.
    if !matches!(reason.verdict(), Verdict::Stack) || is_sockets || settings::has(SETTING_DEVICE_DOWN) {
        return Err(reason.into());
    }
    // The datagrams of one frame: taken apart by us they would keep the tunnel's marks (In 4). Before the agent's socket
    // gets them the kernel cuts them, outer headers and all.
    let inner_protocol = ETHERNET + F::HEADER + UDP + F::PROTOCOL;
    let is_datagrams = packet.gso_size() != 0 && packet.read(inner_protocol) == Some(protocol::UDP);
    if is_datagrams && !is_unencapsulated {
        return Err(reason.into());
    }
    Ok(Outcome::Instead(stack::hand_over::<F>(packet)?, reason))
}

/// In 5 of what XDP has classified and decapsulated a moment ago, and GRO has merged since. Only the endpoint is looked up
/// again: it may have moved. One that is gone meanwhile takes the packet along, which cannot be encapsulated again.
#[inline(always)]
pub(crate) fn deliver<F: Family>(packet: &Packet<'_>, slot: u32, size: Size) -> Answer<Outcome> {
    if !packet.pull(ETHERNET + F::HEADER) {
        return Err(Reason::Failed.into());
    }
    // The header is not checked again. Each packet's was; merged beyond 65,535 bytes its length is zero (BIG TCP).
    let destination: F::Address = packet.read(ETHERNET + F::DESTINATION).ok_or(Reason::Failed)?;
    let endpoint = destination.endpoint().ok_or(Reason::Failed)?;
    if !packet.fits_without(endpoint.ifindex, 0) {
        return Err(Reason::Failed.into());
    }
    packet.write_addresses(&addresses(&endpoint))?;
    packet.accept();
    count::add_received(slot, size);
    Ok(Outcome::Carried(hand_to_container(packet, &endpoint)))
}

/// Verdict that delivers a frame: past the egress of the container's port, unless somebody else has put something there.
#[inline(always)]
fn hand_to_container(packet: &Packet<'_>, endpoint: &EndpointEntry) -> i32 {
    if endpoint.flags & ENDPOINT_FOREIGN_EGRESS == 0 {
        return Packet::redirect_peer(endpoint.ifindex);
    }
    packet.mark_delivery(endpoint.ifindex);
    Packet::redirect(endpoint.ifindex)
}

/// The same in words.
#[inline(always)]
fn addresses(endpoint: &EndpointEntry) -> [u16; 6] {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (endpoint.mac, endpoint.gateway_mac);
    [[a, b], [c, d], [e, f], [g, h], [i, j], [k, l]].map(u16::from_ne_bytes)
}

/// Destination and source of a delivered frame.
#[inline(always)]
pub(crate) fn macs(endpoint: &EndpointEntry) -> [[u8; 6]; 2] {
    [endpoint.mac, endpoint.gateway_mac]
}

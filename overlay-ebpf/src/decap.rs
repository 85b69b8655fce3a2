//! Underlay to container, top to bottom; the steps are those of docs/packet-flow.md, "In". Steps 1 to 3 are the judgement,
//! which XDP shares; 4 and 5 are TC's.
use overlay_common::{
    Addr4, Endpoint, Reason, SETTING_DIRECT, SETTING_STACK_ONLY, Verdict,
    wire::{ETHERNET, ETHERTYPE_IPV4, INNER, IPV4, UDP, VXLAN, VXLAN_VNI_VALID},
};

use crate::{
    check, count, ecn, flow,
    frame::Frame,
    ipv4::{IPPROTO_UDP, Ipv4},
    maps,
    packet::Packet,
    settings, stack,
    verdict::{Answer, Exit, Outcome},
};

/// A packet that is for a container here, and to be delivered past the stack.
pub(crate) struct Delivery {
    pub(crate) inner: Ipv4,
    pub(crate) endpoint: Endpoint,
    /// Counters of the peer that sent it.
    pub(crate) slot: u32,
    /// The inner type of service byte to deliver.
    pub(crate) tos: u8,
    /// The outer UDP checksum is zero: nobody can have vouched for it.
    pub(crate) is_unchecked: bool,
    /// Bytes between the Ethernet header and the packet, that go; zero for one that came without encapsulation.
    pub(crate) taken: usize,
}

/// Whether and how a frame is to be delivered. Changes nothing.
#[inline(always)]
pub(crate) fn classify(frame: &impl Frame) -> Answer<Delivery> {
    // In 1. Anything but a whole datagram to our address and port, with our VNI where there is one, passes untouched: the
    // socket that holds the port takes what is to it, reassembles fragments, and the result gets to overlay_receive.
    if !frame.is_ipv4() || !frame.is_for_us() || !frame.pull(ETHERNET + IPV4) {
        return Err(Exit::NotOurs);
    }
    if is_plain(frame) {
        return classify_plain(frame);
    }
    let outer = frame.ipv4(ETHERNET).map_err(|_| Exit::NotOurs)?;
    if outer.protocol != IPPROTO_UDP || outer.destination.raw() != settings::local() || outer.is_fragment() {
        return Err(Exit::NotOurs);
    }
    if !frame.pull(ETHERNET + IPV4 + UDP) {
        return Err(Exit::NotOurs);
    }
    let udp: [u8; UDP] = frame.read(ETHERNET + IPV4).ok_or(Exit::NotOurs)?;
    let udp_length = u16::from_be_bytes([udp[4], udp[5]]);
    if [udp[2], udp[3]] != settings::port() || usize::from(udp_length) + IPV4 != usize::from(outer.length) {
        return Err(Exit::NotOurs);
    }

    // In 2. Sent by a peer, and from that peer's own subnet.
    let taken = settings::overhead();
    let (inner, slot) = if settings::is_udp() { bare(frame, &outer)? } else { vxlan(frame, &outer)? };

    // In 3. For a container here that is learned, whose connection is not the stack's, and whose veth still exists.
    let endpoint = receiver(frame, &inner, taken)?;
    let tos = ecn::unwrapped(outer.tos, inner.tos)?;
    Ok(Delivery { inner, endpoint, slot, tos, is_unchecked: udp[6] | udp[7] == 0, taken })
}

/// The inner packet of a VXLAN frame, and the counters of its sender.
#[inline(always)]
fn vxlan(frame: &impl Frame, outer: &Ipv4) -> Answer<(Ipv4, u32)> {
    if !frame.pull(INNER + IPV4) {
        return Err(Exit::NotOurs);
    }
    let vxlan: [u8; VXLAN] = frame.read(ETHERNET + IPV4 + UDP).ok_or(Exit::NotOurs)?;
    let [_, a, b, c] = settings::vni().to_be_bytes();
    if vxlan != [VXLAN_VNI_VALID, 0, 0, 0, a, b, c, 0] {
        return Err(Exit::NotOurs);
    }
    let ethernet: [u8; ETHERNET] = frame.read(INNER - ETHERNET).ok_or(Exit::NotOurs)?;
    if [ethernet[12], ethernet[13]] != ETHERTYPE_IPV4 {
        check::known(outer.source)?;
        return Err(Reason::NotIpv4.into());
    }
    let (inner, slot) = sent(frame, INNER, outer)?;
    // The kernel's device takes nothing from its own address either: it would be a loop (vxlan_set_mac).
    if ethernet[..6] != settings::vtep_mac() || ethernet[6..12] == settings::vtep_mac() {
        return Err(Reason::WrongVtepMac.into());
    }
    Ok((inner, slot))
}

/// The packet in a datagram, and the counters of its sender.
#[inline(always)]
fn bare(frame: &impl Frame, outer: &Ipv4) -> Answer<(Ipv4, u32)> {
    if !frame.pull(ETHERNET + IPV4 + UDP + IPV4) {
        check::known(outer.source)?;
        return Err(Reason::Malformed.into());
    }
    match sent(frame, ETHERNET + IPV4 + UDP, outer) {
        // Datagrams that GRO has merged (rx-gro-list, rx-udp-gro-forwarding): the socket takes them apart again.
        Err(Reason::TrailingBytes) if frame.gso_size() != 0 => Err(Exit::NotOurs),
        inner => Ok(inner?),
    }
}

/// The inner packet at `offset`, and the counters of its sender, if that may send it.
#[inline(always)]
fn sent(frame: &impl Frame, offset: usize, outer: &Ipv4) -> Result<(Ipv4, u32), Reason> {
    let inner = match frame.ipv4(offset) {
        Ok(inner) => inner,
        Err(bad) => {
            check::known(outer.source)?;
            return Err(bad.into());
        }
    };
    let slot = check::peer(outer.source, inner.source)?;
    Ok((inner, slot))
}

/// Under direct routing: a packet to the own subnet that came without encapsulation.
#[inline(always)]
pub(crate) fn is_plain(frame: &impl Frame) -> bool {
    settings::has(SETTING_DIRECT)
        && frame.read::<[u8; 4]>(ETHERNET + 16).is_some_and(|to| settings::in_subnet(Addr4::new(to)))
}

/// In 1 to 3 of such a packet. Not ours is what the underlay's own hosts send; what claims to be another host's container's
/// must be in a peer's subnet.
#[inline(always)]
fn classify_plain(frame: &impl Frame) -> Answer<Delivery> {
    let source = frame.read(ETHERNET + 12).map(Addr4::new).ok_or(Exit::NotOurs)?;
    let slot = check::plain(source)?;
    let inner = frame.ipv4(ETHERNET).map_err(Reason::from)?;
    let endpoint = receiver(frame, &inner, 0)?;
    Ok(Delivery { inner, endpoint, slot, tos: inner.tos, is_unchecked: true, taken: 0 })
}

/// In 3: the endpoint of a packet that begins `taken` bytes behind the Ethernet header.
#[inline(always)]
fn receiver(frame: &impl Frame, inner: &Ipv4, taken: usize) -> Result<Endpoint, Reason> {
    if !settings::in_subnet(inner.destination) {
        return Err(Reason::NotOurSubnet);
    }
    if settings::has(SETTING_STACK_ONLY) {
        return Err(Reason::StackOnly);
    }
    if inner.is_fragment() {
        return Err(Reason::InnerFragment);
    }
    // The stack answers time exceeded: this host is a router too, though the fast path takes nothing from the TTL here.
    if inner.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let endpoint = maps::endpoint(inner.destination).ok_or(Reason::Unlearned)?;
    if flow::is_noted(frame, ETHERNET + taken, inner) {
        return Err(Reason::StackFlow);
    }
    if !frame.fits(endpoint.ifindex, inner, taken) {
        return Err(Reason::EndpointGone);
    }
    Ok(endpoint)
}

#[inline(always)]
pub(crate) fn decap(packet: &Packet<'_>) -> Answer<Outcome> {
    let Delivery { inner, endpoint, slot, tos, is_unchecked, taken } = match classify(packet) {
        Ok(delivery) => delivery,
        Err(Exit::NotOurs) => return Err(Exit::NotOurs),
        Err(Exit::Because(reason)) => return leave(packet, reason),
    };

    // In 4. On refusal the frame is as it was, and the stack's. So are the datagrams of one frame (UDP_SEGMENT, or merged
    // by GRO): what bpf_skb_adjust_room leaves of the tunnel's marks (SKB_GSO_UDP_TUNNEL, skb->encapsulation) keeps the
    // kernel from cutting them apart before the socket, where it drops them without a count.
    let size = packet.size(ETHERNET + taken);
    if taken != 0 {
        if packet.gso_size() != 0 && inner.protocol == IPPROTO_UDP {
            return leave(packet, Reason::RoomRefused);
        }
        let start =
            if settings::is_udp() && !is_unchecked { packet.read::<[u8; 8]>(ETHERNET + taken) } else { None };
        let took = match start {
            Some(start) => packet.take_datagram_room(&start),
            None => packet.take_room(taken),
        };
        if let Err(reason) = took {
            return leave(packet, reason);
        }
        packet.distrust_checksum();
    }

    // In 5. From here on the frame is ours alone.
    packet.store(0, &macs(&endpoint))?;
    if tos != inner.tos {
        packet.store(ETHERNET + 1, &[tos])?;
        packet.store(ETHERNET + 10, &marked(&inner, tos))?;
    }
    // Addressed to this host already: overlay_decap takes no other (`is_for_us`).
    count::add_received(slot, size);
    Ok(Outcome::Carried(Packet::redirect_peer(endpoint.ifindex)))
}

/// Leaves a packet to the stack, untouched: a VXLAN frame to the kernel's tunnel socket, anything else to overlay0, which
/// alone is a way in that reverse path filters and the host's firewall know it to come by.
#[inline(always)]
fn leave(packet: &Packet<'_>, reason: Reason) -> Answer<Outcome> {
    if !matches!(reason.verdict(), Verdict::Stack) || !(settings::is_udp() || is_plain(packet)) {
        return Err(reason.into());
    }
    // The datagrams of one frame: taken apart by us they would keep the tunnel's marks (In 4). Before the agent's socket
    // gets them the kernel cuts them, outer headers and all.
    let is_datagrams =
        packet.gso_size() != 0 && packet.read::<[u8; 1]>(ETHERNET + IPV4 + UDP + 9) == Some([IPPROTO_UDP]);
    if is_datagrams && !is_plain(packet) {
        return Err(reason.into());
    }
    Ok(Outcome::Instead(stack::hand_over(packet)?, reason))
}

/// In 5 of what XDP has judged and unwrapped a moment ago, merged by GRO since. Only the endpoint is looked up again: it
/// may have moved. One that is gone meanwhile takes the packet along, which cannot be wrapped again.
#[inline(always)]
pub(crate) fn deliver(packet: &Packet<'_>, slot: u32) -> Answer<Outcome> {
    if !packet.pull(ETHERNET + IPV4) {
        return Err(Reason::Failed.into());
    }
    // Judged it has been, packet by packet: merged beyond 65,535 bytes its length is zero (BIG TCP).
    let destination = packet.read(ETHERNET + 16).map(Addr4::new).ok_or(Reason::Failed)?;
    let endpoint = maps::endpoint(destination).ok_or(Reason::Failed)?;
    if !packet.takes(endpoint.ifindex, 0) {
        return Err(Reason::Failed.into());
    }
    packet.store(0, &macs(&endpoint))?;
    packet.accept();
    count::add_received(slot, packet.size(ETHERNET));
    Ok(Outcome::Carried(Packet::redirect_peer(endpoint.ifindex)))
}

/// Destination and source of a delivered frame.
#[inline(always)]
pub(crate) fn macs(endpoint: &Endpoint) -> [u8; 12] {
    let [a, b, c, d, e, f] = endpoint.mac;
    let [g, h, i, j, k, l] = endpoint.gateway_mac;
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// The inner header's checksum once its type of service byte is `tos`.
#[inline(always)]
pub(crate) fn marked(inner: &Ipv4, tos: u8) -> [u8; 2] {
    ecn::checksum(inner.checksum, 0x45, inner.tos, tos)
}

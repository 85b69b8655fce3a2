//! VXLAN over UDP over IPv4 (RFC 7348).
use overlay_common::{
    Peer, Reason,
    header::ethernet::offset,
    wire::{self, DATAGRAM, ETHERNET, ETHERTYPE_IPV4, INNER, IPV4, OVERHEAD, UDP, VXLAN, VXLAN_VNI_VALID},
};

use super::outer;
use crate::{
    check,
    frame::Frame,
    ipv4::{FORWARDED, Ipv4},
    packet::Packet,
    settings,
    verdict::{Answer, Exit},
};

/// Bytes that encapsulation adds to a packet.
pub(super) const LENGTH: usize = OVERHEAD;

/// All that is written of a frame behind its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Headers {
    outer: [u8; DATAGRAM],
    vxlan: [u8; VXLAN + ETHERNET],
    inner: [u8; FORWARDED],
}

#[inline(always)]
pub(super) fn parse(frame: &impl Frame, outer: &Ipv4) -> Answer<(Ipv4, u32)> {
    if !frame.pull(INNER + IPV4) {
        return Err(Exit::NotOurs);
    }
    let vxlan: [u8; VXLAN] = frame.read(ETHERNET + IPV4 + UDP).ok_or(Exit::NotOurs)?;
    let [_, a, b, c] = settings::vni().to_be_bytes();
    if vxlan != [VXLAN_VNI_VALID, 0, 0, 0, a, b, c, 0] {
        return Err(Exit::NotOurs);
    }
    let inner_ethernet: [u8; ETHERNET] = frame.read(INNER - ETHERNET).ok_or(Exit::NotOurs)?;
    if inner_ethernet[offset::ETHERTYPE..] != ETHERTYPE_IPV4 {
        check::known(outer.source())?;
        return Err(Reason::NotIpv4.into());
    }
    let sent = check::sender(frame, INNER, outer)?;
    // The kernel's device takes nothing from its own address either: it would be a loop (vxlan_set_mac).
    let destination = &inner_ethernet[offset::DESTINATION..offset::SOURCE];
    let source = &inner_ethernet[offset::SOURCE..offset::ETHERTYPE];
    if destination != settings::vtep_mac() || source == settings::vtep_mac() {
        return Err(Reason::WrongVtepMac.into());
    }
    Ok(sent)
}

#[inline(always)]
pub(super) fn encapsulate(
    packet: &Packet<'_>,
    inner: &Ipv4,
    peer: &Peer,
    source_port: u16,
) -> Result<(), Reason> {
    let outer = outer(inner, peer, source_port, VXLAN + ETHERNET);
    packet.make_vxlan_headroom()?;
    let mut headers =
        Headers { outer: [0; DATAGRAM], vxlan: [0; VXLAN + ETHERNET], inner: inner.forwarded() };
    outer.write(&mut headers.outer);
    let (vni, source_mac) = (settings::vni(), settings::vtep_mac());
    wire::Vxlan { vni, destination_mac: peer.vtep_mac, source_mac }.write(&mut headers.vxlan);
    packet.store(ETHERNET, &headers)
}

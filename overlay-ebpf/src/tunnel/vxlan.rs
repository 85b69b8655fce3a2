//! VXLAN over UDP over IP (RFC 7348).
use overlay_common::{
    PeerEntry, Reason,
    header::ethernet::offset,
    wire::{ETHERNET, UDP, VXLAN, VXLAN_VNI_VALID, Vxlan},
};

use super::outer::outer;
use crate::{
    check,
    frame::Frame,
    ip::{Family, Header as _},
    packet::Packet,
    settings,
    verdict::{Answer, Exit},
};

/// All that is written of a frame behind its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Headers<F: Family> {
    outer: F::Datagram,
    vxlan: [u8; VXLAN + ETHERNET],
    inner: F::Forwarded,
}

/// Bytes that encapsulation adds to a packet.
#[inline(always)]
pub(super) const fn length<F: Family>() -> usize {
    F::HEADER + UDP + VXLAN + ETHERNET
}

#[inline(always)]
pub(super) fn parse<F: Family>(frame: &impl Frame, outer: &F::Header) -> Answer<(F::Header, u32)> {
    let inner = const { ETHERNET + length::<F>() };
    if !frame.pull(inner + F::HEADER) {
        return Err(Exit::NotOurs);
    }
    let vxlan: [u8; VXLAN] = frame.read(ETHERNET + F::HEADER + UDP).ok_or(Exit::NotOurs)?;
    let [_, a, b, c] = settings::vni().to_be_bytes();
    if vxlan != [VXLAN_VNI_VALID, 0, 0, 0, a, b, c, 0] {
        return Err(Exit::NotOurs);
    }
    let ethernet: [u8; ETHERNET] = frame.read(inner - ETHERNET).ok_or(Exit::NotOurs)?;
    if ethernet[offset::ETHERTYPE..] != F::ETHERTYPE {
        check::known(outer.source())?;
        return Err(F::OTHER_INSIDE.into());
    }
    let sent = check::sender::<F>(frame, inner, outer)?;
    // The kernel's device takes nothing from its own address either: it would be a loop (vxlan_set_mac).
    let destination = &ethernet[offset::DESTINATION..offset::SOURCE];
    let source = &ethernet[offset::SOURCE..offset::ETHERTYPE];
    if destination != settings::vtep_mac() || source == settings::vtep_mac() {
        return Err(Reason::WrongVtepMac.into());
    }
    Ok(sent)
}

#[inline(always)]
pub(super) fn encapsulate<F: Family>(
    packet: &Packet<'_>,
    inner: &F::Header,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
) -> Result<(), Reason> {
    let outer = outer::<F>(inner, peer, source_port, VXLAN + ETHERNET);
    packet.make_vxlan_headroom::<F>(length::<F>())?;
    let mut headers =
        Headers::<F> { outer: F::BLANK_DATAGRAM, vxlan: [0; VXLAN + ETHERNET], inner: F::forwarded(inner) };
    F::write_datagram(&outer, &mut headers.outer);
    let (vni, source_mac) = (settings::vni(), settings::vtep_mac());
    let ethertype = F::ETHERTYPE;
    Vxlan { vni, destination_mac: peer.vtep_mac, source_mac, ethertype }.write(&mut headers.vxlan);
    packet.store(ETHERNET, &headers)
}

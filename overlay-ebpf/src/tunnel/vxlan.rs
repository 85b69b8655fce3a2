//! VXLAN over UDP over IP (RFC 7348).
use overlay_common::{
    PeerEntry, Reason,
    wire::{ETHERNET, UDP, VXLAN, VXLAN_VNI_VALID, Vxlan},
};

use super::outer::{ethernet, outer};
use crate::{
    check::{self, Sender},
    frame::{Frame, InWords},
    ip::{Family, Header as _},
    packet::Packet,
    settings,
    verdict::{Answer, Exit},
};

/// All that is written of a frame, from its beginning.
#[repr(C)]
#[derive(Clone, Copy)]
struct Headers<F: Family> {
    ethernet: [u16; ETHERNET / 2],
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
pub(super) fn parse<F: Family>(frame: &impl Frame, outer: &F::Header) -> Answer<(F::Header, Sender)> {
    let inner = const { ETHERNET + length::<F>() };
    if !frame.pull(inner + F::HEADER) {
        return Err(Exit::NotOurs);
    }
    let [flags, zero, vni_high, vni_low]: [u16; VXLAN / 2] =
        frame.read(ETHERNET + F::HEADER + UDP).ok_or(Exit::NotOurs)?;
    let [_, a, b, c] = settings::vni().to_be_bytes();
    if flags != u16::from_ne_bytes([VXLAN_VNI_VALID, 0])
        || zero != 0
        || vni_high != u16::from_ne_bytes([a, b])
        || vni_low != u16::from_ne_bytes([c, 0])
    {
        return Err(Exit::NotOurs);
    }
    let [destination @ .., d, e, f, ethertype]: [u16; ETHERNET / 2] =
        frame.read(inner - ETHERNET).ok_or(Exit::NotOurs)?;
    if ethertype != u16::from_ne_bytes(F::ETHERTYPE) {
        check::known(outer.source())?;
        return Err(F::OTHER_INSIDE.into());
    }
    let sent = check::sender::<F>(frame, inner, outer)?;
    // The kernel's device takes nothing from its own address either: it would be a loop (vxlan_set_mac).
    let own = settings::vtep_mac_words();
    if destination != own || [d, e, f] == own {
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
    macs: [u16; 6],
) -> Result<(), Reason> {
    let outer = outer::<F>(inner, peer, source_port, VXLAN + ETHERNET);
    packet.make_vxlan_headroom::<F>(length::<F>())?;
    let blank = (F::BLANK_DATAGRAM, [0; VXLAN + ETHERNET]);
    let mut headers = InWords(Headers::<F> {
        ethernet: ethernet::<F>(macs),
        outer: blank.0,
        vxlan: blank.1,
        inner: F::forwarded(inner),
    });
    F::write_datagram(&outer, &mut headers.0.outer);
    let (vni, source_mac) = (settings::vni(), settings::vtep_mac());
    let ethertype = F::ETHERTYPE;
    Vxlan { vni, destination_mac: peer.vtep_mac, source_mac, ethertype }.write(&mut headers.0.vxlan);
    packet.store(0, &headers.0)
}

//! A bare IP packet in UDP over IP, as flannel's udp backend sends it.
use overlay_common::{
    PeerEntry, Reason,
    wire::{ETHERNET, UDP},
};

use super::outer::{ethernet, outer};
use crate::{
    check::{self, Sender},
    frame::{Frame, InWords},
    ip::{Family, Header as _},
    packet::Packet,
    verdict::{Answer, Exit},
};

/// All that is written of a frame, from its beginning.
#[repr(C)]
#[derive(Clone, Copy)]
struct Headers<F: Family> {
    ethernet: [u16; ETHERNET / 2],
    outer: F::Datagram,
    inner: F::Forwarded,
}

/// Bytes that encapsulation adds to a packet.
#[inline(always)]
pub(crate) const fn length<F: Family>() -> usize {
    F::HEADER + UDP
}

#[inline(always)]
pub(super) fn parse<F: Family>(frame: &impl Frame, outer: &F::Header) -> Answer<(F::Header, Sender)> {
    let inner = const { ETHERNET + length::<F>() };
    if !frame.pull(inner + F::HEADER) {
        check::known(outer.source())?;
        return Err(Reason::Malformed.into());
    }
    match check::sender::<F>(frame, inner, outer) {
        // Datagrams that GRO has merged (rx-gro-list, rx-udp-gro-forwarding): the socket takes them apart again.
        Err(Reason::TrailingBytes) if frame.gso_size() != 0 => Err(Exit::NotOurs),
        sent => Ok(sent?),
    }
}

#[inline(always)]
pub(super) fn decapsulate<F: Family>(packet: &Packet<'_>, is_unchecked: bool) -> Result<(), Reason> {
    // What has a checksum may have one that is not finished.
    let start = if is_unchecked { None } else { packet.read::<[u8; 8]>(ETHERNET + length::<F>()) };
    match start {
        Some(start) => packet.remove_unfinished_headers(length::<F>(), &start),
        None => packet.remove_headers(length::<F>()),
    }
}

#[inline(always)]
pub(super) fn encapsulate<F: Family>(
    packet: &Packet<'_>,
    inner: &F::Header,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
    macs: [u16; 6],
) -> Result<(), Reason> {
    let outer = outer::<F>(inner, peer, source_port, 0);
    packet.make_datagram_headroom::<F>(length::<F>())?;
    let mut headers = InWords(Headers::<F> {
        ethernet: ethernet::<F>(macs),
        outer: F::BLANK_DATAGRAM,
        inner: F::forwarded(inner),
    });
    F::write_datagram(&outer, &mut headers.0.outer);
    packet.store(0, &headers.0)
}

/// Encapsulates a packet without link header, which gets one. The packet in the datagram stays as it is, since the stack has
/// forwarded it. On [`Reason::HeadroomRefused`] it is as it was.
#[inline(always)]
pub(crate) fn encapsulate_forwarded<F: Family>(
    packet: &Packet<'_>,
    inner: &F::Header,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
) -> Result<(), Reason> {
    // Refused (EALREADY) where the packet is marked as one in a tunnel. One that has come out of ours is marked still: a
    // veth carries the sender's mark over, which a wire does not. Its segmentation knows all it must.
    if packet.make_datagram_headroom::<F>(length::<F>()).is_err() {
        packet.make_headroom_again(length::<F>())?;
    }
    let mut headers = InWords(F::BLANK_DATAGRAM);
    F::write_datagram(&outer::<F>(inner, peer, source_port, 0), &mut headers.0);
    packet.make_link_header()?;
    packet.store(ETHERNET, &headers.0)
}

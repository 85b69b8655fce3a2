//! Bare IPv4 in UDP over IPv4, as flannel's udp backend sends it.
use overlay_common::{
    Peer, Reason,
    wire::{DATAGRAM, ETHERNET, IPV4},
};

use super::outer;
use crate::{
    check,
    frame::Frame,
    ipv4::{FORWARDED, Ipv4},
    packet::Packet,
    verdict::{Answer, Exit},
};

/// Bytes that encapsulation adds to a packet.
pub(crate) const LENGTH: usize = DATAGRAM;

/// All that is written of a frame behind its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Headers {
    outer: [u8; DATAGRAM],
    inner: [u8; FORWARDED],
}

#[inline(always)]
pub(super) fn parse(frame: &impl Frame, outer: &Ipv4) -> Answer<(Ipv4, u32)> {
    const INNER: usize = ETHERNET + LENGTH;
    if !frame.pull(INNER + IPV4) {
        check::known(outer.source())?;
        return Err(Reason::Malformed.into());
    }
    match check::sender(frame, INNER, outer) {
        // Datagrams that GRO has merged (rx-gro-list, rx-udp-gro-forwarding): the socket takes them apart again.
        Err(Reason::TrailingBytes) if frame.gso_size() != 0 => Err(Exit::NotOurs),
        sent => Ok(sent?),
    }
}

#[inline(always)]
pub(super) fn decapsulate(packet: &Packet<'_>, is_unchecked: bool) -> Result<(), Reason> {
    // What has a checksum may have one that is not finished.
    let start = if is_unchecked { None } else { packet.read::<[u8; 8]>(ETHERNET + LENGTH) };
    match start {
        Some(start) => packet.remove_datagram_headers(&start),
        None => packet.remove_headers(LENGTH),
    }
}

#[inline(always)]
pub(super) fn encapsulate(
    packet: &Packet<'_>,
    inner: &Ipv4,
    peer: &Peer,
    source_port: u16,
) -> Result<(), Reason> {
    let outer = outer(inner, peer, source_port, 0);
    packet.make_datagram_headroom()?;
    let mut headers = Headers { outer: [0; DATAGRAM], inner: inner.forwarded() };
    outer.write(&mut headers.outer);
    packet.store(ETHERNET, &headers)
}

/// Encapsulates a packet without link header, which gets one. The packet in the datagram stays as it is, since the stack has
/// forwarded it. On [`Reason::HeadroomRefused`] it is as it was.
#[inline(always)]
pub(crate) fn encapsulate_forwarded(
    packet: &Packet<'_>,
    inner: &Ipv4,
    peer: &Peer,
    source_port: u16,
) -> Result<(), Reason> {
    // Refused (EALREADY) where the packet is marked as one in a tunnel. One that has come out of ours is marked still: a
    // veth carries the sender's mark over, which a wire does not. Its segmentation knows all it must.
    if packet.make_datagram_headroom().is_err() {
        packet.make_datagram_headroom_again()?;
    }
    let mut headers = [0; DATAGRAM];
    outer(inner, peer, source_port, 0).write(&mut headers);
    packet.make_link_header()?;
    packet.store(ETHERNET, &headers)
}

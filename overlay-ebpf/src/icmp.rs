//! ICMP errors to whoever sent a packet. The error is written over the packet that it is about, and goes back to where that came
//! from.
use overlay_common::{
    Hook, Reason, checksum,
    header::{ethernet, icmp::offset, tcp},
    wire::ETHERNET,
};

use crate::{
    count,
    frame::Frame as _,
    ip::{Error, Family, Header as _, ICMP_HEADER},
    maps,
    packet::Packet,
    settings::{self, Prefixes as _},
    verdict::{Answer, Outcome},
};

/// What is written for an MTU where there is no route.
const NO_ROUTE: u32 = 0;
/// Bytes in front of the IP header of a packet that has no link header.
const NO_LINK_HEADER: usize = 0;

/// No peer holds the destination's subnet.
#[inline(always)]
pub(crate) fn network_unreachable<F: Family>(packet: &Packet<'_>, inner: &F::Header) -> Answer<Outcome> {
    if F::ANSWERS_ELSEWHERE {
        maps::go_on_answering(packet.context(), NO_ROUTE);
        return Err(Reason::NoPeer.into());
    }
    answer::<F, ETHERNET>(packet, inner, Error::NoRoute, Reason::NoPeer, Reason::NoPeer)
}

/// A packet of `length` bytes (one segment's, of a GSO frame) whose path takes packets of `mtu` bytes, which is what the next hop's MTU
/// leaves when encapsulation has had its part. A packet that is not answered here goes to the stack, which answers it if overlay0 does not take it, and otherwise fragments
/// the outer packet.
#[inline(always)]
pub(crate) fn too_big<F: Family>(
    packet: &Packet<'_>,
    inner: &F::Header,
    length: u32,
    mtu: u32,
) -> Answer<Outcome> {
    // No sender goes below what every link must take (RFC 8200 section 5, RFC 1191 section 3). Such a packet is fragmented as a
    // datagram of the tunnel.
    if length <= F::SMALLEST_MTU {
        return Err(Reason::NeedsFragmentation.into());
    }
    if F::ANSWERS_ELSEWHERE {
        maps::go_on_answering(packet.context(), if mtu < F::SMALLEST_MTU { F::SMALLEST_MTU } else { mtu });
        return Err(Reason::NeedsFragmentation.into());
    }
    answer::<F, ETHERNET>(packet, inner, at_most::<F>(mtu), Reason::TooBig, Reason::NeedsFragmentation)
}

/// Answers a container's packet as `overlay_encap6` wants it answered, which has checked its header.
#[inline(always)]
pub(crate) fn as_wanted<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    let (Some(mtu), true) = (maps::wanted_answer(), packet.pull(ETHERNET + F::HEADER)) else {
        return Err(Reason::NeedsFragmentation.into());
    };
    let inner = F::Header::read(packet, ETHERNET).ok_or(Reason::NeedsFragmentation)?;
    match mtu {
        NO_ROUTE => answer::<F, ETHERNET>(packet, &inner, Error::NoRoute, Reason::NoPeer, Reason::NoPeer),
        _ => answer::<F, ETHERNET>(
            packet,
            &inner,
            at_most::<F>(mtu),
            Reason::TooBig,
            Reason::NeedsFragmentation,
        ),
    }
}

/// The same about a packet without link header that the stack sends through overlay0. The answer arrives there, as if the host at
/// the other end had sent it: so it passes the stack's way back, with whatever translates addresses there.
#[inline(always)]
pub(crate) fn too_big_at_overlay0<F: Family>(
    packet: &Packet<'_>,
    ip: &F::Header,
    mtu: u32,
) -> Answer<Outcome> {
    answer::<F, NO_LINK_HEADER>(packet, ip, at_most::<F>(mtu), Reason::TooBig, Reason::NeedsFragmentation)
}

#[inline(always)]
fn at_most<F: Family>(mtu: u32) -> Error {
    // An answer with less is a mistake somewhere.
    Error::TooBig(if mtu < F::SMALLEST_MTU { F::SMALLEST_MTU } else { mtu } as u16)
}

/// Answers a packet whose IP header stands behind `LINK` bytes of link header.
#[inline(always)]
fn answer<F: Family, const LINK: usize>(
    packet: &Packet<'_>,
    inner: &F::Header,
    error: Error,
    answered: Reason,
    otherwise: Reason,
) -> Answer<Outcome> {
    if !is_answerable::<F>(packet, LINK, inner) || !count::may_answer() {
        let hook = if LINK == NO_LINK_HEADER { Hook::Send } else { Hook::Encap };
        count::add(hook, Reason::AnswerWithheld, packet.size(LINK));
        return Err(otherwise.into());
    }
    // The transport checksum must stay within the quote: the kernel refuses (EINVAL) to cut a frame before a checksum
    // that it still has to write (TCP's ends at byte 18 of its header, SCTP's at 12).
    // As one number: a function of its own takes no parameter of which a part may be undefined.
    let header = u64::from_ne_bytes(F::error_header(error));
    let is_built = if usize::from(inner.length()) >= F::HEADER + tcp::LENGTH {
        build::<F, LINK, { tcp::LENGTH }>(packet, header)
    } else {
        build::<F, LINK, 8>(packet, header)
    };
    if !is_built {
        return Err(Reason::Failed.into());
    }
    let verdict = if LINK == NO_LINK_HEADER {
        Packet::redirect_to_ingress(settings::device())
    } else {
        Packet::redirect(packet.ifindex())
    };
    Ok(Outcome::Instead(verdict, answered))
}

/// RFC 1122 section 3.2.2: no error about an ICMP error, nor about a fragment other than the first.
#[inline(always)]
fn is_answerable<F: Family>(packet: &Packet<'_>, link: usize, inner: &F::Header) -> bool {
    if inner.is_later_fragment() {
        return false;
    }
    if inner.protocol() != F::ICMP {
        return true;
    }
    let kind = packet.load::<1>(link + F::HEADER + offset::TYPE);
    kind.is_some_and(|[kind]| F::is_answerable(kind))
}

/// Puts new headers before the packet's IP header and `TRANSPORT` bytes behind it, which the error quotes. A function of its
/// own in the program too, and in pieces: the kernel allows 512 bytes of stack to a program and the functions it calls
/// together.
#[inline(never)]
fn build<F: Family, const LINK: usize, const TRANSPORT: usize>(packet: &Packet<'_>, header: u64) -> bool {
    let quote = const { F::HEADER + TRANSPORT };
    let Some(sender) = packet.read::<F::Address>(LINK + F::SOURCE) else { return false };
    let Some(receiver) = packet.read::<F::Address>(LINK + F::DESTINATION) else { return false };
    // The base address of a peer's subnet is that of its overlay0.
    let from = if LINK == NO_LINK_HEADER { receiver.subnet() } else { F::Address::gateway() };
    if packet.cut(LINK + quote).is_err() || packet.make_space(F::HEADER + ICMP_HEADER).is_err() {
        return false;
    }
    if !packet.pull(LINK + F::HEADER + ICMP_HEADER + quote) {
        return false;
    }
    (LINK == NO_LINK_HEADER || write_ethernet(packet))
        && F::write_error_ip(packet, LINK, [from, sender], ICMP_HEADER + quote).is_ok()
        && write_icmp::<F, LINK>(packet, [from, sender], header.to_ne_bytes(), quote)
}

/// The answer goes back to whom the packet came from, and comes from the gateway that the packet was sent to.
#[inline(always)]
fn write_ethernet(packet: &Packet<'_>) -> bool {
    let at = ethernet::offset::DESTINATION;
    let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = packet.read::<[u8; 12]>(at) else { return false };
    packet.store(at, &[g, h, i, j, k, l, a, b, c, d, e, f]).is_ok()
}

#[inline(always)]
fn write_icmp<F: Family, const LINK: usize>(
    packet: &Packet<'_>,
    addresses: [F::Address; 2],
    mut header: [u8; ICMP_HEADER],
    quote: usize,
) -> bool {
    let Some(sum) = packet.sum(LINK + F::HEADER + ICMP_HEADER, quote) else { return false };
    let sum = sum
        + checksum::sum_words(&header, 0, ICMP_HEADER)
        + F::error_pseudo_header(addresses, ICMP_HEADER + quote);
    let [high, low] = checksum::finish(sum).to_be_bytes();
    [header[offset::CHECKSUM], header[offset::CHECKSUM + 1]] = [high, low];
    packet.store(LINK + F::HEADER, &header).is_ok()
}

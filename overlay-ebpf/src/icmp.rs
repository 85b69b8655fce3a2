//! ICMP errors to a container, made from the packet they are about: sent back where it came from, in its place.
use overlay_common::{
    Hook, Reason, checksum,
    header::{ethernet, icmp, ipv4::*, protocol, tcp},
    wire::{ETHERNET, IPV4},
};

use crate::{
    count,
    frame::Frame as _,
    ipv4::Ipv4,
    packet::Packet,
    settings,
    verdict::{Answer, Outcome},
};

/// Every link must carry this much (RFC 791 section 3.2); an answer with less is a mistake somewhere.
const SMALLEST_MTU: u32 = 68;
/// TTL of an answer.
const TTL: u8 = 64;
/// Precedence "internetwork control" (RFC 1812 section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// "Network unreachable": no peer holds the destination's subnet.
#[inline(always)]
pub(crate) fn network_unreachable(packet: &Packet<'_>, inner: &Ipv4) -> Answer<Outcome> {
    answer(packet, inner, icmp::NETWORK_UNREACHABLE, 0, Reason::NoPeer, Reason::NoPeer)
}

/// "Fragmentation needed and DF set", with the MTU that is left of the next hop's when encapsulation has had its part
/// (RFC 1191 section 4). A packet that is not answered here goes to the stack, which answers it if overlay0 does not take it,
/// and otherwise fragments the outer packet.
#[inline(always)]
pub(crate) fn fragmentation_needed(packet: &Packet<'_>, inner: &Ipv4, mtu: u32) -> Answer<Outcome> {
    let mtu = if mtu < SMALLEST_MTU { SMALLEST_MTU } else { mtu };
    let code = icmp::FRAGMENTATION_NEEDED;
    answer(packet, inner, code, mtu as u16, Reason::TooBig, Reason::NeedsFragmentation)
}

#[inline(always)]
fn answer(
    packet: &Packet<'_>,
    inner: &Ipv4,
    code: u8,
    mtu: u16,
    answered: Reason,
    otherwise: Reason,
) -> Answer<Outcome> {
    if !is_answerable(packet, inner) || !count::may_answer() {
        count::add(Hook::Encap, Reason::AnswerWithheld, packet.size(ETHERNET));
        return Err(otherwise.into());
    }
    // The transport checksum must stay within the quote: the kernel refuses (EINVAL) to cut a frame before a checksum
    // that it still has to write (TCP's ends at byte 18 of its header, SCTP's at 12).
    let is_built = if usize::from(inner.length()) >= IPV4 + tcp::LENGTH {
        build::<{ IPV4 + tcp::LENGTH }>(packet, code, mtu)
    } else {
        build::<{ IPV4 + 8 }>(packet, code, mtu)
    };
    if is_built {
        Ok(Outcome::Instead(Packet::redirect(packet.ifindex()), answered))
    } else {
        Err(Reason::Failed.into())
    }
}

/// RFC 1122 section 3.2.2: no error about an ICMP error, nor about a fragment other than the first.
#[inline(always)]
fn is_answerable(packet: &Packet<'_>, inner: &Ipv4) -> bool {
    if inner.is_later_fragment() {
        return false;
    }
    if inner.protocol() != protocol::ICMP {
        return true;
    }
    matches!(
        packet.load::<1>(ETHERNET + IPV4 + icmp::offset::TYPE),
        Some([icmp::ECHO_REPLY | icmp::ECHO | icmp::TIMESTAMP..=icmp::ADDRESS_MASK_REPLY])
    )
}

/// Puts new headers before `QUOTE` bytes of the packet, from its IP header on. A function of its own in the program
/// too, and in pieces: the kernel allows 512 bytes of stack to a program and the functions it calls together.
#[inline(never)]
fn build<const QUOTE: usize>(packet: &Packet<'_>, code: u8, mtu: u16) -> bool {
    let Some(sender) = packet.read::<[u8; 4]>(ETHERNET + offset::SOURCE) else { return false };
    if packet.cut(ETHERNET + QUOTE).is_err() || packet.make_space(IPV4 + icmp::LENGTH).is_err() {
        return false;
    }
    if !packet.pull(ETHERNET + IPV4 + icmp::LENGTH + QUOTE) {
        return false;
    }
    write_ethernet(packet) && write_ipv4::<QUOTE>(packet, sender) && write_icmp::<QUOTE>(packet, code, mtu)
}

/// The answer goes back to whom the packet came from, and comes from the gateway that the packet was sent to.
#[inline(always)]
fn write_ethernet(packet: &Packet<'_>) -> bool {
    let at = ethernet::offset::DESTINATION;
    let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = packet.read::<[u8; 12]>(at) else { return false };
    packet.store(at, &[g, h, i, j, k, l, a, b, c, d, e, f]).is_ok()
}

#[inline(always)]
fn write_ipv4<const QUOTE: usize>(packet: &Packet<'_>, sender: [u8; 4]) -> bool {
    let mut ip = [0u8; IPV4];
    ip[offset::VERSION] = WITHOUT_OPTIONS;
    ip[offset::TOS] = INTERNETWORK_CONTROL;
    let length = ((IPV4 + icmp::LENGTH + QUOTE) as u16).to_be_bytes();
    ip[offset::LENGTH..offset::IDENTIFICATION].copy_from_slice(&length);
    ip[offset::TTL] = TTL;
    ip[offset::PROTOCOL] = protocol::ICMP;
    ip[offset::SOURCE..offset::DESTINATION].copy_from_slice(&settings::gateway().to_ne_bytes());
    ip[offset::DESTINATION..].copy_from_slice(&sender);
    let sum = checksum::finish(checksum::sum_words(&ip, 0, IPV4));
    ip[offset::CHECKSUM..offset::SOURCE].copy_from_slice(&sum.to_be_bytes());
    packet.store(ETHERNET, &ip).is_ok()
}

#[inline(always)]
fn write_icmp<const QUOTE: usize>(packet: &Packet<'_>, code: u8, mtu: u16) -> bool {
    let Some(quote) = packet.sum(ETHERNET + IPV4 + icmp::LENGTH, QUOTE) else { return false };
    let kind = icmp::UNREACHABLE;
    let sum = quote + u32::from(u16::from_be_bytes([kind, code])) + u32::from(mtu);
    let [sum_high, sum_low] = checksum::finish(sum).to_be_bytes();
    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    packet.store(ETHERNET + IPV4, &[kind, code, sum_high, sum_low, 0, 0, mtu_high, mtu_low]).is_ok()
}

//! ICMP errors to a container, made from the packet they are about: sent back where it came from, in its place.
use overlay_common::{
    Hook, Reason, checksum,
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

const ICMP: u8 = 1;
/// Length of an ICMP header.
const HEADER: usize = 8;
/// Destination unreachable, and two of its codes (RFC 792).
const UNREACHABLE: u8 = 3;
const NETWORK: u8 = 0;
const FRAGMENTATION_NEEDED: u8 = 4;
/// Every link must carry this much (RFC 791 section 3.2); an answer with less is a mistake somewhere.
const SMALLEST_MTU: u32 = 68;

/// "Network unreachable": no peer holds the destination's subnet.
#[inline(always)]
pub(crate) fn network_unreachable(packet: &Packet<'_>, inner: &Ipv4) -> Answer<Outcome> {
    answer(packet, inner, NETWORK, 0, Reason::NoPeer, Reason::NoPeer)
}

/// "Fragmentation needed and DF set", with the next hop's MTU (RFC 1191 section 4), of which encapsulation has had its part.
/// What we do not answer is the stack's: it answers what overlay0 does not take, and fragments the outer packet of the rest.
#[inline(always)]
pub(crate) fn fragmentation_needed(packet: &Packet<'_>, inner: &Ipv4, mtu: u32) -> Answer<Outcome> {
    let mtu = if mtu < SMALLEST_MTU { SMALLEST_MTU } else { mtu };
    answer(packet, inner, FRAGMENTATION_NEEDED, mtu as u16, Reason::TooBig, Reason::NeedsFragmentation)
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
    let built = if usize::from(inner.length) >= IPV4 + 20 {
        build::<40>(packet, code, mtu)
    } else {
        build::<28>(packet, code, mtu)
    };
    if built {
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
    if inner.protocol != ICMP {
        return true;
    }
    matches!(packet.load::<1>(ETHERNET + IPV4), Some([0 | 8 | 13..=18]))
}

/// Puts new headers before `QUOTE` bytes of the packet, from its IP header on. A function of its own in the program
/// too, and in pieces: the kernel allows 512 bytes of stack to a program and the functions it calls together.
#[inline(never)]
fn build<const QUOTE: usize>(packet: &Packet<'_>, code: u8, mtu: u16) -> bool {
    let Some(sender) = packet.read::<[u8; 4]>(ETHERNET + 12) else { return false };
    if packet.cut(ETHERNET + QUOTE).is_err() || packet.push(IPV4 + HEADER).is_err() {
        return false;
    }
    if !packet.pull(ETHERNET + IPV4 + HEADER + QUOTE) {
        return false;
    }
    write_ethernet(packet) && write_ipv4::<QUOTE>(packet, sender) && write_icmp::<QUOTE>(packet, code, mtu)
}

/// Back to where it came from, from the gateway that it was sent to.
#[inline(always)]
fn write_ethernet(packet: &Packet<'_>) -> bool {
    let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = packet.read::<[u8; 12]>(0) else { return false };
    packet.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f]).is_ok()
}

#[inline(always)]
fn write_ipv4<const QUOTE: usize>(packet: &Packet<'_>, sender: [u8; 4]) -> bool {
    let mut ip = [0u8; IPV4];
    ip[0] = 0x45;
    // Precedence "internetwork control" (RFC 1812 section 4.3.2.5).
    ip[1] = 0xc0;
    ip[2..4].copy_from_slice(&((IPV4 + HEADER + QUOTE) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = ICMP;
    ip[12..16].copy_from_slice(&settings::gateway().to_ne_bytes());
    ip[16..20].copy_from_slice(&sender);
    let sum = checksum::finish(checksum::sum_words(&ip, 0, IPV4));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.store(ETHERNET, &ip).is_ok()
}

#[inline(always)]
fn write_icmp<const QUOTE: usize>(packet: &Packet<'_>, code: u8, mtu: u16) -> bool {
    let Some(quote) = packet.sum::<QUOTE>(ETHERNET + IPV4 + HEADER) else { return false };
    let sum = quote + u32::from(u16::from_be_bytes([UNREACHABLE, code])) + u32::from(mtu);
    let [sum_high, sum_low] = checksum::finish(sum).to_be_bytes();
    let [high, low] = mtu.to_be_bytes();
    packet.store(ETHERNET + IPV4, &[UNREACHABLE, code, sum_high, sum_low, 0, 0, high, low]).is_ok()
}

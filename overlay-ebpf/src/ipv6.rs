//! The IPv6 family.
mod header;

use overlay_common::{
    Addr6, Reason, checksum,
    header::{icmpv6::*, ipv6::VERSION, ipv6::offset, protocol},
    wire::{DATAGRAM6, ETHERTYPE_IPV6, IPV6, Outer},
};

use self::header::{FORWARDED, Ipv6};
use crate::{
    frame::Frame,
    ip::{Error, Family, ICMP_HEADER},
};

/// Hop limit of an ICMPv6 error.
const HOP_LIMIT: u8 = 64;

/// IPv6.
#[derive(Clone, Copy)]
pub(crate) struct V6;

impl Family for V6 {
    type Address = Addr6;
    type Header = Ipv6;
    type Datagram = [u8; DATAGRAM6];
    type Forwarded = [u16; FORWARDED];

    const HEADER: usize = IPV6;
    const PROTOCOL: usize = offset::NEXT_HEADER;
    const SOURCE: usize = offset::SOURCE;
    const DESTINATION: usize = offset::DESTINATION;
    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV6;
    const ICMP: u8 = protocol::ICMPV6;
    const OTHER_INSIDE: Reason = Reason::NotIpv6;
    const OTHER_OUTSIDE: Reason = Reason::NotIpv4;
    const BLANK_DATAGRAM: Self::Datagram = [0; DATAGRAM6];
    // RFC 8200 section 5.
    const SMALLEST_MTU: u32 = 1280;
    // flannel's udp backend is IPv4's. overlay_send6 would not have stack enough for both, either.
    const IN_DATAGRAMS: bool = false;
    const ANSWERS_ELSEWHERE: bool = true;
    // RFC 8200 section 5: only the source fragments.
    const ROUTERS_FRAGMENT: bool = false;
    // RFC 6935 section 5: the checksum over IPv6 may be zero only where both ends of a tunnel have agreed on it.
    const ZERO_CHECKSUM_IS_AGREED_ON: bool = true;

    #[inline(always)]
    fn write_datagram(outer: &Outer<Addr6>, out: &mut Self::Datagram) {
        outer.write(out);
    }

    #[inline(always)]
    fn forwarded(header: &Ipv6) -> Self::Forwarded {
        header.forwarded()
    }

    #[inline(always)]
    fn is_echo(kind: u8) -> bool {
        matches!(kind, ECHO | ECHO_REPLY)
    }

    #[inline(always)]
    fn is_echo_request(kind: u8) -> bool {
        kind == ECHO
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE..=PARAMETER_PROBLEM)
    }

    // RFC 4443 section 2.4 (e): no error about an error, nor about a redirect.
    #[inline(always)]
    fn is_answerable(kind: u8) -> bool {
        kind >= INFORMATIONAL && kind != REDIRECT
    }

    // "Packet too big" has the next hop's MTU in it (RFC 4443 section 3.2).
    #[inline(always)]
    fn error_header(error: Error) -> [u8; ICMP_HEADER] {
        let (kind, code, mtu) = match error {
            Error::NoRoute => (UNREACHABLE, NO_ROUTE, 0),
            Error::TooBig(mtu) => (TOO_BIG, 0, mtu),
        };
        let [mtu_high, mtu_low] = mtu.to_be_bytes();
        [kind, code, 0, 0, 0, 0, mtu_high, mtu_low]
    }

    #[inline(always)]
    fn write_error_ip(
        frame: &impl Frame,
        at: usize,
        [from, to]: [Addr6; 2],
        payload: usize,
    ) -> Result<(), Reason> {
        // In two parts: the stack that a program and its functions share is short.
        let [length_high, length_low] = (payload as u16).to_be_bytes();
        let start = [VERSION << 4, 0, 0, 0, length_high, length_low, protocol::ICMPV6, HOP_LIMIT];
        frame.store(at, &start)?;
        frame.store(at + offset::SOURCE, &from.octets())?;
        frame.store(at + offset::DESTINATION, &to.octets())
    }

    #[inline(always)]
    fn error_pseudo_header(addresses: [Addr6; 2], length: usize) -> u32 {
        let [from, to] = addresses;
        checksum::from_native(from.sum() + to.sum()) + u32::from(protocol::ICMPV6) + length as u32
    }
}

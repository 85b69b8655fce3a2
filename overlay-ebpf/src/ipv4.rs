//! The IPv4 family.
mod header;

use overlay_common::{
    Addr4, Reason, checksum,
    header::{icmp::*, ipv4::WITHOUT_OPTIONS, ipv4::offset, protocol},
    wire::{DATAGRAM, ETHERTYPE_IPV4, IPV4, Outer},
};

use self::header::{FORWARDED, Ipv4};
use crate::{
    frame::Frame,
    ip::{Error, Family, ICMP_HEADER},
};

/// TTL of an ICMP error.
const TTL: u8 = 64;
/// Precedence "internetwork control", for ICMP errors (RFC 1812 section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// IPv4.
#[derive(Clone, Copy)]
pub(crate) struct V4;

impl Family for V4 {
    type Address = Addr4;
    type Header = Ipv4;
    type Datagram = [u8; DATAGRAM];
    type Forwarded = [u16; FORWARDED];

    const HEADER: usize = IPV4;
    const PROTOCOL: usize = offset::PROTOCOL;
    const SOURCE: usize = offset::SOURCE;
    const DESTINATION: usize = offset::DESTINATION;
    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV4;
    const ICMP: u8 = protocol::ICMP;
    const OTHER_INSIDE: Reason = Reason::NotIpv4;
    const OTHER_OUTSIDE: Reason = Reason::NotIpv6;
    const BLANK_DATAGRAM: Self::Datagram = [0; DATAGRAM];
    // RFC 791 section 3.2.
    const SMALLEST_MTU: u32 = 68;
    const IN_DATAGRAMS: bool = true;
    const ANSWERS_ELSEWHERE: bool = false;
    const ROUTERS_FRAGMENT: bool = true;
    // RFC 768, and RFC 7348 section 5 of VXLAN: nobody needs to be asked.
    const ZERO_CHECKSUM_IS_AGREED_ON: bool = false;

    #[inline(always)]
    fn write_datagram(outer: &Outer<Addr4>, out: &mut Self::Datagram) {
        outer.write(out);
    }

    #[inline(always)]
    fn forwarded(header: &Ipv4) -> Self::Forwarded {
        header.forwarded()
    }

    #[inline(always)]
    fn is_echo(kind: u8) -> bool {
        matches!(kind, ECHO_REPLY | ECHO)
    }

    #[inline(always)]
    fn is_echo_request(kind: u8) -> bool {
        kind == ECHO
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }

    #[inline(always)]
    fn is_answerable(kind: u8) -> bool {
        matches!(kind, ECHO_REPLY | ECHO | TIMESTAMP..=ADDRESS_MASK_REPLY)
    }

    // "Fragmentation needed and DF set" has the next hop's MTU in it (RFC 1191 section 4).
    #[inline(always)]
    fn error_header(error: Error) -> [u8; ICMP_HEADER] {
        let (code, mtu) = match error {
            Error::NoRoute => (NETWORK_UNREACHABLE, 0),
            Error::TooBig(mtu) => (FRAGMENTATION_NEEDED, mtu),
        };
        let [mtu_high, mtu_low] = mtu.to_be_bytes();
        [UNREACHABLE, code, 0, 0, 0, 0, mtu_high, mtu_low]
    }

    #[inline(always)]
    fn write_error_ip(
        frame: &impl Frame,
        at: usize,
        [from, to]: [Addr4; 2],
        payload: usize,
    ) -> Result<(), Reason> {
        let mut ip = [0u8; IPV4];
        ip[offset::VERSION] = WITHOUT_OPTIONS;
        ip[offset::TOS] = INTERNETWORK_CONTROL;
        let length = ((IPV4 + payload) as u16).to_be_bytes();
        ip[offset::LENGTH..offset::IDENTIFICATION].copy_from_slice(&length);
        ip[offset::TTL] = TTL;
        ip[offset::PROTOCOL] = protocol::ICMP;
        ip[offset::SOURCE..offset::DESTINATION].copy_from_slice(&from.octets);
        ip[offset::DESTINATION..].copy_from_slice(&to.octets);
        let sum = checksum::finish(checksum::sum_words(&ip, 0, IPV4));
        ip[offset::CHECKSUM..offset::SOURCE].copy_from_slice(&sum.to_be_bytes());
        frame.store(at, &ip)
    }

    // RFC 792 sums the message alone.
    #[inline(always)]
    fn error_pseudo_header(_: [Addr4; 2], _: usize) -> u32 {
        0
    }
}

//! The IPv6 header: one type for every place that reads one.
use overlay_common::{
    Addr6, Reason, checksum,
    header::{
        icmpv6::{REDIRECT, ROUTER_SOLICITATION},
        ipv6::*,
        protocol::{self, extension},
    },
    wire::IPV6,
};

use crate::{
    frame::Frame,
    ip::{BadHeader, Header},
};

/// How many words of a header a router changes, or stand before the last that it changes.
pub(super) const FORWARDED: usize = offset::HOP_LIMIT / 2 + 1;
/// Where the bits of the traffic class begin in the first word of a header.
const CLASS_SHIFT: u32 = 4;
/// The longest packet whose length 16 bits hold, header and all. One that is longer is a jumbogram, or a GSO frame.
const LONGEST: usize = u16::MAX as usize;

/// An IPv6 header without extension headers: its octets in the order of memory, eight in each number. In fewer and smaller pieces, as
/// IPv4 has them, they would take more of the stack than a program has, when two headers are at hand.
#[derive(Clone, Copy)]
pub(crate) struct Ipv6([u64; IPV6 / 8]);

impl Ipv6 {
    /// The words of a header, in network order, as they are read.
    #[inline(always)]
    fn of(words: [u16; IPV6 / 2]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = words;
        Self([
            joined(a, b, c, d),
            joined(e, f, g, h),
            joined(i, j, k, l),
            joined(m, n, o, p),
            joined(q, r, s, t),
        ])
    }

    /// The byte at this offset.
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.0[at / 8].to_ne_bytes()[at % 8]
    }

    /// The word at this offset, in the machine's order.
    #[inline(always)]
    fn word(&self, at: usize) -> u16 {
        let octets = self.0[at / 8].to_ne_bytes();
        u16::from_be_bytes([octets[at % 8], octets[at % 8 + 1]])
    }

    /// The address at this offset.
    #[inline(always)]
    fn address(&self, at: usize) -> Addr6 {
        Addr6::of_halves([self.0[at / 8], self.0[at / 8 + 1]])
    }

    #[inline(always)]
    fn payload(&self) -> usize {
        usize::from(self.word(offset::PAYLOAD_LENGTH))
    }

    #[inline(always)]
    fn is_version_6(&self) -> bool {
        self.byte(offset::VERSION) >> 4 == VERSION
    }

    /// What stands between this header and the transport's is the stack's business. A fragment header is told by
    /// [`Header::is_fragment`].
    #[inline(always)]
    fn has_extensions(&self) -> bool {
        use extension::*;
        matches!(
            self.protocol(),
            HOP_BY_HOP
                | ROUTING
                | ESP
                | AUTHENTICATION
                | DESTINATION_OPTIONS
                | MOBILITY
                | HOST_IDENTITY
                | SHIM6
        )
    }

    /// A message of neighbour discovery. Receivers believe one whose hop limit is 255, since no router has had it (RFC 4861 section
    /// 6.1). The fast path takes one from the hop limit at one of two hosts, and the stack does at each: so these are the stack's.
    #[inline(always)]
    fn is_neighbour_discovery(&self, frame: &impl Frame, offset: usize) -> bool {
        self.protocol() == protocol::ICMPV6
            && matches!(frame.load(offset + IPV6), Some([ROUTER_SOLICITATION..=REDIRECT]))
    }

    /// The part of the header that a router changes, with what stands before it, once this host has forwarded the packet: a router
    /// takes one from the hop limit (RFC 8200 section 3).
    #[inline(always)]
    pub(super) fn forwarded(&self) -> [u16; FORWARDED] {
        let [a, b, c, d, e, f, next, hops] = self.0[0].to_ne_bytes();
        [[a, b], [c, d], [e, f], [next, hops - 1]].map(u16::from_ne_bytes)
    }
}

/// Four words as one number, in the same order in memory.
#[inline(always)]
fn joined(a: u16, b: u16, c: u16, d: u16) -> u64 {
    let ([a, b], [c, d], [e, f], [g, h]) =
        (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

impl Header for Ipv6 {
    type Address = Addr6;

    #[inline(always)]
    fn read(frame: &impl Frame, offset: usize) -> Option<Self> {
        frame.read(offset).map(Self::of)
    }

    // There is no checksum.
    #[inline(always)]
    fn check(&self, frame: &impl Frame, offset: usize) -> Result<(), BadHeader> {
        if !self.is_version_6() {
            return Err(BadHeader::Malformed);
        }
        if self.has_extensions() || self.is_neighbour_discovery(frame, offset) {
            return Err(BadHeader::Options);
        }
        let available = (frame.len() as usize).saturating_sub(offset);
        let length = self.payload() + IPV6;
        // Frames of many segments beyond 65,535 bytes had a hop-by-hop header at first, and have a length of zero since.
        if frame.gso_size() != 0 && (self.payload() == 0 || length > LONGEST) {
            return Err(BadHeader::Big);
        }
        if length > available || length > LONGEST {
            return Err(BadHeader::Malformed);
        }
        if length < available { Err(BadHeader::Trailing) } else { Ok(()) }
    }

    #[inline(always)]
    fn quoted(frame: &impl Frame, offset: usize) -> Option<(Self, [u8; 8])> {
        let bytes: [u8; IPV6 + 8] = frame.load(offset)?;
        let number = |at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let header = Self([number(0)?, number(8)?, number(16)?, number(24)?, number(32)?]);
        Some((header, *bytes.last_chunk()?))
    }

    #[inline(always)]
    fn is_whole(&self, available: usize, gso_size: u32) -> bool {
        let length = self.payload() + IPV6;
        let fits = match gso_size {
            0 => length <= available,
            _ => length == available || self.payload() == 0,
        };
        self.is_version_6() && fits
    }

    #[inline(always)]
    fn is_without_options(&self) -> bool {
        self.is_version_6() && !self.has_extensions()
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        IPV6
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        (self.word(offset::VERSION) >> CLASS_SHIFT) as u8
    }

    // A longer packet has not passed `check`.
    #[inline(always)]
    fn length(&self) -> u16 {
        self.word(offset::PAYLOAD_LENGTH).wrapping_add(IPV6 as u16)
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.byte(offset::HOP_LIMIT)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.byte(offset::NEXT_HEADER)
    }

    #[inline(always)]
    fn source(&self) -> Addr6 {
        self.address(offset::SOURCE)
    }

    #[inline(always)]
    fn destination(&self) -> Addr6 {
        self.address(offset::DESTINATION)
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.protocol() == extension::FRAGMENT
    }

    // Every fragment has its transport header, if it has one, behind the fragment header, where nobody here looks for it.
    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.is_fragment()
    }

    // RFC 8200 section 5: only the source fragments.
    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        true
    }

    #[inline(always)]
    fn pseudo_header(&self, length: u16) -> u32 {
        let addresses = self.source().sum() + self.destination().sum();
        checksum::from_native(addresses) + u32::from(self.protocol()) + u32::from(length)
    }

    #[inline(always)]
    fn store_forwarded(&self, frame: &impl Frame, at: usize) -> Result<(), Reason> {
        let [.., next_and_hops] = self.forwarded();
        frame.store_summed(at + offset::NEXT_HEADER, &next_and_hops)
    }

    #[inline(always)]
    fn store_tos(&self, frame: &impl Frame, at: usize, tos: u8) -> Result<(), Reason> {
        const CLASS: u16 = 0xff << CLASS_SHIFT;
        let word = self.word(offset::VERSION) & !CLASS | u16::from(tos) << CLASS_SHIFT;
        frame.store_summed(at + offset::VERSION, &word.to_be())
    }
}

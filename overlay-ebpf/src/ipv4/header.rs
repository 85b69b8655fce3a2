//! The IPv4 header: one type for every place that reads one.
use overlay_common::{
    Addr4, Reason, checksum,
    header::{ipv4::*, protocol},
    wire::IPV4,
};

use crate::{
    frame::Frame,
    ip::{BadHeader, Header},
};

/// How many words of a header a router changes, or stand before the last that it changes.
pub(super) const FORWARDED: usize = offset::CHECKSUM / 2 + 1;

/// An IPv4 header without its options: the 16-bit words that it is made of, in network order.
#[derive(Clone, Copy)]
pub(crate) struct Ipv4([u16; IPV4 / 2]);

impl Ipv4 {
    /// The byte at this offset.
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.0[at / 2].to_ne_bytes()[at % 2]
    }

    /// The word at this offset, in the machine's order.
    #[inline(always)]
    fn word(&self, at: usize) -> u16 {
        u16::from_be(self.0[at / 2])
    }

    /// The address at this offset.
    #[inline(always)]
    fn address(&self, at: usize) -> Addr4 {
        let [[a, b], [c, d]] = [self.0[at / 2], self.0[at / 2 + 1]].map(u16::to_ne_bytes);
        Addr4::new([a, b, c, d])
    }

    #[inline(always)]
    fn check_version(&self) -> Result<(), BadHeader> {
        match self.byte(offset::VERSION) {
            WITHOUT_OPTIONS => Ok(()),
            0x46..=0x4f => Err(BadHeader::Options),
            _ => Err(BadHeader::Malformed),
        }
    }

    /// The packet must hold its header, and be within the `available` bytes.
    #[inline(always)]
    fn check_length(&self, available: u32, gso_size: u32) -> Result<(), BadHeader> {
        let length = self.length();
        if length == 0 && gso_size != 0 {
            return Err(BadHeader::Big);
        }
        if usize::from(length) < IPV4 || u32::from(length) > available {
            return Err(BadHeader::Malformed);
        }
        Ok(())
    }

    /// Bytes behind the packet would be delivered if they were left to the receiver, and a frame within the MTU by its header
    /// would leave with more than that. In a frame of datagrams that GRO has merged they are the other datagrams.
    #[inline(always)]
    fn check_end(&self, available: u32) -> Result<(), BadHeader> {
        if u32::from(self.length()) < available { Err(BadHeader::Trailing) } else { Ok(()) }
    }

    /// What a router drops is not to be forwarded past it (RFC 1812 section 5.2.2). In GSO and GRO frames the kernel itself has
    /// written or checked the sum.
    #[inline(always)]
    fn check_sum(&self, gso_size: u32) -> Result<(), BadHeader> {
        if gso_size == 0 && checksum::finish(checksum::sum(&self.0)) != 0 {
            return Err(BadHeader::Malformed);
        }
        Ok(())
    }

    /// The part of the header that a router changes, with what stands before it, once this host has forwarded the packet: a
    /// router takes one from the TTL (RFC 1812 section 5.3.1).
    #[inline(always)]
    pub(super) fn forwarded(&self) -> [u16; FORWARDED] {
        let [first, length, identification, fragment, before, sum, ..] = self.0;
        let [ttl, protocol] = before.to_ne_bytes();
        let after = u16::from_ne_bytes([ttl - 1, protocol]);
        [first, length, identification, fragment, after, checksum::update(sum, before, after)]
    }
}

impl Header for Ipv4 {
    type Address = Addr4;

    #[inline(always)]
    fn read(frame: &impl Frame, offset: usize) -> Option<Self> {
        frame.read(offset).map(Self)
    }

    #[inline(always)]
    fn check(&self, frame: &impl Frame, offset: usize) -> Result<(), BadHeader> {
        let gso_size = frame.gso_size();
        let available = frame.len().saturating_sub(offset as u32);
        self.check_version()?;
        self.check_length(available, gso_size)?;
        self.check_sum(gso_size)?;
        self.check_end(available)
    }

    #[inline(always)]
    fn quoted(frame: &impl Frame, offset: usize) -> Option<(Self, [u8; 8])> {
        let bytes: [u8; IPV4 + 8] = frame.load(offset)?;
        let mut words = [0; IPV4 / 2];
        let mut at = 0;
        while at < words.len() {
            words[at] = u16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]);
            at += 1;
        }
        Some((Self(words), *bytes.last_chunk()?))
    }

    #[inline(always)]
    fn is_whole(&self, available: usize, gso_size: u32) -> bool {
        let length = usize::from(self.length());
        // What a GSO frame has behind its packet are other packets. Of one beyond 65,535 bytes the length is zero (BIG TCP).
        let fits = match gso_size {
            0 => length >= self.header_length() && length <= available,
            _ => length == available || length == 0,
        };
        self.byte(offset::VERSION) >> 4 == 4 && self.header_length() >= IPV4 && fits
    }

    #[inline(always)]
    fn is_without_options(&self) -> bool {
        self.byte(offset::VERSION) == WITHOUT_OPTIONS
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        usize::from(self.byte(offset::VERSION) & 0x0f) * 4
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        self.byte(offset::TOS)
    }

    #[inline(always)]
    fn length(&self) -> u16 {
        self.word(offset::LENGTH)
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.byte(offset::TTL)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.byte(offset::PROTOCOL)
    }

    #[inline(always)]
    fn source(&self) -> Addr4 {
        self.address(offset::SOURCE)
    }

    #[inline(always)]
    fn destination(&self) -> Addr4 {
        self.address(offset::DESTINATION)
    }

    // Part of a datagram: more fragments follow, or the offset is not zero (RFC 791 section 3.1).
    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.word(offset::FRAGMENT) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.word(offset::FRAGMENT) & FRAGMENT_OFFSET != 0
    }

    // DF: "an internet datagram so marked is not to be internet fragmented under any circumstances" (RFC 791 section 2.3).
    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        self.word(offset::FRAGMENT) & DONT_FRAGMENT != 0
    }

    #[inline(always)]
    fn pseudo_header(&self, length: u16) -> u32 {
        match self.protocol() {
            // RFC 792 sums the message alone.
            protocol::ICMP => 0,
            protocol => {
                checksum::pseudo_header(self.source().octets, self.destination().octets, protocol, length)
            }
        }
    }

    #[inline(always)]
    fn store_forwarded(&self, frame: &impl Frame, at: usize) -> Result<(), Reason> {
        let [.., ttl_and_protocol, sum] = self.forwarded();
        frame.store(at + offset::TTL, &[ttl_and_protocol, sum])
    }

    #[inline(always)]
    fn store_tos(&self, frame: &impl Frame, at: usize, tos: u8) -> Result<(), Reason> {
        let before = self.0[offset::TOS / 2];
        let after = u16::from_ne_bytes([self.byte(offset::VERSION), tos]);
        let sum = checksum::update(self.0[offset::CHECKSUM / 2], before, after);
        frame.store(at + offset::TOS, &tos)?;
        frame.store(at + offset::CHECKSUM, &sum)
    }
}

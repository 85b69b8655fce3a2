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

/// How many bytes of a header a router changes, or stand before the last that it changes.
pub(super) const FORWARDED: usize = offset::CHECKSUM + 2;

/// An IPv4 header without its options.
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    /// Version and header length.
    first: u8,
    tos: u8,
    length: u16,
    identification: u16,
    /// Flags and fragment offset.
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: Addr4,
    destination: Addr4,
}

impl Ipv4 {
    /// A header of these bytes. Nothing about it is checked.
    #[inline(always)]
    fn new(bytes: &[u8; IPV4]) -> Self {
        let word = |at| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let address = |at| Addr4::new([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            first: bytes[offset::VERSION],
            tos: bytes[offset::TOS],
            length: word(offset::LENGTH),
            identification: word(offset::IDENTIFICATION),
            fragment: word(offset::FRAGMENT),
            ttl: bytes[offset::TTL],
            protocol: bytes[offset::PROTOCOL],
            checksum: word(offset::CHECKSUM),
            source: address(offset::SOURCE),
            destination: address(offset::DESTINATION),
        }
    }

    #[inline(always)]
    fn check_version(&self) -> Result<(), BadHeader> {
        match self.first {
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

    /// The part of the header that a router changes, with what stands before it, once this host has forwarded the packet: a
    /// router takes one from the TTL (RFC 1812 section 5.3.1).
    #[inline(always)]
    pub(super) fn forwarded(&self) -> [u8; FORWARDED] {
        let ttl = self.ttl - 1;
        let [before, after] = [self.ttl, ttl].map(|ttl| u16::from_be_bytes([ttl, self.protocol]));
        let sum = checksum::update(self.checksum, before, after);
        let mut bytes = [0; FORWARDED];
        bytes[offset::VERSION] = self.first;
        bytes[offset::TOS] = self.tos;
        bytes[offset::LENGTH..offset::IDENTIFICATION].copy_from_slice(&self.length.to_be_bytes());
        bytes[offset::IDENTIFICATION..offset::FRAGMENT].copy_from_slice(&self.identification.to_be_bytes());
        bytes[offset::FRAGMENT..offset::TTL].copy_from_slice(&self.fragment.to_be_bytes());
        bytes[offset::TTL] = ttl;
        bytes[offset::PROTOCOL] = self.protocol;
        bytes[offset::CHECKSUM..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

impl Header for Ipv4 {
    type Address = Addr4;

    #[inline(always)]
    fn read(frame: &impl Frame, offset: usize) -> Option<Self> {
        frame.read(offset).map(|bytes| Self::new(&bytes))
    }

    #[inline(always)]
    fn checked(frame: &impl Frame, offset: usize) -> Result<Self, BadHeader> {
        let bytes = frame.read(offset).ok_or(BadHeader::Malformed)?;
        let (header, gso_size) = (Self::new(&bytes), frame.gso_size());
        let available = frame.len().saturating_sub(offset as u32);
        header.check_version()?;
        header.check_length(available, gso_size)?;
        check_sum(&bytes, gso_size)?;
        header.check_end(available)?;
        Ok(header)
    }

    #[inline(always)]
    fn quoted(frame: &impl Frame, offset: usize) -> Option<(Self, [u8; 8])> {
        let bytes: [u8; IPV4 + 8] = frame.load(offset)?;
        Some((Self::new(bytes.first_chunk()?), *bytes.last_chunk()?))
    }

    #[inline(always)]
    fn is_whole(&self, available: usize, gso_size: u32) -> bool {
        let length = usize::from(self.length);
        // What a GSO frame has behind its packet are other packets. Of one beyond 65,535 bytes the length is zero (BIG TCP).
        let fits = match gso_size {
            0 => length >= self.header_length() && length <= available,
            _ => length == available || length == 0,
        };
        self.first >> 4 == 4 && self.header_length() >= IPV4 && fits
    }

    #[inline(always)]
    fn is_without_options(&self) -> bool {
        self.first == WITHOUT_OPTIONS
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        usize::from(self.first & 0x0f) * 4
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        self.tos
    }

    #[inline(always)]
    fn length(&self) -> u16 {
        self.length
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn source(&self) -> Addr4 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Addr4 {
        self.destination
    }

    // Part of a datagram: more fragments follow, or the offset is not zero (RFC 791 section 3.1).
    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET != 0
    }

    // DF: "an internet datagram so marked is not to be internet fragmented under any circumstances" (RFC 791 section 2.3).
    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        self.fragment & DONT_FRAGMENT != 0
    }

    #[inline(always)]
    fn pseudo_header(&self, length: u16) -> u32 {
        match self.protocol {
            // RFC 792 sums the message alone.
            protocol::ICMP => 0,
            protocol => {
                checksum::pseudo_header(self.source.octets, self.destination.octets, protocol, length)
            }
        }
    }

    #[inline(always)]
    fn store_forwarded(&self, frame: &impl Frame, at: usize) -> Result<(), Reason> {
        let [.., ttl, protocol, sum_high, sum_low] = self.forwarded();
        frame.store(at + offset::TTL, &[ttl, protocol, sum_high, sum_low])
    }

    #[inline(always)]
    fn store_tos(&self, frame: &impl Frame, at: usize, tos: u8) -> Result<(), Reason> {
        let [before, after] = [self.tos, tos].map(|tos| u16::from_be_bytes([self.first, tos]));
        let sum = checksum::update(self.checksum, before, after);
        frame.store(at + offset::TOS, &tos)?;
        frame.store(at + offset::CHECKSUM, &sum.to_be_bytes())
    }
}

/// What a router drops is not to be forwarded past it (RFC 1812 section 5.2.2). In GSO and GRO frames the kernel itself has
/// written or checked the sum.
#[inline(always)]
fn check_sum(bytes: &[u8; IPV4], gso_size: u32) -> Result<(), BadHeader> {
    if gso_size == 0 && checksum::finish(checksum::sum_words(bytes, 0, IPV4)) != 0 {
        return Err(BadHeader::Malformed);
    }
    Ok(())
}

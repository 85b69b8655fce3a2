//! The IPv4 header: one type for every place that reads one. What stands in it can be asked at any time; what must hold of
//! it is checked in steps of their own, since not every place demands the same.
use overlay_common::{
    Addr4, Reason, checksum,
    header::{ipv4::*, protocol, tcp},
    wire::{IPV4, UDP},
};

use crate::frame::Frame;

/// How many bytes of a header a router changes, or stand before the last that it changes.
pub(crate) const FORWARDED: usize = offset::CHECKSUM + 2;

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

/// Why an IPv4 header is not one that the fast path reads.
pub(crate) enum BadIpv4 {
    /// Too short, not version 4, a wrong checksum, or lengths that contradict each other.
    Malformed,
    /// It has options.
    Options,
    /// Its length is zero: a GSO frame beyond 65,535 bytes (BIG TCP for IPv4, Linux 6.3).
    Big,
    /// More bytes than its length says follow.
    Trailing,
}

impl From<BadIpv4> for Reason {
    #[inline(always)]
    fn from(bad: BadIpv4) -> Self {
        match bad {
            BadIpv4::Malformed => Self::Malformed,
            BadIpv4::Options => Self::InnerOptions,
            BadIpv4::Big => Self::NeedsFragmentation,
            BadIpv4::Trailing => Self::TrailingBytes,
        }
    }
}

impl Ipv4 {
    /// A header of these bytes. Nothing about it is checked.
    #[inline(always)]
    pub(crate) fn new(bytes: &[u8; IPV4]) -> Self {
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

    /// Reads the header at `offset`, which must be in the linear part. Nothing about it is checked.
    #[inline(always)]
    pub(crate) fn read(frame: &impl Frame, offset: usize) -> Option<Self> {
        frame.read(offset).map(|bytes| Self::new(&bytes))
    }

    /// Reads the header at `offset`, and checks it in every way there is: it has no options, its checksum is right, and its
    /// packet ends where the frame ends.
    #[inline(always)]
    pub(crate) fn checked(frame: &impl Frame, offset: usize) -> Result<Self, BadIpv4> {
        let bytes = frame.read(offset).ok_or(BadIpv4::Malformed)?;
        let (header, gso_size) = (Self::new(&bytes), frame.gso_size());
        let available = frame.len().saturating_sub(offset as u32);
        header.check_version()?;
        header.check_length(available, gso_size)?;
        check_sum(&bytes, gso_size)?;
        header.check_end(available)?;
        Ok(header)
    }

    #[inline(always)]
    fn check_version(&self) -> Result<(), BadIpv4> {
        match self.first {
            WITHOUT_OPTIONS => Ok(()),
            0x46..=0x4f => Err(BadIpv4::Options),
            _ => Err(BadIpv4::Malformed),
        }
    }

    /// The packet must hold its header, and be within the `available` bytes.
    #[inline(always)]
    fn check_length(&self, available: u32, gso_size: u32) -> Result<(), BadIpv4> {
        let length = self.length();
        if length == 0 && gso_size != 0 {
            return Err(BadIpv4::Big);
        }
        if usize::from(length) < IPV4 || u32::from(length) > available {
            return Err(BadIpv4::Malformed);
        }
        Ok(())
    }

    /// Bytes behind the packet would be delivered if they were left to the receiver, and a frame within the MTU by its header
    /// would leave with more than that. In a frame of datagrams that GRO has merged they are the other datagrams.
    #[inline(always)]
    fn check_end(&self, available: u32) -> Result<(), BadIpv4> {
        if u32::from(self.length()) < available { Err(BadIpv4::Trailing) } else { Ok(()) }
    }

    /// Version 4, and no options.
    #[inline(always)]
    pub(crate) fn is_without_options(&self) -> bool {
        self.first == WITHOUT_OPTIONS
    }

    /// The version field: 4, unless this is no IPv4 header.
    #[inline(always)]
    pub(crate) fn version(&self) -> u8 {
        self.first >> 4
    }

    /// Bytes of the header with its options.
    #[inline(always)]
    pub(crate) fn header_length(&self) -> usize {
        usize::from(self.first & 0x0f) * 4
    }

    /// The type of service byte.
    #[inline(always)]
    pub(crate) fn tos(&self) -> u8 {
        self.tos
    }

    /// Bytes of the whole packet.
    #[inline(always)]
    pub(crate) fn length(&self) -> u16 {
        self.length
    }

    /// Time to live.
    #[inline(always)]
    pub(crate) fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Protocol number of what follows.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Source address.
    #[inline(always)]
    pub(crate) fn source(&self) -> Addr4 {
        self.source
    }

    /// Destination address.
    #[inline(always)]
    pub(crate) fn destination(&self) -> Addr4 {
        self.destination
    }

    /// Part of a datagram: more fragments follow, or the offset is not zero (RFC 791 section 3.1).
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Not the first part of a datagram: no transport header follows.
    #[inline(always)]
    pub(crate) fn is_later_fragment(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET != 0
    }

    /// DF: "an internet datagram so marked is not to be internet fragmented under any circumstances" (RFC 791 section 2.3).
    #[inline(always)]
    pub(crate) fn dont_fragment(&self) -> bool {
        self.fragment & DONT_FRAGMENT != 0
    }

    /// The part of the header that a router changes, with what stands before it, once this host has forwarded the packet: a
    /// router takes one from the TTL (RFC 1812 section 5.3.1).
    #[inline(always)]
    pub(crate) fn forwarded(&self) -> [u8; FORWARDED] {
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

    /// Writes what a router changes into the header at byte `at` of the frame: see [`Self::forwarded`].
    #[inline(always)]
    pub(crate) fn store_forwarded(&self, frame: &impl Frame, at: usize) -> Result<(), Reason> {
        let [.., ttl, protocol, sum_high, sum_low] = self.forwarded();
        frame.store(at + offset::TTL, &[ttl, protocol, sum_high, sum_low])
    }

    /// Writes another type of service byte into the header at byte `at` of the frame, and mends its checksum.
    #[inline(always)]
    pub(crate) fn store_tos(&self, frame: &impl Frame, at: usize, tos: u8) -> Result<(), Reason> {
        let [before, after] = [self.tos, tos].map(|tos| u16::from_be_bytes([self.first, tos]));
        let sum = checksum::update(self.checksum, before, after);
        frame.store(at + offset::TOS, &tos)?;
        frame.store(at + offset::CHECKSUM, &sum.to_be_bytes())
    }
}

/// What a router drops is not to be forwarded past it (RFC 1812 section 5.2.2). In GSO and GRO frames the kernel itself has
/// written or checked the sum.
#[inline(always)]
fn check_sum(bytes: &[u8; IPV4], gso_size: u32) -> Result<(), BadIpv4> {
    if gso_size == 0 && checksum::finish(checksum::sum_words(bytes, 0, IPV4)) != 0 {
        return Err(BadIpv4::Malformed);
    }
    Ok(())
}

/// Bytes of the transport header that the kernel repeats in every segment.
#[inline(always)]
pub(crate) fn transport_length(frame: &impl Frame, offset: usize, protocol: u8) -> u32 {
    if protocol == protocol::TCP {
        let data_offset = frame.load::<1>(offset + tcp::offset::DATA_OFFSET);
        data_offset.map_or(tcp::LENGTH as u32, |byte| u32::from(byte[0] >> 4) * 4)
    } else {
        UDP as u32
    }
}

/// Bytes of the IP packet that starts at `offset`; of a GSO frame, of each packet that it will be.
#[inline(always)]
pub(crate) fn segment_length(frame: &impl Frame, offset: usize, ip: &Ipv4) -> u32 {
    let segment = frame.gso_size();
    if segment == 0 {
        u32::from(ip.length())
    } else {
        segment + IPV4 as u32 + transport_length(frame, offset + IPV4, ip.protocol())
    }
}

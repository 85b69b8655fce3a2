//! The address family as a type parameter: what the steps ask of a family, so that they are written once for all of them.
//!
//! A family is a type without values that implements [`Family`]. Its addresses know the maps (`maps.rs`), the settings
//! (`settings.rs`) and the kernel's structures (`kernel.rs`) of their family. Entry points name the family they are for.
use overlay_common::{
    Address, Reason,
    header::{protocol, tcp},
    wire::{self, UDP},
};

use crate::{frame::Frame, kernel::KernelAddress, maps::Lookups, settings::Prefixes};

/// An address family.
pub(crate) trait Family: Copy {
    /// An address.
    type Address: Address + Prefixes + Lookups + KernelAddress;
    /// The header of an IP packet.
    type Header: Header<Address = Self::Address>;
    /// The bytes of an outer IP header and a UDP header.
    type Datagram: Copy;
    /// The bytes of an inner header up to the last that a router changes.
    type Forwarded: Copy;

    /// Length of a header without options.
    const HEADER: usize;
    /// Where a header has the protocol number of what follows.
    const PROTOCOL: usize;
    /// Where a header has its source address.
    const SOURCE: usize;
    /// Where a header has its destination address.
    const DESTINATION: usize;
    /// EtherType, network order.
    const ETHERTYPE: [u8; 2];
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// The reason for a frame in the tunnel that holds something else than a packet of this family.
    const OTHER_INSIDE: Reason;
    /// The reason for a packet of this family in a tunnel of the other.
    const OTHER_OUTSIDE: Reason;
    /// Bytes to write a datagram's headers into.
    const BLANK_DATAGRAM: Self::Datagram;

    /// Writes the outer headers of a datagram. In place: the BPF stack has no room for copies.
    fn write_datagram(outer: &wire::Outer<Self::Address>, out: &mut Self::Datagram);

    /// The start of a header as a router leaves it, which takes one from the TTL.
    fn forwarded(header: &Self::Header) -> Self::Forwarded;

    /// Whether an ICMP message of this type is an echo or its reply.
    fn is_echo(kind: u8) -> bool;

    /// Whether an ICMP message of this type is an echo that asks for a reply.
    fn is_echo_request(kind: u8) -> bool;

    /// Whether an ICMP message of this type quotes the packet that it is about.
    fn is_error(kind: u8) -> bool;

    /// Whether an ICMP error may be sent about an ICMP message of this type.
    fn is_answerable(kind: u8) -> bool;

    /// Whether a network may carry packets of this family bare in UDP, or without encapsulation alone, so that overlay0 is a TUN.
    const IN_DATAGRAMS: bool;

    /// Whether a program of its own answers what containers send (`overlay-common/src/ipv6.rs`).
    const ANSWERS_ELSEWHERE: bool;

    /// Whether outer UDP checksums are zero only towards peers that have said they take that.
    const ZERO_CHECKSUM_IS_AGREED_ON: bool;

    /// Whether routers fragment packets that have no DF.
    const ROUTERS_FRAGMENT: bool;

    /// The smallest MTU that every link must have.
    const SMALLEST_MTU: u32;

    /// The ICMP header of an error, its checksum zero.
    fn error_header(error: Error) -> [u8; ICMP_HEADER];

    /// Writes the IP header of an ICMP error with `payload` bytes behind it, from one address to another.
    fn write_error_ip(
        frame: &impl Frame,
        at: usize,
        addresses: [Self::Address; 2],
        payload: usize,
    ) -> Result<(), Reason>;

    /// Sum of the pseudo-header of an ICMP error with `length` bytes from one address to another. Zero if ICMP has none.
    fn error_pseudo_header(addresses: [Self::Address; 2], length: usize) -> u32;
}

/// Length of an ICMP header, in either family.
pub(crate) const ICMP_HEADER: usize = 8;

/// What an ICMP error says.
#[derive(Clone, Copy)]
pub(crate) enum Error {
    /// No route leads to the destination.
    NoRoute,
    /// The path takes packets of this many bytes only.
    TooBig(u16),
}

/// Why a header is not one that the fast path reads.
pub(crate) enum BadHeader {
    /// Too short, of another version, a wrong checksum, or lengths that contradict each other.
    Malformed,
    /// It has options.
    Options,
    /// Its length is zero: a GSO frame beyond 65,535 bytes (BIG TCP, for IPv4 since Linux 6.3).
    Big,
    /// More bytes than its length says follow.
    Trailing,
}

impl From<BadHeader> for Reason {
    #[inline(always)]
    fn from(bad: BadHeader) -> Self {
        match bad {
            BadHeader::Malformed => Self::Malformed,
            BadHeader::Options => Self::InnerOptions,
            BadHeader::Big => Self::NeedsFragmentation,
            BadHeader::Trailing => Self::TrailingBytes,
        }
    }
}

/// An IP header. What stands in it can be asked at any time. What must hold of it is checked in steps of their own, since not
/// every place demands the same.
pub(crate) trait Header: Copy {
    /// An address of its family.
    type Address;

    /// Reads the header at `offset`, which must be in the linear part. Nothing about it is checked.
    fn read(frame: &impl Frame, offset: usize) -> Option<Self>;

    /// Checks the header, which is at `offset`, in every way there is: it has no options, its checksum (where it has one) is
    /// right, and its packet ends where the frame ends.
    fn check(&self, frame: &impl Frame, offset: usize) -> Result<(), BadHeader>;

    /// Reads the header at `offset`, and checks it.
    #[inline(always)]
    fn checked(frame: &impl Frame, offset: usize) -> Result<Self, BadHeader> {
        let header = Self::read(frame, offset).ok_or(BadHeader::Malformed)?;
        header.check(frame, offset)?;
        Ok(header)
    }

    /// Reads the header that an ICMP error quotes at `offset`, and the 8 bytes behind it. Nothing about it is checked.
    fn quoted(frame: &impl Frame, offset: usize) -> Option<(Self, [u8; 8])>;

    /// Whether this is a header of its family, with options or without, whose packet lies within `available` bytes. Those of a
    /// GSO frame end where the frame ends.
    fn is_whole(&self, available: usize, gso_size: u32) -> bool;

    /// The family's version, and no options.
    fn is_without_options(&self) -> bool;

    /// Bytes of the header with its options.
    fn header_length(&self) -> usize;

    /// Type of service, or traffic class: its two lower bits are the ECN field.
    fn tos(&self) -> u8;

    /// Bytes of the whole packet.
    fn length(&self) -> u16;

    /// Time to live, or hop limit.
    fn ttl(&self) -> u8;

    /// Protocol number of what follows.
    fn protocol(&self) -> u8;

    /// Source address.
    fn source(&self) -> Self::Address;

    /// Destination address.
    fn destination(&self) -> Self::Address;

    /// Part of a datagram: it is fragmented.
    fn is_fragment(&self) -> bool;

    /// A part of a datagram that is not its first: no transport header follows.
    fn is_later_fragment(&self) -> bool;

    /// Routers must not fragment it.
    fn dont_fragment(&self) -> bool;

    /// Sum of the pseudo-header of the transport header that follows, whose packet has `length` bytes from there on.
    fn pseudo_header(&self, length: u16) -> u32;

    /// Writes what a router changes into the header at byte `at` of the frame: it takes one from the TTL.
    fn store_forwarded(&self, frame: &impl Frame, at: usize) -> Result<(), Reason>;

    /// Writes another type of service byte into the header at byte `at` of the frame, and mends its checksum.
    fn store_tos(&self, frame: &impl Frame, at: usize, tos: u8) -> Result<(), Reason>;
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
pub(crate) fn segment_length<F: Family>(frame: &impl Frame, offset: usize, ip: &F::Header) -> u32 {
    let segment = frame.gso_size();
    if segment == 0 {
        u32::from(ip.length())
    } else {
        segment + F::HEADER as u32 + transport_length(frame, offset + F::HEADER, ip.protocol())
    }
}

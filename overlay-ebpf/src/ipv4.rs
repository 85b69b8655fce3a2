//! The IPv4 header of a frame, outer or inner: read once, checked once, copied out.
use overlay_common::{
    Addr4, Reason, checksum,
    wire::{IPV4, UDP},
};

use crate::frame::Frame;

/// Protocol number of TCP.
pub(crate) const IPPROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const IPPROTO_UDP: u8 = 17;

/// The fields of an IPv4 header without options that anyone asks for.
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    pub(crate) tos: u8,
    pub(crate) length: u16,
    pub(crate) identification: [u8; 2],
    /// Flags and fragment offset, host order.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    /// As a big-endian number.
    pub(crate) checksum: u16,
    pub(crate) source: Addr4,
    pub(crate) destination: Addr4,
}

impl Ipv4 {
    /// Part of a datagram: more fragments follow, or the offset is not zero (RFC 791 section 3.1).
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.fragment & 0x3fff != 0
    }

    /// Not the first part of a datagram: no transport header follows.
    #[inline(always)]
    pub(crate) fn is_later_fragment(&self) -> bool {
        self.fragment & 0x1fff != 0
    }

    /// DF: "an internet datagram so marked is not to be internet fragmented under any circumstances" (RFC 791 section 2.3).
    #[inline(always)]
    pub(crate) fn dont_fragment(&self) -> bool {
        self.fragment & 0x4000 != 0
    }
}

/// Why an IPv4 header could not be read.
pub(crate) enum BadIpv4 {
    /// Too short, or not version 4, or a wrong checksum, or lengths that contradict each other.
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

/// See [`Frame::ipv4`]. Its checksum must be right (RFC 1812 section 5.2.2): what a router drops is not to be forwarded past
/// it. In GSO and GRO frames the kernel has written or checked both itself.
#[inline(always)]
pub(crate) fn header(frame: &impl Frame, offset: usize) -> Result<Ipv4, BadIpv4> {
    let header: [u8; IPV4] = frame.read(offset).ok_or(BadIpv4::Malformed)?;
    match header[0] {
        0x45 => {}
        0x46..=0x4f => return Err(BadIpv4::Options),
        _ => return Err(BadIpv4::Malformed),
    }
    let length = u16::from_be_bytes([header[2], header[3]]);
    if length == 0 && frame.gso_size() != 0 {
        return Err(BadIpv4::Big);
    }
    let available = frame.len().saturating_sub(offset as u32);
    if (length as usize) < IPV4 || u32::from(length) > available {
        return Err(BadIpv4::Malformed);
    }
    if frame.gso_size() == 0 && checksum::finish(checksum::sum_words(&header, 0, IPV4)) != 0 {
        return Err(BadIpv4::Malformed);
    }
    // Left to the receiver they would be delivered, and a frame within the MTU by its header would leave beyond it. In a frame
    // of datagrams that GRO has merged they are the other datagrams.
    if u32::from(length) < available {
        return Err(BadIpv4::Trailing);
    }
    Ok(Ipv4 {
        tos: header[1],
        length,
        identification: [header[4], header[5]],
        fragment: u16::from_be_bytes([header[6], header[7]]),
        ttl: header[8],
        protocol: header[9],
        checksum: u16::from_be_bytes([header[10], header[11]]),
        source: Addr4::new([header[12], header[13], header[14], header[15]]),
        destination: Addr4::new([header[16], header[17], header[18], header[19]]),
    })
}

/// Bytes of the transport header that the kernel repeats in every segment.
#[inline(always)]
pub(crate) fn transport_length(frame: &impl Frame, offset: usize, protocol: u8) -> u32 {
    if protocol == IPPROTO_TCP {
        // Data offset: 32-bit words, in the upper half of byte 12 (RFC 9293 section 3.1).
        frame.load::<1>(offset + 12).map_or(20, |byte| u32::from(byte[0] >> 4) * 4)
    } else {
        UDP as u32
    }
}

/// Bytes of the IP packet that starts at `offset`; of a GSO frame, of each packet that it will be.
#[inline(always)]
pub(crate) fn segment_length(frame: &impl Frame, offset: usize, ip: &Ipv4) -> u32 {
    let segment = frame.gso_size();
    if segment == 0 {
        u32::from(ip.length)
    } else {
        segment + IPV4 as u32 + transport_length(frame, offset + IPV4, ip.protocol)
    }
}

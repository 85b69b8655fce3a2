//! IPv4 packets, fragments and UDP checksums as a host understands them (RFC 791, RFC 1122).
use crate::headers::checksum;

/// A frame's IPv4 packet as an IPv4 host understands it, without what is behind its total length.
pub(crate) struct Packet<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) header: usize,
}

impl<'a> Packet<'a> {
    /// Checks version, checksum and lengths (RFC 1122, section 3.2.1).
    pub(crate) fn of(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < 20 || bytes[0] >> 4 != 4 {
            return None;
        }
        let header = usize::from(bytes[0] & 15) * 4;
        let length = usize::from(word(bytes, 2));
        if header < 20 || length < header || length > bytes.len() || checksum(&bytes[..header], 0) != 0 {
            return None;
        }
        Some(Self { bytes: &bytes[..length], header })
    }

    pub(crate) fn from(&self) -> [u8; 4] {
        four(self.bytes, 12)
    }

    pub(crate) fn to(&self) -> [u8; 4] {
        four(self.bytes, 16)
    }

    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header..]
    }

    pub(crate) fn is_fragment(&self) -> bool {
        word(self.bytes, 6) & 0x3fff != 0
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

/// A checksum of zero means that there is none (RFC 768).
pub(crate) fn udp_sum_is_right(udp: &[u8], from: [u8; 4], to: [u8; 4]) -> bool {
    let seed = u32::from(word(&from, 0))
        + u32::from(word(&from, 2))
        + u32::from(word(&to, 0))
        + u32::from(word(&to, 2))
        + 17
        + udp.len() as u32;
    word(udp, 6) == 0 || checksum(udp, seed) == 0
}

/// Fragments of outer datagrams (RFC 791, section 3.2). In Linux since 4.18, an overlap discards the datagram.
#[derive(Default)]
pub(crate) struct Fragments {
    parts: Vec<(usize, Vec<u8>)>,
    length: Option<usize>,
    dead: bool,
}

impl Fragments {
    pub(crate) fn add(&mut self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let field = word(packet.bytes, 6);
        let (at, more) = (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0);
        let mut payload = packet.payload().to_vec();
        if more {
            // The kernel cuts off what is no multiple of eight if more must follow.
            payload.truncate(payload.len() & !7);
        } else {
            self.length = Some(at + payload.len());
        }
        let same =
            |(other, part): &(usize, Vec<u8>)| *other <= at && at + payload.len() <= other + part.len();
        if self.parts.iter().any(same) {
            return None;
        }
        let overlaps =
            |(other, part): &(usize, Vec<u8>)| at < other + part.len() && *other < at + payload.len();
        self.dead |= self.parts.iter().any(overlaps);
        if self.dead || payload.is_empty() {
            return None;
        }
        self.parts.push((at, payload));
        self.parts.sort();
        let whole: Vec<u8> = self.parts.iter().flat_map(|(_, part)| part.clone()).collect();
        (self.length == Some(whole.len())).then_some(whole)
    }
}

//! Headers in pieces, as a frame has them outside and inside, and the checksum that they use.

/// What is in a checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The right checksum.
    Right,
    /// A wrong checksum.
    Wrong,
    /// Zero.
    Zero,
}

/// An Ethernet header.
#[derive(Clone, Debug)]
pub struct Ethernet {
    /// Destination.
    pub to: [u8; 6],
    /// Source.
    pub from: [u8; 6],
    /// A VLAN tag before the type.
    pub tag: Option<u16>,
    /// EtherType.
    pub kind: u16,
}

/// An IPv4 header.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Version, which is 4 unless it is wrong.
    pub version: u8,
    /// Type of service, with ECN in the lower two bits.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Flags and offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Source.
    pub from: [u8; 4],
    /// Destination.
    pub to: [u8; 4],
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// What is added to the right total length.
    pub lie: i32,
    /// Header checksum.
    pub sum: Sum,
}

impl Ip {
    pub(crate) fn new(from: [u8; 4], to: [u8; 4], protocol: u8) -> Self {
        Self {
            version: 4,
            tos: 0,
            id: 0,
            fragment: 0,
            ttl: 64,
            protocol,
            from,
            to,
            options: Vec::new(),
            lie: 0,
            sum: Sum::Right,
        }
    }

    pub(crate) fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let length = ((header + payload.len()) as i32 + self.lie) as u16;
        let mut bytes = vec![self.version << 4 | (header / 4) as u8, self.tos];
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.from);
        bytes.extend(self.to);
        bytes.extend(&self.options);
        put(&mut bytes, 10, self.sum, 0);
        bytes.extend(payload);
        bytes
    }

    /// Sum of the pseudo header of UDP and TCP (RFC 768).
    pub(crate) fn pseudo(&self, length: usize) -> u32 {
        words(&self.from) + words(&self.to) + u32::from(self.protocol) + length as u32
    }
}

/// Writes the checksum of `bytes`, begun with `seed`, at `at`.
pub(crate) fn put(bytes: &mut [u8], at: usize, sum: Sum, seed: u32) {
    let right = checksum(bytes, seed);
    let value = match sum {
        Sum::Right => right,
        Sum::Wrong => right.wrapping_add(0x0101),
        Sum::Zero => 0,
    };
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// The Internet checksum (RFC 1071 section 4.1) of `bytes`, begun with `seed`.
pub fn checksum(bytes: &[u8], seed: u32) -> u16 {
    let mut sum = seed + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Ethernet {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to, self.from].concat();
        if let Some(tag) = self.tag {
            bytes.extend([0x81, 0x00]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(self.kind.to_be_bytes());
        bytes
    }
}

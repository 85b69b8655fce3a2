//! What the benchmark's programs and its user space share: how frames are made, what is counted of them, and what the floor's
//! programs write.
use crate::{
    checksum,
    header::{ipv4, udp},
    wire::{ETHERNET, INNER, IPV4},
};

/// Bytes of a template: the longest header that is written, and room behind it for the masked offsets' last value.
pub const HEAD: usize = 136;
/// Bytes at the end of each frame: [`TRAILER_MAGIC`] and the frame's number, in the machine's order.
pub const TRAILER: usize = 12;
/// What numbered frames are told by.
pub const TRAILER_MAGIC: u32 = 0x6265_6e63;

/// How the frames are made.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The first bytes of each frame.
    pub template: [u8; HEAD],
    /// How many of them: 60, 88 or 110.
    pub head: u32,
    /// Where the trailer stands in the frame.
    pub trailer: u32,
    /// What becomes of it: XDP_PASS or XDP_TX.
    pub verdict: u32,
    /// How many connections take turns.
    pub flows: u32,
    /// Where their source ports stand in the template; 0 for none.
    pub ports: [u32; 2],
    /// Source port of the first connection.
    pub first_port: u32,
    /// How many peers take turns.
    pub peers: u32,
    /// Frames that are sent in one go, less 1; of a power of two.
    pub window_mask: u64,
    /// Addresses that differ from peer to peer.
    pub varied: [Varied; 2],
}

/// An address that differs from peer to peer, and its header's checksum.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Varied {
    /// Where the IPv4 header stands in the template; 0 for none.
    pub header: u32,
    /// Where the address stands in the header: 12 or 16.
    pub field: u32,
    /// The first peer's, as a number.
    pub base: u32,
    /// From one peer's to the next.
    pub step: u32,
    /// Sum of the header's other 16-bit words, checksum left out (RFC 1071, not folded).
    pub sum: u32,
}

/// What arrived, per CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Frames.
    pub frames: u64,
    /// Their numbers added up: with the right count of frames a loss and a duplicate at once are told by it.
    pub numbers: u64,
    /// From the first frame of each go to the arrival of its last, added up.
    pub nanoseconds: u64,
}

/// The first frame that arrived.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// Its length; 0 for none.
    pub length: u32,
    /// Its first bytes: 60, 88 or 110 of them.
    pub bytes: [u8; HEAD],
}

/// Peers, and containers of a host, that the floor's programs have places for: one for each value of a byte.
pub const FLOOR_PLACES: usize = 256;

/// What the floor writes in front of a packet to a peer.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloorPeer {
    /// All headers of a VXLAN frame, from the outer Ethernet header to the inner one, as they stand on the wire. Only what the
    /// packet's length decides is zero: both outer lengths, and the outer IPv4 header's checksum.
    pub headers: [u64; INNER / 8],
    /// Sum of the outer IPv4 header's words (RFC 1071, not folded).
    pub sum: u32,
    /// Index of the interface that the frames leave by; 0 if there is no such peer.
    pub ifindex: u32,
}

impl FloorPeer {
    /// The headers in front of a container's frame of this many bytes, whose own Ethernet header the first 14 replace.
    #[inline(always)]
    pub fn headers_for(&self, frame: u32) -> [u64; INNER / 8] {
        // It exceeds 65,535 only in GSO frames, and there the kernel writes each segment's length and checksum anew.
        let length = (frame + (INNER - 2 * ETHERNET) as u32) & 0xffff;
        let [a, b] = (length as u16).to_be_bytes();
        let [c, d] = checksum::finish(self.sum + length).to_be_bytes();
        let [e, f] = (length as u16).wrapping_sub(IPV4 as u16).to_be_bytes();
        let mut headers = self.headers;
        // Whole words are written: a helper that copies them would have to wait for anything smaller.
        headers[2] |= u64::from_ne_bytes([a, b, 0, 0, 0, 0, 0, 0]);
        headers[3] |= u64::from_ne_bytes([c, d, 0, 0, 0, 0, 0, 0]);
        headers[4] |= u64::from_ne_bytes([0, 0, 0, 0, 0, 0, e, f]);
        headers
    }
}

/// Where the floor delivers a container's packets.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloorEndpoint {
    /// MAC addresses of the container and of its gateway.
    pub macs: [[u8; 6]; 2],
    /// Index of the container's veth on the host; 0 if there is no such container.
    pub ifindex: u32,
}

const _: () = {
    // Where `headers_for` writes.
    assert!(ETHERNET + ipv4::offset::LENGTH == 2 * 8 && ETHERNET + ipv4::offset::CHECKSUM == 3 * 8);
    assert!(ETHERNET + IPV4 + udp::offset::LENGTH == 4 * 8 + 6);
    assert!(size_of::<FloorPeer>() == INNER + 8 && INNER.is_multiple_of(8));
    assert!(size_of::<FloorEndpoint>() == 16);
    assert!(HEAD >= 127 + 4 && HEAD >= 110);
    assert!(size_of::<Varied>() == 20);
    assert!(size_of::<Shape>() == HEAD + 40 + 2 * 20);
    assert!(size_of::<Arrived>() == 24);
    assert!(size_of::<First>() == 4 + HEAD);
};

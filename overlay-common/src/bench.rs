//! What the benchmark's programs and its user space share: how frames are made, and what is counted of them.

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

const _: () = {
    assert!(HEAD >= 127 + 4 && HEAD >= 110);
    assert!(size_of::<Varied>() == 20);
    assert!(size_of::<Shape>() == HEAD + 40 + 2 * 20);
    assert!(size_of::<Arrived>() == 24);
    assert!(size_of::<First>() == 4 + HEAD);
};

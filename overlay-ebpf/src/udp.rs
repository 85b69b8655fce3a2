//! The UDP header: what stands in it.
use overlay_common::{header::udp::offset, wire::UDP};

use crate::frame::Frame;

/// The 8 bytes of a UDP header.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Udp([u8; UDP]);

impl Udp {
    /// Copies the header at `offset` out of the linear part. Nothing about it is checked.
    #[inline(always)]
    pub(crate) fn read(frame: &impl Frame, offset: usize) -> Option<Self> {
        frame.read(offset)
    }

    /// Destination port, network order.
    #[inline(always)]
    pub(crate) fn destination_port(&self) -> [u8; 2] {
        self.field(offset::DESTINATION_PORT)
    }

    /// Bytes of header and data.
    #[inline(always)]
    pub(crate) fn length(&self) -> u16 {
        u16::from_be_bytes(self.field(offset::LENGTH))
    }

    /// "All zero [...] means that the transmitter generated no checksum" (RFC 768).
    #[inline(always)]
    pub(crate) fn is_unchecked(&self) -> bool {
        self.field(offset::CHECKSUM) == [0; 2]
    }

    #[inline(always)]
    fn field(&self, at: usize) -> [u8; 2] {
        [self.0[at], self.0[at + 1]]
    }
}

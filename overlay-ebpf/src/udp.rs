//! The UDP header: what stands in it.
use overlay_common::{header::udp::offset, wire::UDP};

use crate::frame::Frame;

/// The words of a UDP header, in network order.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Udp([u16; UDP / 2]);

impl Udp {
    /// Copies the header at `offset` out of the linear part. Nothing about it is checked.
    #[inline(always)]
    pub(crate) fn read(frame: &impl Frame, offset: usize) -> Option<Self> {
        frame.read(offset)
    }

    /// Destination port, network order.
    #[inline(always)]
    pub(crate) fn destination_port(&self) -> [u8; 2] {
        self.0[offset::DESTINATION_PORT / 2].to_ne_bytes()
    }

    /// Bytes of header and data.
    #[inline(always)]
    pub(crate) fn length(&self) -> u16 {
        u16::from_be(self.0[offset::LENGTH / 2])
    }

    /// "All zero [...] means that the transmitter generated no checksum" (RFC 768).
    #[inline(always)]
    pub(crate) fn is_unchecked(&self) -> bool {
        self.0[offset::CHECKSUM / 2] == 0
    }
}

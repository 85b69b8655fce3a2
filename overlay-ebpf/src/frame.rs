//! What the steps need of a frame, at whichever hook they see it.
use overlay_common::Reason;

/// A value that is written in words of up to eight bytes. Without it the compiler writes an array of bytes byte by byte, and a
/// helper that copies those bytes as words has to wait for every one of them to get out of the processor's store buffer.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct InWords<T>(pub(crate) T);

/// A frame at a hook. Its Ethernet header, where it has one, is at offset 0. TC and XDP have one kind of frame each.
pub(crate) trait Frame {
    /// Length of the whole frame, link header included.
    fn len(&self) -> u32;

    /// Payload bytes per segment of a GSO or GRO frame; zero for an ordinary one.
    fn gso_size(&self) -> u32;

    /// Whether the frame is addressed to this interface's own MAC address. A promiscuous interface sees other hosts' too.
    fn is_for_us(&self) -> bool;

    /// Whether this is a frame of that EtherType without a VLAN tag. What is tagged belongs to a VLAN, hence not to the
    /// network of this device.
    fn carries(&self, ethertype: [u8; 2]) -> bool;

    /// Makes the first `length` bytes readable through [`Self::read`], if that can be.
    fn pull(&self, length: usize) -> bool;

    /// Copies a value out of the linear part. `T` must be made of bytes, or of 16-bit words if `offset` is even.
    fn read<T: Copy>(&self, offset: usize) -> Option<T>;

    /// Copies bytes out of anywhere in the frame that this hook can reach.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Writes a value over bytes that exist already. `T` must be made of bytes, or of words in network order.
    fn store<T: Copy>(&self, offset: usize, value: &T) -> Result<(), Reason>;

    /// The same, where the header that is written into has no checksum of its own which the change leaves as it was. A device may have
    /// summed the whole packet (`CHECKSUM_COMPLETE`), and that sum is mended.
    fn store_summed<T: Copy>(&self, offset: usize, value: &T) -> Result<(), Reason>;

    /// Whether interface `ifindex` exists, and takes the inner packet of `length` bytes once the `outer_length` bytes in
    /// front of it are gone.
    fn fits(&self, ifindex: u32, length: u16, outer_length: usize) -> bool;
}

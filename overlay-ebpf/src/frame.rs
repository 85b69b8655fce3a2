//! What the judgement of a received frame needs of it, at whichever hook it is seen.
use crate::ipv4::{self, BadIpv4, Ipv4};

/// A frame at a hook; its Ethernet header is at offset 0. TC and XDP have one each.
pub(crate) trait Frame {
    /// Length of the whole frame, Ethernet header included.
    fn len(&self) -> u32;

    /// Payload bytes per segment of a GSO or GRO frame; zero for an ordinary one.
    fn gso_size(&self) -> u32;

    /// Addressed to this interface's own MAC address: not another host's, seen because the interface is promiscuous.
    fn is_for_us(&self) -> bool;

    /// An untagged IPv4 frame. What is tagged belongs to a VLAN, hence not to the network of this device.
    fn is_ipv4(&self) -> bool;

    /// Makes the first `length` bytes readable through [`Self::read`], if that can be.
    fn pull(&self, length: usize) -> bool;

    /// Copies a value out of the linear part. `T` must be made of bytes.
    fn read<T: Copy>(&self, offset: usize) -> Option<T>;

    /// Copies bytes out of anywhere in the frame that this hook can reach.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether interface `ifindex` exists and takes the packet `inner` begins, once `taken` bytes before it are gone.
    fn fits(&self, ifindex: u32, inner: &Ipv4, taken: usize) -> bool;

    /// The IPv4 header at `offset`, which must lie in the linear part. Its total length must be that of the frame from there
    /// on.
    #[inline(always)]
    fn ipv4(&self, offset: usize) -> Result<Ipv4, BadIpv4>
    where
        Self: Sized,
    {
        ipv4::header(self, offset)
    }
}

//! Making headroom in a frame at TC, and taking headers off it, so that the kernel's segmentation knows what has changed.
use aya_ebpf::{
    bindings::{
        BPF_ADJ_ROOM_ENCAP_L2_MASK, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode,
    },
    helpers::generated::{bpf_csum_level, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail},
};
use overlay_common::{Reason, wire::ETHERNET};

use super::Packet;
use crate::{ip::Family, kernel::KernelAddress};

/// The size of segments stays as it is. Without this flag the kernel changes gso_size by the bytes that come or go, and
/// segments no longer fit.
const SAME_SEGMENTS: u32 = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;

/// What the kernel's segmentation is told of a packet in UDP in IP.
#[inline(always)]
const fn encapsulated<F: Family>() -> u32 {
    SAME_SEGMENTS | <F::Address as KernelAddress>::ENCAP_L3 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
}

impl Packet<'_> {
    /// Makes headroom of `length` bytes for VXLAN's headers behind the Ethernet header, and tells the kernel's segmentation what they are.
    /// On error the frame is as it was: with FIXED_GSO every refusal comes before the first change.
    #[inline(always)]
    pub(crate) fn make_vxlan_headroom<F: Family>(&self, length: usize) -> Result<(), Reason> {
        // The inner Ethernet header alone is the "L2" here: counting UDP and VXLAN in (22) breaks segmentation.
        const L2: u64 = (ETHERNET as u64 & BPF_ADJ_ROOM_ENCAP_L2_MASK as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        let flags = u64::from(encapsulated::<F>() | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) | L2;
        self.adjust(length as i32, flags)
    }

    /// Makes headroom of `length` bytes for the headers of a datagram that holds a bare IP packet, behind whatever link header
    /// there is. On error the frame is as it was.
    #[inline(always)]
    pub(crate) fn make_datagram_headroom<F: Family>(&self, length: usize) -> Result<(), Reason> {
        self.adjust(length as i32, encapsulated::<F>().into())
    }

    /// The same in a frame whose segmentation knows of a tunnel already.
    #[inline(always)]
    pub(crate) fn make_headroom_again(&self, length: usize) -> Result<(), Reason> {
        self.adjust(length as i32, SAME_SEGMENTS.into())
    }

    /// Takes the first `length` bytes behind the link header off: outer headers, and the inner Ethernet header where there
    /// is one. On error the frame is as it was.
    // No DECAP_L3 flag: inside and outside are of the same family, and 6.1 does not know it.
    #[inline(always)]
    pub(crate) fn remove_headers(&self, length: usize) -> Result<(), Reason> {
        self.adjust(-(length as i32), SAME_SEGMENTS.into())
    }

    /// Takes a datagram's headers off together with the first 8 bytes of the packet in it, `start`, and then puts those back:
    /// for a datagram whose checksum a device is still to finish (CHECKSUM_PARTIAL; no field says so here). The place of that
    /// checksum would else be in the Ethernet header, and the first device by which the container sends the packet on would
    /// write there. Removed with its place, the unfinished checksum is forgotten.
    #[inline(always)]
    pub(crate) fn remove_unfinished_headers(&self, length: usize, start: &[u8; 8]) -> Result<(), Reason> {
        self.remove_headers(length + start.len())?;
        // From here on the frame is half changed.
        self.adjust(start.len() as i32, SAME_SEGMENTS.into()).map_err(|_| Reason::Failed)?;
        self.store_with(ETHERNET, start, BPF_F_RECOMPUTE_CSUM.into())
    }

    /// Makes space behind the Ethernet header for headers that are no tunnel's.
    #[inline(always)]
    pub(crate) fn make_space(&self, length: usize) -> Result<(), Reason> {
        self.adjust(length as i32, BPF_F_ADJ_ROOM_NO_CSUM_RESET.into())
    }

    #[inline(always)]
    fn adjust(&self, difference: i32, flags: u64) -> Result<(), Reason> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe {
            bpf_skb_adjust_room(self.skb(), difference, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, flags)
        };
        if result == 0 { Ok(()) } else { Err(Reason::HeadroomRefused) }
    }

    /// Gives a packet without link header, such as a TUN's, the space for an Ethernet header, which a neighbour's will be
    /// written into.
    #[inline(always)]
    pub(crate) fn make_link_header(&self) -> Result<(), Reason> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_skb_change_head(self.skb(), ETHERNET as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// Cuts the frame to `length` bytes. A GSO frame becomes an ordinary one.
    #[inline(always)]
    pub(crate) fn cut(&self, length: usize) -> Result<(), Reason> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_skb_change_tail(self.skb(), length as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// Takes one verified checksum back: the device may have vouched for the outer UDP checksum, which is gone now. Without
    /// this it would vouch for the inner one, and corrupt data would reach the application.
    #[inline(always)]
    pub(crate) fn distrust_checksum(&self) {
        // SAFETY: the context pointer the kernel gave. Fails only where there is nothing to take back.
        unsafe { bpf_csum_level(self.skb(), BPF_CSUM_LEVEL_DEC as u64) };
    }
}

//! A frame at an XDP hook: reading and writing it, and what stands in front of it.
use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len,
    },
    programs::XdpContext,
};
use overlay_common::{Reason, StripMark, checksum, header::ethernet, wire::ETHERNET};

use crate::{count::Size, decap, frame::Frame, ip::Family, packet, settings, tunnel};

/// A frame at an XDP hook. Its Ethernet header is at offset 0.
pub(crate) struct XdpFrame<'a> {
    ctx: &'a XdpContext,
    length: u32,
    outer_length: usize,
}

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.length
    }

    // GRO and GSO come later.
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        self.read(ethernet::offset::DESTINATION) == Some(settings::underlay_mac())
    }

    #[inline(always)]
    fn carries(&self, ethertype: [u8; 2]) -> bool {
        self.read(ethernet::offset::ETHERTYPE) == Some(ethertype)
    }

    #[inline(always)]
    fn pull(&self, length: usize) -> bool {
        self.ctx.data() + length <= self.ctx.data_end()
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        packet::read(self.ctx.data(), self.ctx.data_end(), offset)
    }

    // The first buffer alone: what has its headers elsewhere is left to TC.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.read(offset)
    }

    // In the first buffer alone.
    #[inline(always)]
    fn store<T: Copy>(&self, offset: usize, value: &T) -> Result<(), Reason> {
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() > self.ctx.data_end() {
            return Err(Reason::Failed);
        }
        // SAFETY: as many bytes as the value has, between data and data_end (checked above).
        unsafe { (start as *mut T).write_unaligned(*value) };
        Ok(())
    }

    // The driver sums the packet later, if at all.
    #[inline(always)]
    fn store_summed<T: Copy>(&self, offset: usize, value: &T) -> Result<(), Reason> {
        self.store(offset, value)
    }

    #[inline(always)]
    fn fits(&self, ifindex: u32, length: u16, _: usize) -> bool {
        let mut length = u32::from(length);
        // SAFETY: the output is a u32 of our own; as an input it is the length behind the Ethernet header (5.12).
        let result = unsafe { bpf_check_mtu(self.context().cast(), ifindex, &raw mut length, 0, 0) };
        result == 0
    }
}

impl<'a> XdpFrame<'a> {
    #[inline(always)]
    pub(crate) fn new<F: Family>(ctx: &'a XdpContext) -> Self {
        // SAFETY: the context pointer the kernel gave. Counts the fragments that a large frame has behind its first buffer.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) } as u32;
        let frame = Self { ctx, length, outer_length: 0 };
        // Asked now: later the frame may begin elsewhere.
        let is_unencapsulated = decap::is_unencapsulated::<F>(&frame);
        Self { outer_length: if is_unencapsulated { 0 } else { tunnel::length::<F>() }, ..frame }
    }

    #[inline(always)]
    fn context(&self) -> *mut xdp_md {
        self.ctx.as_ptr().cast()
    }

    /// The packet, and its inner bytes.
    #[inline(always)]
    pub(crate) fn size(&self) -> Size {
        let headers = ETHERNET + self.outer_length;
        Size { packets: 1, bytes: u64::from(self.length).saturating_sub(headers as u64) }
    }

    /// Moves the frame's beginning, so that the packet lies right behind an Ethernet header. On refusal the frame is as it
    /// was.
    #[inline(always)]
    pub(super) fn remove_headers(&self, length: usize) -> Option<()> {
        if length == 0 {
            return Some(());
        }
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_xdp_adjust_head(self.context(), length as i32) };
        (result == 0).then_some(())
    }

    /// Makes `length` bytes of space in front of the frame, which GRO compares and TC can read; if negative, gives them back.
    /// Refused by drivers that keep no such space.
    #[inline(always)]
    pub(super) fn make_mark_space(&self, length: i32) -> Option<()> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_xdp_adjust_meta(self.context(), -length) };
        (result == 0).then_some(())
    }

    /// Writes the strip mark into the space in front of the frame.
    #[inline(always)]
    pub(super) fn write_mark<A: Copy>(&self, mark: StripMark<A>) -> Result<(), Reason> {
        let start = self.ctx.metadata();
        if start + size_of::<StripMark<A>>() > self.ctx.metadata_end() {
            return Err(Reason::Failed);
        }
        // SAFETY: between data_meta and data (checked above, which is what the verifier needs to see).
        unsafe { (start as *mut StripMark<A>).write_unaligned(mark) };
        Ok(())
    }

    /// Sum of `length` bytes of the first buffer as big-endian 16-bit words, folded (RFC 1071), padded by a zero byte.
    #[inline(always)]
    pub(super) fn sum(&self, offset: usize, length: u16) -> Option<u32> {
        // The helper takes 512 bytes at a time before Linux 6.13; a buffer has no more than a page.
        const BLOCKS: usize = 8;
        let mut left = usize::from(length);
        let (mut at, mut sum) = (offset, 0);
        for _ in 0..BLOCKS {
            if left < 512 {
                break;
            }
            sum = self.add::<512>(at, sum)?;
            at += 512;
            left -= 512;
        }
        if left >= 512 {
            return None;
        }
        macro_rules! add {
            ($($n:literal)+) => {$(
                if left & $n != 0 {
                    sum = self.add::<$n>(at, sum)?;
                    at += $n;
                }
            )+};
        }
        add!(256 128 64 32 16 8 4);
        let mut words = u64::from(sum);
        if left & 2 != 0 {
            words += u64::from(u16::from_ne_bytes(self.read(at)?));
            at += 2;
        }
        if left & 1 != 0 {
            let [byte] = self.read(at)?;
            words += u64::from(u16::from_ne_bytes([byte, 0]));
        }
        Some(checksum::from_native(words))
    }

    /// Adds `N` bytes of the first buffer, divisible by 4, to a sum of words as the machine reads them.
    #[inline(always)]
    fn add<const N: usize>(&self, offset: usize, sum: u32) -> Option<u32> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: N bytes between data and data_end (checked above), read by the helper only.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start as *mut u32, N as u32, sum) };
        // The helper's errors are negative numbers; sums may have the upper bit of 32 set.
        (sum >= 0).then_some(sum as u32)
    }
}

//! A frame at a TC hook: reading and writing it. XDP's is in `xdp/frame.rs`.
//!
//! Everything is copied out, so that nothing outlives a helper that moves the frame (which invalidates all pointers).
mod headroom;
mod redirect;
mod tunnel_key;

pub(crate) use self::tunnel_key::Received;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_get_hash_recalc, bpf_set_hash, bpf_skb_change_type,
        bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use overlay_common::{KeptPort, Reason, StripMark, checksum, wire::ETHERNET};

use crate::{count::Size, frame::Frame, helpers::jiffies, ip::Family, maps, settings};

/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`: addressed to another machine.
const PACKET_OTHERHOST: u32 = 3;
/// The bits of a VLAN tag that name the VLAN.
const VLAN_ID: u32 = 0x0fff;

/// Copies a value out of the frame between `data` and `data_end`. `T` must be made of bytes, or of 16-bit words if `offset` is
/// even.
///
/// The compiler reads what may begin anywhere byte by byte, and puts the bytes together. Words of a header it reads whole.
#[inline(always)]
pub(crate) fn read<T: Copy>(data: usize, data_end: usize, offset: usize) -> Option<T> {
    let start = data + offset;
    if start + size_of::<T>() > data_end {
        return None;
    }
    // SAFETY: between data and data_end (checked above, which is what the verifier needs to see); every bit pattern is valid
    // for bytes and for words. A word is read by one instruction of BPF, which the verifier admits by its offset: on machines that read
    // no odd address it knows of NET_IP_ALIGN. A frame at an odd address costs what it costs the kernel's own reads of headers.
    Some(unsafe {
        match align_of::<T>() {
            2 => (start as *const T).read(),
            _ => (start as *const T).read_unaligned(),
        }
    })
}

/// A frame at a TC hook. Its Ethernet header is at offset 0; at a TUN, the IP header is.
pub(crate) struct Packet<'a> {
    ctx: &'a TcContext,
}

impl Frame for Packet<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: as in `ifindex` (readable since 5.7).
        unsafe { (*self.skb()).gso_size }
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn carries(&self, ethertype: [u8; 2]) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe {
            (*self.skb()).protocol == u32::from(u16::from_ne_bytes(ethertype))
                && (*self.skb()).vlan_present == 0
        }
    }

    // Frames from a driver may have their headers outside the linear part.
    #[inline(always)]
    fn pull(&self, length: usize) -> bool {
        if self.ctx.data() + length <= self.ctx.data_end() {
            return true;
        }
        // SAFETY: no pointer into the frame is held across the call.
        unsafe { bpf_skb_pull_data(self.skb(), length as u32) == 0 }
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        read(self.ctx.data(), self.ctx.data_end(), offset)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the buffer is N bytes long.
        let result = unsafe {
            bpf_skb_load_bytes(self.skb().cast(), offset as u32, bytes.as_mut_ptr().cast(), N as u32)
        };
        if result == 0 { Some(bytes) } else { None }
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: usize, value: &T) -> Result<(), Reason> {
        self.store_with(offset, value, 0)
    }

    #[inline(always)]
    fn store_summed<T: Copy>(&self, offset: usize, value: &T) -> Result<(), Reason> {
        self.store_with(offset, value, BPF_F_RECOMPUTE_CSUM.into())
    }

    #[inline(always)]
    fn fits(&self, ifindex: u32, _: u16, outer_length: usize) -> bool {
        self.fits_without(ifindex, outer_length)
    }
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    pub(crate) fn context(&self) -> &TcContext {
        self.ctx
    }

    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// Index of the interface that the hook is on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context pointer the kernel gave; the verifier allows this field.
        unsafe { (*self.skb()).ifindex }
    }

    /// Whether the frame is of that EtherType, in a VLAN or in none.
    #[inline(always)]
    pub(crate) fn is(&self, ethertype: [u8; 2]) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).protocol == u32::from(u16::from_ne_bytes(ethertype)) }
    }

    /// Whether the host's own protocol of that EtherType gets the frame as this interface's. That is more than what is ours: a
    /// broadcast, and a frame with a tag of VLAN 0, which gives a priority alone.
    #[inline(always)]
    pub(crate) fn reaches_stack(&self, ethertype: [u8; 2]) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe {
            let skb = self.skb();
            (*skb).protocol == u32::from(u16::from_ne_bytes(ethertype))
                && (*skb).pkt_type != PACKET_OTHERHOST
                && ((*skb).vlan_present == 0 || (*skb).vlan_tci & VLAN_ID == 0)
        }
    }

    /// Segments, and bytes without the first `headers`.
    #[inline(always)]
    pub(crate) fn size(&self, headers: usize) -> Size {
        // SAFETY: as in `ifindex` (readable since 5.1).
        let segments = unsafe { (*self.skb()).gso_segs };
        Size {
            packets: if segments == 0 { 1 } else { u64::from(segments) },
            bytes: u64::from(self.len()).saturating_sub(headers as u64),
        }
    }

    /// Sum of `length` bytes of the linear part as big-endian 16-bit words, folded (RFC 1071). `length` must be a constant
    /// that is divisible by 4.
    #[inline(always)]
    pub(crate) fn sum(&self, offset: usize, length: usize) -> Option<u32> {
        let start = self.ctx.data() + offset;
        if start + length > self.ctx.data_end() {
            return None;
        }
        // SAFETY: `length` bytes between data and data_end (checked above), read by the helper only.
        let sum =
            unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start as *mut u32, length as u32, 0) } as u32;
        Some(checksum::from_native(sum.into()))
    }

    /// Writes the Ethernet header's two addresses in place, which spares a helper's call. A frame that somebody else has a clone of,
    /// such as a capture, is copied for the program that writes in place before the program begins (`tc_cls_act_prologue`); the helpers
    /// that take headers off would copy it as well.
    #[inline(always)]
    pub(crate) fn write_addresses(&self, addresses: &[u16; 6]) -> Result<(), Reason> {
        let start = self.ctx.data();
        if start + size_of_val(addresses) > self.ctx.data_end() {
            return Err(Reason::Failed);
        }
        // SAFETY: between data and data_end (checked above, which is what the verifier needs to see). Where the address is odd, it is
        // as in `read`.
        unsafe { (start as *mut [u16; 6]).write(*addresses) };
        Ok(())
    }

    /// Writes bytes that exist already, with flags of the helper.
    #[inline(always)]
    fn store_with<T: Copy>(&self, offset: usize, value: &T, flags: u64) -> Result<(), Reason> {
        // What is inside `InWords` is to be written, without the bytes that fill up its last word.
        const { assert!(align_of::<T>() <= 2) };
        let bytes = core::ptr::from_ref(value).cast();
        // SAFETY: the value is made of that many bytes; no pointer into the frame is held across the call.
        let result =
            unsafe { bpf_skb_store_bytes(self.skb(), offset as u32, bytes, size_of::<T>() as u32, flags) };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// The packet's hash, if it has one: a socket's, which is the same for all of its packets, one that a device has told, or one that
    /// the kernel has computed before. Zero means that there is none.
    #[inline(always)]
    pub(crate) fn known_hash(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).hash }
    }

    /// The packet's hash, which the kernel computes if nobody has yet: it dissects the headers, those of tunnels too.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u32 {
        // SAFETY: the context pointer the kernel gave.
        unsafe { bpf_get_hash_recalc(self.skb()) }
    }

    /// Gives the packet another hash, for whoever asks for it from here on.
    #[inline(always)]
    pub(crate) fn set_hash(&self, hash: u32) {
        // SAFETY: the context pointer the kernel gave. The helper never fails.
        unsafe { bpf_set_hash(self.skb(), hash) };
    }

    /// The counters' slot of the peer that sent this packet, if `overlay_xdp_strip` has classified and decapsulated it: its
    /// strip mark in front of the frame says so. Nothing that arrives on a wire has one.
    #[inline(always)]
    pub(crate) fn stripped<F: Family>(&self) -> Option<u32> {
        // SAFETY: the context pointer the kernel gave; the verifier allows this field.
        let start = unsafe { (*self.skb()).data_meta } as usize;
        if start + size_of::<StripMark<F::Address>>() > self.ctx.data() {
            return None;
        }
        // SAFETY: between data_meta and data (checked above, which is what the verifier needs to see), and every bit
        // pattern is a valid `StripMark`.
        let mark = unsafe { (start as *const StripMark<F::Address>).read_unaligned() };
        (mark == settings::strip_mark(mark.slot)).then_some(mark.slot)
    }

    /// Marks the packet as one for this host: a frame decapsulated here is addressed to the MAC address it now has. Before
    /// 6.15 redirect_peer leaves the type as it was, and IP drops what is PACKET_OTHERHOST.
    #[inline(always)]
    pub(crate) fn accept(&self) {
        // SAFETY: the context pointer the kernel gave. Fails only for types above PACKET_OTHERHOST, which never come in.
        unsafe { bpf_skb_change_type(self.skb(), PACKET_HOST) };
    }

    /// Whether interface `ifindex` exists, and takes this frame once `outer_length` bytes are gone from it.
    ///
    /// The kernel is asked once in a tick (1 to 10 ms). A veth does not go and come back under the same address in less, and of what is
    /// on its way to one that goes, the container gets nothing by any path. One whose MTU shrinks drops what is too long
    /// (`is_skb_forwardable`) for the rest of the tick.
    #[inline(always)]
    pub(crate) fn fits_without(&self, ifindex: u32, outer_length: usize) -> bool {
        let now = jiffies();
        let length = self.len().wrapping_sub(ETHERNET as u32 + outer_length as u32);
        let Some(kept) = maps::port(ifindex) else { return false };
        if kept.jiffies == now && kept.ifindex == ifindex && length <= kept.mtu {
            return true;
        }
        let (result, mtu) = self.check_mtu(ifindex, -(outer_length as i32));
        if result == 0 {
            *kept = KeptPort { jiffies: now, ifindex, mtu };
        }
        result == 0
    }

    /// MTU of interface `ifindex` in bytes, zero if there is none. The helper's verdict would say that it takes any GSO frame.
    #[inline(always)]
    pub(crate) fn mtu_of(&self, ifindex: u32) -> u32 {
        self.check_mtu(ifindex, 0).1
    }

    /// Whether interface `ifindex` exists.
    #[inline(always)]
    pub(crate) fn exists(&self, ifindex: u32) -> bool {
        const ENODEV: i64 = 19;
        self.check_mtu(ifindex, 0).0 != -ENODEV
    }

    /// The helper's answer for the frame with `difference` bytes more, and the interface's MTU.
    #[inline(always)]
    fn check_mtu(&self, ifindex: u32, difference: i32) -> (i64, u32) {
        let mut mtu = 0u32;
        // SAFETY: the output is a u32 of our own.
        let result = unsafe { bpf_check_mtu(self.skb().cast(), ifindex, &raw mut mtu, difference, 0) };
        (result, mtu)
    }
}

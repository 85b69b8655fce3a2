//! Reading and changing a frame at TC: the raw pointers into it, and the helpers that move it. XDP's are in `xdp.rs`.
//!
//! Everything is copied out, so that nothing outlives a helper that moves the frame (which invalidates all pointers).
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_MASK, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_DONT_FRAGMENT, BPF_F_INGRESS,
        BPF_F_RECOMPUTE_CSUM, BPF_F_ZERO_CSUM_TX, bpf_adj_room_mode, bpf_redir_neigh, bpf_tunnel_key,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_csum_level, bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_redirect,
        bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use overlay_common::{
    Addr4, Reason, Stripped,
    wire::{DATAGRAM, ETHERNET, ETHERTYPE_IPV4, OVERHEAD},
};

use crate::{count::Size, frame::Frame, ipv4::Ipv4, settings};

/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;
/// `AF_INET` of linux/socket.h.
const AF_INET: u32 = 2;
/// What the kernel's segmentation is told of a packet in UDP in IPv4.
const WRAPPED: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) as u64;

/// Any number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

/// Copies a value out of the frame between `data` and `data_end`. `T` must be made of bytes.
#[inline(always)]
pub(crate) fn read<T: Copy>(data: usize, data_end: usize, offset: usize) -> Option<T> {
    let start = data + offset;
    if start + size_of::<T>() > data_end {
        return None;
    }
    // SAFETY: between data and data_end (checked above, which is what the verifier needs to see); callers read byte
    // arrays only, for which every bit pattern is valid.
    Some(unsafe { (start as *const T).read_unaligned() })
}

/// A frame at a TC hook; its Ethernet header is at offset 0.
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
    fn is_ipv4(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe {
            (*self.skb()).protocol == u32::from(u16::from_ne_bytes(ETHERTYPE_IPV4))
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
    fn fits(&self, ifindex: u32, _: &Ipv4, taken: usize) -> bool {
        self.takes(ifindex, taken)
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

    /// Interface the hook is on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context pointer the kernel gave; the verifier allows this field.
        unsafe { (*self.skb()).ifindex }
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

    /// Sum of `N` bytes of the linear part as big-endian 16-bit words, folded once (RFC 1071). `N` must be divisible by 4.
    #[inline(always)]
    pub(crate) fn sum<const N: usize>(&self, offset: usize) -> Option<u32> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: N bytes between data and data_end (checked above), read by the helper only.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start as *mut u32, N as u32, 0) } as u32;
        // The helper adds words as the machine reads them; swapping the folded sum's bytes gives the other order
        // (RFC 1071 section 2 (B)).
        let once = (sum & 0xffff) + (sum >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        Some(u32::from(u16::from_be(twice as u16)))
    }

    /// Writes bytes that exist already.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), Reason> {
        // SAFETY: the buffer is N bytes long; no pointer into the frame is held across the call.
        let result =
            unsafe { bpf_skb_store_bytes(self.skb(), offset as u32, bytes.as_ptr().cast(), N as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// Hash of the inner flow, computed by the kernel if nobody has yet.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u32 {
        // SAFETY: the context pointer the kernel gave.
        unsafe { bpf_get_hash_recalc(self.skb()) }
    }

    /// Makes room for VXLAN's headers behind the Ethernet header, and tells the kernel's segmentation what they are.
    /// On error the frame is as it was: with FIXED_GSO every refusal comes before the first change.
    #[inline(always)]
    pub(crate) fn make_vxlan_room(&self) -> Result<(), Reason> {
        // The inner Ethernet header alone is the "L2" here: counting UDP and VXLAN in (22) breaks segmentation.
        const L2: u64 = (ETHERNET as u64 & BPF_ADJ_ROOM_ENCAP_L2_MASK as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        self.adjust_room(OVERHEAD as i32, WRAPPED | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 | L2)
    }

    /// The same for the headers of a datagram that holds a bare IPv4 packet, behind whatever link header there is.
    #[inline(always)]
    pub(crate) fn make_datagram_room(&self) -> Result<(), Reason> {
        self.adjust_room(DATAGRAM as i32, WRAPPED)
    }

    /// Takes `length` bytes away behind the link header: outer headers, and the inner Ethernet header where there is one.
    /// No DECAP_L3 flag: IPv4 stays IPv4, and 6.1 does not know it.
    #[inline(always)]
    pub(crate) fn take_room(&self, length: usize) -> Result<(), Reason> {
        // Without FIXED_GSO the kernel raises gso_size by what is taken away, and segments no longer fit.
        const FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
        self.adjust_room(-(length as i32), FLAGS)
    }

    /// The same for a datagram's headers with a checksum that a device is still to finish (CHECKSUM_PARTIAL; nothing says so
    /// here): its place would then be in the Ethernet header, and be written to by the first device that the container sends
    /// the packet on by. Taken away with it, it is forgotten; what is taken too much is written anew.
    #[inline(always)]
    pub(crate) fn take_datagram_room(&self, start: &[u8; 8]) -> Result<(), Reason> {
        self.take_room(DATAGRAM + 8)?;
        // Half changed from here on.
        self.push_keeping_segments(8).map_err(|_| Reason::Failed)?;
        // SAFETY: the buffer is 8 bytes long; no pointer into the frame is held across the call.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.skb(),
                ETHERNET as u32,
                start.as_ptr().cast(),
                8,
                u64::from(BPF_F_RECOMPUTE_CSUM),
            )
        };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// Gives a packet without link header, such as a TUN's, the room for one, which a neighbour's will be written into.
    #[inline(always)]
    pub(crate) fn push_link_header(&self) -> Result<(), Reason> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_skb_change_head(self.skb(), ETHERNET as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// Makes plain room behind the Ethernet header.
    #[inline(always)]
    pub(crate) fn push(&self, length: usize) -> Result<(), Reason> {
        self.adjust_room(length as i32, BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64)
    }

    /// The same, and leaves segmentation as it is.
    #[inline(always)]
    pub(crate) fn push_keeping_segments(&self, length: usize) -> Result<(), Reason> {
        self.adjust_room(length as i32, (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64)
    }

    #[inline(always)]
    fn adjust_room(&self, difference: i32, flags: u64) -> Result<(), Reason> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe {
            bpf_skb_adjust_room(self.skb(), difference, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, flags)
        };
        if result == 0 { Ok(()) } else { Err(Reason::RoomRefused) }
    }

    /// Cuts the frame to `length` bytes; a GSO frame becomes an ordinary one.
    #[inline(always)]
    pub(crate) fn cut(&self, length: usize) -> Result<(), Reason> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_skb_change_tail(self.skb(), length as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// The counters' slot of the peer whose packet `overlay_xdp_strip` has judged and unwrapped, by the note in front of
    /// the frame. Nothing that arrives on a wire has one.
    #[inline(always)]
    pub(crate) fn stripped(&self) -> Option<u32> {
        // SAFETY: the context pointer the kernel gave; the verifier allows this field.
        let start = unsafe { (*self.skb()).data_meta } as usize;
        if start + size_of::<Stripped>() > self.ctx.data() {
            return None;
        }
        // SAFETY: between data_meta and data (checked above, which is what the verifier needs to see), and every bit
        // pattern is a valid `Stripped`.
        let note = unsafe { (start as *const Stripped).read_unaligned() };
        (note == settings::stripped(note.slot)).then_some(note.slot)
    }

    /// One verified checksum less: the device may have vouched for the outer UDP checksum, which is gone now. Without
    /// this it would vouch for the inner one, and corrupt data would reach the application.
    #[inline(always)]
    pub(crate) fn distrust_checksum(&self) {
        // SAFETY: the context pointer the kernel gave. Fails only where there is nothing to take back.
        unsafe { bpf_csum_level(self.skb(), BPF_CSUM_LEVEL_DEC as u64) };
    }

    /// For this host: a frame decapsulated here is addressed to the MAC it now has. Before 6.15 redirect_peer leaves
    /// the type as it was, and IP drops what is PACKET_OTHERHOST.
    #[inline(always)]
    pub(crate) fn accept(&self) {
        // SAFETY: the context pointer the kernel gave. Fails only for types above PACKET_OTHERHOST, which never come in.
        unsafe { bpf_skb_change_type(self.skb(), PACKET_HOST) };
    }

    /// Whether interface `ifindex` exists and takes this frame once `taken` bytes are gone from it.
    #[inline(always)]
    pub(crate) fn takes(&self, ifindex: u32, taken: usize) -> bool {
        let mut length = 0u32;
        // SAFETY: the output is a u32 of our own.
        let result =
            unsafe { bpf_check_mtu(self.skb().cast(), ifindex, &raw mut length, -(taken as i32), 0) };
        result == 0
    }

    /// MTU of interface `ifindex` in bytes, zero if there is none. The helper's verdict would say that it takes any GSO frame.
    #[inline(always)]
    pub(crate) fn mtu_of(&self, ifindex: u32) -> u32 {
        let mut mtu = 0u32;
        // SAFETY: the output is a u32 of our own.
        unsafe { bpf_check_mtu(self.skb().cast(), ifindex, &raw mut mtu, 0, 0) };
        mtu
    }

    /// Whether interface `ifindex` exists.
    #[inline(always)]
    pub(crate) fn exists(&self, ifindex: u32) -> bool {
        const ENODEV: i64 = 19;
        let mut length = 0u32;
        // SAFETY: the output is a u32 of our own.
        let result = unsafe { bpf_check_mtu(self.skb().cast(), ifindex, &raw mut length, 0, 0) };
        result != -ENODEV
    }

    /// Verdict that sends the frame out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Verdict that has the frame arrive at `ifindex`, as if that interface had received it.
    #[inline(always)]
    pub(crate) fn redirect_in(ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
    }

    /// Verdict that sends the frame to a neighbour on `ifindex`, whose Ethernet header the kernel writes. It resolves the
    /// neighbour first if need be, and keeps probing it: a MAC address written by ourselves would be used for ever.
    #[inline(always)]
    pub(crate) fn redirect_neighbour(ifindex: u32, address: Addr4) -> i32 {
        // SAFETY: integers only, zero is valid for all of them; the helper wants the unused ones zero.
        let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
        neighbour.nh_family = AF_INET;
        neighbour.__bindgen_anon_1.ipv4_nh = address.raw();
        // SAFETY: the neighbour is as long as said.
        unsafe {
            bpf_redirect_neigh(ifindex, &raw mut neighbour, size_of::<bpf_redir_neigh>() as i32, 0) as i32
        }
    }

    /// Verdict that puts the frame into the namespace on the other side of veth `ifindex`, without its queue.
    #[inline(always)]
    pub(crate) fn redirect_peer(ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }

    /// Tells the kernel's tunnel device where this frame goes.
    #[inline(always)]
    pub(crate) fn set_tunnel(&self, remote: Addr4, ttl: u8, dont_fragment: bool) -> Result<(), Reason> {
        // SAFETY: integers only, zero is valid for all of them.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = settings::vni();
        // The helper takes IPv4 addresses in host order.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote.raw());
        key.__bindgen_anon_3.local_ipv4 = u32::from_be(settings::local());
        key.tunnel_ttl = ttl;
        let mut flags = BPF_F_ZERO_CSUM_TX;
        if dont_fragment {
            flags |= BPF_F_DONT_FRAGMENT;
        }
        // SAFETY: the key is as long as said.
        let result = unsafe {
            bpf_skb_set_tunnel_key(
                self.skb(),
                &raw mut key,
                size_of::<bpf_tunnel_key>() as u32,
                u64::from(flags),
            )
        };
        if result == 0 { Ok(()) } else { Err(Reason::Failed) }
    }

    /// Takes the stack's route off a packet that leaves by another: once a neighbour that had to be resolved has answered,
    /// the kernel asks the route that a waiting packet carries for its neighbour (net/core/neighbour.c, neigh_update), finds
    /// overlay0's, and sends the packet without an Ethernet header. A tunnel key takes the route's place, and has none.
    #[inline(always)]
    pub(crate) fn forget_route(&self) -> Result<(), Reason> {
        self.set_tunnel(Addr4::default(), 1, false)
    }

    /// VNI and outer source of a frame that the kernel's tunnel device decapsulated.
    #[inline(always)]
    pub(crate) fn tunnel(&self) -> Option<(u32, Addr4)> {
        // SAFETY: integers only, zero is valid for all of them.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: the key is as long as said.
        let result = unsafe {
            bpf_skb_get_tunnel_key(self.skb(), &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0)
        };
        if result != 0 {
            return None;
        }
        // SAFETY: flag 0 asks for an IPv4 key; the bytes are initialised either way.
        let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 };
        Some((key.tunnel_id, Addr4::new(remote.to_be_bytes())))
    }
}

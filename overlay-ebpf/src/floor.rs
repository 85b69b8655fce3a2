//! The floor: what a data path at TC cannot do without, and nothing else, for the benchmark to compare ours with.
//!
//! | program         | hook                              | what it does                                                  |
//! |-----------------|-----------------------------------|---------------------------------------------------------------|
//! | `overlay_encap` | TC ingress of a container's veth  | writes a peer's ready headers in front, and sends the frame   |
//! | `overlay_decap` | TC ingress of the underlay device | takes them off, and puts the packet into the container        |
//!
//! They have the names of the programs that they are compared with, so that the kernel's statistics of both are one measure. What
//! decides where a packet goes is one byte of its destination. Nothing is checked, asked of the kernel, counted or noted: neither
//! senders, VNI, path MTU, routes, neighbours, fragments, TTL nor congestion marks. No network may be run like that.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{
            __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_MASK, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
            BPF_F_ADJ_ROOM_NO_CSUM_RESET, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        },
        btf_maps::Array,
        helpers::generated::{bpf_redirect, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_store_bytes},
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use overlay_common::{
        bench::{FLOOR_PLACES, FloorEndpoint, FloorPeer},
        header::{ipv4, udp},
        wire::{ETHERNET, ETHERTYPE_IPV4, INNER, IPV4, OVERHEAD},
    };

    /// The peers, by the third byte of their subnet's address.
    #[btf_map]
    static PEERS: Array<FloorPeer, { FLOOR_PLACES }> = Array::new();

    /// The containers here, by the last byte of their address.
    #[btf_map]
    static ENDPOINTS: Array<FloorEndpoint, { FLOOR_PLACES }> = Array::new();

    /// UDP port of the tunnel, in network order.
    #[unsafe(no_mangle)]
    static PORT: u16 = 0;

    const SAME_SEGMENTS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
    /// What the kernel's segmentation is told, as overlay_encap tells it.
    const VXLAN: u64 = SAME_SEGMENTS
        | (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64
        | ((ETHERNET as u64 & BPF_ADJ_ROOM_ENCAP_L2_MASK as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT);

    #[classifier]
    fn overlay_encap(context: TcContext) -> i32 {
        encapsulate(&context).unwrap_or(TC_ACT_UNSPEC)
    }

    /// The verdict about a frame to a peer; none about any other.
    #[inline(always)]
    fn encapsulate(context: &TcContext) -> Option<i32> {
        let skb = context.skb.skb;
        // SAFETY: the context pointer the kernel gave; the verifier allows these fields.
        let (protocol, length) = unsafe { ((*skb).protocol, (*skb).len) };
        // Without this an ARP frame might be taken for a packet to a peer.
        if protocol != u32::from(u16::from_ne_bytes(ETHERTYPE_IPV4)) {
            return None;
        }
        let subnet: u8 = read(context, ETHERNET + ipv4::offset::DESTINATION + 2)?;
        let peer = PEERS.get(u32::from(subnet)).filter(|peer| peer.ifindex != 0)?;
        if !adjust(skb, OVERHEAD as i32, VXLAN) {
            return None;
        }
        if !store(skb, &peer.headers_for(length)) {
            return Some(TC_ACT_SHOT);
        }
        // SAFETY: takes numbers only.
        Some(unsafe { bpf_redirect(peer.ifindex, 0) as i32 })
    }

    #[classifier]
    fn overlay_decap(context: TcContext) -> i32 {
        decapsulate(&context).unwrap_or(TC_ACT_UNSPEC)
    }

    /// The verdict about a frame of the tunnel; none about any other.
    #[inline(always)]
    fn decapsulate(context: &TcContext) -> Option<i32> {
        const LAST: usize = INNER + IPV4 - 1;
        let skb = context.skb.skb;
        let last: u8 = read(context, LAST)?;
        let port: u16 = read(context, ETHERNET + IPV4 + udp::offset::DESTINATION_PORT)?;
        // SAFETY: a static that the loader writes before the kernel freezes it; hence volatile.
        if port != unsafe { (&raw const PORT).read_volatile() } {
            return None;
        }
        let endpoint = ENDPOINTS.get(u32::from(last)).filter(|endpoint| endpoint.ifindex != 0)?;
        if !adjust(skb, -(OVERHEAD as i32), SAME_SEGMENTS) {
            return None;
        }
        if !store(skb, &endpoint.macs) {
            return Some(TC_ACT_SHOT);
        }
        // SAFETY: takes numbers only.
        Some(unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 })
    }

    /// Reads a byte, or a word at an even offset.
    #[inline(always)]
    fn read<T: Copy>(context: &TcContext, offset: usize) -> Option<T> {
        let start = context.data() + offset;
        if start + size_of::<T>() > context.data_end() {
            return None;
        }
        // SAFETY: within the frame, as just asked; frames begin at even addresses, and every bit pattern is an integer's.
        Some(unsafe { (start as *const T).read() })
    }

    /// Makes room behind the Ethernet header, or takes bytes away there.
    #[inline(always)]
    fn adjust(skb: *mut __sk_buff, difference: i32, flags: u64) -> bool {
        // SAFETY: no pointer into the frame is held across the call.
        unsafe { bpf_skb_adjust_room(skb, difference, BPF_ADJ_ROOM_MAC, flags) == 0 }
    }

    /// Writes the first bytes of the frame.
    #[inline(always)]
    fn store<T>(skb: *mut __sk_buff, bytes: &T) -> bool {
        // SAFETY: that many bytes, all of them initialised; no pointer into the frame is held across the call.
        unsafe {
            bpf_skb_store_bytes(skb, 0, core::ptr::from_ref(bytes).cast(), size_of::<T>() as u32, 0) == 0
        }
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

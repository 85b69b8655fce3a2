//! How an address of each family is written in the kernel's own structures, which helpers read and fill in.
use aya_ebpf::bindings::{bpf_fib_lookup, bpf_redir_neigh, bpf_tunnel_key};
use overlay_common::{Addr4, Addr6, Address};

/// `AF_INET` of linux/socket.h.
const AF_INET: u8 = 2;
/// `AF_INET6`.
const AF_INET6: u8 = 10;

/// An address that the kernel's structures have a place for.
pub(crate) trait KernelAddress: Address {
    /// Number of the address family (`AF_*`).
    const FAMILY: u8;
    /// What `bpf_skb_adjust_room` is told of an outer header with such addresses.
    const ENCAP_L3: u32;
    /// Flags by which helpers are told that a tunnel key has such addresses.
    const TUNNEL_FLAGS: u32;

    /// Asks for the route from one address to another.
    fn ask(query: &mut bpf_fib_lookup, source: Self, destination: Self);

    /// The next hop in the kernel's answer. Meaningful only if the answer is of this family.
    fn answered(query: &bpf_fib_lookup) -> Self;

    /// Names a neighbour.
    fn name(self, neighbour: &mut bpf_redir_neigh);

    /// Writes the outer addresses of a packet that a tunnel device is to send.
    fn put(key: &mut bpf_tunnel_key, remote: Self, local: Self);

    /// The outer source of a packet that a tunnel device has received.
    fn remote(key: &bpf_tunnel_key) -> Self;
}

impl KernelAddress for Addr4 {
    const FAMILY: u8 = AF_INET;
    const ENCAP_L3: u32 = aya_ebpf::bindings::BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
    const TUNNEL_FLAGS: u32 = 0;

    #[inline(always)]
    fn ask(query: &mut bpf_fib_lookup, source: Self, destination: Self) {
        query.__bindgen_anon_3.ipv4_src = source.raw();
        query.__bindgen_anon_4.ipv4_dst = destination.raw();
    }

    #[inline(always)]
    fn answered(query: &bpf_fib_lookup) -> Self {
        // SAFETY: integers only, of which every bit pattern is valid.
        Self::new(unsafe { query.__bindgen_anon_4.ipv4_dst }.to_ne_bytes())
    }

    #[inline(always)]
    fn name(self, neighbour: &mut bpf_redir_neigh) {
        neighbour.nh_family = Self::FAMILY.into();
        neighbour.__bindgen_anon_1.ipv4_nh = self.raw();
    }

    // The helpers take IPv4 addresses in host order.
    #[inline(always)]
    fn put(key: &mut bpf_tunnel_key, remote: Self, local: Self) {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote.raw());
        key.__bindgen_anon_3.local_ipv4 = u32::from_be(local.raw());
    }

    #[inline(always)]
    fn remote(key: &bpf_tunnel_key) -> Self {
        // SAFETY: integers only, of which every bit pattern is valid.
        Self::new(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes())
    }
}

impl KernelAddress for Addr6 {
    const FAMILY: u8 = AF_INET6;
    const ENCAP_L3: u32 = aya_ebpf::bindings::BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
    const TUNNEL_FLAGS: u32 = aya_ebpf::bindings::BPF_F_TUNINFO_IPV6;

    #[inline(always)]
    fn ask(query: &mut bpf_fib_lookup, source: Self, destination: Self) {
        query.__bindgen_anon_3.ipv6_src = source.words;
        query.__bindgen_anon_4.ipv6_dst = destination.words;
    }

    #[inline(always)]
    fn answered(query: &bpf_fib_lookup) -> Self {
        // SAFETY: integers only, of which every bit pattern is valid.
        Self { words: unsafe { query.__bindgen_anon_4.ipv6_dst } }
    }

    #[inline(always)]
    fn name(self, neighbour: &mut bpf_redir_neigh) {
        neighbour.nh_family = Self::FAMILY.into();
        neighbour.__bindgen_anon_1.ipv6_nh = self.words;
    }

    // IPv6 addresses are in network order, unlike those of IPv4.
    #[inline(always)]
    fn put(key: &mut bpf_tunnel_key, remote: Self, local: Self) {
        key.__bindgen_anon_1.remote_ipv6 = remote.words;
        key.__bindgen_anon_3.local_ipv6 = local.words;
    }

    #[inline(always)]
    fn remote(key: &bpf_tunnel_key) -> Self {
        // SAFETY: integers only, of which every bit pattern is valid.
        Self { words: unsafe { key.__bindgen_anon_1.remote_ipv6 } }
    }
}

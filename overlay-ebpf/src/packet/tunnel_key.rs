//! The tunnel key of a packet at overlay0: what the kernel's tunnel device is told of one that it sends, and tells of one
//! that it has received.
use aya_ebpf::{
    bindings::{BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use overlay_common::{Addr4, Reason};

use super::Packet;
use crate::{
    kernel::KernelAddress,
    settings::{self, Prefixes},
};

impl Packet<'_> {
    /// Tells the kernel's tunnel device where this frame goes, and whether the outer UDP checksum is zero.
    #[inline(always)]
    pub(crate) fn set_tunnel<A: KernelAddress + Prefixes>(
        &self,
        remote: A,
        ttl: u8,
        dont_fragment: bool,
        is_unchecked: bool,
    ) -> Result<(), Reason> {
        // SAFETY: integers only, zero is valid for all of them.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = settings::vni();
        A::put(&mut key, remote, A::local());
        key.tunnel_ttl = ttl;
        let mut flags = A::TUNNEL_FLAGS;
        if is_unchecked {
            flags |= BPF_F_ZERO_CSUM_TX;
        }
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
        self.set_tunnel(Addr4::default(), 1, false, true)
    }

    /// What the kernel's tunnel device tells of a frame.
    #[inline(always)]
    pub(crate) fn tunnel<A: KernelAddress>(&self) -> Received<A> {
        const EPROTO: i64 = 71;
        // SAFETY: integers only, zero is valid for all of them.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: the key is as long as said.
        let result = unsafe {
            bpf_skb_get_tunnel_key(
                self.skb(),
                &raw mut key,
                size_of::<bpf_tunnel_key>() as u32,
                A::TUNNEL_FLAGS.into(),
            )
        };
        match result {
            0 => Received::Tunnelled { vni: key.tunnel_id, outer: A::remote(&key) },
            // The kernel's word for a key with addresses of the other family.
            result if result == -EPROTO => Received::OtherFamily,
            _ => Received::Plain,
        }
    }
}

/// How a frame has come to overlay0.
pub(crate) enum Received<A> {
    /// The kernel's tunnel device decapsulated it.
    Tunnelled {
        /// Its VNI.
        vni: u32,
        /// Its outer source.
        outer: A,
    },
    /// The device decapsulated it, and its outer header was of the other family.
    OtherFamily,
    /// Not by the tunnel.
    Plain,
}

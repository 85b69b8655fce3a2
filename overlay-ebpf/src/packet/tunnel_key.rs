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
    /// Tells the kernel's tunnel device where this frame goes.
    #[inline(always)]
    pub(crate) fn set_tunnel<A: KernelAddress + Prefixes>(
        &self,
        remote: A,
        ttl: u8,
        dont_fragment: bool,
    ) -> Result<(), Reason> {
        // SAFETY: integers only, zero is valid for all of them.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = settings::vni();
        A::put(&mut key, remote, A::local());
        key.tunnel_ttl = ttl;
        let mut flags = BPF_F_ZERO_CSUM_TX | A::TUNNEL_FLAGS;
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
    pub(crate) fn tunnel<A: KernelAddress>(&self) -> Option<(u32, A)> {
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
        if result != 0 {
            return None;
        }
        Some((key.tunnel_id, A::remote(&key)))
    }
}

//! Verdicts that send a frame elsewhere than up this host's stack.
use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_redir_neigh},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};

use super::Packet;
use crate::kernel::KernelAddress;

impl Packet<'_> {
    /// Verdict that sends the frame out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Verdict that has the frame arrive at `ifindex`, as if that interface had received it.
    #[inline(always)]
    pub(crate) fn redirect_to_ingress(ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
    }

    /// Verdict that sends the frame to a neighbour on `ifindex`, whose Ethernet header the kernel writes. It resolves the
    /// neighbour first if need be, and keeps probing it: a MAC address written by ourselves would be used for ever.
    #[inline(always)]
    pub(crate) fn redirect_neighbour(ifindex: u32, address: impl KernelAddress) -> i32 {
        // SAFETY: integers only, zero is valid for all of them; the helper wants the unused ones zero.
        let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
        address.name(&mut neighbour);
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
}

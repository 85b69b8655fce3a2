//! Verdicts that send a frame elsewhere than up this host's stack.
use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_redir_neigh},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};

use overlay_common::DELIVERY_MAGIC;

use super::Packet;
use crate::{kernel::KernelAddress, settings};

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

    /// Marks the frame as one that the fast path delivers through the egress of interface `ifindex`, for `overlay_track` there.
    ///
    /// The mark is in `cb`, which the kernel keeps from here to the programs at the egress (`__bpf_tx_skb` and
    /// `__dev_queue_xmit` write only the fields of `struct qdisc_skb_cb` in front of it), and which is nobody's afterwards: each
    /// queueing discipline begins with what it finds there. Everything else that travels with a packet belongs to the host's
    /// owner (`mark`, `priority`, `queue_mapping`), to another product (`tc_index`), or is cleared on the way (`tc_classid`).
    #[inline(always)]
    pub(crate) fn mark_delivery(&self, ifindex: u32) {
        self.write_cb(delivery_mark(ifindex));
    }

    /// Whether the frame is marked as a delivery through this interface, and takes the mark off. What is left in `cb` by
    /// whoever had the packet before may look like anything, so the frame must also have come from the underlay device.
    #[inline(always)]
    pub(crate) fn take_delivery_mark(&self) -> bool {
        // SAFETY: the context pointer the kernel gave; the verifier allows the fields that are read below.
        let skb = unsafe { &*self.skb() };
        let [a, b, c, d, e] = delivery_mark(self.ifindex());
        if skb.ingress_ifindex != settings::underlay()
            || skb.cb[0] != a
            || skb.cb[1] != b
            || skb.cb[2] != c
            || skb.cb[3] != d
            || skb.cb[4] != e
        {
            return false;
        }
        self.write_cb([0; 5]);
        true
    }

    /// Writes `cb`, word by word: the verifier allows no access by a pointer into the context.
    #[inline(always)]
    fn write_cb(&self, [a, b, c, d, e]: [u32; 5]) {
        let skb = self.skb();
        // SAFETY: the context pointer the kernel gave; the verifier allows these fields to be written. Volatile, since the
        // kernel reads them, and so that the stores stay five.
        unsafe {
            (&raw mut (*skb).cb[0]).write_volatile(a);
            (&raw mut (*skb).cb[1]).write_volatile(b);
            (&raw mut (*skb).cb[2]).write_volatile(c);
            (&raw mut (*skb).cb[3]).write_volatile(d);
            (&raw mut (*skb).cb[4]).write_volatile(e);
        }
    }

    /// Verdict that puts the frame into the namespace on the other side of veth `ifindex`, without its queue.
    #[inline(always)]
    pub(crate) fn redirect_peer(ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }
}

/// Tells whose delivery it is, and where to: the devices' indexes are this network's alone.
#[inline(always)]
fn delivery_mark(ifindex: u32) -> [u32; 5] {
    let [first, second] = DELIVERY_MAGIC;
    [first, second, settings::underlay(), settings::device(), ifindex]
}

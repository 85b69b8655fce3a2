//! Counts every packet once, and writes a log line about rare events.
use aya_ebpf::EbpfContext;
use aya_log_ebpf::warn;
use overlay_common::{Hook, Reason, reason::REASONS};

use crate::{
    helpers::now_ns,
    maps::{self, Pace},
};

const SECOND_NS: u64 = 1_000_000_000;

/// Packets and bytes of a frame, as the counters count them.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Packets: the segments of a GSO or GRO frame.
    pub(crate) packets: u64,
    /// Bytes of the inner IP packet.
    pub(crate) bytes: u64,
}

/// Adds a frame to its hook's and reason's counter.
#[inline(always)]
pub(crate) fn add(hook: Hook, reason: Reason, size: Size) {
    if let Some(count) = maps::counter(hook.counter(reason)) {
        count.packets += size.packets;
        count.bytes += size.bytes;
    }
}

/// Adds a frame to what was sent to a peer.
#[inline(always)]
pub(crate) fn add_sent(slot: u32, size: Size) {
    if let Some(count) = maps::peer_counter(slot) {
        count.sent.packets += size.packets;
        count.sent.bytes += size.bytes;
    }
}

/// Adds a frame to what was received from a peer.
#[inline(always)]
pub(crate) fn add_received(slot: u32, size: Size) {
    if let Some(count) = maps::peer_counter(slot) {
        count.received.packets += size.packets;
        count.received.bytes += size.bytes;
    }
}

/// Logs a drop, at most one line per reason, CPU and second: a flood must not become a flood of lines.
#[inline(never)]
pub(crate) fn report(context: &impl EbpfContext, hook: Hook, reason: Reason) {
    if take(reason as u32, 1, 1) {
        warn!(context, "drop {} {}", hook as u32, reason as u32);
    }
}

/// Logs that the table of stack flows is full.
#[inline(never)]
pub(crate) fn report_full(context: &impl EbpfContext) {
    if take(Reason::FlowTableFull as u32, 1, 1) {
        warn!(context, "the table of stack flows is full: raise --max-flows");
    }
}

/// Whether an ICMP answer may be sent: each CPU may send 100 a second, in bursts of 50 (the kernel's own icmp_msgs_burst).
#[inline(always)]
pub(crate) fn may_answer() -> bool {
    take(REASONS, 100, 50)
}

#[inline(always)]
fn take(index: u32, per_second: u64, burst: u64) -> bool {
    let now = now_ns();
    let Some(Pace { refilled_ns, tokens }) = maps::pace(index) else {
        return false;
    };
    let earned = now.wrapping_sub(*refilled_ns) / (SECOND_NS / per_second);
    if earned > 0 {
        *tokens = if *tokens + earned > burst { burst } else { *tokens + earned };
        *refilled_ns = now;
    }
    if *tokens == 0 {
        return false;
    }
    *tokens -= 1;
    true
}

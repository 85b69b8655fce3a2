//! Helpers of the kernel that are asked without a packet: the clock and random numbers.
use aya_ebpf::helpers::{
    bpf_ktime_get_ns,
    generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns},
};

/// CLOCK_MONOTONIC, in nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The same at the last tick, some milliseconds ago at most. The kernel asks no clock for it.
#[inline(always)]
pub(crate) fn tick_ns() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Ticks of the kernel's clock, of 1 to 10 ms each. The verifier makes a load of this call.
#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_jiffies64() }
}

/// A random number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

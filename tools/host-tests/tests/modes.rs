//! The host rung: every way packets can travel between hosts of ours, under every ingress and underlay. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;

mod modes {
    mod combinations;
    mod count;
    mod datagrams;
    mod direct;
    mod large;
    mod offloads;
}

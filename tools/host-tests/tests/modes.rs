//! Every backend between hosts of ours, under every ingress mode and on every kind of underlay. These tests need root.
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
    mod second_nic;
    mod unencapsulated;
}

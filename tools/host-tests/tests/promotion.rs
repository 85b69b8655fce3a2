//! Connections that begin on the stack and move to the fast path: when, what takes them back, and what stays behind in connection
//! tracking. These tests need root and `nft`.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;
#[path = "nat/traffic.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the helpers")]
mod traffic;

mod promotion {
    mod established;
    mod first;
    mod losses;
    mod many;
    mod overflows;
    mod tracking;
    mod translated;
}

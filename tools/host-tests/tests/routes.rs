//! What of Network is the host's own: addresses that no lease may have, its routes and its policies. These tests need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;

mod routes {
    mod moving;
    mod narrow;
    mod overlaps;
    mod policies;
    mod wide;
}

//! Real Docker daemons on hosts of the lab, whose containers are on the overlay. These tests need root, and the Docker
//! that `cargo xtask setup` unpacks.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;

#[expect(unreachable_pub, reason = "helpers shared by the modules beside it")]
mod docker {
    #[path = "../nat/traffic.rs"]
    #[allow(dead_code, reason = "each test binary uses its own part")]
    mod traffic;

    mod hosts;
    mod learning;
    mod networks;
    mod published;
}

//! Host traffic and NAT: rules of ours and of others on whole hosts, and that what went through the stack comes back
//! through it. Needs root, `nft` and `iptables`.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;

#[expect(unreachable_pub, reason = "helpers shared by the modules beside it")]
mod nat {
    mod forward;
    mod hosts;
    mod masquerade;
    mod notes;
    mod published;
    mod services;
    mod traffic;
}

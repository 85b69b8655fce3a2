//! NAT and the hosts' own traffic: with rules of ours and of others, a connection that left through the stack must come
//! back through it. These tests need root, `nft` and `iptables`.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;

#[expect(unreachable_pub, reason = "helpers shared by the modules beside it")]
mod nat {
    mod forward;
    mod hosts;
    mod masquerade;
    mod published;
    mod services;
    mod stack_flows;
    mod traffic;
}

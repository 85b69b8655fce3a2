//! The host's packet-filter rules: what a container sees under `--fast-path auto` is what it sees with the fast path off. These
//! tests need root, `nft`, `iptables` in both variants and `ebtables`.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

#[path = "cluster/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the bed")]
mod bed;
#[path = "nat/traffic.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the helpers")]
mod traffic;

#[expect(unreachable_pub, reason = "helpers shared by the modules beside it")]
mod rules {
    mod arrivals;
    mod commands;
    mod compare;
    mod conversation;
    mod firewalls;
    mod iptables;
    mod nftables;
    mod stage;
    mod table;
    mod troubled;
}

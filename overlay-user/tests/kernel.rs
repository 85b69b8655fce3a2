//! The kernel rung: the kernel runs the real programs on one frame at a time, and tests compare verdict, reason and frame.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "a bed shared by the modules beside it")]
mod kernel {
    mod bed;
    mod decap;
    mod direct;
    mod direct_decap;
    mod encap;
    mod foreign_tc;
    mod frames;
    mod ipv6;
    mod ipv6_overlay0;
    mod kept_ports;
    mod next_hops;
    mod overlay0;
    mod promotion;
    mod range;
    mod same_host;
    mod stack;
    mod tun_receive;
    mod tun_send;
    mod udp;
    mod udp_decap;
    mod unencapsulated;
    mod world;
    mod xdp;
}
mod support;

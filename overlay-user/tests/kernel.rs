//! The kernel rung: the real programs, run by the kernel on one frame at a time; frame in, verdict, reason and frame out.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "a bed shared by the modules beside it")]
mod kernel {
    mod bed;
    mod decap;
    mod direct;
    mod direct_decap;
    mod encap;
    mod frames;
    mod overlay0;
    mod stack;
    mod tun_receive;
    mod tun_send;
    mod udp;
    mod udp_decap;
    mod world;
    mod xdp;
}
mod support;

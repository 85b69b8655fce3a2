//! What must hold on every kernel: two hosts with each backend, under each ingress mode and each attach method. These
//! tests run on this machine's kernel as tests of hosts, and in VMs with others (`cargo xtask test --rung vm`), where
//! the facts that they print become docs/kernels.md. They need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "shared by the modules beside it")]
mod kernels {
    mod connection;
    mod evidence;
    pub mod scenario;
}

/// One test for each way to set up a host: `name: backend, ingress, attach method, further options of the agent;`.
macro_rules! setups {
    ($($name:ident: $backend:ident, $ingress:literal, $attach:literal, [$($option:literal),*];)+) => {
        $(#[test]
        fn $name() {
            kernels::scenario::run(overlay_lab::Backend::$backend, $ingress, $attach, &[$($option),*]);
        })+
    };
}

setups! {
    tc: Vxlan, "tc", "auto", [];
    tc_clsact: Vxlan, "tc", "clsact", [];
    xdp: Vxlan, "xdp", "auto", ["--endpoint-gro", "on"];
    xdp_strip: Vxlan, "xdp-strip", "auto", [];
    udp: Udp, "tc", "auto", [];
    host_gw: HostGw, "tc", "auto", [];
}

//! What must hold on every kernel: two hosts in each mode, under each ingress and each way of attaching. Runs on this kernel as one of the
//! hosts' tests, and in VMs with others (`cargo xtask test --rung vm`), where its lines of facts become docs/kernels.md.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "shared by the modules beside it")]
mod kernels {
    mod connection;
    mod evidence;
    pub mod scenario;
}

/// One test for each way a host can be set up: `name: backend, ingress, attach, options of the agent beside these;`.
macro_rules! ways {
    ($($name:ident: $backend:ident, $ingress:literal, $attach:literal, [$($option:literal),*];)+) => {
        $(#[test]
        fn $name() {
            kernels::scenario::run(overlay_lab::Backend::$backend, $ingress, $attach, &[$($option),*]);
        })+
    };
}

ways! {
    tc: Vxlan, "tc", "auto", [];
    tc_clsact: Vxlan, "tc", "clsact", [];
    xdp: Vxlan, "xdp", "auto", ["--endpoint-gro", "on"];
    xdp_strip: Vxlan, "xdp-strip", "auto", [];
    udp: Udp, "tc", "auto", [];
    host_gw: HostGw, "tc", "auto", [];
}

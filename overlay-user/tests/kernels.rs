//! What must hold on every kernel: two hosts under each ingress and each way of attaching. Runs on this kernel as one of the
//! hosts' tests, and in VMs with others (`cargo xtask test --rung vm`), where its lines of facts become docs/kernels.md.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "shared by the modules beside it")]
mod kernels {
    mod connection;
    mod evidence;
    pub mod scenario;
}

/// One test for each way a host can be set up: `name: ingress, attach, options of the agent beside these;`.
macro_rules! ways {
    ($($name:ident: $ingress:literal, $attach:literal, [$($option:literal),*];)+) => {
        $(#[test]
        fn $name() {
            kernels::scenario::run($ingress, $attach, &[$($option),*]);
        })+
    };
}

ways! {
    tc: "tc", "auto", [];
    tc_clsact: "tc", "clsact", [];
    xdp: "xdp", "auto", ["--endpoint-gro", "on"];
    xdp_strip: "xdp-strip", "auto", [];
}

//! Hosts of flannel's and of ours side by side in one etcd, with every backend that both have. I1 to I12 and D1 to D11
//! are the rows of docs/flannel.md. With `FLANNELD_BIN` in the environment, all of it runs against that flanneld too.
//! These tests need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "beds shared by the modules beside them")]
mod flannel {
    #[path = "../cluster/bed.rs"]
    #[allow(dead_code, reason = "each test binary uses its own part")]
    mod cluster;

    mod adopt;
    mod bed;
    mod defects;
    mod files;
    mod interop;
    mod mode;
    mod modes;
    mod packets;
    mod relay;
    mod rules;
    mod standin;
    mod store;
    mod udp;
}

//! The agent's handling of the kernel's devices, routes and tables, each test in network namespaces of its own. These
//! tests need root, `ip` and `unshare`.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]
#[expect(unreachable_pub, reason = "helpers shared by the modules beside them")]
mod host {
    mod bed;
    mod check;
    mod device;
    mod ipsec;
    mod learning;
    mod links;
    mod state;
}

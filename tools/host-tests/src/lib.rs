//! What the tests of whole hosts share: the agent's program, and hosts that run it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests' assertions do")]
use std::{
    env,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use overlay_common::ABI;
use overlay_lab::{Host, project};

pub mod hosts;

/// The program under test. Cargo builds it only for the tests of its own package, so it is built here when it is first
/// asked for. Tests that cargo did not start, as in a VM, take the program that is in the folder above their own.
pub fn overlay() -> &'static Path {
    static OVERLAY: LazyLock<PathBuf> = LazyLock::new(|| {
        if env::var_os("CARGO").is_some() {
            return project::build_overlay().unwrap();
        }
        // A test's path is target/debug/deps/NAME-HASH.
        let test = env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("overlay")
    });
    &OVERLAY
}

/// The folder in which a host's maps and links are pinned, in the layout of the program under test.
pub fn pins(host: &Host) -> PathBuf {
    layout(host, ABI)
}

/// The folder of the same pins in another layout.
pub fn layout(host: &Host, abi: u32) -> PathBuf {
    host.bpf_root().join("overlay").join(format!("v{abi}")).join("default")
}

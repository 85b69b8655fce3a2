//! `cargo xtask ci`: format and lints, and then the tests.
use anyhow::{Context as _, Result};
use overlay_project::{
    command::pass_through,
    project::{cargo, root, target},
};

use crate::{
    setup::{For, ebpf, provide},
    test,
};

pub(crate) fn ci() -> Result<()> {
    provide(&[For::Lints])?;
    pass_through(&mut cargo(&["fmt", "--check"])).context("run `cargo fmt`")?;
    pass_through(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    clippy_of_programs()?;
    test::test(&test::TestOptions::default())
}

/// For the host, the kernel programs are an empty library, so their lints need clippy for the BPF target.
fn clippy_of_programs() -> Result<()> {
    let Some(mut clippy) = ebpf::clippy() else {
        println!("no lints of the kernel programs: the eBPF toolchain in use brings no clippy for BPF");
        return Ok(());
    };
    clippy
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target().join("ebpf-clippy"))
        // aya-build passes this too. It says which machine's register layouts the programs see.
        .env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH))
        .args([
            "clippy",
            "--package",
            "overlay-ebpf",
            "--features",
            "bench",
            "--target",
            "bpfel-unknown-none",
        ])
        .args(["--", "--deny", "warnings"]);
    pass_through(&mut clippy)
}

//! Builds the kernel programs with whatever eBPF toolchain is there, so that `cargo build` alone builds everything.
use std::{env, ffi::OsString, path::PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?);
    // tools/frames is built by this, too, and stands one folder deeper.
    let root = manifest.ancestors().find(|folder| folder.join("overlay-ebpf").is_dir());
    let root = root.context("the workspace folder")?;
    let programs = root.join("overlay-ebpf");
    // `cargo xtask setup` leaves the toolchain in the workspace's target folder, or wherever this variable says.
    println!("cargo:rerun-if-env-changed=OVERLAY_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed={}", root.join("overlay-common/src").display());
    let kept = env::var_os("OVERLAY_EBPF_TOOLCHAIN")
        .map_or_else(|| root.join("target/ebpf-toolchain"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", kept.join("usr/bin/rustc").display());
    println!("cargo:rerun-if-changed={}", kept.join("bin/bpf-linker").display());

    let unpacked = kept.join("usr");
    let toolchain = if unpacked.join("bin/rustc").exists() {
        let libraries = unpacked.join("lib/x86_64-linux-gnu");
        prepend("PATH", &[kept.join("bin"), unpacked.join("bin")]);
        prepend("LD_LIBRARY_PATH", &[libraries]);
        // aya-ebpf asks for one unstable feature. Naming the crate keeps aya-build on the precompiled `core`.
        set("RUSTC_BOOTSTRAP", "aya_ebpf".into());
        Toolchain::Custom(unpacked.to_str().context("the toolchain's path is not UTF-8")?)
    } else {
        prepend("PATH", &[kept.join("bin")]);
        Toolchain::Nightly
    };
    // The programs of the agents that tests of upgrades start in place of the present one; overlay-frames's.
    let features: Vec<_> = [
        ("CARGO_FEATURE_NEXT_PROGRAM", "next-program"),
        ("CARGO_FEATURE_NEXT_LAYOUT", "next-layout"),
        ("CARGO_FEATURE_BENCH", "bench"),
    ]
    .into_iter()
    .filter_map(|(variable, feature)| env::var_os(variable).map(|_| feature))
    .collect();
    let package = Package {
        name: "overlay-ebpf",
        root_dir: programs.to_str().context("the workspace's path is not UTF-8")?,
        features: &features,
        ..Package::default()
    };
    aya_build::build_ebpf([package], toolchain).context(
        "build the kernel programs: no working eBPF toolchain. `cargo xtask setup` finds or installs one \
         (Debian's packages, or rustup's nightly with rust-src), and says what it lacks",
    )
}

fn prepend(name: &str, folders: &[PathBuf]) {
    let old = env::var_os(name).unwrap_or_default();
    let all =
        folders.iter().cloned().chain(env::split_paths(&old).filter(|path| !path.as_os_str().is_empty()));
    if let Ok(joined) = env::join_paths(all) {
        set(name, joined);
    }
}

fn set(name: &str, value: OsString) {
    // SAFETY: a build script's main thread, before it starts any other.
    unsafe { env::set_var(name, value) }
}

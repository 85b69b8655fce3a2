//! The eBPF toolchain: a rustc that compiles for BPF, and bpf-linker with the same LLVM.
use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{Progress, apt, find_command, quietly};
use overlay_project::{command, project};

const LINKER_VERSION: &str = "0.13.0";

/// For people whose machine set-up cannot change.
pub(super) const BY_HAND: &str = "  kernel programs, one of:
    rustup toolchain install nightly --component rust-src && cargo install bpf-linker
    on Debian 12: run `cargo xtask setup` once as root (it needs apt-get and llvm-22-dev)";

/// rustc with a precompiled `core` for BPF (no rust-src, no nightly), and clippy for the same target.
const DEBIAN: &[&str] =
    &["rustc-web", "cargo-web", "libstd-rust-web-dev", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// Sees to it that overlay-user's build script finds a toolchain.
pub(super) fn provide(progress: &Progress) -> Result<()> {
    let kept = project::ebpf_toolchain();
    let usr = kept.join("usr");
    let linker = kept.join("bin/bpf-linker");
    let unpacked = usr.join("bin/rustc").exists() && usr.join("bin/cargo-clippy").exists();
    if !unpacked && nightly_has_source() {
        if find_command("bpf-linker").is_some() || linker.exists() {
            return Ok(());
        }
        progress.say("rustup's nightly has rust-src; bpf-linker is missing: building it (minutes)");
        return install_linker(&kept, None);
    }
    if !unpacked {
        progress
            .say("no compiler for the kernel programs: neither rustup's nightly with rust-src nor Debian's");
        apt::unpack(DEBIAN, &kept, progress)?;
    }
    if linker.exists() {
        return Ok(());
    }
    let llvm = llvm_major(&usr)?;
    if !Path::new(&format!("/usr/lib/llvm-{llvm}/include/llvm-c/Core.h")).exists() {
        progress.say(&format!("llvm-{llvm}-dev is missing: bpf-linker is built with the LLVM of rustc"));
        apt::install(&[&format!("llvm-{llvm}-dev")], progress)?;
    }
    progress.say(&format!("building bpf-linker {LINKER_VERSION} with LLVM {llvm} (about two minutes)"));
    install_linker(&kept, Some(llvm))
}

/// `clippy` for the BPF target, if the toolchain in use brings it; further arguments may follow.
pub(crate) fn clippy() -> Option<Command> {
    let usr = project::ebpf_toolchain().join("usr");
    // Not `cargo clippy`: any cargo looks for its subcommands among the user's own first.
    let program = usr.join("bin/cargo-clippy");
    if !program.exists() {
        return None;
    }
    let mut clippy = Command::new(program);
    clippy
        .arg("clippy")
        .env("CARGO", usr.join("bin/cargo"))
        .env("RUSTC", usr.join("bin/rustc"))
        .env("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu"))
        // The one unstable feature that aya-ebpf asks for, as in overlay-user's build script.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf");
    Some(clippy)
}

/// Builds bpf-linker into `root`/bin: against the installed LLVM of that major version, or else the nightly's own.
fn install_linker(root: &Path, llvm: Option<u32>) -> Result<()> {
    // Its own build folder: nothing of it belongs among the project's.
    let build = tempfile::tempdir().context("create a build folder")?;
    let mut cargo = Command::new("cargo");
    match llvm {
        Some(llvm) => cargo
            .args(["install", "--no-default-features", "--features", &format!("llvm-{llvm}")])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")),
        None => cargo.args(["+nightly", "install"]),
    };
    cargo.args(["bpf-linker", "--version", LINKER_VERSION, "--locked", "--root"]).arg(root);
    quietly(cargo.env("CARGO_TARGET_DIR", build.path()))
}

/// Whether rustup has a nightly that can build `core` for BPF.
fn nightly_has_source() -> bool {
    command::run("rustc", ["+nightly", "--print", "sysroot"])
        .is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists())
}

/// Major version of the LLVM inside the unpacked rustc.
fn llvm_major(usr: &Path) -> Result<u32> {
    let version = command::output(
        Command::new(usr.join("bin/rustc"))
            .arg("-vV")
            .env("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu")),
    )
    .context("ask the unpacked rustc for its LLVM")?;
    major_of(&version).with_context(|| format!("no LLVM version in what rustc says of itself: {version}"))
}

fn major_of(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_major_is_read_from_what_rustc_says() {
        assert_eq!(major_of("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(major_of("rustc 1.96.0\n"), None);
    }
}

//! Builds the kernel programs with whatever eBPF toolchain is there, so that `cargo build` alone builds everything.
use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
};

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
    let out = PathBuf::from(env::var_os(OUT).context(OUT)?);
    in_shared_folder(&out, || {
        aya_build::build_ebpf([package], toolchain).context(
            "build the kernel programs: no working eBPF toolchain. `cargo xtask setup` finds or installs one \
             (Debian's packages, or rustup's nightly with rust-src), and says what it lacks",
        )
    })
}

/// The variable by which cargo says where what is built belongs; aya-build builds there, too.
const OUT: &str = "OUT_DIR";

/// Has `build` work in one folder for all packages, profiles and features, and copies what it makes to `out`. The programs'
/// crates take most of the time, and are the same for all.
fn in_shared_folder(out: &Path, build: impl FnOnce() -> Result<()>) -> Result<()> {
    // <target>/debug/build/overlay-user-<hash>/out. Should cargo's folders change, each has its own again.
    let target = out.ancestors().nth(4).filter(|target| target.join("CACHEDIR.TAG").exists());
    let Some(target) = target else { return build() };
    let shared = target.join("ebpf-programs");
    let made = shared.join("out");
    fs::create_dir_all(&made).with_context(|| format!("create {}", made.display()))?;
    let lock = File::create(shared.join("lock"))?;
    lock.lock().with_context(|| format!("lock {}", shared.display()))?;
    for file in files(&made)? {
        fs::remove_file(file)?;
    }
    set(OUT, made.clone().into_os_string());
    build()?;
    for file in files(&made)? {
        let name = file.file_name().context("a file without a name")?;
        fs::copy(&file, out.join(name)).with_context(|| format!("copy {}", file.display()))?;
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
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

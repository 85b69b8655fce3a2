//! The eBPF toolchain: a rustc that compiles for BPF, and bpf-linker with the same LLVM. Nothing of it is installed.
use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use overlay_project::{command, project};

use super::{
    apt,
    machine::quietly,
    progress::{Progress, lock},
};

const LINKER_VERSION: &str = "0.13.0";

/// For people whose machine set-up cannot change.
pub(super) const BY_HAND: &str = "  kernel programs, one of:
    rustup toolchain install nightly --component rust-src
    on Debian 12: nothing to install; `cargo xtask setup` downloads and unpacks a compiler (it needs apt-get, with package
    lists that `apt-get update` has fetched)
  then `cargo xtask setup` builds bpf-linker, for which cargo must reach crates.io";

/// rustc with a precompiled `core` for BPF (no rust-src, no nightly), and clippy for the same target.
const DEBIAN: &[&str] =
    &["rustc-web", "cargo-web", "libstd-rust-web-dev", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// Sees to it that overlay-user's build script finds a toolchain. Whether one that is there already is fit, is found by running it.
pub(super) fn provide(progress: &Progress) -> Result<()> {
    let kept = project::ebpf_toolchain();
    // Clones may share the folder.
    let _lock = lock(&kept, progress)?;
    let unpacked = Compiler::unpacked(&kept);
    let compiler = if unpacked.works() {
        unpacked
    } else if nightly_has_source() {
        // The build script prefers an unpacked toolchain, so it must not find the remains of one.
        remove(&kept.join("usr"), progress)?;
        Compiler::nightly()?
    } else {
        progress
            .say("no compiler for the kernel programs: neither rustup's nightly with rust-src nor Debian's");
        let packages = apt::with_libraries(DEBIAN, progress)?;
        apt::unpack(&packages, &kept, progress)?.put("usr", &kept.join("usr"))?;
        ensure!(
            unpacked.works(),
            "the compiler for BPF that was unpacked into {} does not run: {:#}",
            kept.display(),
            unpacked.version().err().unwrap_or_else(|| anyhow::anyhow!("parts of it are missing"))
        );
        unpacked
    };
    provide_linker(&kept, &compiler, progress)
}

/// A rustc, and what bpf-linker must have in common with it.
struct Compiler {
    rustc: PathBuf,
    /// Where it finds libraries that the system may lack.
    libraries: Option<PathBuf>,
}

impl Compiler {
    /// Debian's, below `kept`.
    fn unpacked(kept: &Path) -> Self {
        let usr = kept.join("usr");
        Self { rustc: usr.join("bin/rustc"), libraries: Some(usr.join("lib/x86_64-linux-gnu")) }
    }

    /// Rustup's nightly.
    fn nightly() -> Result<Self> {
        let sysroot = command::run("rustc", ["+nightly", "--print", "sysroot"])?;
        Ok(Self { rustc: Path::new(sysroot.trim()).join("bin/rustc"), libraries: None })
    }

    /// Whether the unpacked one is whole and runs.
    fn works(&self) -> bool {
        let Some(usr) = self.rustc.ancestors().nth(2) else { return false };
        let core = usr.join("lib/rustlib/bpfel-unknown-none/lib");
        let parts = [core, usr.join("bin/cargo-clippy"), usr.join("bin/clippy-driver")];
        parts.iter().all(|part| part.exists())
            && self.version().is_ok()
            && command::output(self.with_libraries(usr.join("bin/cargo")).arg("--version")).is_ok()
    }

    fn version(&self) -> Result<String> {
        command::output(self.with_libraries(&self.rustc).arg("-vV"))
    }

    /// A command that finds the libraries that were unpacked beside the compiler.
    fn with_libraries(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// The LLVM that `program` loads when it finds this compiler's libraries: its name and its file.
    fn llvm_of(&self, program: &Path) -> Result<(String, PathBuf)> {
        let listing = command::output(self.with_libraries("ldd").arg(program))?;
        llvm_in(&listing).with_context(|| format!("{} loads no LLVM: {listing}", program.display()))
    }
}

/// Builds bpf-linker below `kept`, unless one is there that runs and has the compiler's LLVM. One in PATH is not used: it
/// may have another LLVM, and the build script looks below `kept` first.
fn provide_linker(kept: &Path, compiler: &Compiler, progress: &Progress) -> Result<()> {
    let linker = kept.join("bin/bpf-linker");
    let (llvm, file) = compiler.llvm_of(&compiler.rustc).context("find the LLVM of the compiler for BPF")?;
    let works = || -> Result<()> {
        let version = command::output(compiler.with_libraries(&linker).arg("--version"))?;
        ensure!(version.trim().ends_with(LINKER_VERSION), "it is {}", version.trim());
        let (own, _) = compiler.llvm_of(&linker)?;
        ensure!(own == llvm, "it has {own}, the compiler has {llvm}");
        Ok(())
    };
    match linker.exists().then(works) {
        Some(Ok(())) => return Ok(()),
        Some(Err(error)) => progress.say(&format!("bpf-linker is no use: {error:#}")),
        None => progress.say("bpf-linker is missing: it links the kernel programs"),
    }
    let major = major_of(&compiler.version()?).context("rustc does not say which LLVM it has")?;
    progress.say(&format!("building bpf-linker {LINKER_VERSION} with {llvm} (about a minute)"));
    build_linker(kept, compiler, major, &file)?;
    works().with_context(|| format!("{} was built and is no use", linker.display()))
}

/// Builds bpf-linker into `kept`/bin. All that its build needs of LLVM is the library, so no development files are
/// installed: a folder with a link of the right name is what it takes for an installed LLVM.
fn build_linker(kept: &Path, compiler: &Compiler, major: u32, llvm: &Path) -> Result<()> {
    let prefix = kept.join("llvm");
    if prefix.exists() {
        fs::remove_dir_all(&prefix).with_context(|| format!("remove {}", prefix.display()))?;
    }
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("create {}", lib.display()))?;
    let own_name = llvm.file_name().context("LLVM's file has no name")?.to_owned();
    for name in [OsString::from("libLLVM.so"), own_name] {
        symlink(llvm, lib.join(name)).with_context(|| format!("link to {}", llvm.display()))?;
    }
    // It gets a build folder of its own, so that nothing of it is among the project's files.
    let build = tempfile::tempdir().context("create a build folder")?;
    let mut cargo = compiler.with_libraries("cargo");
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{major}")])
        // Nearly all its work is done by LLVM, which is optimised. To optimise the rest takes a minute, and saves less.
        .arg("--debug")
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false")
        .env("CARGO_PROFILE_DEV_OVERFLOW_CHECKS", "false")
        .arg("--root")
        .arg(kept)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", build.path());
    quietly(&mut cargo)
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

/// Whether rustup has a nightly that can build `core` for BPF.
fn nightly_has_source() -> bool {
    command::run("rustc", ["+nightly", "--print", "sysroot"])
        .is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists())
}

fn remove(folder: &Path, progress: &Progress) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    progress.say(&format!("{} is not whole, and not needed: removing it", folder.display()));
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

/// Name and file of the LLVM in what ldd prints: `libLLVM.so.22.1 => /usr/lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x...)`.
fn llvm_in(listing: &str) -> Option<(String, PathBuf)> {
    let (name, rest) = listing
        .lines()
        .find_map(|line| line.trim().split_once(" => ").filter(|_| line.contains("libLLVM")))?;
    let (file, _) = rest.rsplit_once(" (")?;
    Some((name.to_owned(), PathBuf::from(file)))
}

/// Major version of the LLVM in what rustc says of itself.
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

    #[test]
    fn llvm_is_read_from_ldd_with_spaces_in_its_path() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibLLVM.so.22.1 => /a b/libLLVM.so.22.1 (0x00007f44)\n\
                       \tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n";
        let expected = ("libLLVM.so.22.1".to_owned(), PathBuf::from("/a b/libLLVM.so.22.1"));
        assert_eq!(llvm_in(listing), Some(expected));
        assert_eq!(llvm_in("\tlibLLVM.so.22.1 => not found\n"), None);
        assert_eq!(llvm_in("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n"), None);
    }
}

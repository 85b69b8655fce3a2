//! Where things are in the project, and cargo as the project calls it.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::command;

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/"))
}

/// Where cargo puts what it builds: where it has put this program, unless the variable says otherwise.
pub fn target() -> PathBuf {
    let here = || {
        let program = env::current_exe().ok()?;
        // Cargo marks its folder for programs that make backups.
        program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).map(Path::to_owned)
    };
    let told = env::var_os("CARGO_TARGET_DIR").map(|folder| root().join(folder));
    told.or_else(here).unwrap_or_else(|| root().join("target"))
}

/// Where the eBPF toolchain is kept when it is the project's own; overlay-user's build script looks at the same place.
pub fn ebpf_toolchain() -> PathBuf {
    env::var_os("OVERLAY_EBPF_TOOLCHAIN").map_or_else(|| root().join("target/ebpf-toolchain"), PathBuf::from)
}

/// A real Docker for the lab's hosts. Set-up unpacks it, and the lab starts it.
pub mod docker {
    use std::path::PathBuf;

    /// The folder that it is unpacked to.
    pub fn folder() -> PathBuf {
        super::target().join("docker")
    }

    /// A file that is written when unpacking is complete.
    pub fn mark() -> PathBuf {
        folder().join("ready")
    }
}

/// The cargo that runs this program, to be started in the workspace's folder.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(args);
    cargo
}

/// The variable that names a folder in which all programs of the project have been built already. `cargo xtask test` sets it:
/// tests that run at the same time must not wait for each other's cargo.
pub const BUILT: &str = "XTASK_BUILT";

/// The packages for which cargo is called, whichever program or test is wanted. They decide on the features of the crates that
/// they share, and with other features most of those would be built again.
pub const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "overlay-ebpf"];

/// Builds a program of the project as the tests do, and returns its path. Not optimised: the kernel carries the packets, the
/// kernel programs are optimised always, and an optimised agent takes minutes longer to build.
pub fn build(program: &str) -> Result<PathBuf> {
    build_by(&[], program, command::pass_through)
}

fn build_by(words: &[&str], program: &str, run: impl FnOnce(&mut Command) -> Result<()>) -> Result<PathBuf> {
    if let Some(folder) = env::var_os(BUILT) {
        return Ok(PathBuf::from(folder).join(program));
    }
    run(cargo(&["build", "--bin", program]).args(PACKAGES).args(words))?;
    Ok(target().join("debug").join(program))
}

/// Builds the `overlay` binary as the tests do, and returns its path.
pub fn build_overlay() -> Result<PathBuf> {
    build("overlay")
}

/// Builds the `overlay` binary as users have it, optimised, and returns its path. The benchmark measures this one.
pub fn build_release() -> Result<PathBuf> {
    build_optimised("overlay-user", "overlay")
}

/// Builds a package's program optimised, and returns its path.
pub fn build_optimised(package: &str, program: &str) -> Result<PathBuf> {
    command::pass_through(&mut cargo(&["build", "--release", "--package", package, "--bin", program]))?;
    Ok(target().join("release").join(program))
}

/// An agent that stands for a later version, for tests of upgrades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Its programs differ (on the wire, the outer TTL is 63), its maps do not.
    Program,
    /// Its maps have another layout, one ABI higher.
    Layout,
}

/// Builds such an agent as [`build_overlay`] does, beside the present one, and returns its path.
pub fn build_next(next: Next) -> Result<PathBuf> {
    let name = match next {
        Next::Program => "program",
        Next::Layout => "layout",
    };
    let (feature, binary) = (format!("overlay-user/next-{name}"), format!("overlay-next-{name}"));
    // cargo's messages would fill the screen, so they are shown only if it fails.
    build_by(&["--features", &feature], &binary, |cargo| command::output(cargo).map(drop))
}

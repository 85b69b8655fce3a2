//! A real Docker for the lab's hosts, unpacked below target/docker. Installed, it would start a daemon of the machine's
//! own, and alter its packet filter.
//!
//! The libraries that its programs need are installed, though: they do nothing by themselves. Unpacked ones would be found
//! by LD_LIBRARY_PATH alone, and dockerd starts a second dockerd that unpacks images (docker-applyLayer) without it.
use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use overlay_project::{
    command,
    project::docker::{folder, mark},
};

use super::{apt, progress::Progress};

/// For people whose machine set-up cannot change.
pub(super) const BY_HAND: &str =
    "\n  docker: on Debian 12 `cargo xtask setup`, as root, downloads and unpacks it (it needs apt-get)";

/// The daemon and all it starts, an init for it, and what the lab's image is made of.
const PACKAGES: &[&str] = &["docker.io", "containerd", "runc", "tini", "busybox-static"];

/// Those of its programs that are linked dynamically, below its folder.
const PROGRAMS: &[&str] = &[
    "usr/sbin/dockerd",
    "usr/bin/docker",
    "usr/bin/containerd",
    "usr/bin/containerd-shim-runc-v2",
    "usr/sbin/runc",
];

/// Sees to it that Docker is there.
pub(super) fn provide(progress: &Progress) -> Result<()> {
    let folder = folder();
    if !mark().exists() {
        progress.say("Docker is missing: the lab's hosts run real daemons");
        let beside = folder.parent().context("the folder above target/docker")?;
        let packages = apt::known(PACKAGES, progress)?;
        let unpacked = apt::unpack(&packages, beside, progress)?;
        fs::write(unpacked.tree().join("ready"), "")?;
        unpacked.put("", &folder)?;
    }
    let missing = missing_libraries(&folder)?;
    if missing.is_empty() {
        return Ok(());
    }
    progress.say(&format!("Docker's programs need {}", missing.join(" ")));
    let mut libraries = apt::with_libraries(PACKAGES, progress)?;
    libraries.retain(|package| !PACKAGES.contains(&package.as_str()));
    apt::install(&libraries.iter().map(String::as_str).collect::<Vec<_>>(), progress)?;
    let missing = missing_libraries(&folder)?;
    ensure!(
        missing.is_empty(),
        "Docker's programs below {} lack {}: remove that folder, and run `cargo xtask setup` again",
        folder.display(),
        missing.join(" ")
    );
    Ok(())
}

/// Names of the libraries that the system's loader does not find for Docker's programs.
fn missing_libraries(folder: &Path) -> Result<Vec<String>> {
    let programs = PROGRAMS.iter().map(|program| folder.join(program)).filter(|program| program.exists());
    // The daemon's own children are started with no environment, hence not with this one's LD_LIBRARY_PATH either.
    let listing = command::output(Command::new("ldd").args(programs).env_remove("LD_LIBRARY_PATH"))?;
    Ok(not_found(&listing))
}

/// Names in lines of ldd's such as `libdevmapper.so.1.02.1 => not found`.
fn not_found(listing: &str) -> Vec<String> {
    let names = listing.lines().filter_map(|line| line.trim().strip_suffix(" => not found"));
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_are_not_found_are_read_from_ldd() {
        let listing = "/x/dockerd:\n\tlinux-vdso.so.1 (0x00007ffe)\n\tlibdevmapper.so.1.02.1 => not found\n\
                       /x/runc:\n\tlibseccomp.so.2 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                       \tlibdevmapper.so.1.02.1 => not found\n";
        assert_eq!(not_found(listing), ["libdevmapper.so.1.02.1", "libseccomp.so.2"]);
    }
}

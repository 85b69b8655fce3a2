//! The initramfs: busybox, the kernel's modules, the lab's tools, the programs under test, and an init that runs them.
use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::debian::Unpacked;
use overlay_project::command;

use crate::setup::machine::find_command;

/// These tools must be the real ones, because busybox's have too few options.
const LAB_TOOLS: &[&str] = &["ip", "tc", "ping", "ethtool", "nsenter", "setpriv", "mount", "umount"];

/// Builds the initramfs in `work`, and returns its file. Every program has the same path in it as here.
pub(super) fn build(
    work: &Path,
    tools: &Path,
    kernel: &Unpacked,
    tests: &[&Path],
    programs: &[&Path],
    nonce: &str,
) -> Result<PathBuf> {
    let root = Root { folder: work.join("root") };
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "modules"] {
        fs::create_dir_all(root.folder.join(folder))?;
    }
    let busybox = tools.join("bin/busybox");
    fs::copy(&busybox, root.folder.join("bin/busybox"))?;
    symlink("busybox", root.folder.join("bin/sh"))?;
    for module in &kernel.modules {
        fs::copy(module, root.folder.join("modules").join(super::files::name(module)))?;
    }
    for tool in LAB_TOOLS {
        let path = find_command(tool).with_context(|| format!("{tool} is missing"))?;
        root.add(&path, &Path::new("/usr/bin").join(tool))?;
    }
    for program in tests.iter().chain(programs) {
        root.add(program, program)?;
    }
    root.write_init(tests, nonce)?;
    let image = work.join("initramfs");
    // The shell makes the pipe, so that file names need not pass through this process.
    let line = "\"$0\" find . | \"$0\" cpio -o -H newc";
    let made = Command::new("sh")
        .args(["-c", line])
        .arg(busybox.canonicalize()?)
        .current_dir(&root.folder)
        .stdout(File::create(&image)?)
        .stderr(Stdio::null())
        .status()?;
    ensure!(made.success() && fs::metadata(&image)?.len() > 0, "busybox's cpio ended with {made}");
    Ok(image)
}

struct Root {
    folder: PathBuf,
}

impl Root {
    /// The place on this machine of a path in the guest. Its folder is made.
    fn at(&self, path: &Path) -> Result<PathBuf> {
        let here = self.folder.join(path.strip_prefix("/")?);
        if let Some(folder) = here.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(here)
    }

    /// Copies a program without its debug symbols to `path`, and the shared libraries that it needs to their own paths.
    fn add(&self, program: &Path, path: &Path) -> Result<()> {
        // Only sections that are never loaded are removed. The embedded BPF object is data, and stays.
        command::output(
            Command::new("strip").arg("--strip-debug").arg("-o").arg(self.at(path)?).arg(program),
        )?;
        for library in libraries(&command::output(Command::new("ldd").arg(program))?) {
            let here = self.at(library)?;
            if !here.exists() {
                fs::copy(library, here).with_context(|| format!("copy {}", library.display()))?;
            }
        }
        Ok(())
    }

    fn write_init(&self, tests: &[&Path], nonce: &str) -> Result<()> {
        let mut init = include_str!("init.sh").replace("@NONCE@", nonce);
        for test in tests {
            let test = test.display();
            // Two tests run at a time, as there are two CPUs. They share nothing, and most of their time goes to the
            // emulation.
            init += &format!("'{test}' --test-threads=2 --show-output\necho \"{nonce} ended $? {test}\"\n");
        }
        init += &format!("echo '{nonce} end'\npoweroff -f\n");
        let path = self.folder.join("init");
        fs::write(&path, init)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(())
    }
}

/// The paths in what ldd prints, which has lines like `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and
/// `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn libraries(listing: &str) -> Vec<&Path> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(Path::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_their_loader_are_read_from_ldd() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t\
                       /lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(listing),
            [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
    }
}

//! The rung `fresh`: what the README promises of a bare machine, done on one. The machine is a root that debootstrap makes
//! below target/fresh, with nothing in it; it gets rustup's toolchain, a clean clone, and namespaces of its own.
//!
//! Nothing that ends takes cleaning up, whatever ends it: mounts are in a mount namespace, all processes in a process
//! namespace, both go with the namespace's first process, and that one goes with us. Folders and control groups carry
//! the number of our process, so that the next run knows those of one that was killed.
use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_project::project;

use self::groups::Groups;
use crate::{
    interrupt,
    setup::{self, Progress},
};

mod base;
mod enter;
mod furnish;
mod groups;
mod steps;

pub(crate) use self::enter::{Inside, enter};

/// How folders and control groups of runs begin; the process's id follows.
const RUN: &str = "overlay-fresh-";

/// Where the clone is in the root. The space is there to show that none is in the way.
const CLONE: &str = "root/a clone/overlay";

/// Makes a root and carries out the steps in there; `whole`: all of CI, in place of them.
pub(crate) fn run(whole: bool) -> Result<()> {
    let progress = Progress::start();
    let folder = project::target().join("fresh");
    let base = {
        let _lock = setup::lock(&folder, &progress)?;
        remove_orphans(&folder)?;
        base::provide(&folder, &progress)?
    };
    let name = format!("{RUN}{}", std::process::id());
    let run = Run(folder.join(&name));
    let root = run.0.join("root");
    let toolchain = furnish::furnish(&base, &root, &progress)?;
    let groups = Groups::make(&name)?;
    let inside = Inside::new(&root, &toolchain, groups.folders(), whole);
    let ended = carry_out(&inside);
    let left = groups.remove();
    let below = mounts_below(&run.0)?;
    ensure!(below.is_empty(), "the fresh root left mounts behind: {}", below.join(", "));
    drop(run);
    ended.and(left)
}

/// Starts the namespaces' first process and waits for its end, or ends it when we are told to end.
fn carry_out(inside: &Inside) -> Result<()> {
    // Whatever becomes of the file it was started from: a build may replace it.
    let mut command = Command::new("/proc/self/exe");
    // A process group of its own: Ctrl-C is for us, and we end it.
    command.args(inside.arguments()).stdin(Stdio::null()).process_group(0);
    let mut first = First(command.spawn().context("start the first process of the fresh root")?);
    loop {
        if let Some(status) = first.0.try_wait()? {
            ensure!(status.success(), "the fresh root ended with {status}");
            return Ok(());
        }
        if interrupt::came() {
            bail!("interrupted");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Takes everything in the namespaces with it.
struct First(Child);

impl Drop for First {
    fn drop(&mut self) {
        // The only error is that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder of a run, removed when dropped.
struct Run(PathBuf);

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes what runs left that were killed.
fn remove_orphans(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_orphan) {
            remove_tree(&path)?;
        }
    }
    groups::remove_orphans()
}

/// Whether this is the name of a run whose process is gone.
fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix(RUN).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Never below a mount: what is mounted there is not ours to remove.
fn remove_tree(folder: &Path) -> Result<()> {
    let mounts = mounts_below(folder)?;
    ensure!(mounts.is_empty(), "{} is not removed: {} is mounted", folder.display(), mounts.join(", "));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Mount points below `folder`, as this process sees them.
fn mounts_below(folder: &Path) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(points_below(&mounts, folder))
}

fn points_below(mounts: &str, folder: &Path) -> Vec<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // The kernel writes a space as an octal number.
    points
        .map(|point| point.replace("\\040", " "))
        .filter(|point| Path::new(point).starts_with(folder))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_whose_process_is_gone_are_orphans() {
        let own = format!("{RUN}{}", std::process::id());
        // The largest process id there can be is smaller.
        let gone = format!("{RUN}4294967295");
        assert!(is_orphan(&gone));
        for name in [own.as_str(), "base-bookworm", RUN, "overlay-fresh-x"] {
            assert!(!is_orphan(name), "{name}");
        }
    }

    #[test]
    fn mounts_below_a_folder_are_found_with_spaces_in_their_names() {
        let mounts =
            "proc /proc proc rw 0 0\ntmpfs /a\\040b/run/root/dev tmpfs rw 0 0\next4 /a\\040bc ext4 rw 0 0\n";
        assert_eq!(points_below(mounts, Path::new("/a b")), ["/a b/run/root/dev"]);
    }
}

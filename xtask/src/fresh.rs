//! The rung `fresh`: what the README promises of a bare machine, done on one. The machine is a root that debootstrap makes
//! below target/fresh, with nothing in it; it gets rustup's toolchain, a clean clone, and namespaces of its own.
//!
//! Nothing that ends takes cleaning up, whatever ends it: mounts are in a mount namespace, all processes in a process
//! namespace, both go with the namespace's first process, and that one goes with us. Folders and control groups carry
//! the number of our process, so that the next run knows those of one that was killed.
use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_project::project;

use self::{
    groups::Groups,
    leftovers::{RUN, mounts_below, remove_orphans, remove_tree},
};
use crate::{
    interrupt,
    setup::progress::{Progress, lock},
};

mod base;
mod enter;
mod furnish;
mod groups;
mod leftovers;
mod steps;

pub(crate) use self::enter::{Inside, enter};

/// Makes a root and carries out the steps in there; `whole`: all of CI, in place of them.
pub(crate) fn run(whole: bool) -> Result<()> {
    let progress = Progress::start();
    let folder = project::target().join("fresh");
    let base = {
        let _lock = lock(&folder, &progress)?;
        remove_orphans(&folder)?;
        groups::remove_orphans()?;
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
        // The only possible error is that it has ended already.
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

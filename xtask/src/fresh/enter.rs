//! The way into the fresh root: namespaces, mounts, `pivot_root`. A chroot would not do, because a process that enters the
//! namespaces of another one in there, as `docker exec` does, would land in this machine's root.
use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, exit},
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::pivot_root,
};

use super::{
    furnish::Toolchain,
    groups::{Hierarchy, hierarchies},
    steps,
};

/// Devices of this machine that the root gets.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty", "net/tun"];

/// What the processes that enter the root must know: the arguments of a hidden command of ours.
#[derive(Args, Clone, Debug)]
pub(crate) struct Inside {
    /// This process is the first one of the new process namespace.
    #[arg(long)]
    first: bool,
    /// Run all of CI, in place of the rung's steps.
    #[arg(long)]
    whole: bool,
    #[arg(long)]
    root: PathBuf,
    /// The toolchain's folder on this machine, and in the root.
    #[arg(long)]
    toolchain: PathBuf,
    #[arg(long)]
    toolchain_there: PathBuf,
    /// The root's own control groups.
    #[arg(long)]
    group: Vec<PathBuf>,
}

impl Inside {
    pub(super) fn new(root: &Path, toolchain: &Toolchain, groups: &[PathBuf], whole: bool) -> Self {
        Self {
            first: false,
            whole,
            root: root.to_owned(),
            toolchain: toolchain.here.clone(),
            toolchain_there: toolchain.there.clone(),
            group: groups.to_owned(),
        }
    }

    /// The same as words of a command line.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["in-fresh-root".into()];
        let flags = [("--first", self.first), ("--whole", self.whole)];
        words.extend(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag.into()));
        let paths = [
            ("--root", &self.root),
            ("--toolchain", &self.toolchain),
            ("--toolchain-there", &self.toolchain_there),
        ];
        for (option, path) in paths.into_iter().chain(self.group.iter().map(|group| ("--group", group))) {
            words.extend([option.into(), path.clone().into_os_string()]);
        }
        words
    }
}

/// Makes the namespaces and has their first process enter the root. That process dies with this one, and this one with
/// the one that started it.
pub(crate) fn enter(inside: &Inside) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("ask to be killed with the parent")?;
    if inside.first {
        return enter_as_first(inside);
    }
    for group in &inside.group {
        fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("join {}", group.display()))?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP)
        .context("make namespaces")?;
    let first = Inside { first: true, ..inside.clone() };
    let status = Command::new("/proc/self/exe")
        .args(first.arguments())
        .status()
        .context("start the first process of the namespaces")?;
    // The first process has printed any error itself.
    exit(status.code().unwrap_or(1));
}

fn enter_as_first(inside: &Inside) -> Result<()> {
    let root = &inside.root;
    let hierarchies = hierarchies()?;
    // From here on, mounts are not visible outside of this namespace.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make the mounts private")?;
    bind(root, root)?;
    let toolchain = root.join(&inside.toolchain_there);
    bind(&inside.toolchain, &toolchain)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, &toolchain, None::<&str>, read_only, None::<&str>)
        .context("make the toolchain read only")?;
    devices(&root.join("dev"))?;
    fresh("proc", &root.join("proc"), "")?;
    fresh("sysfs", &root.join("sys"), "")?;
    fresh("bpf", &root.join("sys/fs/bpf"), "")?;
    control_groups(root, &hierarchies)?;
    std::env::set_current_dir(root).with_context(|| format!("enter {}", root.display()))?;
    // This mounts the old root over the new one; unmounting it then leaves the new one.
    pivot_root(".", ".").context("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("let go of the old root")?;
    std::env::set_current_dir("/").context("enter the new root")?;
    steps::carry_out(inside.whole)
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mount {} on {}", from.display(), to.display()))
}

/// Mounts a file system of the kernel's.
fn fresh(kind: &str, place: &Path, options: &str) -> Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount {kind} with `{options}` on {}", place.display()))
}

fn devices(dev: &Path) -> Result<()> {
    fresh("tmpfs", dev, "mode=755")?;
    for folder in ["net", "pts", "shm"] {
        fs::create_dir(dev.join(folder))?;
    }
    for name in DEVICES {
        let here = Path::new("/dev").join(name);
        // If this machine has no TUN, the tests that need one report that.
        if here.exists() {
            File::create(dev.join(name))?;
            bind(&here, &dev.join(name))?;
        }
    }
    fresh("devpts", &dev.join("pts"), "newinstance,ptmxmode=0666,mode=620")?;
    fresh("tmpfs", &dev.join("shm"), "mode=1777")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

/// Mounts the hierarchies at the places where this machine has them. In the control group namespace, the group that this
/// process joined is the root of each.
fn control_groups(root: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let place =
        |hierarchy: &Hierarchy| root.join(hierarchy.point.strip_prefix("/").unwrap_or(&hierarchy.point));
    let above = root.join("sys/fs/cgroup");
    if hierarchies.iter().all(|hierarchy| place(hierarchy) != above) {
        fresh("tmpfs", &above, "mode=755")?;
    }
    for hierarchy in hierarchies {
        let place = place(hierarchy);
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        fresh(&hierarchy.kind, &place, &hierarchy.options)?;
        if hierarchy.kind == "cgroup2" {
            hand_down(&place)?;
        }
    }
    Ok(())
}

/// In version 2, a group that holds processes cannot give controllers to groups below it. So the processes move into a group
/// below, as the init of a machine does it.
fn hand_down(group: &Path) -> Result<()> {
    let controllers = fs::read_to_string(group.join("cgroup.controllers"))?;
    if controllers.trim().is_empty() {
        return Ok(());
    }
    fs::create_dir(group.join("init"))?;
    fs::write(group.join("init/cgroup.procs"), "0")?;
    let all: Vec<_> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write(group.join("cgroup.subtree_control"), all.join(" "))
        .with_context(|| format!("hand {} down in {}", controllers.trim(), group.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        inside: Inside,
    }

    #[test]
    fn what_is_handed_on_is_what_is_read() {
        let inside = Inside {
            first: true,
            whole: true,
            root: PathBuf::from("/a b/root"),
            toolchain: PathBuf::from("/opt/t"),
            toolchain_there: PathBuf::from("opt/t"),
            group: vec![PathBuf::from("/sys/fs/cgroup/cpu/x"), PathBuf::from("/sys/fs/cgroup/pids/x")],
        };
        // clap expects a program's name as the first word.
        let read = Whole::try_parse_from(inside.arguments()).unwrap().inside;
        assert_eq!(format!("{read:?}"), format!("{inside:?}"));
    }
}

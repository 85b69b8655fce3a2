//! Control groups of a fresh root's own, one in each hierarchy of this machine: as that machine's root groups they hold
//! what is made there, apart from groups of the same names outside.
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::leftovers::is_orphan;

/// How long killed processes may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a hierarchy is mounted, and what makes another mount of the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) point: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub(super) kind: String,
    /// For version 1 the controllers, or the name of one without any.
    pub(super) options: String,
}

/// All hierarchies that are mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(hierarchy).collect())
}

/// The hierarchy in a line of mountinfo such as `30 29 0:25 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu`.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (place, what) = line.split_once(" - ")?;
    let (point, mut what) = (place.split(' ').nth(4)?, what.split(' '));
    let (kind, options) = (what.next()?, what.nth(1)?);
    if !matches!(kind, "cgroup" | "cgroup2") {
        return None;
    }
    let told: Vec<_> =
        options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr")).collect();
    let named = told.iter().any(|option| option.starts_with("name="));
    let options = match kind {
        "cgroup2" => String::new(),
        _ if named => format!("none,{}", told.join(",")),
        _ => told.join(","),
    };
    Some(Hierarchy { point: PathBuf::from(point), kind: kind.to_owned(), options })
}

/// Where this process's own group is below a hierarchy's mount point, by /proc/self/cgroup (`4:memory:/a`, `0::/`).
fn own_group(hierarchy: &Hierarchy, groups: &str) -> PathBuf {
    let of = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let wanted = hierarchy.options.strip_prefix("none,").unwrap_or(&hierarchy.options);
        (controllers == wanted).then(|| path.trim_start_matches('/').to_owned())
    };
    // In version 2, a group that holds processes, as ours does, cannot give controllers to groups below it.
    let own = if hierarchy.kind == "cgroup2" { None } else { groups.lines().find_map(of) };
    let place = hierarchy.point.join(own.unwrap_or_default());
    if place.is_dir() { place } else { hierarchy.point.clone() }
}

/// A control group, which is removed when this is dropped.
pub(super) struct Groups(Vec<PathBuf>);

impl Groups {
    pub(super) fn make(name: &str) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let mut groups = Self(Vec::new());
        for hierarchy in hierarchies()? {
            let above = own_group(&hierarchy, &own);
            let group = above.join(name);
            fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
            groups.0.push(group.clone());
            // In version 1, no process can join before these are set.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if hierarchy.kind == "cgroup" && group.join(file).exists() {
                    fs::write(group.join(file), fs::read(above.join(file))?)?;
                }
            }
            // A quarter of what others weigh when there is more to do than there are CPUs: other tests may run at the same
            // time, and measure.
            for (file, weight) in [("cpu.shares", "256"), ("cpu.weight", "25")] {
                if group.join(file).exists() {
                    fs::write(group.join(file), weight)?;
                }
            }
        }
        Ok(groups)
    }

    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.0
    }

    /// Fails if a process in there does not end.
    pub(super) fn remove(self) -> Result<()> {
        self.0.iter().try_for_each(|group| remove(group))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.0 {
            let _ = remove(group);
        }
    }
}

/// Removes the groups of runs that were killed.
pub(super) fn remove_orphans() -> Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    for hierarchy in hierarchies()? {
        for entry in fs::read_dir(own_group(&hierarchy, &own))?.flatten() {
            if entry.file_name().to_str().is_some_and(is_orphan) {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Removes a group and those below it, once their last processes have ended.
fn remove(group: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        match remove_tree(group) {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => {
                bail!("processes were left in the control group {}: {error}", group.display());
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Removes the innermost first. Their files are removed with them.
fn remove_tree(group: &Path) -> io::Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_with_what_mounts_them_again() {
        let read = |line: &str| hierarchy(line).map(|found| (found.kind, found.options));
        let of = |kind: &str, options: &str| Some((kind.to_owned(), options.to_owned()));
        let memory = "36 29 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        assert_eq!(read(memory), of("cgroup", "memory"));
        let named = "37 29 0:32 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(read(named), of("cgroup", "none,name=systemd"));
        let second =
            "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
        assert_eq!(read(second), of("cgroup2", ""));
        assert_eq!(read("24 29 0:22 / /proc rw - proc proc rw"), None);
    }

    #[test]
    fn the_own_group_is_that_of_the_same_controllers() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let hierarchy = |options: &str| Hierarchy {
            point: folder.path().to_owned(),
            kind: "cgroup".to_owned(),
            options: options.to_owned(),
        };
        let groups = "9:name=systemd:/\n4:memory:/a/b\n3:cpu,cpuacct:/gone\n0::/\n";
        assert_eq!(own_group(&hierarchy("memory"), groups), folder.path().join("a/b"));
        for elsewhere in ["none,name=systemd", "cpu,cpuacct", "pids"] {
            assert_eq!(own_group(&hierarchy(elsewhere), groups), folder.path());
        }
    }
}

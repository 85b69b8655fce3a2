//! Cleaning up after a lab by its name alone: when it is dropped, on Ctrl-C, and after a process that was killed.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

use crate::{
    command::sh,
    interrupt,
    names::{MARK, folder_of, owner},
};

/// How long killed processes may take to end. Containers end with their daemon's process namespace, one after the
/// other.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends every process of the lab `name` and removes its namespaces, control groups, pins and folder. It is no error if
/// some of these are gone already.
pub fn sweep(name: &str) -> Result<()> {
    let started = Instant::now();
    // A process may be starting while the others are looked for, so this is repeated until none is left.
    while started.elapsed() < PATIENCE {
        let left = Leftovers::of(name);
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left.processes {
            // ESRCH means that the process has ended by itself meanwhile.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for namespace in &left.namespaces {
            let _ = sh(&format!("ip netns delete {namespace}"));
        }
        for mount in &left.mounts {
            let _ = sh(&format!("umount --lazy {mount}"));
        }
        for group in &left.groups {
            // EBUSY means that a process in the group is still ending. The next turn tries again.
            let _ = fs::remove_dir(group);
        }
        // A folder with a mount in it stays: the pins below the mount may be in use.
        if left.mounts.is_empty() && left.folder {
            let _ = fs::remove_dir_all(folder_of(name));
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("lab {name} does not go away: {}", Leftovers::of(name).list().join(", "))
}

/// All there is of a lab, whether its process runs or not: namespaces, control groups, mounts (and so pins), folders and processes.
pub fn leaks(name: &str) -> Vec<String> {
    Leftovers::of(name).list()
}

/// Names of the labs whose process is gone, because they were kept on purpose or because the process was killed.
pub fn orphans() -> Vec<String> {
    let folders = names_in("/tmp").chain(names_in("/run/netns").filter_map(|name| {
        let (lab, _) = name.split_once('-')?;
        Some(lab.to_owned())
    }));
    let labs: BTreeSet<String> = folders
        .filter(|name| owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()))
        .collect();
    labs.into_iter().collect()
}

struct Leftovers {
    processes: Vec<i32>,
    namespaces: Vec<String>,
    mounts: Vec<String>,
    /// Control groups, the innermost first.
    groups: Vec<PathBuf>,
    folder: bool,
}

impl Leftovers {
    fn of(lab: &str) -> Self {
        let folder = folder_of(lab);
        let mark = format!("{MARK}={lab}");
        let groups = control_groups(lab);
        let mut processes: BTreeSet<i32> = names_in("/proc")
            .filter_map(|name| name.parse().ok())
            .filter(|pid| carries(*pid, &mark))
            .collect();
        // The processes of a Docker container do not carry the lab's mark in their environment; they are found by their
        // control group.
        let members =
            groups.iter().map(|group| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default());
        processes.extend(
            members.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()),
        );
        Self {
            processes: processes.into_iter().collect(),
            namespaces: names_in("/run/netns").filter(|name| name.starts_with(&format!("{lab}-"))).collect(),
            mounts: fs::read_to_string("/proc/self/mounts")
                .unwrap_or_default()
                .lines()
                .filter_map(|line| line.split(' ').nth(1))
                .filter(|path| Path::new(path).starts_with(&folder))
                .map(str::to_owned)
                .collect(),
            groups,
            folder: folder.exists(),
        }
    }

    fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    fn list(&self) -> Vec<String> {
        let mut list: Vec<_> = self.processes.iter().map(|pid| format!("process {pid}")).collect();
        list.extend(self.namespaces.iter().map(|name| format!("namespace {name}")));
        list.extend(self.mounts.iter().map(|path| format!("mount {path}")));
        list.extend(self.groups.iter().map(|path| format!("control group {}", path.display())));
        if self.folder {
            list.push("its folder in /tmp".to_owned());
        }
        list
    }
}

/// The control groups that carry the lab's name, and those below them, the innermost first. They are looked for in
/// every hierarchy: version 1 has one for each controller, version 2 a single one at the root.
fn control_groups(lab: &str) -> Vec<PathBuf> {
    const ROOT: &str = "/sys/fs/cgroup";
    let hierarchies = names_in(ROOT).map(|name| Path::new(ROOT).join(name)).chain([PathBuf::from(ROOT)]);
    let mut groups: Vec<_> = hierarchies.map(|root| root.join(lab)).filter(|group| group.is_dir()).collect();
    let mut known = 0;
    while known < groups.len() {
        let below = fs::read_dir(&groups[known]).into_iter().flatten().flatten().map(|entry| entry.path());
        groups.extend(below.filter(|path| path.is_dir()).collect::<Vec<_>>());
        known += 1;
    }
    groups.reverse();
    groups
}

fn names_in(folder: &str) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// Whether a process was started by the lab. A zombie has no environment left to tell.
fn carries(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()))
}

static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has Ctrl-C, SIGTERM and similar signals sweep the lab `name` before the process ends.
pub(crate) fn on_signals(name: &str) -> Result<()> {
    static HANDLER: Once = Once::new();
    live().push(name.to_owned());
    let mut outcome = Ok(());
    HANDLER.call_once(|| {
        outcome = Signals::new(TERM_SIGNALS).context("watch for signals").map(|mut signals| {
            thread::spawn(move || {
                let signal = signals.forever().next().unwrap_or_default();
                interrupt::remember();
                eprintln!("interrupted: cleaning up");
                // The lock is held to the end: a thread that wants to clean up meanwhile waits here, and prints nothing
                // any more.
                let live = live();
                for name in live.iter() {
                    if let Err(error) = sweep(name) {
                        eprintln!("{error:#}");
                    }
                }
                std::process::exit(128 + signal);
            });
        });
    });
    outcome
}

/// Has signals leave the lab `name` alone from now on, because it is gone or is to be kept.
pub(crate) fn forget(name: &str) {
    live().retain(|live| live != name);
}

fn live() -> std::sync::MutexGuard<'static, Vec<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Writes into the state folder from which store, and which of its revisions, the installed peers come, so that the next agent
//! notices a store that was replaced, wiped or restored while no agent ran; and beside it which removals the guard holds back
//! and has let through, so that the next agent does not let them through.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use log::{info, warn};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    agent::{
        guard::{Guard, WINDOW},
        status::Status,
    },
    datapath::state::Paths,
    model::clock::{unix_at, unix_now},
    store::{Origin, Revision},
};

/// The files are written at most this often.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether they are still there.
const LOOK: Duration = Duration::from_secs(5);
/// How long the next try waits after one of them could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// What an earlier agent wrote down for this one.
#[derive(Clone, Debug)]
pub struct Noted {
    /// From which store, and which of its revisions, the installed peers come.
    pub origin: Origin,
    /// Which removals were held back, and which were let through not long ago.
    pub guard: Guard,
}

/// What an earlier agent wrote. If its origin cannot be read, it counts as unknown.
pub fn read(paths: &Paths) -> Option<Noted> {
    Some(Noted { origin: read_origin(paths)?, guard: read_guard(paths) })
}

fn read_origin(paths: &Paths) -> Option<Origin> {
    let text = fs::read_to_string(paths.origin_path()).ok()?;
    let (cluster, revision) = text.trim().split_once(' ')?;
    Some(Origin { cluster: cluster.parse().ok()?, revision: Revision(revision.parse().ok()?) })
}

/// What is written of a guard. The monotonic clock means nothing to the next agent after a reboot, so times are of day, in
/// seconds since the Unix epoch.
#[derive(Serialize, Deserialize)]
struct Removals {
    held: BTreeSet<IpNet>,
    let_through: BTreeMap<IpNet, u64>,
}

/// The guard of an earlier agent. If it left none, or none that can be read, nothing is held back.
pub fn read_guard(paths: &Paths) -> Guard {
    let path = paths.removals_path();
    let Ok(text) = fs::read(&path) else { return Guard::default() };
    let Removals { held, let_through } = match serde_json::from_slice(&text) {
        Ok(removals) => removals,
        Err(error) => {
            warn!("{}: {error}: removals that an earlier agent held back are judged anew", path.display());
            return Guard::default();
        }
    };
    let (now, today) = (Instant::now(), unix_now());
    // A time that is to come was written before the time of day was put right. It counts as now, which is the safe side.
    let age = |at| Duration::from_secs(today.saturating_sub(at));
    let let_through = let_through.into_iter().filter(|(_, at)| age(*at) < WINDOW);
    let let_through = let_through.map(|(subnet, at)| (subnet, now.checked_sub(age(at)).unwrap_or(now)));
    Guard::restored(held, let_through.collect())
}

/// Writes both down until the agent ends. The origin is not written while removals are held back: if they are held because
/// another history answers, a restart must not let them through.
pub async fn keep_noted(paths: Paths, status: watch::Sender<Status>) -> Result<()> {
    let mut watched = status.subscribe();
    let mut files = Files::new(paths);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = watched.wait_for(|status| files.take_in(status)) => drop(news?),
            _ = look.tick() => {
                files.look();
                if !files.is_news() {
                    continue;
                }
            }
        }
        // A state folder that became full or read-only must not end the agent. The guard still holds back mass removals after a
        // restart.
        let (restored, error) = match files.write() {
            Ok(restored) => (restored, None),
            Err(error) => (0, Some(format!("{error:#}"))),
        };
        status.send_if_modified(|status| {
            status.state.files_restored += restored;
            let news = status.state.error != error;
            if news {
                match &error {
                    Some(error) => warn!("{error}; traffic goes on, trying again every {RETRY:?}"),
                    None => info!("the state folder can be written again"),
                }
                status.state.error.clone_from(&error);
            }
            news || restored > 0
        });
        sleep(if error.is_none() { PAUSE } else { RETRY }).await;
    }
}

/// One of the files: what it should say, and what it does say.
struct Kept<T> {
    path: PathBuf,
    wanted: Option<T>,
    written: Option<T>,
    /// Whether somebody has removed it.
    is_missing: bool,
}

impl<T: Clone + PartialEq> Kept<T> {
    fn new(path: PathBuf, found: Option<T>) -> Self {
        Self { path, wanted: found.clone(), written: found, is_missing: false }
    }

    fn want(&mut self, wanted: &T) {
        if self.wanted.as_ref() != Some(wanted) {
            self.wanted = Some(wanted.clone());
        }
    }

    fn is_news(&self) -> bool {
        self.wanted != self.written
    }

    /// Looks whether the file is gone that should say what was written.
    fn look(&mut self) {
        if self.written.is_some() && !self.path.exists() {
            self.written = None;
            self.is_missing = true;
        }
    }

    /// Writes what is news; no text removes the file. Returns how many files somebody had removed.
    fn write(&mut self, paths: &Paths, text: impl Fn(&T) -> Option<String>) -> Result<u64> {
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.wanted != self.written) else { return Ok(0) };
        match text(wanted) {
            Some(text) => paths.replace(&self.path, text.as_bytes())?,
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", self.path.display()));
                }
                _ => {}
            },
        }
        self.written.clone_from(&self.wanted);
        let is_missing = std::mem::take(&mut self.is_missing);
        if is_missing {
            warn!("somebody removed {}: written again", self.path.display());
        }
        Ok(is_missing.into())
    }
}

/// Both files.
struct Files {
    paths: Paths,
    origin: Kept<Origin>,
    guard: Kept<Guard>,
}

impl Files {
    fn new(paths: Paths) -> Self {
        let origin = Kept::new(paths.origin_path(), read_origin(&paths));
        // What it says is compared by the monotonic clock, which the file does not have. So it is written once more.
        let guard = Kept::new(paths.removals_path(), None);
        Self { paths, origin, guard }
    }

    /// Takes in what is to be written. Returns whether anything is.
    fn take_in(&mut self, status: &Status) -> bool {
        if status.store.following && status.peers.held.is_empty() {
            let (cluster, revision) = (status.store.cluster, Revision(status.store.revision));
            self.origin.want(&Origin { cluster, revision });
        }
        if let Some(guard) = &status.peers.guard {
            self.guard.want(guard);
        }
        self.is_news()
    }

    fn is_news(&self) -> bool {
        self.origin.is_news() || self.guard.is_news()
    }

    /// Looks whether somebody has removed a file. Without the origin, the next agent would believe any store.
    fn look(&mut self) {
        self.origin.look();
        if self.guard.written.as_ref().is_some_and(|guard| text(guard).is_some()) {
            self.guard.look();
        }
    }

    /// Writes what is news. Returns how many files somebody had removed.
    fn write(&mut self) -> Result<u64> {
        // The guard comes first: whoever reads the origin must not believe more than the guard did.
        let guard = self.guard.write(&self.paths, text)?;
        let line = |origin: &Origin| Some(format!("{} {}\n", origin.cluster, origin.revision));
        Ok(guard + self.origin.write(&self.paths, line)?)
    }
}

/// What is written of a guard: nothing, if it need not know anything.
fn text(guard: &Guard) -> Option<String> {
    let let_through = guard.let_through().iter().map(|(subnet, when)| (*subnet, unix_at(*when)));
    let removals = Removals { held: guard.held().clone(), let_through: let_through.collect() };
    let is_empty = removals.held.is_empty() && removals.let_through.is_empty();
    if is_empty { None } else { serde_json::to_string(&removals).ok().map(|text| text + "\n") }
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;

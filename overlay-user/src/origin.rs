//! Which history of the store the peers in force come from, noted in the state folder: the next agent must notice a store
//! that was exchanged, wiped or restored while none ran.
use std::{fs, time::Duration};

use log::warn;
use tokio::{sync::watch, time::sleep};

use crate::{
    state::Paths,
    status::Status,
    store::{Origin, Revision},
};

/// It is noted this often at most.
const PAUSE: Duration = Duration::from_millis(100);

/// What an earlier agent noted. What cannot be read counts as unknown.
pub fn read(paths: &Paths) -> Option<Origin> {
    let text = fs::read_to_string(paths.origin_path()).ok()?;
    let (cluster, revision) = text.trim().split_once(' ')?;
    Some(Origin { cluster: cluster.parse().ok()?, revision: Revision(revision.parse().ok()?) })
}

/// Notes it until the agent ends. Not while removals are held back because another history answers: a restart must not
/// let them through.
pub async fn keep_noted(paths: Paths, mut status: watch::Receiver<Status>) -> anyhow::Result<()> {
    let mut noted = read(&paths);
    loop {
        let settled = |status: &Status| {
            status.store.following && status.peers.held.is_empty() && noted != Some(origin(status))
        };
        let now = origin(&*status.wait_for(settled).await?);
        // A folder that became read-only must not end the agent; the mass rule still guards.
        if let Err(error) =
            paths.replace(&paths.origin_path(), format!("{} {}\n", now.cluster, now.revision).as_bytes())
        {
            warn!("{error}");
        }
        noted = Some(now);
        sleep(PAUSE).await;
    }
}

fn origin(status: &Status) -> Origin {
    Origin { cluster: status.store.cluster, revision: Revision(status.store.revision) }
}

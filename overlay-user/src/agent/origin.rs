//! Writes into the state folder from which store, and which of its revisions, the installed peers come, so that the next agent
//! notices a store that was replaced, wiped or restored while no agent ran.
use std::{fs, time::Duration};

use log::{info, warn};
use tokio::{sync::watch, time::sleep};

use crate::{
    agent::status::Status,
    datapath::state::Paths,
    store::{Origin, Revision},
};

/// It is noted this often at most.
const PAUSE: Duration = Duration::from_millis(100);
/// Until the next try when it cannot be noted.
const RETRY: Duration = Duration::from_secs(1);

/// What an earlier agent noted. What cannot be read counts as unknown.
pub fn read(paths: &Paths) -> Option<Origin> {
    let text = fs::read_to_string(paths.origin_path()).ok()?;
    let (cluster, revision) = text.trim().split_once(' ')?;
    Some(Origin { cluster: cluster.parse().ok()?, revision: Revision(revision.parse().ok()?) })
}

/// Notes it until the agent ends. Not while removals are held back because another history answers: a restart must not
/// let them through.
pub async fn keep_noted(paths: Paths, status: watch::Sender<Status>) -> anyhow::Result<()> {
    let mut watched = status.subscribe();
    let mut noted = read(&paths);
    loop {
        let settled = |status: &Status| {
            status.store.following && status.peers.held.is_empty() && noted != Some(origin(status))
        };
        let now = origin(&*watched.wait_for(settled).await?);
        // A folder that became full or read-only must not end the agent; the mass rule still guards.
        let written =
            paths.replace(&paths.origin_path(), format!("{} {}\n", now.cluster, now.revision).as_bytes());
        let error = written.err().map(|error| error.to_string());
        status.send_if_modified(|status| {
            let news = status.state.error != error;
            if news {
                match &error {
                    Some(error) => warn!("{error}; traffic goes on, trying again every {RETRY:?}"),
                    None => info!("the state folder can be written again"),
                }
                status.state.error.clone_from(&error);
            }
            news
        });
        if error.is_none() {
            noted = Some(now);
            sleep(PAUSE).await;
        } else {
            sleep(RETRY).await;
        }
    }
}

fn origin(status: &Status) -> Origin {
    Origin { cluster: status.store.cluster, revision: Revision(status.store.revision) }
}

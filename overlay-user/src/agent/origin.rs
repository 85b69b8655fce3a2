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

/// The origin is written at most this often.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the file is still there.
const LOOK: Duration = Duration::from_secs(5);
/// How long the next try waits after the origin could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// The origin that an earlier agent wrote. If it cannot be read, it counts as unknown.
pub fn read(paths: &Paths) -> Option<Origin> {
    let text = fs::read_to_string(paths.origin_path()).ok()?;
    let (cluster, revision) = text.trim().split_once(' ')?;
    Some(Origin { cluster: cluster.parse().ok()?, revision: Revision(revision.parse().ok()?) })
}

/// Writes the origin down until the agent ends. It is not written while removals are held back: if they are held because
/// another history answers, a restart must not let them through.
pub async fn keep_noted(paths: Paths, status: watch::Sender<Status>) -> anyhow::Result<()> {
    let mut watched = status.subscribe();
    let mut recorded = read(&paths);
    loop {
        let settled = |status: &Status| {
            status.store.following && status.peers.held.is_empty() && recorded != Some(origin(status))
        };
        let now = tokio::select! {
            settled = watched.wait_for(settled) => origin(&*settled?),
            () = sleep(LOOK) => {
                // Somebody may have removed the file. Without it, the next agent would believe any store.
                if !paths.origin_path().exists() {
                    recorded = None;
                }
                continue;
            }
        };
        // A state folder that became full or read-only must not end the agent. The guard still holds back mass removals after a
        // restart.
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
            recorded = Some(now);
            sleep(PAUSE).await;
        } else {
            sleep(RETRY).await;
        }
    }
}

fn origin(status: &Status) -> Origin {
    Origin { cluster: status.store.cluster, revision: Revision(status.store.revision) }
}

//! `overlay down`: removes every trace of a network from this host.
use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use log::warn;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    agent::removal,
    cli::options::{DEFAULT_DEVICE, Down},
    datapath::{
        DatapathError,
        links::{Links, Orphan},
        state::{Paths, Record},
    },
};

pub(super) async fn down(options: &Down) -> Result<()> {
    let paths = options.show.place.paths();
    std::fs::create_dir_all(&paths.state).with_context(|| format!("create {}", paths.state.display()))?;
    // A running agent would put back what is removed here.
    let lock = Arc::new(paths.lock().context("end the agent first")?);
    paths.uncover()?;
    let record = paths.record().ok().flatten();
    let elsewhere = record.as_ref().filter(|record| !record.is_in_this_namespace());
    if let Some(record) = elsewhere {
        warn!(
            "the network was attached in network namespace {}, which is not this one: unless that one is gone, run this \
             there",
            record.netns
        );
    }
    let device = match (&options.device, &record) {
        (Some(named), _) => Some(named.clone()),
        // A device of that name in this namespace belongs to somebody else.
        (None, Some(_)) if elsewhere.is_some() => None,
        (None, Some(Record { device: Some(device), .. })) => Some(device.clone()),
        (None, _) => Some(DEFAULT_DEVICE.to_owned()),
    };
    if let Some(device) = &device {
        paths.refuse_shared_device(device)?;
    }
    let mut failures = removal::take_away(&paths, device.as_deref(), lock).await;
    match orphans(&paths, record.as_ref()).await {
        Ok(orphans) if record.is_some() => failures.extend(orphans.iter().map(Orphan::to_string)),
        // Without a record nobody knows whether they are this network's.
        Ok(orphans) => orphans.iter().for_each(|orphan| warn!("{orphan}")),
        Err(error) => failures.push(error.to_string()),
    }
    if !failures.is_empty() {
        bail!("network {} is not wholly gone: {}", paths.network, failures.join("; "));
    }
    if options.show.json {
        println!("{}", json!({ "removed": paths.network }));
    } else {
        println!(
            "network {} is gone from this host: programs, maps, {}routes, rules. Its lease stays in the store until it ends",
            paths.network,
            device.map(|device| format!("{device}, ")).unwrap_or_default()
        );
    }
    Ok(())
}

/// What still runs of the network although its pins are gone. The kernel detaches a moment after the pin is removed.
async fn orphans(paths: &Paths, record: Option<&Record>) -> Result<Vec<Orphan>, DatapathError> {
    const LOOKS: u32 = 20;
    let mut found = Vec::new();
    for _ in 0..LOOKS {
        found = Links::orphans(&paths.bpf_root, record.map(|record| record.subnet))?;
        if found.is_empty() || record.is_none() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(found)
}

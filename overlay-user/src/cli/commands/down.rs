//! `overlay down`: removes every trace of a network from this host.
use anyhow::{Context as _, Result, bail};
use log::warn;
use serde_json::json;

use crate::{
    agent::removal,
    cli::options::{DEFAULT_DEVICE, Down},
    datapath::state::Record,
};

pub(super) async fn down(options: &Down) -> Result<()> {
    let paths = options.show.place.paths();
    std::fs::create_dir_all(&paths.state).with_context(|| format!("create {}", paths.state.display()))?;
    // A running agent would put back what is removed here.
    let lock = paths.lock().context("end the agent first")?;
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
    let failures = removal::take_away(&paths, device.as_deref(), lock).await;
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

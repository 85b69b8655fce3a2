//! `overlay down`: removes every trace of a network from this host.
use anyhow::{Context as _, Result, bail};
use log::warn;
use serde_json::json;

use crate::{
    cli::options::{DEFAULT_DEVICE, Down},
    datapath::{
        links::Links,
        state::{Lock, Paths, Record},
        xdp::XdpLink,
    },
    host::{device, firewall, netlink::Netlink},
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
        // Whatever has its name here is another's.
        (None, Some(_)) if elsewhere.is_some() => None,
        (None, Some(Record { device: Some(device), .. })) => Some(device.clone()),
        (None, _) => Some(DEFAULT_DEVICE.to_owned()),
    };
    if let Some(device) = &device {
        paths.refuse_shared_device(device)?;
    }
    let failures = take_away(&paths, device.as_deref(), lock).await;
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

/// Removes the network from this host; returns what stayed, and why.
pub(super) async fn take_away(paths: &Paths, device: Option<&str>, lock: Lock) -> Vec<String> {
    // What can go goes, whatever else fails.
    let mut failures = Vec::new();
    // XDP first: what it has unwrapped needs TC's program behind it.
    if let Err(error) = XdpLink::new(&paths.pins).detach_others(None) {
        failures.push(error.to_string());
    }
    // The device before the programs that check what it takes in.
    if let Some(device) = device
        && let Err(error) = remove_device(device).await
    {
        failures.push(format!("{error:#}"));
    }
    // Before the pins go, which would only end the links among them.
    let layouts = paths.all_layouts().unwrap_or_else(|error| {
        failures.push(error.to_string());
        Vec::new()
    });
    for pins in layouts {
        if let Err(error) = Links::detach_all(&pins) {
            failures.push(error.to_string());
        }
    }
    if let Err(error) = firewall::remove(&paths.network).await {
        failures.push(error);
    }
    if let Err(error) = paths.remove(lock) {
        failures.push(error.to_string());
    }
    failures
}

async fn remove_device(name: &str) -> Result<()> {
    Ok(device::remove(&Netlink::open()?, name).await?)
}

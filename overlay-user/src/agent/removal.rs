//! Takes a network off this host: its device, programs, maps and rules.
use std::sync::Arc;

use anyhow::Result;

use crate::{
    datapath::{
        links::Links,
        state::{Lock, Paths, Record},
        xdp::XdpLink,
    },
    host::{device, firewall, netlink::Netlink},
};

/// Removes the network from this host. Returns what could not be removed, and why.
pub async fn take_away(paths: &Paths, device: Option<&str>, lock: Arc<Lock>) -> Vec<String> {
    // Every part that can be removed is removed, whatever else fails.
    let mut failures = Vec::new();
    // XDP is detached first, because a frame that it has stripped needs TC's program behind it.
    if let Err(error) = XdpLink::new(&paths.pins).detach_others(None) {
        failures.push(error.to_string());
    }
    // The device is removed before the programs that check what it takes in.
    if let Some(device) = device
        && let Err(error) = remove_device(device).await
    {
        failures.push(format!("{error:#}"));
    }
    if let Some(record) = paths.record().ok().flatten().filter(Record::is_in_this_namespace)
        && let Err(error) = stop_discarding(&record).await
    {
        failures.push(format!("{error:#}"));
    }
    // Programs are detached before the pins are removed, because that would only end the attachments that are links.
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
        failures.push(format!("{error:#}"));
    }
    if let Err(error) = paths.remove(lock) {
        failures.push(error.to_string());
    }
    failures
}

/// Removes what `--ip-blackhole-route` added.
async fn stop_discarding(record: &Record) -> Result<()> {
    Ok(Netlink::open()?.stop_dropping_unrouted(record.subnet).await?)
}

async fn remove_device(name: &str) -> Result<()> {
    device::remove(&Netlink::open()?, name).await
}

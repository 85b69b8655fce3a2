//! Taking a network off this host: device, programs, maps, rules.
use anyhow::Result;

use crate::{
    datapath::{
        links::Links,
        state::{Lock, Paths},
        xdp::XdpLink,
    },
    host::{device, firewall, netlink::Netlink},
};

/// Removes the network from this host; returns what stayed, and why.
pub async fn take_away(paths: &Paths, device: Option<&str>, lock: Lock) -> Vec<String> {
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
        failures.push(format!("{error:#}"));
    }
    if let Err(error) = paths.remove(lock) {
        failures.push(error.to_string());
    }
    failures
}

async fn remove_device(name: &str) -> Result<()> {
    device::remove(&Netlink::open()?, name).await
}

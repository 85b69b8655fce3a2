//! Bridges that only forward, as where br_netfilter is not loaded, for the measures of two containers of one host.
use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_lab::{Host, Member, PingOptions, wait_until};
use serde_json::Value;

use super::network::{Case, Network};

/// Whether what bridges forward passes iptables. A kernel without br_netfilter has no such sysctl.
const BRIDGE_NETFILTER: &str = "bridge/bridge-nf-call-iptables";
/// How long an agent may take to notice.
const SOON: Duration = Duration::from_secs(30);

/// Hosts whose bridges only forward until this is dropped. All other measures are taken with what the kernel begins with.
pub(super) struct PlainBridges {
    switched: Vec<Host>,
}

impl PlainBridges {
    /// Switches bridge netfilter off on the hosts of all networks, and waits until their agents know.
    pub(super) fn on<'a>(networks: impl Iterator<Item = &'a Network> + Clone) -> Result<Self> {
        let mut bridges = Self { switched: Vec::new() };
        for host in networks.clone().flat_map(|network| network.lab().hosts()) {
            if host.namespace().sysctl(BRIDGE_NETFILTER, "0").is_ok() {
                bridges.switched.push(host.clone());
            }
        }
        for network in networks.filter(|network| network.case != Case::Stack) {
            network.members().iter().take(1).try_for_each(knows)?;
        }
        Ok(bridges)
    }
}

impl Drop for PlainBridges {
    fn drop(&mut self) {
        for host in &self.switched {
            if let Err(error) = host.namespace().sysctl(BRIDGE_NETFILTER, "1") {
                eprintln!("{}: {error:#}", host.name());
            }
        }
    }
}

/// Has the containers of a host learned, which takes a packet to somebody who is not behind the same bridge, and waits until the
/// programs hand their frames on. Another build may have no word for that.
fn knows(member: &Member) -> Result<()> {
    let gateway = member.subnet.replace(".0/24", ".1").parse()?;
    for container in &member.containers {
        let ping = container.ping(gateway, PingOptions::default())?;
        ensure!(ping.complete(), "pings are lost: {}", ping.output);
    }
    wait_until("the programs to hand on what the bridge would only forward", SOON, || {
        let rows: Value = serde_json::from_str(&member.overlay(&["endpoints", "--json"])?)?;
        let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
        let is_known = |row: &Value| row["same_host"].as_bool().unwrap_or(true);
        Ok(rows.len() >= member.containers.len() && rows.iter().all(is_known))
    })
}

//! `overlay peers` shows the peers in the pinned maps, and what the agent knows of them if it runs.
use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{endpoint::done, output::say, show::ask};
use crate::{
    agent::control::{Request, Response},
    cli::{options::Peers, table::table},
    datapath::tables::{PeerTraffic, Tables, peer_of},
    model::{entries::PeerIpv6, mac::Mac},
};

#[derive(Serialize)]
struct PeerRow {
    /// Base address of the peer's subnet.
    subnet: IpAddr,
    public_ip: IpAddr,
    vtep_mac: Option<Mac>,
    /// What the agent knows of it in IPv6. It is left out for a peer of IPv4 alone, and while no agent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<PeerIpv6>,
    /// `yes`, `no` (a lease asks for the peer, and it is not in force), or `held` (its lease is gone, and the mass-delete guard
    /// keeps it).
    installed: &'static str,
    #[serde(flatten)]
    traffic: PeerTraffic,
}

pub(super) async fn peers(options: &Peers) -> Result<()> {
    let show = &options.show;
    if options.accept_deletions {
        return done(show, &Request::AcceptDeletions).await;
    }
    if options.resync {
        return done(show, &Request::Resync).await;
    }
    let paths = show.place.paths();
    let tables =
        Tables::open(&paths.pins).with_context(|| format!("show the peers of network {}", paths.network))?;
    let mut rows = BTreeMap::new();
    for (subnet, peer) in tables.peers.entries()? {
        let subnet = IpAddr::from(subnet);
        let row = PeerRow {
            subnet,
            public_ip: IpAddr::from(peer.outer),
            vtep_mac: peer_of(&peer).vtep_mac,
            ipv6: None,
            installed: "yes",
            traffic: tables.traffic(peer.slot)?,
        };
        rows.insert(subnet, row);
    }
    if let Ok(Response::Peers(lines)) = ask(show, &Request::Peers).await {
        for line in lines {
            let subnet = line.subnet.network();
            let installed = if line.held {
                "held"
            } else if line.installed {
                "yes"
            } else {
                "no"
            };
            let row = rows.entry(subnet).or_insert(PeerRow {
                subnet,
                public_ip: line.peer.public_ip,
                vtep_mac: line.peer.vtep_mac,
                ipv6: None,
                installed,
                traffic: PeerTraffic::default(),
            });
            row.installed = installed;
            row.ipv6 = line.peer.ipv6;
        }
    }
    let rows: Vec<_> = rows.into_values().collect();
    if show.json {
        say(serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    say(peers_table(&rows))?;
    Ok(())
}

/// The table of peers. It has columns of IPv6 if any peer has an IPv6 half.
fn peers_table(rows: &[PeerRow]) -> String {
    let mut titles = vec!["subnet", "public ip", "vtep mac", "in force", "sent", "received"];
    let has_ipv6 = rows.iter().any(|row| row.ipv6.is_some());
    if has_ipv6 {
        titles.extend(["ipv6 subnet", "public ipv6"]);
    }
    let cells = rows.iter().map(|row| {
        let mut cells = vec![
            row.subnet.to_string(),
            row.public_ip.to_string(),
            row.vtep_mac.map_or("-".to_owned(), |mac| mac.to_string()),
            row.installed.into(),
            row.traffic.sent_packets.to_string(),
            row.traffic.received_packets.to_string(),
        ];
        if has_ipv6 {
            let half = row.ipv6.map(|half| (half.subnet.to_string(), half.public_ip.to_string()));
            let (subnet, public_ip) = half.unwrap_or(("-".to_owned(), "-".to_owned()));
            cells.extend([subnet, public_ip]);
        }
        cells
    });
    table(&titles, cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_columns_of_ipv6_where_there_is_any() {
        let row = |n: u8, ipv6| PeerRow {
            subnet: [10, 244, n, 0].into(),
            public_ip: [10, 99, 0, n].into(),
            vtep_mac: None,
            ipv6,
            installed: "yes",
            traffic: PeerTraffic::default(),
        };
        let half = PeerIpv6 {
            subnet: "fd00:244:0:3::/64".parse().unwrap(),
            public_ip: "fd99::3".parse().unwrap(),
            vtep_mac: None,
        };
        let shown = peers_table(&[row(2, None), row(3, Some(half))]);
        assert!(shown.contains("ipv6 subnet") && shown.contains("fd00:244:0:3::/64"), "{shown}");
        assert!(!peers_table(&[row(2, None)]).contains("ipv6"));
        let json = serde_json::to_value([row(2, None), row(3, Some(half))]).unwrap();
        assert_eq!(json[0].get("ipv6"), None);
        assert_eq!(json[1]["ipv6"]["public_ip"], "fd99::3");
    }
}

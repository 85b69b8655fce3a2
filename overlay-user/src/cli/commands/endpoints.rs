//! `overlay endpoints`: shows where each container lives, and which path its packets take. The command needs no agent.
use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{output::say, show::ask};
use crate::{
    agent::control::{Request, Response},
    cli::{options::Show, table::table},
    datapath::{
        links::foreign::{Foreign, ForeignAt, look},
        tables::{Tables, endpoint_of},
    },
    model::{entries::ForeignTc, fast_path::FastPath, mac::Mac},
};

#[derive(Serialize)]
struct Row {
    address: IpAddr,
    port: String,
    ifindex: u32,
    mac: Mac,
    gateway_mac: Mac,
    pinned: bool,
    path: Path,
    /// Why the path is not the fast one; empty if it is.
    path_why: String,
    /// Whether the programs hand frames on between it and other containers behind the same bridge, if these are handed on too.
    same_host: bool,
}

/// Which path a container's packets take, as its entry tells the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Path {
    /// The fast path, straight into the container.
    Fast,
    /// The fast path, which in the end delivers through the egress of the container's port.
    OwnEgress,
    /// The stack at first, and the fast path once the stack has carried a connection in both directions.
    Established,
    /// The stack.
    Stack,
}

impl Path {
    const fn words(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::OwnEgress => "fast, by the port's egress",
            Self::Established => "stack, then fast",
            Self::Stack => "stack",
        }
    }
}

pub(super) async fn endpoints(show: &Show) -> Result<()> {
    let paths = show.place.paths();
    let tables = Tables::open(&paths.pins)
        .with_context(|| format!("show the endpoints of network {}", paths.network))?;
    let fast_path = tables.fast_path()?;
    let why = why_not_on(show, fast_path).await;
    let names: BTreeMap<u32, String> = nix::net::if_::if_nameindex()
        .context("list the interfaces")?
        .iter()
        .map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned()))
        .collect();
    let entries = tables.endpoints.entries()?;
    let ports: Vec<u32> = entries.values().map(|entry| entry.ifindex).collect();
    // If this cannot be read, the rest is shown nevertheless.
    let found = look(&ports).unwrap_or_default();
    let rows: Vec<Row> = entries
        .into_iter()
        .map(|(address, entry)| {
            let endpoint = endpoint_of(&entry);
            let at = found.get(&endpoint.port).cloned().unwrap_or_default();
            let (path, path_why) = path((fast_path, &why), endpoint.foreign_tc, &at);
            Row {
                address: address.into(),
                port: names.get(&endpoint.port).cloned().unwrap_or_else(|| "(gone)".into()),
                ifindex: endpoint.port,
                mac: endpoint.mac,
                gateway_mac: endpoint.gateway_mac,
                pinned: endpoint.pinned,
                path,
                path_why,
                same_host: endpoint.bridge.is_some() && fast_path != FastPath::Off,
            }
        })
        .collect();
    if show.json {
        say(serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        let why = if row.path_why.is_empty() { String::new() } else { format!(": {}", row.path_why) };
        vec![
            row.address.to_string(),
            row.port.clone(),
            row.mac.to_string(),
            row.gateway_mac.to_string(),
            if row.pinned { "pinned" } else { "learned" }.into(),
            if row.same_host { "fast" } else { "bridge" }.into(),
            format!("{}{why}", row.path.words()),
        ]
    });
    say(table(&["address", "port", "mac", "gateway mac", "how known", "same host", "path"], cells))?;
    Ok(())
}

/// Why the fast path is not on: the agent's words, if one runs.
async fn why_not_on(show: &Show, fast_path: FastPath) -> String {
    let told = match fast_path {
        FastPath::On => None,
        _ => match ask(show, &Request::Status).await {
            Ok(Response::Status(status)) => Some(status.fast_path.why),
            _ => None,
        },
    };
    told.filter(|why| !why.is_empty()).unwrap_or_else(|| format!("the fast path is {fast_path}"))
}

/// Tells the path from what the programs were told, and the reason from what is at the port now.
fn path((fast_path, why): (FastPath, &str), told: ForeignTc, at: &ForeignAt) -> (Path, String) {
    let named = |side: &str, all: &[Foreign]| {
        let all: Vec<String> = all.iter().map(Foreign::to_string).collect();
        let what = if all.is_empty() { "something that is gone by now".to_owned() } else { all.join(", ") };
        format!("{what} at the {side} of its port")
    };
    match told {
        _ if fast_path == FastPath::Off => (Path::Stack, why.to_owned()),
        ForeignTc { ingress: true, .. } => (Path::Stack, named("ingress", &at.ingress)),
        ForeignTc { egress: true, .. } if fast_path == FastPath::Established => {
            (Path::Established, format!("{why}; then by the port's egress: {}", named("egress", &at.egress)))
        }
        ForeignTc { egress: true, .. } => (Path::OwnEgress, named("egress", &at.egress)),
        ForeignTc { .. } if fast_path == FastPath::Established => (Path::Established, why.to_owned()),
        ForeignTc { .. } => (Path::Fast, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_what_the_programs_go_by() {
        let at = ForeignAt { egress: vec![Foreign::Qdisc { kind: "tbf".into() }], ingress: Vec::new() };
        let told = |egress, ingress| path((FastPath::On, ""), ForeignTc { egress, ingress }, &at);
        let tbf = "queueing discipline tbf at the egress of its port";
        assert_eq!(told(true, false), (Path::OwnEgress, tbf.to_owned()));
        assert_eq!(told(false, false), (Path::Fast, String::new()));
        let gone = "something that is gone by now at the ingress of its port";
        assert_eq!(told(true, true), (Path::Stack, gone.to_owned()));
        let off = (FastPath::Off, "a limit");
        assert_eq!(path(off, at.sides(), &at), (Path::Stack, "a limit".to_owned()));
        let established = |at: &ForeignAt| path((FastPath::Established, "a rule"), at.sides(), at);
        assert_eq!(established(&ForeignAt::default()), (Path::Established, "a rule".to_owned()));
        assert_eq!(
            established(&at),
            (Path::Established, format!("a rule; then by the port's egress: {tbf}"))
        );
    }
}

//! `overlay config show` and `overlay config set`.
use std::io::Read as _;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use ipnet::IpNet;
use log::{debug, warn};
use serde_json::Value;

use super::{
    opened::{Opened, open},
    output::say,
};
use crate::{
    cli::{
        check::{Level, families},
        options::Config,
        table::table,
    },
    host::{
        netlink::{Netlink, NetlinkError},
        overlaps::{Overlaps, REMEDY},
    },
    model::{
        json::Fields,
        network::{AddressPlan, NetworkConfig},
    },
    store::Store,
};

pub(super) async fn config(command: Config) -> Result<()> {
    let (Config::Show { store, .. } | Config::Set { store, .. }) = &command;
    match open(store)? {
        Opened::Etcd(mut store) => run(store.as_mut(), command).await,
        Opened::Directory { mut store, .. } => run(&mut store, command).await,
    }
}

async fn run(store: &mut impl Store, command: Config) -> Result<()> {
    match command {
        Config::Show { json, .. } => {
            let text = store.config().await?.with_context(|| {
                format!("{} has no network config yet: write one with `overlay config set`", store.name())
            })?;
            if json {
                say(String::from_utf8_lossy(&text))?;
            } else {
                let config = serde_json::to_value(NetworkConfig::parse_both_families(&text)?)?;
                let mut rows = Vec::new();
                fields("", &config, &mut rows);
                say(table(&["field", "value"], rows))?;
            }
        }
        Config::Set { text, json, .. } => {
            let text = if text == "-" { standard_input()? } else { text };
            let parsed = NetworkConfig::parse(text.as_bytes())?;
            warn_of_host_bits(text.as_bytes(), &parsed);
            store.set_config(Bytes::from(text.clone())).await?;
            warn_of_overlaps(&parsed.plan).await;
            warn_of_leases(store, text.as_bytes()).await;
            if json {
                println!("{}", parsed.to_json());
            } else {
                let ipv6 = parsed.ipv6.map(|plan| format!(" and {}", plan.network)).unwrap_or_default();
                println!(
                    "config of network {}{ipv6} written to {}; agents read it when they start",
                    parsed.plan.network,
                    store.name()
                );
            }
        }
    }
    Ok(())
}

/// Warns if a range is written with bits behind its prefix: to flannel, too, they count for nothing.
fn warn_of_host_bits(text: &[u8], parsed: &NetworkConfig) {
    for field in host_bits(text, parsed) {
        warn!("{field}");
    }
}

fn host_bits(text: &[u8], parsed: &NetworkConfig) -> Vec<String> {
    let fields = Fields::parse(text).ok();
    let written = |field: &str| fields.as_ref()?.get::<IpNet>(field).ok().flatten();
    let ranges = [("Network", Some(parsed.plan)), ("IPv6Network", parsed.ipv6)];
    let differs = |(field, plan): (&str, Option<AddressPlan>)| {
        let (written, network) = (written(field)?, plan?.network);
        (written != network).then(|| format!("{field} is written as {written}, which is taken for {network}"))
    };
    ranges.into_iter().filter_map(differs).collect()
}

/// Warns of leases that fit badly to what the config says of IPv6, since flannel's hosts end over them.
async fn warn_of_leases(store: &mut impl Store, text: &[u8]) {
    match store.snapshot().await {
        Ok(snapshot) => {
            let found = families::findings(Some(text), &snapshot.entries);
            for finding in found.iter().filter(|finding| finding.level != Level::Ok) {
                warn!("{}: {}. {}", finding.what, finding.detail, finding.remedy);
            }
        }
        Err(error) => debug!("{error}: the leases were not compared with the config"),
    }
}

/// Warns if this host has something inside the leasable range. The networks of the overlay's hosts are not known here, but this
/// host may be one of them, or resemble them.
async fn warn_of_overlaps(plan: &AddressPlan) {
    let found = async { Ok::<_, NetlinkError>(Overlaps::read(&Netlink::open()?, plan).await?.named()) }.await;
    match found {
        Ok(named) if named.is_empty() => {}
        Ok(named) => {
            let (first, last) = plan.leasable();
            warn!(
                "this host has {named}, inside the addresses that hosts may lease ({first} to {last}). Where that is the hosts' \
                 own network, agents refuse to start; and the fast path passes such routes by. {REMEDY}"
            );
        }
        Err(error) => debug!("{error}: not compared with this host's own network"),
    }
}

/// Makes one row per field. A field inside an object has the object's name in front.
fn fields(before: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = format!("{before}{name}");
        match value {
            Value::Object(_) => fields(&format!("{name}."), value, rows),
            Value::Null => rows.push(vec![name, "not set".into()]),
            Value::String(text) => rows.push(vec![name, text.clone()]),
            other => rows.push(vec![name, other.to_string()]),
        }
    }
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("read the config from standard input")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_behind_a_prefix_are_told() {
        let told = |network: &str, ipv6: &str| {
            let text = format!(
                r#"{{"network":"{network}","EnableIPv6":true,"IPv6Network":"{ipv6}","Backend":{{"Type":"vxlan"}}}}"#
            );
            host_bits(text.as_bytes(), &NetworkConfig::parse_both_families(text.as_bytes()).unwrap())
        };
        assert_eq!(told("10.244.0.0/16", "fd00:244::/48"), [""; 0]);
        assert_eq!(
            told("10.244.3.4/16", "fd00:244::1/48"),
            [
                "Network is written as 10.244.3.4/16, which is taken for 10.244.0.0/16",
                "IPv6Network is written as fd00:244::1/48, which is taken for fd00:244::/48"
            ]
        );
    }
}

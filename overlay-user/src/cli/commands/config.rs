//! `overlay config show` and `overlay config set`.
use std::io::Read as _;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use log::{debug, warn};
use serde_json::Value;

use super::{
    opened::{Opened, open},
    output::say,
};
use crate::{
    cli::{options::Config, table::table},
    host::{
        netlink::{Netlink, NetlinkError},
        overlaps::{Overlaps, REMEDY},
    },
    model::network::{AddressPlan, NetworkConfig},
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
                let config = serde_json::to_value(NetworkConfig::parse(&text)?)?;
                let mut rows = Vec::new();
                fields("", &config, &mut rows);
                say(table(&["field", "value"], rows))?;
            }
        }
        Config::Set { text, json, .. } => {
            let text = if text == "-" { standard_input()? } else { text };
            let parsed = NetworkConfig::parse(text.as_bytes())?;
            store.set_config(Bytes::from(text)).await?;
            warn_of_overlaps(&parsed.plan).await;
            if json {
                println!("{}", parsed.to_json());
            } else {
                println!(
                    "config of network {} written to {}; agents read it when they start",
                    parsed.plan.network,
                    store.name()
                );
            }
        }
    }
    Ok(())
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

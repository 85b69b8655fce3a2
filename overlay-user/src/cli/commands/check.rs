//! `overlay check`: tells what of this host suits the overlay, what does not, and what to do.
use std::net::IpAddr;

use anyhow::{Result, bail};

use super::{
    opened::{Opened, open},
    output::Completion,
};
use crate::{
    cli::{
        check::{self, CheckSpec, Level},
        options::Check,
        table,
    },
    datapath::state::Record,
    host::{
        netlink::Netlink,
        subnet_env,
        underlay::{self, Choice},
    },
    model::{backend::Backend, fast_path::AskedFastPath, network::NetworkConfig},
    store::Store,
};

pub(super) async fn check(options: &Check) -> Result<Completion> {
    let netlink = Netlink::open()?;
    let record = options.show.place.paths().record().ok().flatten();
    let choice = options.underlay.choice();
    let underlay = match record.as_ref().and_then(chosen) {
        // Whoever gives no options means the underlay that the agent chose by its own.
        Some(chosen) if choice == Choice::default() => check_chosen(&netlink, chosen).await,
        _ => {
            let chosen = underlay::choose(&netlink, &choice).await.map(underlay::Chosen::remarked);
            chosen.map(|underlay| (underlay.name, underlay.address))
        }
    };
    let spec = CheckSpec {
        underlay: underlay.as_ref().ok().map(|(name, _)| name.clone()),
        device: options.device.clone(),
        backend: record
            .as_ref()
            .and_then(|record| Backend::named(&record.backend))
            .unwrap_or(Backend::DEFAULT),
        subnet: record.as_ref().map(|record| record.subnet),
        address: underlay.as_ref().ok().map(|(_, address)| *address),
        fast_path: record.as_ref().map_or(AskedFastPath::Auto, Record::fast_path),
        // Network is read from subnet.env, because the routes may show only a part of it.
        network: record.as_ref().and_then(|record| subnet_env::read(record.subnet_file.as_deref()?).network),
        bpf_root: options.show.place.bpf_root.clone(),
        pins: options.show.place.paths().pins,
    };
    let mut findings = check::check(&netlink, &spec).await?;
    if options.store.is_given() {
        let found = match open(&options.store)? {
            Opened::Etcd(mut store) => stored(store.as_mut(), &netlink, &choice).await,
            Opened::Directory { mut store, .. } => stored(&mut store, &netlink, &choice).await,
        };
        match found {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(check::Finding {
                what: "store".into(),
                level: Level::Fail,
                detail: format!("{error:#}"),
                remedy: "name one that answers with --etcd-endpoints or --store-dir".into(),
            }),
        }
    }
    if let Err(error) = underlay {
        findings.push(check::Finding {
            what: "underlay interface".into(),
            level: Level::Fail,
            detail: error.to_string(),
            remedy: "name one that suits with --iface".into(),
        });
    }
    if options.show.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        let rows = findings.iter().map(|finding| {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            vec![level.into(), finding.what.clone(), finding.detail.clone(), finding.remedy.clone()]
        });
        println!("{}", table::table(&["", "what", "as it stands", "what to do"], rows));
    }
    let worst = findings.iter().map(|finding| finding.level).max();
    Ok(if worst == Some(Level::Fail) { Completion::Problems } else { Completion::Done })
}

/// What the store says of this network, and in a network of both families what this host has for IPv6.
async fn stored(store: &mut impl Store, netlink: &Netlink, choice: &Choice) -> Result<Vec<check::Finding>> {
    let text = store.config().await?;
    let entries = store.snapshot().await?.entries;
    let mut findings = check::families::findings(text.as_deref(), &entries);
    let config = text.and_then(|text| NetworkConfig::parse_both_families(&text).ok());
    if let Some(config) = config.filter(|config| config.ipv6.is_some())
        && let (Ok(backend), Ok(chosen)) = (Backend::of(&config), underlay::choose(netlink, choice).await)
    {
        let underlay = chosen.underlay;
        let chosen = match backend.too_small_for_ipv6(underlay.mtu) {
            Some(why) => Err(format!("{}: {why}", underlay.name)),
            None => {
                underlay::choose_ipv6(netlink, choice, &underlay).await.map_err(|error| error.to_string())
            }
        };
        let (level, detail) = match chosen {
            Ok(ipv6) => (Level::Ok, format!("{} of {}", ipv6.public_ip, underlay.name)),
            Err(why) => (Level::Warn, format!("none, so that this host takes part with IPv4 alone: {why}")),
        };
        let remedy = match level {
            Level::Ok => "",
            _ => "start the agent again when that is mended",
        };
        findings.push(check::Finding { what: "IPv6 address".into(), level, detail, remedy: remedy.into() });
    }
    Ok(findings)
}

/// The underlay interface and address that the last agent of this network chose here, as it recorded them.
fn chosen(record: &Record) -> Option<(String, IpAddr)> {
    let recorded =
        record.is_in_this_namespace().then_some((record.underlay.clone(), record.underlay_address))?;
    Some((recorded.0?, recorded.1?))
}

/// Fails if the other hosts cannot reach this one there any more.
async fn check_chosen(netlink: &Netlink, chosen: (String, IpAddr)) -> Result<(String, IpAddr)> {
    let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
    match underlay::trouble(&chosen.0, chosen.1, &links, &addresses) {
        Some(trouble) => bail!(trouble.why),
        None => Ok(chosen),
    }
}

//! `overlay agent --dry-run`: says which peers would change, and changes nothing, neither here nor in the store.
use anyhow::{Context as _, Result};

use super::opened::{Opened, open};
use crate::{
    agent::peers::{self, PeerTable, Scope},
    cli::options::Agent,
    datapath::{
        Datapath as _, Installed,
        dry_run::DryRun,
        memory::Memory,
        tables::{Tables, peer_of},
    },
    host::{netlink::Netlink, underlay},
    model::{backend::Backend, lease, network::NetworkConfig},
    store::Store,
};

pub(super) async fn dry_run(options: &Agent) -> Result<()> {
    match open(&options.store)? {
        Opened::Etcd(store) => with_store(*store, options).await,
        Opened::Directory { store, .. } => with_store(store, options).await,
    }
}

async fn with_store(mut store: impl Store, options: &Agent) -> Result<()> {
    let choice = options.underlay.choice();
    let underlay = underlay::choose(&Netlink::open()?, &choice).await?;
    let own_ip = choice.public_ip(&underlay);
    let text = store.config().await?.with_context(|| format!("{} has no network config", store.name()))?;
    let network = NetworkConfig::parse(&text)?;
    let backend = Backend::of(&network)?;
    let snapshot = store.snapshot().await?;
    let own = snapshot.entries.iter().find_map(|entry| {
        lease::decode(&entry.key, &entry.value).ok().filter(|lease| lease.public_ip == own_ip)
    });
    match &own {
        Some(own) => println!("would renew the lease of {} for {own_ip}", own.subnet),
        None => println!("would lease a free subnet of {} for {own_ip}", network.plan.network),
    }
    let scope = Scope {
        network: network.plan.network,
        subnet_len: network.plan.subnet_len,
        backend,
        own_ip,
        // Without a lease this host has no subnet. The whole of Network stands in for it, since that is nobody's subnet.
        own_subnet: own.map_or(network.plan.network, |own| own.subnet),
    };
    let mut table = PeerTable::new(scope);
    table.snapshot(&snapshot);
    for skipped in table.skipped() {
        println!("would skip lease {}: {}", skipped.key, skipped.why);
    }
    let memory = Memory::default();
    memory.state().installed = pinned(options, network.plan.subnet_len);
    let mut datapath = DryRun::new(memory, std::io::stdout());
    let changes = peers::diff(&table, &datapath.installed()?.peers);
    for change in &changes {
        datapath.apply(&(*change).into())?;
    }
    println!("{} changes to the peers in force", changes.len());
    Ok(())
}

/// The peers that an earlier agent has installed here, if one ran.
fn pinned(options: &Agent, subnet_len: u8) -> Installed {
    let entries = Tables::open(&options.place.paths().pins).and_then(|tables| tables.peers.entries());
    let peers = entries
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(base, peer)| Some((ipnet::IpNet::new(base.into(), subnet_len).ok()?, peer_of(&peer))));
    Installed { peers: peers.collect(), ..Installed::default() }
}

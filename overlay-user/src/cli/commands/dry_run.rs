//! `overlay agent --dry-run`: says which peers would change, and changes nothing, neither here nor in the store.
use anyhow::{Context as _, Result};

use super::opened::{Opened, open};
use crate::{
    agent::peers::{self, Ipv6Scope, PeerTable, Scope},
    cli::options::Agent,
    datapath::{
        Datapath as _, Installed,
        dry_run::DryRun,
        memory::Memory,
        tables::{Tables, peer_of},
    },
    host::{
        netlink::Netlink,
        underlay::{self, Choice, Underlay},
    },
    model::{
        backend::Backend,
        lease::{self, Lease},
        network::{AddressPlan, NetworkConfig},
    },
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
    let underlay = underlay::choose(&Netlink::open()?, &choice).await?.remarked();
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
    let ipv6 = match network.ipv6 {
        None => None,
        Some(plan) => ipv6_scope(plan, own.as_ref(), &choice, &underlay).await,
    };
    let scope = Scope {
        network: network.plan.network,
        subnet_len: network.plan.subnet_len,
        backend,
        own_ip,
        // Without a lease this host has no subnet. The whole of Network stands in for it, since that is nobody's subnet.
        own_subnet: own.map_or(network.plan.network, |own| own.subnet),
        ipv6,
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

/// What would be taken from leases of IPv6. This says what the host would lease, or why it would take part with IPv4 alone.
async fn ipv6_scope(
    plan: AddressPlan,
    own: Option<&Lease>,
    choice: &Choice,
    underlay: &Underlay,
) -> Option<Ipv6Scope> {
    let chosen = async { underlay::choose_ipv6(&Netlink::open()?, choice, underlay).await };
    let own_ip = match chosen.await {
        Ok(chosen) => chosen.public_ip,
        Err(why) => {
            println!("would take part with IPv4 alone: {why}");
            return None;
        }
    };
    let held = own.and_then(|own| own.ipv6.as_ref()).filter(|half| plan.fits(half.subnet));
    match held {
        Some(half) => println!("would keep {} for {own_ip}", half.subnet),
        None => println!("would lease a free subnet of {} for {own_ip}", plan.network),
    }
    let own_subnet = held.map_or(plan.network, |half| half.subnet);
    Some(Ipv6Scope { network: plan.network, subnet_len: plan.subnet_len, own_ip, own_subnet })
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

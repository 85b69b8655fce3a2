//! Moves a host from flannel to the overlay: everything is made and filled beside flannel's device, and then the UDP port
//! changes hands.
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use log::warn;

use super::{
    connections,
    containers::{Containers, begin_fast_path, learned},
    discover::Discovered,
    disruption::{Disruption, Meter},
    plan::{Plan, PlanInput},
    record::FlannelRecord,
    site::{Site, ignore_signals, obstacle},
    switch, to_flannel,
};
use crate::{
    agent::{
        join::{self, Joined},
        options::Options,
        peers::{PeerTable, Scope},
    },
    datapath::tables::Tables,
    host::{
        device::{self, DeviceKind, DeviceSpec},
        firewall::{self, FirewallKeeper, RuleState, Wanted},
        netlink::conntrack,
    },
    model::{
        change::LocalChange,
        entries::{Peer, PortKind},
        fast_path::FastPath,
    },
    store::Store,
};

/// A move that was checked and can be carried out.
pub struct PreparedMove {
    /// What will be done, in words.
    pub plan: Plan,
    /// Whether the agent is to masquerade, because it is told to or because flannel did.
    pub masquerade: bool,
    /// Whether the kernel is to discard packets to containers that are not there, because the agent is told so or because flannel
    /// had it so.
    pub blackhole: bool,
    found: Discovered,
    spec: DeviceSpec,
    peers: Vec<(IpNet, Peer)>,
}

impl PreparedMove {
    /// Looks whether the host can be moved, and says how.
    ///
    /// # Errors
    /// The error says why the host cannot be moved.
    pub async fn prepare<S: Store>(
        site: &mut Site<S>,
        options: &Options,
        mut found: Discovered,
    ) -> Result<Self> {
        site.refuse_foreign(&options.device).await?;
        let subnet = found.lease.subnet;
        let mut table = PeerTable::new(Scope {
            network: site.network.plan.network,
            subnet_len: site.network.plan.subnet_len,
            backend: site.backend,
            own_ip: site.public_ip,
            own_subnet: subnet,
            ipv6: None,
        });
        table.snapshot(&site.snapshot);
        let skipped = table.skipped();
        found.notes.extend(skipped.iter().map(|it| format!("lease {} is passed over: {}", it.key, it.why)));
        let peers: Vec<_> = table.wanted().map(|(subnet, peer, _)| (subnet, peer)).collect();
        let spec = DeviceSpec {
            name: options.device.clone(),
            kind: DeviceKind::of(site.backend, found.mac),
            mtu: site.backend.overlay_mtu(site.underlay.mtu),
            subnet,
            network: site.network.plan.network,
            prefixes: site.network.plan.prefixes(),
        };
        if let Some(device) = found.flannel.device.as_ref().filter(|device| device.mtu != spec.mtu) {
            found.notes.push(format!(
                "{} has MTU {}, {} will have {}: containers that are there keep theirs",
                device.name, device.mtu, spec.name, spec.mtu
            ));
        }
        let masquerades = found.flannel.rules.masquerade();
        let masquerade = options.ip_masq || masquerades;
        if masquerade {
            firewall::masquerade::usable().await.context("masquerading")?;
        }
        if masquerades && !options.ip_masq {
            found
                .notes
                .push("flannel masquerades, and so will the overlay: start the agent with --ip-masq".into());
        }
        let discards = found.flannel.blackhole;
        let blackhole = options.blackhole || discards.is_some();
        if let Some(route) = discards.filter(|_| !options.blackhole) {
            found.notes.push(format!(
                "flannel has a blackhole route to {}, and so will the overlay, behind a bridge's: start the agent with \
                 --ip-blackhole-route",
                route.destination
            ));
        }
        let Containers { changes, notes } = learned(&site.netlink, subnet, options).await?;
        found.notes.extend(notes);
        let count = |wanted: fn(&LocalChange) -> bool| changes.iter().filter(|change| wanted(change)).count();
        let means = PlanInput {
            spec: spec.clone(),
            underlay: site.underlay.name.clone(),
            peers: peers.len(),
            ports: count(|change| matches!(change, LocalChange::Attach(_, PortKind::Veth))),
            endpoints: count(|change| matches!(change, LocalChange::PutEndpoint(..))),
            masqueraded: connections::masqueraded(
                &conntrack::connections()?,
                site.network.plan.network,
                subnet,
            )
            .len(),
            masquerade,
            forward: options.forward_rules,
            fast_path: options.fast_path,
            record: site.paths.flannel_path().display().to_string(),
        };
        Ok(Self { plan: Plan::new(&found, &means), masquerade, blackhole, found, spec, peers })
    }
}

/// Carries the move out. If a step fails, everything is undone.
///
/// # Errors
/// The error says what failed, and whether everything is flannel's again.
pub async fn carry_out<S: Store>(
    mut site: Site<S>,
    private: Option<&Path>,
    options: &Options,
    work: PreparedMove,
) -> Result<Disruption> {
    // Joining writes the lease again as it stands, and changes nothing in the kernel yet.
    let joined = join::join(&mut site.store, private, options, None).await?;
    if let Err(error) = refuse_changed(&site, &joined, &work).await {
        joined.undo();
        return Err(error);
    }
    ignore_signals()?;
    let mut record = FlannelRecord {
        finished: false,
        tunnel: work.spec.name.clone(),
        network: work.spec.network,
        flannel: work.found.flannel.clone(),
    };
    record.write(&joined.paths)?;
    match steps(&joined, options, &work).await {
        Ok(disruption) => {
            record.finished = true;
            record.write(&joined.paths)?;
            Ok(disruption)
        }
        Err(error) => {
            let Joined { netlink, paths, lock, .. } = joined;
            match to_flannel::put_back(&netlink, &paths, &record, lock).await {
                Ok(_) => bail!("{error:#}. Nothing has changed: all is flannel's again"),
                Err(second) => bail!(
                    "{error:#}; and not all is flannel's again: {second:#}. `overlay adopt-flannel --back` tries once more"
                ),
            }
        }
    }
}

/// Checks once more what was checked before, because joining may have waited for the store.
async fn refuse_changed<S: Store>(site: &Site<S>, joined: &Joined, work: &PreparedMove) -> Result<()> {
    if joined.spec != work.spec {
        bail!(
            "lease or config has changed meanwhile ({} is this host's now): run this again",
            joined.spec.subnet
        );
    }
    site.refuse_foreign(&work.spec.name).await?;
    obstacle()?.map_or(Ok(()), |obstacle| bail!(obstacle))
}

async fn steps(joined: &Joined, options: &Options, work: &PreparedMove) -> Result<Disruption> {
    let Joined { netlink, paths, spec, .. } = joined;
    let found = &work.found;
    let lost_before = netlink.losses().await?;
    let prepared = device::prepare(netlink, spec).await?;
    let has_device = found.link.is_some();
    if !has_device {
        // From the first packet on, our programs hand the device what they leave to the stack, so it must be up by then. Nobody
        // else can send by this TUN, because only root may open it.
        joined.raise().await?;
    }
    let mut datapath = if has_device {
        joined.load_beside(options, &prepared, &work.peers)?
    } else {
        joined.load_knowing(options, &prepared, &work.peers)?
    };
    if !has_device {
        // The plain routes are removed as soon as the programs can carry packets: a strict rp_filter would drop what comes by
        // overlay0 but would be answered by way of these routes.
        remove_plain_routes(joined, found).await?;
    }
    let mut tables = Tables::open(&paths.pins)?;
    let begun = Meter::read(&tables)?;

    // The translated connections become stack flows before the fast path knows the containers, because it would take over one
    // direction of them.
    let tracked = conntrack::connections()?;
    connections::note(&mut tables, &tracked, spec.network)?;
    if let Err(error) = connections::loosen_plain(&tracked, spec.network) {
        warn!("{error}: where INVALID packets are dropped, connections may lose some");
    }
    if work.masquerade {
        match connections::have_tracked(&tracked, spec.network, spec.subnet) {
            Ok(0) => {}
            Ok(refused) => warn!(
                "connection tracking refused {refused} connections of this host itself to other hosts' containers, which may end"
            ),
            Err(error) => {
                warn!("{error}: connections of this host itself to other hosts' containers may end")
            }
        }
    }
    let containers = learned(netlink, spec.subnet, options).await?;
    let carried = begin_fast_path(&mut datapath, &containers.changes);
    enforce_rules(joined, options, work.masquerade).await?;
    let tracked = conntrack::connections()?;
    // These began after the first look, and the fast path may have taken them over since.
    if let Err(error) = connections::loosen_plain(&tracked, spec.network) {
        warn!("{error}: where INVALID packets are dropped, connections may lose some");
    }
    if tables.fast_path()? == FastPath::On
        && let Err(error) = connections::forget_begun(&tracked, spec.network, &carried)
    {
        warn!("{error}: where INVALID packets are dropped, connections that begin now may lose some");
    }
    let masqueraded = connections::masqueraded(&tracked, spec.network, spec.subnet);
    match connections::keep_masqueraded(&masqueraded) {
        Ok(0) => {}
        Ok(refused) => {
            warn!("{refused} masqueraded connections to other hosts' containers could not be kept")
        }
        Err(error) => warn!("{error}: masqueraded connections to other hosts' containers may end"),
    }

    let mut edges = Vec::with_capacity(2);
    let switched = switch::to_overlay(netlink, spec, prepared.ifindex, found.link, || {
        edges.push(Meter::read(&tables)?);
        Ok(())
    })
    .await?;
    // This records connections that began meanwhile and that overlay0 has not seen yet.
    connections::note(&mut tables, &conntrack::connections()?, spec.network)?;
    if has_device {
        datapath.device_is_up()?;
        remove_plain_routes(joined, found).await?;
    }
    let (ended, lost_after) = (Meter::read(&tables)?, netlink.losses().await?);
    if let Some(route) = &found.flannel.blackhole {
        joined.discard_strays(work.blackhole).await;
        netlink.remove_blackhole_route(route).await?;
    }
    found.flannel.rules.remove().await.context("remove flannel's rules")?;
    // flannel's device is removed last, so that a failure of an earlier step still finds it, with its forwarding entries.
    if let Some(link) = found.link {
        netlink.remove_link(link).await?;
    }
    let [before, after] = edges[..] else { bail!("the counters were not read") };
    Ok(Disruption::new(switched.interruption, before, after).with_whole_move(
        begun,
        ended,
        &lost_before,
        &lost_after,
        found.link,
    ))
}

async fn remove_plain_routes(joined: &Joined, found: &Discovered) -> Result<()> {
    for route in found.flannel.direct_routes() {
        joined.netlink.remove_gateway_route(joined.underlay.ifindex, route).await?;
    }
    Ok(())
}

/// Puts our rules in force. This happens before flannel's rules are removed.
async fn enforce_rules(joined: &Joined, options: &Options, masquerade: bool) -> Result<()> {
    let wanted = Wanted {
        name: options.paths.network.clone(),
        plan: joined.network.plan,
        device: joined.spec.name.clone(),
        subnet: joined.spec.subnet,
        masquerade,
        forward: options.forward_rules,
        random_ports: options.random_ports,
        period: options.rules_period,
    };
    let rules = FirewallKeeper::start(&wanted, |_| {}).await.status().clone();
    for (what, rule) in [("masquerading", rules.masquerade), ("forward rules", rules.forward)] {
        if rule.state == RuleState::Failed {
            bail!("{what} cannot be put in force: {}", rule.error.unwrap_or_default());
        }
    }
    Ok(())
}

//! From flannel to the overlay: everything is made and filled beside flannel's device, then the port changes hands.
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use log::warn;
use tokio::sync::watch;

use super::{Site, back};
use crate::{
    acquire::{Request, TIME_TO_LIVE},
    cli::{AdoptFlannel, Switch},
    commands::agent,
    datapath::{
        Change, Datapath as _, DatapathError, Installed, Peer, PortKind,
        ebpf::{EbpfDatapath, Options},
        tables::Tables,
        xdp::XdpLink,
    },
    device::{self, DeviceSpec},
    endpoints::{self, Learner},
    flannel::{
        connections,
        discover::Discovered,
        plan::{Means, Plan},
        record::Record,
        switch,
        toll::{Meter, Toll},
    },
    lease::Backend,
    netlink::{Netlink, conntrack},
    peers::{PeerTable, Scope},
    rules::{self, Keeper, RuleState, Wanted},
    state,
    status::Status,
    store::Store,
};

/// What is to be done.
pub(super) struct Work {
    pub(super) plan: Plan,
    /// The agent is to masquerade: it is told to, or flannel did.
    pub(super) masquerade: bool,
    found: Discovered,
    spec: DeviceSpec,
    peers: Vec<(Ipv4Net, Peer)>,
}

impl Work {
    pub(super) async fn prepare<S: Store>(
        site: &mut Site<S>,
        options: &AdoptFlannel,
        mut found: Discovered,
    ) -> Result<Self> {
        let subnet = found.lease.subnet;
        let mut table = PeerTable::new(Scope {
            network: site.network.network,
            subnet_len: site.network.subnet_len,
            vni: site.vxlan.vni,
            own_ip: site.public_ip,
            own_subnet: subnet,
        });
        table.snapshot(&site.snapshot);
        let skipped = table.skipped();
        found.notes.extend(skipped.iter().map(|it| format!("lease {} is passed over: {}", it.key, it.why)));
        let peers: Vec<_> = table.wanted().map(|(subnet, peer, _)| (subnet, peer)).collect();
        let spec = DeviceSpec {
            name: options.agent.device.clone(),
            port: site.vxlan.port,
            vni: site.vxlan.vni,
            mac: Some(found.mac),
            mtu: device::mtu(site.vxlan.mtu.unwrap_or(site.underlay.mtu)),
            subnet,
            network: site.network.network,
        };
        if spec.mtu != found.flannel.device.mtu {
            found.notes.push(format!(
                "{} has MTU {}, {} will have {}: containers that are there keep theirs",
                found.flannel.device.name, found.flannel.device.mtu, spec.name, spec.mtu
            ));
        }
        let masquerades = found.flannel.rules.masquerade();
        let masquerade = options.agent.ip_masq || masquerades;
        if masquerade {
            rules::masquerade::usable().await.map_err(anyhow::Error::msg).context("masquerading")?;
        }
        if masquerades && !options.agent.ip_masq {
            found
                .notes
                .push("flannel masquerades, and so will the overlay: start the agent with --ip-masq".into());
        }
        let changes = learned(&site.netlink, subnet, options).await?;
        let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|change| wanted(change)).count();
        let means = Means {
            spec: spec.clone(),
            underlay: site.underlay.name.clone(),
            peers: peers.len(),
            ports: count(|change| matches!(change, Change::Attach(_, PortKind::Veth))),
            endpoints: count(|change| matches!(change, Change::PutEndpoint(..))),
            masquerade,
            forward: options.agent.forward_rules,
            record: site.paths.flannel_path().display().to_string(),
        };
        Ok(Self { plan: Plan::new(&found, &means), masquerade, found, spec, peers })
    }
}

/// Does it, or nothing: what fails is undone.
pub(super) async fn carry_out<S: Store>(
    mut site: Site<S>,
    private: Option<&Path>,
    options: &AdoptFlannel,
    work: Work,
) -> Result<Toll> {
    site.paths.create()?;
    let lock = site.paths.lock()?;
    // What is undone below is ours by this.
    let ours = state::Record::current(site.public_ip, work.spec.subnet)?;
    let fast_path = options.agent.fast_path == Switch::On;
    site.paths.adopt(&state::Record { fast_path, ..ours })?;
    super::ignore_signals()?;
    let mut record = Record {
        finished: false,
        tunnel: work.spec.name.clone(),
        network: work.spec.network,
        flannel: work.found.flannel.clone(),
    };
    record.write(&site.paths)?;
    match steps(&mut site, private, options, &work).await {
        Ok(toll) => {
            record.finished = true;
            record.write(&site.paths)?;
            Ok(toll)
        }
        Err(error) => match back::put_back(&site.netlink, &site.paths, &record, lock).await {
            Ok(_) => bail!("{error:#}. Nothing has changed: all is flannel's again"),
            Err(second) => bail!(
                "{error:#}; and not all is flannel's again: {second:#}. `overlay adopt-flannel --back` tries once more"
            ),
        },
    }
}

async fn steps<S: Store>(
    site: &mut Site<S>,
    private: Option<&Path>,
    options: &AdoptFlannel,
    work: &Work,
) -> Result<Toll> {
    let Work { found, spec, .. } = work;
    let lost_before = site.netlink.losses().await?;
    renew(site, private, work).await?;
    let prepared = device::prepare(&site.netlink, spec).await?;
    let mut datapath = load(site, options, work, prepared.ifindex).await?;
    let mut tables = Tables::open(&site.paths.pins)?;
    let begun = Meter::read(&tables)?;

    // Before the fast path knows the containers: it would take over one direction of what is translated.
    connections::note(&mut tables, &conntrack::connections()?, spec.network)?;
    for change in learned(&site.netlink, spec.subnet, options).await? {
        match datapath.apply(&change) {
            // It left just now; the agent hears of it.
            Ok(()) | Err(DatapathError::Gone(_)) => {}
            Err(error) => warn!("{change}: {error}; its packets take the stack"),
        }
    }
    enforce_rules(site, options, work).await?;

    let mut edges = Vec::with_capacity(2);
    let switched = switch::to_overlay(&site.netlink, spec, prepared.ifindex, found.link, || {
        edges.push(Meter::read(&tables)?);
        Ok(())
    })
    .await?;
    // What began meanwhile, and what overlay0 has not seen yet.
    connections::note(&mut tables, &conntrack::connections()?, spec.network)?;
    for route in found.flannel.direct_routes() {
        site.netlink.remove_gateway_route(site.underlay.ifindex, route).await?;
    }
    let (ended, lost_after) = (Meter::read(&tables)?, site.netlink.losses().await?);
    found.flannel.rules.remove().await.context("remove flannel's rules")?;
    // Last: what has failed until here finds it, with its forwarding entries.
    site.netlink.remove_link(found.link).await?;
    let [before, after] = edges[..] else { bail!("the counters were not read") };
    Ok(Toll::new(switched.interruption, before, after).with_whole_move(
        begun,
        ended,
        &lost_before,
        &lost_after,
    ))
}

/// The lease, as the agent will find it: written again as it stands, so that it does not end meanwhile.
async fn renew<S: Store>(site: &mut Site<S>, private: Option<&Path>, work: &Work) -> Result<()> {
    let request = Request {
        public_ip: site.public_ip,
        vni: site.vxlan.vni,
        vtep_mac: Some(work.found.mac),
        preferred: Some(work.spec.subnet),
        time_to_live: TIME_TO_LIVE,
    };
    let (held, _) = agent::lease(&mut site.store, private, &site.network, &request).await?;
    let same = matches!(held.lease.backend, Backend::Vxlan { vtep_mac, .. } if vtep_mac == work.found.mac);
    if held.lease.subnet != work.spec.subnet || !same {
        bail!("the lease has changed meanwhile: {} is this host's now; run this again", held.lease.key());
    }
    Ok(())
}

async fn load<S: Store>(
    site: &Site<S>,
    options: &AdoptFlannel,
    work: &Work,
    device: u32,
) -> Result<EbpfDatapath> {
    let options = &options.agent;
    let older = site.paths.older()?;
    let ours = XdpLink::new(&site.paths.pins);
    let ingress = agent::choose_ingress(&site.netlink, options, &site.underlay, &ours).await?;
    let settings = agent::settings(
        options,
        &site.network,
        &site.vxlan,
        work.spec.subnet,
        &site.underlay,
        device,
        work.found.mac,
    );
    let load = Options {
        settings,
        pins: site.paths.pins.clone(),
        tc: agent::tc_way(options.attach)?,
        ingress,
        max_peers: options.max_peers,
        max_flows: options.max_flows,
        older: older.clone(),
        filling: site.paths.filling.clone(),
    };
    let datapath = EbpfDatapath::load_knowing(load, &work.peers)?;
    site.paths.forget_older(&older)?;
    Ok(datapath)
}

/// Which containers are here, as the agent learns them. Addresses before ports: a port with programs whose address is not
/// known has its connections noted as the stack's, which keeps them there.
async fn learned(netlink: &Netlink, subnet: Ipv4Net, options: &AdoptFlannel) -> Result<Vec<Change>> {
    let config = endpoints::Config { subnet, bridges: options.agent.bridge.clone() };
    let mut learner = Learner::new(config, &Installed::default());
    learner.resync(netlink.snapshot().await?);
    let mut changes = learner.take_changes();
    changes.sort_by_key(|change| !matches!(change, Change::PutEndpoint(..)));
    Ok(changes)
}

/// Ours before flannel's go.
async fn enforce_rules<S: Store>(site: &Site<S>, options: &AdoptFlannel, work: &Work) -> Result<()> {
    let DeviceSpec { subnet, network, vni, .. } = work.spec;
    let (status_to, status) = watch::channel(Status::new(site.public_ip, subnet, network, vni));
    let wanted = Wanted {
        name: options.agent.place.network.clone(),
        network,
        subnet,
        masquerade: work.masquerade,
        forward: options.agent.forward_rules,
    };
    drop(Keeper::start(&wanted, status_to).await);
    let rules = status.borrow().rules.clone();
    for (what, rule) in [("masquerading", rules.masquerade), ("forward rules", rules.forward)] {
        if rule.state == RuleState::Failed {
            bail!("{what} cannot be put in force: {}", rule.error.unwrap_or_default());
        }
    }
    Ok(())
}

//! Moves a host from the overlay back to flannel, on request or because a move failed half way.
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use log::warn;

use super::{
    Flannel, connections,
    discover::device_name,
    disruption::{Disruption, Meter},
    record::FlannelRecord,
    site::{Site, leases},
    switch,
};
use crate::{
    agent::{options::Options, removal},
    datapath::{
        state::{Lock, Paths},
        tables::Tables,
    },
    host::netlink::{ClassicTunnel, Netlink, conntrack},
    model::lease::Lease,
    store::Store,
};

/// Makes the host flannel's again, as the record says, and removes what is the overlay's. The fast path carries packets until
/// flannel's device does.
///
/// # Errors
/// When a step failed. This may then be called again.
pub async fn put_back(
    netlink: &Netlink,
    paths: &Paths,
    record: &FlannelRecord,
    lock: Arc<Lock>,
) -> Result<Disruption> {
    let flannel = &record.flannel;
    let lost_before = netlink.losses().await?;
    // There may be no tables, because `overlay down` has removed them, or because nothing was loaded yet.
    let tables = Tables::open(&paths.pins).ok();
    let meter = || tables.as_ref().map_or(Ok(Meter::default()), Meter::read);
    let there = netlink.link_named(&record.tunnel).await?;
    let is_foreign = there.as_ref().is_some_and(|link| !switch::is_ours(link));
    if is_foreign {
        warn!("{} is not of the overlay's making: it stays as it is", record.tunnel);
    }
    let ours = there.filter(|_| !is_foreign).map(|link| link.index);
    if let Err(error) = keep_translations(paths, record) {
        warn!("{error:#}: masqueraded connections to other hosts' containers may end");
    }
    let mut edges = Vec::with_capacity(2);
    let switched = switch::to_flannel(netlink, flannel, ours, record.network, || {
        edges.push(meter()?);
        Ok(())
    })
    .await
    .context("put flannel's device back")?;
    flannel.rules.put_back().await.context("put flannel's rules back")?;
    // Connection tracking forgets as late as possible: the stack does not see what the fast path carries until the programs are
    // gone.
    if let Err(error) = conntrack::connections().and_then(|it| connections::forget_plain(&it, record.network))
    {
        warn!("{error}: where INVALID packets are dropped, connections may end");
    }
    let (begun, lost_after) = (edges.first().copied().unwrap_or_default(), netlink.losses().await?);
    let ended = meter()?;
    let device = Some(record.tunnel.as_str()).filter(|_| !is_foreign);
    let failures = removal::take_away(paths, device, lock).await;
    if !failures.is_empty() {
        return Err(anyhow!(
            "flannel's device carries again, but the overlay is not wholly gone: {}",
            failures.join("; ")
        ));
    }
    if let Some(route) = &flannel.blackhole
        // It comes behind the bridge's route: the kernel follows whichever of the two is first.
        && let Err(error) = netlink.append_blackhole_route(route)
    {
        warn!("{error}; flanneld makes it anew when it starts");
    }
    FlannelRecord::remove(paths)?;
    let after = edges.last().copied().unwrap_or_default();
    Ok(Disruption::new(switched.interruption, begun, after).with_whole_move(
        begun,
        ended,
        &lost_before,
        &lost_after,
        ours,
    ))
}

/// Keeps the translation of the connections that our own rules masquerade, because overlay0 goes.
fn keep_translations(paths: &Paths, record: &FlannelRecord) -> Result<()> {
    let Some(subnet) = paths.record()?.map(|record| record.subnet) else { return Ok(()) };
    let masqueraded = connections::masqueraded(&conntrack::connections()?, record.network, subnet);
    match connections::keep_masqueraded(&masqueraded)? {
        0 => Ok(()),
        refused => bail!("{refused} connections could not be kept"),
    }
}

/// What ends with overlay0, for the plan: connections of this host itself from an address that flannel does not have.
pub async fn ending(netlink: &Netlink, record: &FlannelRecord) -> Result<Vec<String>> {
    let Some(ours) = netlink.link_named(&record.tunnel).await?.filter(switch::is_ours) else {
        return Ok(Vec::new());
    };
    let kept = |address| record.flannel.addresses.iter().any(|net| net.addr() == address);
    let addresses = netlink.addresses().await?.into_iter();
    let addresses = addresses.filter(|it| it.link == ours.index && !kept(it.address)).map(|it| it.address);
    let note = |address| {
        let ending = connections::of_this_host(address);
        let (_, first) = ending.first()?;
        Some(format!(
            "{} connections of this host itself end, the first of them to {first}: they come from {address}, which goes with {}",
            ending.len(),
            record.tunnel
        ))
    };
    Ok(addresses.filter_map(note).collect())
}

/// Makes a record from the leases alone, as flannel would. It contains no rules, since flanneld writes those when it starts.
pub async fn of_leases<S: Store>(site: &Site<S>, options: &Options) -> Result<FlannelRecord> {
    site.refuse_foreign(&options.device).await?;
    let all = leases(&site.snapshot);
    let (own, peers): (Vec<Lease>, Vec<Lease>) =
        all.into_iter().map(|(_, lease)| lease).partition(|lease| lease.public_ip == site.public_ip);
    let [ref own] = own[..] else {
        bail!("there is no note of what flannel was here, and {} leases of {}", own.len(), site.public_ip);
    };
    let mac = site.backend.peer_mac(&own.backend).map_err(|why| anyhow!("lease {}: {why}", own.key()))?;
    let device = site.backend.vni().zip(mac).map(|(vni, mac)| ClassicTunnel {
        name: device_name(vni),
        vni,
        port: site.backend.port(),
        local: Some(site.underlay.address),
        underlay: Some(site.underlay.name.clone()),
        mac,
        mtu: site.backend.overlay_mtu(site.underlay.mtu),
        // flannel asks for no queue, as netlink's library for Go does unless it is told otherwise.
        queue_length: 0,
        learning: false,
        udp_checksum: true,
        group_policy: false,
        source_ports: (0, 0),
    });
    let mut direct = Vec::new();
    if site.backend.is_direct() {
        for peer in &peers {
            if switch::is_neighbour(&site.netlink, peer.public_ip).await {
                direct.push(peer.public_ip);
            }
        }
    }
    let flannel = Flannel::of_leases(device, &site.underlay.name, own, &peers, |host| direct.contains(&host));
    Ok(FlannelRecord {
        finished: true,
        tunnel: options.device.clone(),
        network: site.network.plan.network,
        flannel,
    })
}

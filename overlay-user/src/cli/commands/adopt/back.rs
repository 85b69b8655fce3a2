//! From the overlay back to flannel: on request, and when a move failed half way.
use anyhow::{Context as _, Result, anyhow, bail};
use log::warn;

use super::{Report, Site, leases, say};
use crate::{
    cli::{commands::down, options::AdoptFlannel},
    datapath::{
        state::{Lock, Paths},
        tables::Tables,
    },
    flannel::{
        Flannel, connections,
        discover::device_name,
        plan::Plan,
        record::Record,
        switch,
        toll::{Meter, Toll},
    },
    host::{
        netlink::{ClassicTunnel, Netlink, conntrack},
        subnet_env,
    },
    model::lease::Lease,
    store::Store,
};

pub(super) async fn back(
    store: impl Store,
    options: &AdoptFlannel,
    paths: Paths,
    record: Option<Record>,
) -> Result<()> {
    let record = match record {
        Some(record) => record,
        None => of_leases(&Site::look(store, options, paths.clone()).await?, options).await?,
    };
    let flannel = &record.flannel;
    let mut plan = Plan::back(&record);
    let obstacle = super::obstacle()?;
    if options.agent.dry_run {
        plan.notes.extend(obstacle);
        say(options, &Report { moved: false, plan: Some(&plan), toll: None, next: None }, || {
            plan.to_string()
        });
        return Ok(());
    }
    if let Some(obstacle) = obstacle {
        bail!(obstacle);
    }
    std::fs::create_dir_all(&paths.state).with_context(|| format!("create {}", paths.state.display()))?;
    // A running agent would put back what is removed here.
    let lock = paths.lock().context("end the agent first")?;
    if !options.json {
        println!("{plan}");
    }
    super::ignore_signals()?;
    let toll = put_back(&Netlink::open()?, &paths, &record, lock).await?;
    if let Some(text) = &flannel.subnet_env {
        // The agent's says of masquerading what the agent did.
        subnet_env::replace(&options.agent.subnet_file, text.as_bytes())
            .with_context(|| format!("write {}", options.agent.subnet_file.display()))?;
    }
    let next = "flanneld".to_owned();
    say(options, &Report { moved: true, plan: Some(&plan), toll: Some(&toll), next: Some(next) }, || {
        format!("\nthis host is flannel's again\n{toll}\nnow start flanneld")
    });
    Ok(())
}

/// Makes the host flannel's, as the record says, and takes ours away. The fast path carries until flannel's device does.
pub(super) async fn put_back(netlink: &Netlink, paths: &Paths, record: &Record, lock: Lock) -> Result<Toll> {
    let flannel = &record.flannel;
    let lost_before = netlink.losses().await?;
    // There may be none: `overlay down`, or nothing was loaded yet.
    let tables = Tables::open(&paths.pins).ok();
    let meter = || tables.as_ref().map_or(Ok(Meter::default()), Meter::read);
    let there = netlink.link_named(&record.tunnel).await?;
    let is_foreign = there.as_ref().is_some_and(|link| !switch::is_ours(link));
    if is_foreign {
        warn!("{} is not of the overlay's making: it stays as it is", record.tunnel);
    }
    let ours = there.filter(|_| !is_foreign).map(|link| link.index);
    let mut edges = Vec::with_capacity(2);
    let switched = switch::to_flannel(netlink, flannel, ours, record.network, || {
        edges.push(meter()?);
        Ok(())
    })
    .await
    .context("put flannel's device back")?;
    flannel.rules.put_back().await.context("put flannel's rules back")?;
    // The last moment: what the fast path carries, the stack does not see until the programs go.
    if let Err(error) = conntrack::connections().and_then(|it| connections::forget_plain(&it, record.network))
    {
        warn!("{error}: where INVALID packets are dropped, connections may end");
    }
    let (begun, lost_after) = (edges.first().copied().unwrap_or_default(), netlink.losses().await?);
    let ended = meter()?;
    let device = Some(record.tunnel.as_str()).filter(|_| !is_foreign);
    let failures = down::take_away(paths, device, lock).await;
    if !failures.is_empty() {
        return Err(anyhow!(
            "flannel's device carries again, but the overlay is not wholly gone: {}",
            failures.join("; ")
        ));
    }
    Record::remove(paths)?;
    let after = edges.last().copied().unwrap_or_default();
    Ok(Toll::new(switched.interruption, begun, after).with_whole_move(
        begun,
        ended,
        &lost_before,
        &lost_after,
    ))
}

/// What flannel makes for the leases that there are. Rules are flanneld's to write when it starts.
async fn of_leases<S: Store>(site: &Site<S>, options: &AdoptFlannel) -> Result<Record> {
    site.refuse_foreign(&options.agent.device).await?;
    let all = leases(&site.snapshot);
    let (own, peers): (Vec<Lease>, Vec<Lease>) =
        all.into_iter().map(|(_, lease)| lease).partition(|lease| lease.public_ip == site.public_ip);
    let [ref own] = own[..] else {
        bail!("there is no note of what flannel was here, and {} leases of {}", own.len(), site.public_ip);
    };
    let mac = site.mode.peer_mac(own).map_err(|why| anyhow!("lease {}: {why}", own.key()))?;
    let device = site.mode.vni().zip(mac).map(|(vni, mac)| ClassicTunnel {
        name: device_name(vni),
        vni,
        port: site.mode.port(),
        local: Some(site.underlay.address),
        underlay: Some(site.underlay.name.clone()),
        mac,
        mtu: site.mode.device_mtu(site.underlay.mtu),
        queue_length: 1000,
        learning: false,
        udp_checksum: true,
        group_policy: false,
        source_ports: (0, 0),
    });
    let mut direct = Vec::new();
    if site.mode.is_direct() {
        for peer in &peers {
            if switch::is_neighbour(&site.netlink, peer.public_ip).await {
                direct.push(peer.public_ip);
            }
        }
    }
    let flannel = Flannel::of_leases(device, &site.underlay.name, own, &peers, |host| direct.contains(&host));
    Ok(Record {
        finished: true,
        tunnel: options.agent.device.clone(),
        network: site.network.network,
        flannel,
    })
}

//! Runs the learner: it feeds it with kernel events, commands and answers to probes, and passes on its changes and the
//! overview for status.
use std::{io, net::IpAddr, time::Duration};

use nix::errno::Errno;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    datapath::{Installed, links::foreign},
    host::{
        bridge_netfilter,
        netlink::{Event, Monitor, Netlink, NetlinkError, TcEvents},
    },
    learn::{
        announcements::Announcements,
        learner::{ClaimError, LearnConfig, Learner, RETRY},
        probes::Probes,
        view::View,
    },
    model::change::LocalChange,
    model::mac::Mac,
};

/// A command about one endpoint, from an operator or a CNI plugin. It is answered when the change is on its way.
#[derive(Debug)]
pub enum EndpointCommand {
    /// Pins an endpoint.
    Attach {
        /// The container's address.
        address: IpAddr,
        /// Name of the host side of its veth.
        interface: String,
        /// The container's MAC address. With `None`, the one that the kernel knows is taken.
        mac: Option<Mac>,
        /// Where the answer is sent to.
        reply: oneshot::Sender<Result<(), ClaimError>>,
    },
    /// Removes an endpoint.
    Detach {
        /// The container's address.
        address: IpAddr,
        /// Where the answer is sent to.
        reply: oneshot::Sender<Result<(), ClaimError>>,
    },
}

/// How often the sysctl of bridge netfilter is read. The kernel does not tell when it changes.
const SYSCTL: Duration = Duration::from_secs(1);

/// Pause before another snapshot is tried after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Observes the host until `changes` or `commands` is closed. The first batch, which may be empty, is the difference between
/// what is installed and what exists. After it, the endpoints are complete. `at_bridges` tells which rule of the packet filter, if
/// any, sees the frames that bridges forward. This fails only if the kernel cannot be asked at all.
pub async fn observe(
    netlink: Netlink,
    config: LearnConfig,
    installed: Installed,
    changes: mpsc::Sender<Vec<LocalChange>>,
    mut commands: mpsc::Receiver<EndpointCommand>,
    mut at_bridges: watch::Receiver<Option<String>>,
    view: watch::Sender<View>,
) -> Result<(), NetlinkError> {
    let subnet = config.subnet;
    let mut learner = Learner::new(config, &installed);
    let mut monitor = loop {
        match start(&netlink, &mut learner).await {
            // Containers may come and go too fast for one look at all of them. Nothing has been decided yet, so trying again
            // loses nothing.
            Err(error) if error.errno == Errno::EINTR => log::warn!("{error}: trying again"),
            other => break other?,
        }
        sleep(PAUSE).await;
    };
    let mut tc = TcEvents::open()?;
    let failed = |error: io::Error| NetlinkError::events(&error);
    let mut announcements = Announcements::listen(subnet).map_err(failed)?;
    let mut probes = Probes::default();
    let mut pauses: JoinSet<IpAddr> = JoinSet::new();
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sysctl = interval(SYSCTL);
    sysctl.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        look_at_bridges(&mut learner, at_bridges.borrow_and_update().as_ref());
        let unseen = learner.unseen();
        look(&mut learner, unseen);
        probes.send(&mut learner);
        for (address, pause) in learner.take_pauses() {
            pauses.spawn(async move {
                sleep(pause).await;
                address
            });
        }
        let batch = learner.take_changes();
        if let Some(new) = learner.take_view() {
            view.send_if_modified(|view| {
                let modified = *view != new;
                *view = new;
                modified
            });
        }
        if (first || !batch.is_empty()) && changes.send(batch).await.is_err() {
            return Ok(());
        }
        first = false;
        tokio::select! {
            event = monitor.next() => match event {
                Event::Lost => {
                    log::warn!("the kernel's events came faster than they were read: listing everything again");
                    monitor = start_over(&netlink, &mut learner).await;
                    let veths = learner.veths();
                    look(&mut learner, veths);
                }
                event => learner.event(event),
            },
            announced = announcements.next() => learner.announced(announced.map_err(failed)?),
            Some((probe, answered)) = probes.answer() => learner.probed(probe, answered),
            Some(Ok(address)) = pauses.join_next() => learner.ask_again(address),
            command = commands.recv() => match command {
                Some(command) => obey(&mut learner, command),
                None => return Ok(()),
            },
            changed = tc.next() => {
                let changed = changed.map_err(failed)?;
                let mut veths = learner.veths();
                veths.retain(|port| changed.as_ref().is_none_or(|changed| changed.contains(port)));
                look(&mut learner, veths);
            }
            // The rule has changed; when its sender is gone, the last one holds.
            Ok(()) = at_bridges.changed() => {}
            _ = sysctl.tick() => {}
            _ = retry.tick() => {
                learner.retry();
                // The kernel does not tell of programs that are attached by TCX.
                let veths = learner.veths();
                look(&mut learner, veths);
            }
        }
    }
}

/// Subscribes first, and then takes a snapshot. What changes in between appears in both, and has no effect the second time.
async fn start(netlink: &Netlink, learner: &mut Learner) -> Result<Monitor, NetlinkError> {
    let monitor = netlink.monitor()?;
    learner.resync(netlink.snapshot().await?);
    Ok(monitor)
}

async fn start_over(netlink: &Netlink, learner: &mut Learner) -> Monitor {
    loop {
        match start(netlink, learner).await {
            Ok(monitor) => return monitor,
            Err(error) => log::warn!("{error}: trying again"),
        }
        sleep(PAUSE).await;
    }
}

/// Looks at what of the host sees the frames that bridges forward, besides `rule`.
fn look_at_bridges(learner: &mut Learner, rule: Option<&String>) {
    let seen_by = bridge_netfilter::seen_by(rule);
    if !learner.bridged_frames_are_seen_by(seen_by.clone()) {
        return;
    }
    match seen_by {
        Some(what) => log::info!("frames between containers of this host are left to their bridge: {what}"),
        None => log::info!("nothing but bridges sees the frames between containers of this host"),
    }
}

/// Looks at what others have at these ports at TC.
fn look(learner: &mut Learner, ports: Vec<u32>) {
    if ports.is_empty() {
        return;
    }
    let found = match foreign::look(&ports) {
        Ok(found) => found,
        Err(error) => {
            log::warn!("{error}: packets keep to the paths that they have until the next look");
            return;
        }
    };
    for (port, at) in found {
        if !learner.looked(port, at.sides()) {
            continue;
        }
        let name = learner.interface_name(port).unwrap_or_default();
        match at.effect() {
            Some(effect) => log::info!("{name}: {effect}"),
            None => log::info!("{name}: nobody else controls its traffic any more"),
        }
    }
}

fn obey(learner: &mut Learner, command: EndpointCommand) {
    // The client may have gone in the meantime. The command is valid all the same.
    match command {
        EndpointCommand::Attach { address, interface, mac, reply } => {
            drop(reply.send(learner.attach(address, &interface, mac)))
        }
        EndpointCommand::Detach { address, reply } => drop(reply.send(learner.detach(address))),
    }
}

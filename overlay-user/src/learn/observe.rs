//! Runs the learner: it feeds it with kernel events, commands and answers to probes, and passes on its changes and the
//! overview for status.
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use nix::errno::Errno;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    datapath::Installed,
    host::netlink::{Event, Monitor, Netlink, NetlinkError},
    learn::{
        learner::{ClaimError, LearnConfig, Learner, Probe},
        probe::Prober,
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
        /// Told how it went.
        reply: oneshot::Sender<Result<(), ClaimError>>,
    },
}

/// How often the holders of addresses with refused claims are asked again.
const RETRY: Duration = Duration::from_secs(10);
/// Pause before another snapshot is tried after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Observes the host until `changes` or `commands` is closed. The first batch, which may be empty, is the difference between
/// what is installed and what exists. After it, the endpoints are complete. Fails only if the kernel cannot be asked at all.
pub async fn observe(
    netlink: Netlink,
    config: LearnConfig,
    installed: Installed,
    changes: mpsc::Sender<Vec<LocalChange>>,
    mut commands: mpsc::Receiver<EndpointCommand>,
    view: watch::Sender<View>,
) -> Result<(), NetlinkError> {
    let mut learner = Learner::new(config, &installed);
    let mut monitor = loop {
        match start(&netlink, &mut learner).await {
            // Containers come and go too fast for one look at all of them. Nothing has been decided yet, so trying again loses nothing.
            Err(error) if error.errno == Errno::EINTR => log::warn!("{error}: trying again"),
            other => break other?,
        }
        sleep(PAUSE).await;
    };
    let mut probes = Probes::default();
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        probes.send(&mut learner);
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
                }
                event => learner.event(event),
            },
            Some((probe, answered)) = probes.answer() => learner.probed(probe, answered),
            command = commands.recv() => match command {
                Some(command) => obey(&mut learner, command),
                None => return Ok(()),
            },
            _ = retry.tick() => learner.retry(),
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

fn obey(learner: &mut Learner, command: EndpointCommand) {
    // The client may have gone in the meantime. The command is valid all the same.
    match command {
        EndpointCommand::Attach { address, interface, mac, reply } => {
            drop(reply.send(learner.attach(address, &interface, mac)))
        }
        EndpointCommand::Detach { address, reply } => drop(reply.send(learner.detach(address))),
    }
}

/// The probes that are under way, at most one for each address.
#[derive(Default)]
struct Probes {
    tasks: JoinSet<(Probe, bool)>,
    pending: BTreeSet<Probe>,
}

impl Probes {
    fn send(&mut self, learner: &mut Learner) {
        for probe in learner.take_probes() {
            if !self.pending.insert(probe) {
                continue;
            }
            let name = learner.interface_name(probe.port).unwrap_or_default().to_owned();
            let prober = Prober::open(probe, &name);
            self.tasks.spawn_blocking(move || {
                // If the question cannot be asked, nothing is proven, so the address stays. If the port has gone, an event tells it.
                let answered = prober.and_then(|prober| prober.ask()).unwrap_or_else(|error| {
                    log::warn!("probe {} on {name}: {error}", probe.address);
                    true
                });
                (probe, answered)
            });
        }
    }

    async fn answer(&mut self) -> Option<(Probe, bool)> {
        let answer = self.tasks.join_next().await?.ok()?;
        self.pending.remove(&answer.0);
        Some(answer)
    }
}

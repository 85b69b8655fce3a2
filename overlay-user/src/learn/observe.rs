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
    datapath::{Installed, links::foreign},
    host::netlink::{Event, Monitor, Netlink, NetlinkError, TcEvents},
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
        /// Where the answer is sent to.
        reply: oneshot::Sender<Result<(), ClaimError>>,
    },
}

/// How often the holders of addresses with refused claims are asked again.
const RETRY: Duration = Duration::from_secs(10);
/// Pause before another snapshot is tried after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Observes the host until `changes` or `commands` is closed. The first batch, which may be empty, is the difference between
/// what is installed and what exists. After it, the endpoints are complete. This fails only if the kernel cannot be asked at
/// all.
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
            // Containers may come and go too fast for one look at all of them. Nothing has been decided yet, so trying again
            // loses nothing.
            Err(error) if error.errno == Errno::EINTR => log::warn!("{error}: trying again"),
            other => break other?,
        }
        sleep(PAUSE).await;
    };
    let mut tc = TcEvents::open()?;
    let mut probes = Probes::default();
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        let unseen = learner.unseen();
        look(&mut learner, unseen);
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
                    let veths = learner.veths();
                    look(&mut learner, veths);
                }
                event => learner.event(event),
            },
            Some((probe, answered)) = probes.answer() => learner.probed(probe, answered),
            command = commands.recv() => match command {
                Some(command) => obey(&mut learner, command),
                None => return Ok(()),
            },
            changed = tc.next() => {
                let changed = changed.map_err(|error| NetlinkError::events(&error))?;
                let mut veths = learner.veths();
                veths.retain(|port| changed.as_ref().is_none_or(|changed| changed.contains(port)));
                look(&mut learner, veths);
            }
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
        let named =
            |all: &[foreign::Foreign]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (at.egress.is_empty(), at.ingress.is_empty()) {
            (true, true) => log::info!("{name}: nobody else controls its traffic any more"),
            (false, true) => log::info!("{name}: {} gets what is delivered there", named(&at.egress)),
            (_, false) => {
                log::info!("{name}: its packets take the stack, where {} sees them", named(&at.ingress));
            }
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
                // If the question cannot be asked, nothing is proven, so the address stays. If the port has gone, an event
                // tells it.
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

//! Puts the agent together: each task gets what it needs, and if one task ends, all of them end.
mod held;
mod tasks;

use std::{cell::RefCell, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use log::{error, info};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use self::{
    held::{Held, beside},
    tasks::Tasks,
};
use crate::{
    agent::{
        join::{self, patience},
        options::Options,
        origin,
        peers::Scope,
        reconciler::{self, Inputs, Setup},
    },
    datapath::{Datapath as _, Installed, ebpf::EbpfDatapath, relay, state::Lock},
    host::{device::DeviceKind, notify, subnet_env::SubnetEnv, underlay::Underlay},
    learn::view::View,
    model::{entries::PortKind, ingress::XdpMode, pause},
    store::{Store, local_lease::LeaseKeeper},
};

/// The longest pause between two tries to join again.
const JOINING_AGAIN: Duration = Duration::from_secs(5);

/// Joins the network and serves it until a task fails. `private` is the folder of a store that is meant for this host alone.
/// Only the data path outlives this function.
///
/// # Errors
/// The error says why the host cannot take part, or why it no longer does.
pub async fn run(store: impl Store + Clone, private: Option<&Path>, options: &Options) -> Result<()> {
    // Each time the store is reached anew, since connections from an address that is gone lead nowhere.
    let mut serving = Serving::start(store.clone(), private, options, None).await?;
    loop {
        let (Underlay { name, address, .. }, held) = serving.until_moved(store.clone(), options).await?;
        info!("{name} with {address} is the underlay now: joining again, traffic goes on");
        let held = RefCell::new(held);
        let joining = async {
            loop {
                match Serving::start(store.clone(), private, options, Some(&held)).await {
                    Ok(serving) => break serving,
                    // An agent that runs survives a store that refuses, a full disk, and an address that is gone again. Joining
                    // must not be less patient, since maybe nobody starts this agent again.
                    Err(error) => {
                        let pause = pause::drawn(JOINING_AGAIN, 0, JOINING_AGAIN);
                        error!(
                            "join again: {error:#}; traffic goes on with what is known; trying again in {pause:?}"
                        );
                        sleep(pause).await;
                    }
                }
            }
        };
        serving = beside(joining, || held.borrow_mut().keep()).await?;
    }
}

/// A host that takes part, with all its tasks running but for the reconciler.
struct Serving<S> {
    store: S,
    lock: Arc<Lock>,
    datapath: EbpfDatapath,
    setup: Setup,
    inputs: Inputs,
    running: JoinSet<Result<()>>,
    /// Gets the underlay that is to be used instead, if it comes to that.
    moved: oneshot::Receiver<Underlay>,
    /// The reconciler ends when this is dropped.
    _shutdown: watch::Sender<bool>,
}

impl<S: Store + Clone> Serving<S> {
    /// Joins the network, again if something is `held`. That goes on meanwhile, and what is loaded anew shares its links.
    async fn start(
        mut store: S,
        private: Option<&Path>,
        options: &Options,
        held: Option<&RefCell<Held>>,
    ) -> Result<Self> {
        let former = held.map(|held| held.borrow().former());
        let joined = join::join(&mut store, private, options, former).await?;
        // The relay's port is bound before anything is made, because the network would work only in part without it.
        let socket = match joined.spec.kind {
            DeviceKind::Tun => {
                let bound = relay::bind(joined.underlay.address, joined.backend.port()).await;
                Some(bound.inspect_err(|_| joined.undo())?)
            }
            DeviceKind::Vxlan { .. } => None,
        };
        if let Some(held) = held {
            // The programs must get the maps that there are. The loader makes others where it finds no pins.
            held.borrow_mut().keep()?;
        }
        let datapath = joined.attach(options).await?;
        joined.warn_of_overlaps().await;
        joined.discard_strays(options.blackhole).await;
        let mut tasks = Tasks::new(&joined, options).await;
        // The rules are put in force before subnet.env is written, because that file tells Docker whether to masquerade by itself.
        tasks.keep_rules().await;
        let (network, subnet) = (joined.network.plan.network, joined.local_lease.lease.subnet);
        let (mtu, ipv6) = (joined.spec.mtu, joined.ipv6_subnet());
        let subnet_env = SubnetEnv { network, subnet, ipv6, mtu, ip_masq: options.ip_masq };
        subnet_env.write(&options.subnet_file)?;
        let noted_origin = origin::read(&joined.paths);

        let installed = installed(&datapath)?;
        let (changes_to, changes) = mpsc::channel(64);
        let (xdp_targets_to, xdp_targets) = mpsc::channel(64);
        let (commands_to, commands) = mpsc::channel(16);
        let (view_to, view) = watch::channel(View::default());
        let (shutdown_to, shutdown) = watch::channel(false);
        tasks.follow_programs_log(&datapath);
        tasks.keep_origin();
        tasks.keep_files(subnet_env);
        tasks.keep_promotions();
        tasks.watch_what_is_in_front();
        tasks.keep_devices(&datapath, changes_to.clone())?;
        if let Some(socket) = socket {
            tasks.relay(socket, &datapath)?;
        }
        if joined.ingress.xdp == Some(XdpMode::Redirect) {
            tasks.watch_xdp_targets(&installed, view.clone(), xdp_targets_to)?;
        }
        tasks.learn(installed, changes_to, commands, view_to);
        let calls = tasks.serve_control(commands_to, view).await?;
        tasks.serve_health().await?;
        let moved = tasks.watch_underlay()?;
        let inputs = Inputs::new(changes, xdp_targets, calls, shutdown, tasks.status.clone());
        let running = tasks.running;

        let scope = Scope {
            network,
            subnet_len: joined.network.plan.subnet_len,
            backend: joined.backend,
            own_ip: joined.public_ip(),
            own_subnet: subnet,
            ipv6: joined.ipv6_scope(),
        };
        let setup = Setup {
            scope,
            lease: LeaseKeeper::new(joined.local_lease.clone(), options.renew_margin),
            audit: options.audit,
            origin: noted_origin.or(Some(joined.origin)),
        };
        let lock = joined.lock;
        Ok(Self { store, lock, datapath, setup, inputs, running, moved, _shutdown: shutdown_to })
    }

    /// Serves the network until another underlay is to be used, which is returned, with what is to be held until the host has
    /// joined again. `fresh` is a store that nobody has asked yet.
    async fn until_moved(self, mut fresh: S, options: &Options) -> Result<(Underlay, Held)> {
        let Self { store, lock, mut datapath, setup, inputs, mut running, moved, _shutdown } = self;
        notify::ready();
        let moved = async {
            let underlay = moved.await?;
            // Whatever keeps the host in order goes on until joining again can succeed.
            patience::answers(&mut fresh, options.net_config.as_deref()).await;
            anyhow::Ok(underlay)
        };
        let underlay = tokio::select! {
            exit = reconciler::run(store, &mut datapath, setup, inputs) => match exit {
                Ok(_) => bail!("the agent's loop ended"),
                Err(error) => Err(error),
            },
            Ok(underlay) = moved => {
                // Sockets and files of this run must be free for the next.
                running.shutdown().await;
                Ok(underlay)
            }
            // A task that ends takes the whole agent down. Whoever watches over the agent starts it again, which is better than
            // half an agent.
            ended = running.join_next() => match ended {
                Some(Ok(Err(error))) => Err(error),
                Some(Err(error)) => Err(error).context("a task of the agent ended"),
                Some(Ok(Ok(()))) | None => bail!("a task of the agent ended"),
            },
        };
        Ok((underlay?, Held::new(lock, datapath)))
    }
}

/// What is in force at the start, as far as the learner needs it: the host's own devices are not among the learner's ports, and
/// are left out.
fn installed(datapath: &EbpfDatapath) -> Result<Installed> {
    let mut installed = datapath.installed()?;
    installed.ports.retain(|_, kind| kind.is_containers());
    info!(
        "in force at the start: {} peers, {} endpoints, {} ports",
        installed.peers.len(),
        installed.endpoints.len(),
        installed.ports.values().filter(|kind| **kind == PortKind::Veth).count()
    );
    Ok(installed)
}

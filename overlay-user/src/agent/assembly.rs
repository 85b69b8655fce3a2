//! Puts the agent together: each task gets what it needs, and if one task ends, all of them end.
use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use log::{error, info, warn};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    agent::{
        control::{self, Call, Server},
        device_keeper,
        file_keeper::{self, Files},
        health, in_front,
        join::{self, Joined, patience},
        options::Options,
        origin,
        peers::Scope,
        promotion_keeper,
        reconciler::{self, Inputs, Setup},
        status::{Status, UnderlayStatus},
        underlay_watch,
    },
    datapath::{Datapath as _, Installed, ebpf::EbpfDatapath, losses, relay},
    host::{
        device::DeviceKind,
        firewall::{FirewallKeeper, RulesStatus, Wanted},
        netlink::Netlink,
        notify,
        subnet_env::SubnetEnv,
        underlay::Underlay,
    },
    learn::{learner, observe, view::View, xdp_targets},
    model::{
        change::{LocalChange, XdpTargetChange},
        entries::PortKind,
        fast_path::AskedFastPath,
        ingress::XdpMode,
        pause,
    },
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
    let mut has_served = false;
    loop {
        let mut serves = false;
        match serve(&store, private, options, &mut serves).await {
            Ok(Underlay { name, address, .. }) => {
                info!("{name} with {address} is the underlay now: joining again, traffic goes on");
            }
            // An agent that runs survives a store that refuses, a full disk, and an address that is gone again. Joining must not
            // be less patient, since maybe nobody starts this agent again.
            Err(error) if has_served && !serves => {
                let pause = pause::drawn(JOINING_AGAIN, 0, JOINING_AGAIN);
                error!(
                    "join again: {error:#}; traffic goes on with what is known; trying again in {pause:?}"
                );
                sleep(pause).await;
            }
            Err(error) => return Err(error),
        }
        has_served |= serves;
    }
}

/// Joins the network and serves it until a task fails or another underlay is to be used, which is returned. `serves` tells whether
/// it came so far.
async fn serve(
    fresh: &(impl Store + Clone),
    private: Option<&Path>,
    options: &Options,
    serves: &mut bool,
) -> Result<Underlay> {
    // Each time the store is reached anew, since connections from an address that is gone lead nowhere.
    let mut store = fresh.clone();
    let joined = join::join(&mut store, private, options).await?;
    // The relay's port is bound before anything is made, because the network would work only in part without it.
    let socket = match joined.spec.kind {
        DeviceKind::Tun => {
            let bound = relay::bind(joined.underlay.address, joined.backend.port()).await;
            Some(bound.inspect_err(|_| joined.undo())?)
        }
        DeviceKind::Vxlan { .. } => None,
    };
    let datapath = joined.attach(options).await?;
    joined.warn_of_overlaps().await;
    joined.discard_strays(options.blackhole).await;
    let mut tasks = Tasks::new(&joined, options).await;
    // The rules are put in force before subnet.env is written, because that file tells Docker whether to masquerade by itself.
    tasks.keep_rules().await;
    let (network, subnet) = (joined.network.plan.network, joined.local_lease.lease.subnet);
    let mtu = joined.backend.overlay_mtu(joined.underlay.mtu);
    let subnet_env = SubnetEnv { network, subnet, mtu, ip_masq: options.ip_masq };
    subnet_env.write(&options.subnet_file)?;
    let noted_origin = origin::read(&joined.paths);

    let installed = installed(&datapath)?;
    let (changes_to, changes) = mpsc::channel(64);
    let (xdp_targets_to, xdp_targets) = mpsc::channel(64);
    let (commands_to, commands) = mpsc::channel(16);
    let (view_to, view) = watch::channel(View::default());
    let (_shutdown_to, shutdown) = watch::channel(false);
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
    let moved = async {
        let underlay = moved.await?;
        // Whatever keeps the host in order goes on until joining again can succeed.
        patience::answers(&mut fresh.clone(), options.net_config.as_deref()).await;
        anyhow::Ok(underlay)
    };
    *serves = true;
    notify::ready();
    let inputs = Inputs::new(changes, xdp_targets, calls, shutdown, tasks.status.clone());
    let mut running = tasks.running;

    let scope = Scope {
        network,
        subnet_len: joined.network.plan.subnet_len,
        backend: joined.backend,
        own_ip: joined.public_ip(),
        own_subnet: subnet,
    };
    let setup = Setup {
        scope,
        lease: LeaseKeeper::new(joined.local_lease.clone(), options.renew_margin),
        audit: options.audit,
        origin: noted_origin.or(Some(joined.origin)),
    };
    tokio::select! {
        exit = reconciler::run(store, datapath, setup, inputs) => match exit {
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

/// The tasks that run beside the reconciler.
struct Tasks<'a> {
    running: JoinSet<Result<()>>,
    joined: &'a Joined,
    options: &'a Options,
    status: watch::Sender<Status>,
}

impl<'a> Tasks<'a> {
    /// Prepares the set of tasks, with none running yet.
    async fn new(joined: &'a Joined, options: &'a Options) -> Self {
        let lost_before = losses::read(&joined.netlink, &joined.paths.pins).await.unwrap_or_else(|error| {
            warn!("{error}: losses are shown since the devices were made, not since this start");
            Vec::new()
        });
        let (subnet, network) = (joined.local_lease.lease.subnet, joined.network.plan.network);
        let status = Status::new(joined.public_ip(), subnet, network, joined.backend);
        let fast_path = joined.fast_path.clone();
        let Underlay { name, address, .. } = joined.underlay.clone();
        let underlay = UnderlayStatus { name, address: Some(address), error: None };
        let status = watch::Sender::new(Status { lost_before, fast_path, underlay, ..status });
        Self { running: JoinSet::new(), joined, options, status }
    }

    /// Puts this agent's rules in force in the host's packet filter, and keeps them in force.
    async fn keep_rules(&mut self) {
        let wanted = Wanted {
            name: self.joined.paths.network.clone(),
            plan: self.joined.network.plan,
            device: self.joined.spec.name.clone(),
            subnet: self.joined.local_lease.lease.subnet,
            masquerade: self.options.ip_masq,
            forward: self.options.forward_rules,
            random_ports: self.options.random_ports,
            period: self.options.rules_period,
        };
        let status = self.status.clone();
        let report = move |rules: &RulesStatus| status.send_modify(|status| status.rules = rules.clone());
        self.running.spawn(FirewallKeeper::start(&wanted, report).await.keep());
    }

    fn follow_programs_log(&mut self, datapath: &EbpfDatapath) {
        let log = datapath.log();
        self.running.spawn(async move { match log.follow().await {} });
    }

    fn keep_origin(&mut self) {
        self.running.spawn(origin::keep_noted(self.joined.paths.clone(), self.status.clone()));
    }

    /// Keeps the files that others read, and looks whether this agent still is the network's only one.
    fn keep_files(&mut self, subnet_env: SubnetEnv) {
        let files = Files {
            paths: self.joined.paths.clone(),
            lock: self.joined.lock.clone(),
            record: self.joined.record.clone(),
            subnet_env,
            subnet_file: self.options.subnet_file.clone(),
        };
        self.running.spawn(file_keeper::keep(files, self.status.clone()));
    }

    /// Keeps promotions in step with the host's connection tracking and its packet filter.
    fn keep_promotions(&mut self) {
        if self.options.fast_path == AskedFastPath::Off {
            return;
        }
        let (pins, status) = (self.joined.paths.pins.clone(), self.status.clone());
        self.running.spawn(promotion_keeper::keep(pins, self.joined.decider.clone(), status));
    }

    /// Tells of others' programs that see packets before ours.
    fn watch_what_is_in_front(&mut self) {
        let (pins, status) = (self.joined.paths.pins.clone(), self.status.clone());
        self.running.spawn(async move {
            in_front::watch(pins, status).await;
            Ok(())
        });
    }

    /// Sees to it that overlay0 and the attachments at the underlay device stay.
    fn keep_devices(
        &mut self,
        datapath: &EbpfDatapath,
        changes: mpsc::Sender<Vec<LocalChange>>,
    ) -> Result<()> {
        // The keeper needs a netlink socket of its own, because the kernel refuses a second dump on a socket while one is under
        // way (EBUSY).
        let netlink = Netlink::open()?;
        let (spec, underlay) = (self.joined.spec.clone(), self.joined.underlay.clone());
        let (attached, outlying) = (datapath.device(), datapath.outlying());
        self.running.spawn(async move {
            let kept = device_keeper::keep(netlink, spec, attached, outlying, underlay, changes).await;
            kept.context("watch over the host's devices")
        });
        Ok(())
    }

    /// Watches whether other hosts can reach this one. The receiver gets the underlay that is to be used instead, if it comes to
    /// that.
    fn watch_underlay(&mut self) -> Result<oneshot::Receiver<Underlay>> {
        let (netlink, choice) = (Netlink::open()?, self.options.underlay.clone());
        let (underlay, status) = (self.joined.underlay.clone(), self.status.clone());
        let (first, last) = self.joined.network.plan.leasable();
        let (moved_to, moved) = oneshot::channel();
        self.running.spawn(async move {
            let watched = underlay_watch::watch(netlink, choice, underlay, first..=last, status).await;
            // Nobody waits for it any more if the agent is ending.
            let _ = moved_to.send(watched.context("watch over the underlay")?);
            std::future::pending().await
        });
        Ok(moved)
    }

    /// Carries those packets of UDP mode that only the kernel's socket can take in.
    fn relay(&mut self, socket: tokio::net::UdpSocket, datapath: &EbpfDatapath) -> Result<()> {
        let routes = relay::Routes::open(&self.joined.paths.pins, self.joined.local_lease.lease.subnet)?;
        let relaying = relay::relay(socket, self.joined.spec.name.clone(), datapath.device(), routes);
        self.running.spawn(async move { relaying.await.context("relay fragmented datagrams") });
        Ok(())
    }

    /// Finds out which containers' veths take frames that XDP redirects.
    fn watch_xdp_targets(
        &mut self,
        installed: &Installed,
        view: watch::Receiver<View>,
        changes: mpsc::Sender<Vec<XdpTargetChange>>,
    ) -> Result<()> {
        let (netlink, switch_gro) = (Netlink::open()?, self.options.endpoint_gro);
        let adopted = installed.xdp_targets.clone();
        self.running.spawn(async move {
            let watched = xdp_targets::watch(netlink, switch_gro, adopted, view, changes).await;
            watched.context("watch which containers take frames from XDP")
        });
        Ok(())
    }

    /// Learns which containers live here.
    fn learn(
        &mut self,
        installed: Installed,
        changes: mpsc::Sender<Vec<LocalChange>>,
        commands: mpsc::Receiver<observe::EndpointCommand>,
        view: watch::Sender<View>,
    ) {
        let subnet = self.joined.local_lease.lease.subnet;
        let config = learner::LearnConfig { subnet, bridges: self.options.bridges.clone() };
        let netlink = self.joined.netlink.clone();
        self.running.spawn(async move {
            let learned = observe::observe(netlink, config, installed, changes, commands, view).await;
            learned.context("watch the host's links and neighbours")
        });
    }

    /// Listens on the control socket, and returns the requests that are the reconciler's to answer.
    async fn serve_control(
        &mut self,
        commands: mpsc::Sender<observe::EndpointCommand>,
        view: watch::Receiver<View>,
    ) -> Result<mpsc::Receiver<Call>> {
        let (calls_to, calls) = mpsc::channel(16);
        let (reconciler_to, reconciler) = mpsc::channel(16);
        let server = Server::bind(&control::socket_path(&self.joined.paths)).await?;
        self.running.spawn(async move {
            server.serve(calls_to).await;
            Ok(())
        });
        self.running.spawn(control::divide(calls, reconciler_to, commands, view));
        Ok(reconciler)
    }

    /// Serves health and status by HTTP, if the options ask for it.
    async fn serve_health(&mut self) -> Result<()> {
        let Some(address) = self.options.health else { return Ok(()) };
        let listener = health::bind(address).await?;
        let (status, pins) = (self.status.subscribe(), self.joined.paths.pins.clone());
        self.running.spawn(async move {
            health::serve(listener, status, pins).await;
            Ok(())
        });
        Ok(())
    }
}

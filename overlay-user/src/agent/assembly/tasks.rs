//! The tasks that run beside the reconciler: what each of them gets.
use anyhow::{Context as _, Result};
use log::warn;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    agent::{
        control::{self, Call, Server},
        device_keeper,
        file_keeper::{self, Files},
        health, in_front,
        join::Joined,
        options::Options,
        origin, promotion_keeper,
        status::{Status, UnderlayStatus},
        underlay_watch,
    },
    datapath::{Installed, ebpf::EbpfDatapath, losses, relay},
    host::{
        firewall::{FirewallKeeper, RulesStatus, Wanted},
        netlink::Netlink,
        subnet_env::SubnetEnv,
        underlay::Underlay,
    },
    learn::{learner, observe, view::View, xdp_targets},
    model::{
        change::{LocalChange, XdpTargetChange},
        fast_path::AskedFastPath,
    },
};

/// The tasks that run beside the reconciler.
pub(super) struct Tasks<'a> {
    pub(super) running: JoinSet<Result<()>>,
    joined: &'a Joined,
    options: &'a Options,
    pub(super) status: watch::Sender<Status>,
    /// Which rule sees the frames that bridges forward.
    at_bridges: watch::Sender<Option<String>>,
}

impl<'a> Tasks<'a> {
    /// Prepares the set of tasks, with none running yet.
    pub(super) async fn new(joined: &'a Joined, options: &'a Options) -> Self {
        let lost_before = losses::read(&joined.netlink, &joined.paths.pins).await.unwrap_or_else(|error| {
            warn!("{error}: losses are shown since the devices were made, not since this start");
            Vec::new()
        });
        let (subnet, network) = (joined.local_lease.lease.subnet, joined.network.plan.network);
        let status = Status::new(joined.public_ip(), subnet, network, joined.backend);
        let fast_path = joined.fast_path.clone();
        let Underlay { name, address, .. } = joined.underlay.clone();
        let underlay = UnderlayStatus { name, address: Some(address), error: None };
        let status = watch::Sender::new(Status {
            lost_before,
            fast_path,
            underlay,
            ipv6: joined.ipv6_status(),
            ..status
        });
        let at_bridges = watch::Sender::new(joined.fast_path.at_bridges.clone());
        Self { running: JoinSet::new(), joined, options, status, at_bridges }
    }

    /// Puts this agent's rules in force in the host's packet filter, and keeps them in force.
    pub(super) async fn keep_rules(&mut self) {
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

    pub(super) fn follow_programs_log(&mut self, datapath: &EbpfDatapath) {
        let log = datapath.log();
        self.running.spawn(async move { match log.follow().await {} });
    }

    pub(super) fn keep_origin(&mut self) {
        self.running.spawn(origin::keep_noted(self.joined.paths.clone(), self.status.clone()));
    }

    /// Keeps the files that others read, and looks whether this agent still is the network's only one.
    pub(super) fn keep_files(&mut self, subnet_env: SubnetEnv) {
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
    pub(super) fn keep_promotions(&mut self) {
        if self.options.fast_path == AskedFastPath::Off {
            return;
        }
        let (pins, status) = (self.joined.paths.pins.clone(), self.status.clone());
        let (decider, at_bridges) = (self.joined.decider.clone(), self.at_bridges.clone());
        self.running.spawn(promotion_keeper::keep(pins, decider, status, at_bridges));
    }

    /// Tells of others' programs that see packets before ours.
    pub(super) fn watch_what_is_in_front(&mut self) {
        let (pins, status) = (self.joined.paths.pins.clone(), self.status.clone());
        self.running.spawn(async move {
            in_front::watch(pins, status).await;
            Ok(())
        });
    }

    /// Sees to it that overlay0 and the attachments at the underlay device stay.
    pub(super) fn keep_devices(
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
    pub(super) fn watch_underlay(&mut self) -> Result<oneshot::Receiver<Underlay>> {
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
    pub(super) fn relay(&mut self, socket: tokio::net::UdpSocket, datapath: &EbpfDatapath) -> Result<()> {
        let routes = relay::Routes::open(&self.joined.paths.pins, self.joined.local_lease.lease.subnet)?;
        let relaying = relay::relay(socket, self.joined.spec.name.clone(), datapath.device(), routes);
        self.running.spawn(async move { relaying.await.context("relay fragmented datagrams") });
        Ok(())
    }

    /// Finds out which containers' veths take frames that XDP redirects.
    pub(super) fn watch_xdp_targets(
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
    pub(super) fn learn(
        &mut self,
        installed: Installed,
        changes: mpsc::Sender<Vec<LocalChange>>,
        commands: mpsc::Receiver<observe::EndpointCommand>,
        view: watch::Sender<View>,
    ) {
        let subnet = self.joined.local_lease.lease.subnet;
        let config = learner::LearnConfig { subnet, bridges: self.options.bridges.clone() };
        let netlink = self.joined.netlink.clone();
        let at_bridges = self.at_bridges.subscribe();
        self.running.spawn(async move {
            let learned =
                observe::observe(netlink, config, installed, changes, commands, at_bridges, view).await;
            learned.context("watch the host's links and neighbours")
        });
    }

    /// Listens on the control socket, and returns the requests that are the reconciler's to answer.
    pub(super) async fn serve_control(
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
    pub(super) async fn serve_health(&mut self) -> Result<()> {
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

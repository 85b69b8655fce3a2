//! `overlay agent`: puts store, lease, device, programs, learning and the loop together. The only place that knows all.
use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use log::{info, warn};
use nix::unistd::Uid;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{Opened, open};
use crate::{
    agent::{
        control::{self, Server},
        device_keeper, health,
        join::{self, Joined},
        origin,
        peers::Scope,
        reconciler::{self, Inputs, Setup},
        status::Status,
    },
    cli::options::{Agent, Switch},
    datapath::{Datapath as _, losses, relay},
    host::{
        device::Kind,
        firewall::{self, Keeper, Wanted},
        netlink::Netlink,
        subnet_env::SubnetEnv,
    },
    learn::{learner, observe, xdp_targets},
    model::{entries::PortKind, ingress::XdpMode},
    store::{Store, local_lease::Own},
};

pub(super) async fn agent(options: Agent) -> Result<()> {
    if options.dry_run {
        return super::dry_run::dry_run(&options).await;
    }
    if !Uid::effective().is_root() {
        bail!("the agent loads kernel programs and makes devices: run it as root (or with --dry-run)");
    }
    if options.ip_masq {
        // Before anything is changed: what is asked for could not be had.
        firewall::masquerade::usable().await.map_err(|error| anyhow!("--ip-masq: {error}"))?;
    }
    let mut ended = Ended::new()?;
    let run = async {
        match open(options.store.choice().map_err(|error| anyhow!(error))?)? {
            Opened::Etcd(store) => with_store(*store, None, &options).await,
            Opened::Directory { store, path, shared } => {
                with_store(store, (!shared).then_some(path.as_path()), &options).await
            }
        }
    };
    tokio::select! {
        result = run => result,
        name = ended.wait() => {
            info!("{name}: ending; the data path stays and traffic goes on");
            Ok(())
        }
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Ended {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ended {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn with_store(mut store: impl Store, private: Option<&Path>, options: &Agent) -> Result<()> {
    let joined = join::join(&mut store, private, options).await?;
    // Before anything is made: without the port the network would be half a one.
    let socket = match joined.spec.kind {
        Kind::Tun => {
            let bound = relay::bind(joined.underlay.address, joined.mode.port()).await;
            Some(bound.inspect_err(|_| joined.undo())?)
        }
        Kind::Vxlan { .. } => None,
    };
    let datapath = joined.attach(options).await?;
    let public_ip = joined.public_ip();
    let Joined { netlink, paths, lock: _lock, underlay, network, mode, held, origin, spec, ingress, .. } =
        joined;
    let (subnet, mtu) = (held.lease.subnet, mode.overlay_mtu(underlay.mtu));
    let lost_before = losses::read(&netlink, &paths.pins).await.unwrap_or_else(|error| {
        warn!("{error}: losses are shown since the devices were made, not since this start");
        Vec::new()
    });
    let status = Status::new(public_ip, subnet, network.network, mode);
    let (status_to, status) = watch::channel(Status { lost_before, ..status });
    // Before subnet.env, which tells Docker whether to masquerade itself.
    let wanted = Wanted {
        name: options.place.network.clone(),
        network: network.network,
        subnet,
        masquerade: options.ip_masq,
        forward: options.forward_rules,
    };
    let rules = Keeper::start(&wanted, status_to.clone()).await;
    SubnetEnv { network: network.network, subnet, mtu, ip_masq: options.ip_masq }
        .write(&options.subnet_file)?;

    let scope = Scope {
        network: network.network,
        subnet_len: network.subnet_len,
        mode,
        own_ip: public_ip,
        own_subnet: subnet,
    };
    let margin = Duration::from_secs(options.subnet_lease_renew_margin * 60);
    let own = Own::new(held, margin);
    let audit = Duration::from_secs(options.audit_interval);
    let setup = Setup { scope, own, audit, origin: origin::read(&paths).or(Some(origin)) };

    // Everything below ends with this function: nothing outlives the agent but the data path.
    let mut tasks = JoinSet::new();
    let log = datapath.log();
    tasks.spawn(async move { match log.follow().await {} });
    let pins = paths.pins.clone();
    tasks.spawn(rules.keep());
    tasks.spawn(origin::keep_noted(paths, status_to.clone()));
    let (view_to, view) = watch::channel(learner::View::default());
    let (changes_to, changes) = mpsc::channel(64);
    let (commands_to, commands) = mpsc::channel(16);
    let (calls_to, calls) = mpsc::channel(16);
    let (loop_calls_to, loop_calls) = mpsc::channel(16);
    let (_shutdown_to, shutdown) = watch::channel(false);

    let mut installed = datapath.installed()?;
    // Learning has nothing to do with the host's own devices.
    installed.ports.retain(|_, kind| kind.is_containers());
    info!(
        "in force at the start: {} peers, {} endpoints, {} ports",
        installed.peers.len(),
        installed.endpoints.len(),
        installed.ports.values().filter(|kind| **kind == PortKind::Veth).count()
    );
    // A socket of its own: the kernel refuses a second dump while one is under way (EBUSY).
    let (keeping, told) = (Netlink::open()?, changes_to.clone());
    let (watched, attached) = (spec.clone(), datapath.device());
    tasks.spawn(async move {
        let kept = device_keeper::keep(keeping, watched, attached, underlay, told).await;
        kept.context("watch over the host's devices")
    });
    if let Some(socket) = socket {
        let routes = relay::Routes::open(&pins, subnet)?;
        let relaying = relay::relay(socket, spec.name.clone(), datapath.device(), routes);
        tasks.spawn(async move { relaying.await.context("relay fragmented datagrams") });
    }
    if ingress.xdp == Some(XdpMode::Redirect) {
        let (asking, view, told) = (Netlink::open()?, view.clone(), changes_to.clone());
        let switch_gro = options.endpoint_gro == Switch::On;
        let adopted = installed.receivers.clone();
        tasks.spawn(async move {
            let watched = xdp_targets::watch(asking, switch_gro, adopted, view, told).await;
            watched.context("watch which containers take frames from XDP")
        });
    }
    let learning = learner::Config { subnet, bridges: options.bridge.clone() };
    tasks.spawn(async move {
        let learned = observe::observe(netlink, learning, installed, changes_to, commands, view_to).await;
        learned.context("watch the host's links and neighbours")
    });
    let server =
        Server::bind(&control::socket_path(&options.place.state_dir, &options.place.network)).await?;
    tasks.spawn(async move {
        server.serve(calls_to).await;
        Ok(())
    });
    tasks.spawn(control::divide(calls, loop_calls_to, commands_to, view));
    if options.healthz_port != 0 {
        let listener = health::bind(SocketAddr::new(options.healthz_ip, options.healthz_port)).await?;
        tasks.spawn(async move {
            health::serve(listener, status, pins).await;
            Ok(())
        });
    }
    let inputs = Inputs::new(changes, loop_calls, shutdown, status_to);
    tokio::select! {
        exit = reconciler::run(store, datapath, setup, inputs) => exit.map(drop),
        // A helper that ends takes the agent down, to be started again by whoever watches it: better than half an agent.
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(error).context("a task of the agent ended"),
            Some(Ok(Ok(()))) | None => bail!("a task of the agent ended"),
        },
    }
}

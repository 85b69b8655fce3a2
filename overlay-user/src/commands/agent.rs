//! `overlay agent`: puts store, lease, device, programs, learning and the loop together. The only place that knows all.
use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use ipnet::Ipv4Net;
use log::{info, warn};
use nix::unistd::Uid;
use overlay_common::{SETTING_OUTER_DF, SETTING_STACK_ONLY, SETTING_STRICT_PEERS, Settings};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};

use super::{Opened, open, vxlan::Vxlan};
use crate::{
    acquire::{self, AcquireError, Held, Request, TIME_TO_LIVE},
    agent::{self, Inputs, Setup},
    cli::{self, Agent, AttachBy, PeerCheck, Switch},
    control::{self, Server},
    datapath::{
        Datapath as _, PortKind,
        ebpf::{EbpfDatapath, Options},
        links::{Links, TcWay},
        programs_log,
        xdp::{XdpLink, XdpMode},
    },
    device::{self, Device, DeviceSpec},
    endpoints, health,
    iface::{self, Underlay},
    ingress::{self, Ingress},
    keep,
    lease::Backend,
    losses,
    mac::Mac,
    netlink::{LinkKind, Netlink},
    network::NetworkConfig,
    observe, origin,
    own::Own,
    peers::Scope,
    receivers,
    rules::{self, Keeper, Wanted},
    state::{Adoption, Record},
    status::Status,
    store::{Origin, Store, StoreError},
    subnet_env::{self, SubnetEnv},
};

/// First and longest pause between two tries to reach the store at the start.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

pub(super) async fn agent(options: Agent) -> Result<()> {
    if options.dry_run {
        return super::dry_run::dry_run(&options).await;
    }
    if !Uid::effective().is_root() {
        bail!("the agent loads kernel programs and makes devices: run it as root (or with --dry-run)");
    }
    if options.ip_masq {
        // Before anything is changed: what is asked for could not be had.
        rules::masquerade::usable().await.map_err(|error| anyhow!("--ip-masq: {error}"))?;
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
    let netlink = Netlink::open()?;
    let paths = options.place.paths();
    paths.create()?;
    let _lock = paths.lock()?;
    let underlay = iface::choose(&netlink, &options.underlay.choice()).await?;
    let public_ip = options.underlay.public_ip.unwrap_or(underlay.address);
    info!("underlay {} with {}, public ip {public_ip}", underlay.name, underlay.address);
    paths.refuse_foreign(public_ip)?;
    let mut older = paths.older()?;

    let network = config(&mut store).await?;
    let vxlan = Vxlan::of(&network)?;
    let request = Request {
        public_ip,
        vni: vxlan.vni,
        vtep_mac: present_mac(&netlink, &options.device).await?,
        preferred: paths
            .record()?
            .map(|record| record.subnet)
            .or(subnet_env::read(&options.subnet_file).subnet),
        time_to_live: TIME_TO_LIVE,
    };
    let (held, origin) = lease(&mut store, private, &network, &request).await?;
    let subnet = held.lease.subnet;
    info!("subnet {subnet} is leased to this host");

    let fast_path = options.fast_path == Switch::On;
    let record = Record { fast_path, ..Record::current(public_ip, subnet)? };
    let adoption = paths.adopt(&record)?;
    if adoption == Adoption::Fresh {
        older.clear();
    } else if older.is_empty() {
        info!("adopting what an earlier agent left in {}", paths.pins.display());
    }
    let mtu = device::mtu(vxlan.mtu.unwrap_or(underlay.mtu));
    let vtep_mac = match held.lease.backend {
        Backend::Vxlan { vtep_mac, .. } => vtep_mac,
        Backend::Other(ref other) => bail!("our own lease {} has backend `{other}`", held.lease.key()),
    };
    let spec = DeviceSpec {
        name: options.device.clone(),
        port: vxlan.port,
        vni: vxlan.vni,
        mac: Some(vtep_mac),
        mtu,
        subnet,
        network: network.network,
    };
    let tc = tc_way(options.attach)?;
    let ingress = choose_ingress(&netlink, options, &underlay, &XdpLink::new(&paths.pins)).await?;
    let (mut datapath, device) = attach(&netlink, &spec, |device| Options {
        settings: settings(options, &network, &vxlan, subnet, &underlay, device, vtep_mac),
        pins: paths.pins.clone(),
        tc,
        ingress: ingress.clone(),
        max_peers: options.max_peers,
        max_flows: options.max_flows,
        older: older.clone(),
        filling: paths.filling.clone(),
    })
    .await
    .inspect_err(|_| {
        // A start that failed leaves nothing behind; what an earlier agent left stays and works on.
        if adoption == Adoption::Fresh {
            if let Err(error) = Links::detach_all(&paths.pins) {
                warn!("{error}");
            }
            if let Err(error) = paths.clear() {
                warn!("{error}");
            }
        }
    })?;
    paths.forget_older(&older)?;
    let lost_before = losses::read(&netlink, &paths.pins).await.unwrap_or_else(|error| {
        warn!("{error}: losses are shown since the devices were made, not since this start");
        Vec::new()
    });
    let status = Status::new(public_ip, subnet, network.network, vxlan.vni);
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
        vni: vxlan.vni,
        own_ip: public_ip,
        own_subnet: subnet,
    };
    let margin = Duration::from_secs(options.subnet_lease_renew_margin * 60);
    let own = Own::new(held, margin);
    let audit = Duration::from_secs(options.audit_interval);
    let setup = Setup { scope, own, audit, origin: origin::read(&paths).or(Some(origin)) };

    // Everything below ends with this function: nothing outlives the agent but the data path.
    let mut tasks = JoinSet::new();
    match programs_log::follow(datapath.ebpf()) {
        Ok(lines) => drop(tasks.spawn(lines)),
        // Counters say the same, if less promptly.
        Err(error) => warn!("the programs' log cannot be read: {error:#}"),
    }
    let pins = paths.pins.clone();
    tasks.spawn(rules.keep());
    tasks.spawn(origin::keep_noted(paths, status_to.clone()));
    let (view_to, view) = watch::channel(endpoints::View::default());
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
    tasks.spawn(async move {
        let kept = keep::keep(keeping, spec, device.ifindex, underlay, told).await;
        kept.context("watch over the host's devices")
    });
    if ingress.xdp == Some(XdpMode::Redirect) {
        let (asking, view, told) = (Netlink::open()?, view.clone(), changes_to.clone());
        let switch_gro = options.endpoint_gro == Switch::On;
        let adopted = installed.receivers.clone();
        tasks.spawn(async move {
            let watched = receivers::watch(asking, switch_gro, adopted, view, told).await;
            watched.context("watch which containers take frames from XDP")
        });
    }
    let learning = endpoints::Config { subnet, bridges: options.bridge.clone() };
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
        exit = agent::run(store, datapath, setup, inputs) => exit.map(drop),
        // A helper that ends takes the agent down, to be started again by whoever watches it: better than half an agent.
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(error).context("a task of the agent ended"),
            Some(Ok(Ok(()))) | None => bail!("a task of the agent ended"),
        },
    }
}

/// How programs are attached at TC: as asked, or as the kernel can.
fn tc_way(asked: AttachBy) -> Result<TcWay> {
    let way = match asked {
        AttachBy::Tcx => TcWay::Tcx,
        AttachBy::Clsact => TcWay::Clsact,
        AttachBy::Auto => TcWay::best()?,
    };
    if asked == AttachBy::Auto && way == TcWay::Clsact {
        info!("this kernel has no TCX: attaching by clsact filters instead");
    }
    Ok(way)
}

/// What XDP is to do: as asked, and as the underlay can.
async fn choose_ingress(
    netlink: &Netlink,
    options: &Agent,
    underlay: &Underlay,
    ours: &XdpLink,
) -> Result<Ingress> {
    let mode = match options.ingress {
        cli::Ingress::Auto => {
            return Ok(Ingress::without(
                "not asked for: attaching it may reset a NIC and take offloads from it; --ingress xdp does",
            ));
        }
        cli::Ingress::Tc => return Ok(Ingress::without("not asked for")),
        cli::Ingress::Xdp | cli::Ingress::XdpStrip if options.fast_path == Switch::Off => {
            return Ok(Ingress::without("switched off by --fast-path off"));
        }
        cli::Ingress::Xdp => XdpMode::Redirect,
        cli::Ingress::XdpStrip => XdpMode::Strip,
    };
    let link = netlink.link_named(&underlay.name).await?.context("the underlay interface is gone")?;
    if let Some(why) = ingress::unfit(netlink, &link, ours).await? {
        warn!("--ingress: {why}; TC takes packets in");
        return Ok(Ingress::without(why));
    }
    Ok(Ingress { xdp: Some(mode), why: String::new() })
}

/// The network's config. Waits for a store that does not answer, and for a config that nobody wrote yet: on a cluster
/// that starts, both come. What is wrong for good ends the agent.
async fn config(store: &mut impl Store) -> Result<NetworkConfig> {
    let mut pause = PAUSE.0;
    loop {
        match store.config().await {
            Ok(Some(text)) => {
                return NetworkConfig::parse(&text).with_context(|| format!("read from {}", store.name()));
            }
            Ok(None) => warn!(
                "{} has no network config: write one with `overlay config set`; looking again in {pause:?}",
                store.name()
            ),
            Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
            Err(error) => warn!("{error}; trying again in {pause:?}"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// A lease of our own, and the history that it is part of.
async fn lease(
    store: &mut impl Store,
    private: Option<&Path>,
    network: &NetworkConfig,
    request: &Request,
) -> Result<(Held, Origin)> {
    let mut pause = PAUSE.0;
    loop {
        let acquired = async {
            if let Some(folder) = private {
                acquire::refuse_other_hosts(store, request.public_ip)
                    .await
                    .with_context(|| format!("use {} as this host's store", folder.display()))?;
            }
            let held = acquire::acquire(store, network, request).await?;
            anyhow::Ok((held, store.snapshot(false).await?.origin()))
        };
        match acquired.await {
            Err(error) if is_passing(&error) => warn!("{error:#}; trying again in {pause:?}"),
            other => return other.context("acquire a lease"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let store = match cause.downcast_ref() {
            // Transparent: the chain holds it in the store error's place.
            Some(AcquireError::Store(store)) => Some(store),
            _ => cause.downcast_ref(),
        };
        matches!(store, Some(StoreError::Unavailable { .. }))
    })
}

/// The MAC address of a tunnel device that is there already: peers know it.
async fn present_mac(netlink: &Netlink, name: &str) -> Result<Option<crate::mac::Mac>> {
    let link = netlink.link_named(name).await?;
    Ok(link.filter(|link| matches!(link.kind, LinkKind::Vxlan(_))).and_then(|link| link.mac))
}

/// The device down, the programs on it, and only then up: no frame enters the stack unchecked. What was made here goes
/// again if the rest fails.
async fn attach(
    netlink: &Netlink,
    spec: &DeviceSpec,
    options: impl FnOnce(u32) -> Options,
) -> Result<(EbpfDatapath, Device)> {
    let prepared = device::prepare(netlink, spec).await?;
    let attached = async {
        let datapath = EbpfDatapath::load(options(prepared.ifindex))?;
        anyhow::Ok((datapath, device::ensure(netlink, spec).await?))
    };
    let attached = attached.await;
    if attached.is_err()
        && prepared.made
        && let Err(error) = device::remove(netlink, &spec.name).await
    {
        warn!("{} stays half-made: {error}", spec.name);
    }
    attached
}

fn settings(
    options: &Agent,
    network: &NetworkConfig,
    vxlan: &Vxlan,
    subnet: Ipv4Net,
    underlay: &Underlay,
    device: u32,
    vtep_mac: Mac,
) -> Settings {
    let mut flags = 0;
    if options.outer_df {
        flags |= SETTING_OUTER_DF;
    }
    if options.peer_check == PeerCheck::Strict {
        flags |= SETTING_STRICT_PEERS;
    }
    if options.fast_path == Switch::Off {
        flags |= SETTING_STACK_ONLY;
    }
    Settings {
        network: network.network.network().octets(),
        network_mask: network.network.netmask().octets(),
        subnet: subnet.network().octets(),
        subnet_mask: subnet.netmask().octets(),
        local: underlay.address.octets(),
        underlay: underlay.ifindex,
        device,
        vni: vxlan.vni,
        port: vxlan.port.to_be_bytes(),
        vtep_mac: vtep_mac.0,
        flags,
        // RFC 7348 section 5: "the range 49152-65535 ... [RFC6335]".
        port_min: 49152,
        port_count: 16384,
        // subnet.env tells Docker and CNI to give the bridge the subnet's first address.
        gateway: std::net::Ipv4Addr::from(u32::from(subnet.network()) + 1).octets(),
        underlay_mac: underlay.mac.map_or([0; 6], |mac| mac.0),
        reserved: [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_answer_will_pass_and_one_that_refuses_will_not() {
        let (store, detail) = ("etcd".to_owned(), "gone".to_owned());
        let away = || StoreError::Unavailable { store: store.clone(), detail: detail.clone() };
        let refuses = StoreError::Refused { store: store.clone(), detail: detail.clone() };
        assert!(is_passing(&away().into()));
        assert!(is_passing(&AcquireError::Store(away()).into()));
        assert!(is_passing(&anyhow::Error::from(AcquireError::Store(away())).context("use a folder")));
        assert!(!is_passing(&AcquireError::Store(refuses).into()));
        assert!(!is_passing(&AcquireError::Contended(1, store.clone()).into()));
    }
}

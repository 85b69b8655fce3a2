//! How a host joins the network when its agent starts. It finds the underlay interface, takes the lock, reads the config,
//! acquires the lease and writes the record; then come the device and the programs.
mod families;
mod ipv6;
pub(super) mod patience;
mod settings;

use std::{net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use log::{info, warn};
use overlay_common::{SETTING_DEVICE_DOWN, Settings, Settings6};

use self::patience::{config, lease};
use crate::{
    agent::{
        fast_path::Decider,
        options::{AskedIngress, Options},
        origin::{self, Noted},
    },
    datapath::{
        ebpf::EbpfDatapath,
        layouts::Older,
        links::{AttachMethod, Links},
        load::{self, Attached},
        state::{Adoption, Lock, Paths, Record},
        xdp::XdpLink,
        xdp_fitness,
    },
    host::{
        device::{self, Device, DeviceKind, DeviceSpec, Prepared},
        netlink::{LinkKind, Netlink},
        overlaps::{Overlaps, REMEDY},
        site::{Names, Site},
        subnet_env,
        underlay::{self, Underlay},
    },
    model::{
        backend::Backend,
        entries::Peer,
        fast_path::{AskedFastPath, FastPathStatus},
        ingress::Ingress,
        lease::LeaseBackend,
        mac::Mac,
        network::{AddressPlan, NetworkConfig},
    },
    store::{
        Store,
        acquire::{LeaseRequest, LocalLease, TIME_TO_LIVE},
    },
};

/// A host that has its lease, and has changed nothing in the kernel yet.
pub(crate) struct Joined {
    pub(crate) netlink: Netlink,
    pub(crate) paths: Paths,
    pub(crate) lock: Arc<Lock>,
    pub(crate) underlay: Underlay,
    pub(crate) network: NetworkConfig,
    pub(crate) backend: Backend,
    pub(crate) local_lease: LocalLease,
    /// Why this host takes part with IPv4 alone, in a network of both families.
    pub(crate) no_ipv6: Option<String>,
    /// Which history the store told when the lease was acquired, and what an earlier agent's guard has noted.
    pub(crate) origin: Noted,
    /// What the record says.
    pub(crate) record: Record,
    pub(crate) spec: DeviceSpec,
    pub(crate) ingress: Ingress,
    adoption: Adoption,
    older: Vec<Older>,
    tc: AttachMethod,
    /// What this process has attached already.
    attached: Option<Attached>,
    /// Which packets the fast path was found to be allowed to carry, and by whom.
    pub(crate) fast_path: FastPathStatus,
    pub(crate) decider: Decider,
}

/// What this process holds of a network that this host has joined before.
pub(crate) struct Former {
    pub(crate) lock: Arc<Lock>,
    pub(crate) attached: Attached,
}

/// Locks the network for this process unless a `former` join has, and leases a subnet for this host. `private` is the folder of a
/// store that is meant for this host alone.
pub(crate) async fn join(
    store: &mut impl Store,
    private: Option<&Path>,
    options: &Options,
    former: Option<Former>,
) -> Result<Joined> {
    let netlink = Netlink::open()?;
    let paths = options.paths.clone();
    paths.create()?;
    let (lock, attached) = match former {
        Some(Former { lock, attached }) => (lock, Some(attached)),
        None => (Arc::new(paths.lock()?), None),
    };
    paths.refuse_shared_device(&options.device)?;
    paths.refuse_shared_file(&options.subnet_file)?;
    let underlay = underlay::choose(&netlink, &options.underlay).await?.remarked();
    let public_ip = options.underlay.public_ip(&underlay);
    info!("underlay {} with {}, public ip {public_ip}", underlay.name, underlay.address);
    let former_ip = former_ip(&paths, options, public_ip)?;
    match former_ip {
        Some(former) => info!("this host's address was {former}: its lease and what is in force here follow"),
        None => paths.refuse_foreign(public_ip)?,
    }
    paths.uncover()?;
    let mut older = paths.older()?;

    let network = config(store, options.net_config.as_deref()).await?;
    paths.refuse_moved(former_ip.unwrap_or(public_ip), &network)?;
    let is_member = former_ip.is_none() && paths.record()?.is_some();
    refuse_own_network(&underlay.name, underlay.address, &network.plan, is_member)?;
    let backend = Backend::of(&network)?;
    if backend == Backend::HostGw && public_ip != underlay.address {
        bail!(
            "the network's backend is host-gw, which routes to the hosts' own addresses: --public-ip {public_ip} is not that \
             of {} ({}); leave it out, or use vxlan or udp",
            underlay.name,
            underlay.address
        );
    }
    let (ipv6, no_ipv6) = match &network.ipv6 {
        None => (None, None),
        Some(plan) => match ipv6::underlay(&netlink, options, &underlay, backend).await? {
            Ok(ipv6) => {
                refuse_own_network(&underlay.name, ipv6.address, plan, is_member)?;
                (Some(ipv6::request(&paths, &options.subnet_file, ipv6)?), None)
            }
            Err(why) => (None, Some(why)),
        },
    };
    let request = LeaseRequest {
        public_ip,
        former_ip,
        backend,
        vtep_mac: present_mac(&netlink, &options.device).await?,
        preferred: paths
            .record()?
            .map(|record| record.subnet)
            .or(subnet_env::read(&options.subnet_file).subnet),
        ipv6,
        time_to_live: TIME_TO_LIVE,
    };
    let (local_lease, origin) = lease(store, private, &network, &request).await?;
    let subnet = local_lease.lease.subnet;
    let ipv6_subnet = local_lease.lease.ipv6.as_ref().map(|half| half.subnet);
    let both = ipv6_subnet.map(|ipv6| format!(" with {ipv6}")).unwrap_or_default();
    info!("subnet {subnet}{both} is leased to this host, backend {backend}");

    if former_ip.is_some() {
        paths.follow(public_ip)?;
    }
    let record = Record {
        backend: backend.name().to_owned(),
        device: Some(options.device.clone()),
        subnet_file: Some(options.subnet_file.clone()),
        underlay: Some(underlay.name.clone()),
        underlay_address: Some(underlay.address),
        // A host without an IPv6 address now may have one again, and its containers still have theirs.
        ipv6_subnet: ipv6_subnet.or(paths.record()?.and_then(|record| record.ipv6_subnet)),
        bpffs: paths.bpffs(),
        ..Record::current(public_ip, subnet)?.with_fast_path(options.fast_path)
    };
    let adoption = paths.adopt(&record)?;
    if adoption == Adoption::Fresh {
        older.clear();
    } else if older.is_empty() {
        info!("adopting what an earlier agent left in {}", paths.pins.display());
    }
    let vtep_mac = match local_lease.lease.backend {
        LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
        LeaseBackend::Other(_) => None,
    };
    let spec = DeviceSpec {
        name: options.device.clone(),
        kind: DeviceKind::of(backend, vtep_mac),
        mtu: backend.mtu_of(underlay.mtu, ipv6_subnet.is_some()),
        subnet,
        network: network.plan.network,
        prefixes: network.plan.prefixes(),
    };
    let tc = attach_method(options.attach)?;
    let ingress = choose_ingress(&netlink, options, &underlay, &XdpLink::new(&paths.pins)).await?;
    let site = Site {
        network: Some(network.plan.network),
        leasable: Some(network.plan.leasable()),
        subnet: Some(subnet),
        device: spec.name.clone(),
        underlay: Some(underlay.name.clone()),
        address: Some(underlay.address),
        port: backend.port(),
        is_direct: backend.is_direct(),
        names: Names::default(),
    };
    let mut decider = Decider::new(options.fast_path, site, Netlink::open()?);
    let origin = Noted { origin, guard: origin::read_guard(&paths) };
    Ok(Joined {
        netlink,
        paths,
        lock,
        underlay,
        network,
        backend,
        local_lease,
        no_ipv6,
        origin,
        record,
        spec,
        ingress,
        adoption,
        older,
        tc,
        attached,
        fast_path: decider.decide().await,
        decider,
    })
}

/// The public IP that an earlier agent had here, if it was one of the host's own addresses and another is chosen now. An address
/// that the operator gives (`--public-ip`) does not take the place of another, because it may be a slip, and peers would follow.
fn former_ip(paths: &Paths, options: &Options, public_ip: IpAddr) -> Result<Option<IpAddr>> {
    if options.underlay.public_ip.is_some() {
        return Ok(None);
    }
    paths.former_ip(public_ip)
}

/// Refuses a network from which a container may get this host's own address, since hosts may lease any address of the leasable
/// range. A host that is part of the network with this address already (`is_member`) is only warned, because an agent that refused
/// to start would leave it without one. It never takes such an address in another's place: that may be a container bridge's.
fn refuse_own_network(name: &str, address: IpAddr, plan: &AddressPlan, is_member: bool) -> Result<()> {
    let (first, last) = plan.leasable();
    if (first..=last).contains(&address) {
        let why = format!(
            "{address}, this host's own address on {name}, is inside the addresses that hosts may lease ({first} to {last}): \
             {REMEDY}"
        );
        if !is_member {
            bail!(why);
        }
        warn!("{why}");
    }
    Ok(())
}

impl Joined {
    /// Warns of what else the host has in the leasable range, since the kernel prefers that, and the fast path does not.
    pub(crate) async fn warn_of_overlaps(&self) {
        let plan = &self.network.plan;
        let named = match Overlaps::read(&self.netlink, plan).await {
            Ok(found) => found.named(),
            Err(error) => return warn!("{error}: not compared with the addresses that hosts may lease"),
        };
        if !named.is_empty() {
            let (first, last) = plan.leasable();
            warn!(
                "this host has {named}, inside the addresses that hosts may lease ({first} to {last}): packets to a subnet \
                 that another host has leased pass that by in the fast path; {REMEDY}"
            );
        }
    }

    /// With `--ip-blackhole-route`, the kernel discards packets to containers of this host that have no route yet, instead of
    /// sending them on. The route comes last of all to the subnet, so a bridge's goes before it. flannel's has the metric of a
    /// bridge's, and whichever was there first would win.
    pub(crate) async fn discard_strays(&self, is_asked: bool) {
        let subnet = self.local_lease.lease.subnet;
        let done = if is_asked {
            self.netlink.drop_unrouted(subnet).await
        } else {
            self.netlink.stop_dropping_unrouted(subnet).await
        };
        if let Err(error) = done {
            warn!("--ip-blackhole-route: {error}");
        }
    }

    /// This host's address as its peers know it.
    pub(crate) fn public_ip(&self) -> IpAddr {
        self.local_lease.lease.public_ip
    }

    /// Makes the device, which is still down, attaches the programs to it, and only then brings it up, so that no frame enters
    /// the stack unchecked. If a step fails, what was made here is removed again.
    pub(crate) async fn attach(&self, options: &Options) -> Result<EbpfDatapath> {
        for orphan in Links::orphans(&self.paths.bpf_root, Some(self.spec.subnet)).unwrap_or_default() {
            warn!("{orphan}; until then it may see packets that this agent's programs leave to the stack");
        }
        let prepared = device::prepare(&self.netlink, &self.spec).await.inspect_err(|_| self.undo())?;
        let attached = async {
            let datapath = self.load(options, &prepared)?;
            self.raise().await?;
            anyhow::Ok(datapath)
        };
        let attached = attached.await;
        if attached.is_err() {
            self.take_back(&prepared).await;
        }
        attached
    }

    /// Loads the programs, and attaches those of the underlay device and of the tunnel device, which may still be down. If an
    /// earlier agent left programs, they are adopted.
    pub(crate) fn load(&self, options: &Options, device: &Prepared) -> Result<EbpfDatapath> {
        self.load_knowing(options, device, &[])
    }

    /// Does the same as [`Self::load`], with peers that the programs know from the first packet on: they drop what comes from
    /// others.
    pub(crate) fn load_knowing(
        &self,
        options: &Options,
        device: &Prepared,
        peers: &[(IpNet, Peer)],
    ) -> Result<EbpfDatapath> {
        self.load_with(options, self.settings(options, device.ifindex)?, peers)
    }

    /// Does the same as [`Self::load_knowing`] while the tunnel device is down, because flannel's device has the port.
    /// [`EbpfDatapath::device_is_up`] ends this.
    pub(crate) fn load_beside(
        &self,
        options: &Options,
        device: &Prepared,
        peers: &[(IpNet, Peer)],
    ) -> Result<EbpfDatapath> {
        let mut settings = self.settings(options, device.ifindex)?;
        settings.flags |= SETTING_DEVICE_DOWN;
        self.load_with(options, settings, peers)
    }

    fn load_with(
        &self,
        options: &Options,
        settings: Settings,
        peers: &[(IpNet, Peer)],
    ) -> Result<EbpfDatapath> {
        let options = load::LoadOptions {
            settings,
            settings6: Settings6::default(),
            pins: self.paths.pins.clone(),
            fast_path: self.fast_path.effective,
            tc: self.tc,
            ingress: self.ingress.clone(),
            max_peers: options.max_peers,
            max_flows: options.max_flows,
            older: self.older.clone(),
            filling: self.paths.filling.clone(),
            lock: Some(self.lock.clone()),
            attached: self.attached.clone(),
        };
        let datapath = EbpfDatapath::load_knowing(options, peers)?;
        self.paths.forget_older(&self.older)?;
        Ok(datapath)
    }

    /// Brings the device up, with its address and the route to Network. From then on the stack's packets take it.
    pub(crate) async fn raise(&self) -> Result<Device> {
        device::ensure(&self.netlink, &self.spec).await
    }

    /// Removes what a start that failed has made. What an earlier agent left stays in place and goes on working.
    pub(crate) async fn take_back(&self, device: &Prepared) {
        if device.made
            && let Err(error) = device::remove(&self.netlink, &self.spec.name).await
        {
            warn!("{} stays half-made: {error}", self.spec.name);
        }
        self.undo();
    }

    pub(crate) fn undo(&self) {
        if self.adoption == Adoption::Fresh && self.attached.is_none() {
            if let Err(error) = Links::detach_all(&self.paths.pins) {
                warn!("{error}");
            }
            if let Err(error) = self.paths.clear() {
                warn!("{error}");
            }
        }
    }
}

/// The method by which programs are attached at TC: the one that was asked for, or else the best that the kernel has.
fn attach_method(asked: Option<AttachMethod>) -> Result<AttachMethod> {
    if let Some(method) = asked {
        return Ok(method);
    }
    let best = AttachMethod::best()?;
    if best == AttachMethod::Clsact {
        info!("this kernel has no TCX: attaching by clsact filters instead");
    }
    Ok(best)
}

/// What XDP is to do: what was asked for, if the underlay interface is fit for it.
async fn choose_ingress(
    netlink: &Netlink,
    options: &Options,
    underlay: &Underlay,
    ours: &XdpLink,
) -> Result<Ingress> {
    let mode = match options.ingress {
        AskedIngress::Auto => {
            return Ok(Ingress::without(
                "not asked for: attaching it may reset a NIC and take offloads from it; --ingress xdp does",
            ));
        }
        AskedIngress::Tc => return Ok(Ingress::without("not asked for")),
        AskedIngress::Xdp(_) if options.fast_path == AskedFastPath::Off => {
            return Ok(Ingress::without("switched off by --fast-path off"));
        }
        AskedIngress::Xdp(mode) => mode,
    };
    let link = netlink.link_named(&underlay.name).await?.context("the underlay interface is gone")?;
    if let Some(why) = xdp_fitness::unfit(netlink, &link, ours).await? {
        warn!("--ingress: {why}; TC takes packets in");
        return Ok(Ingress::without(why));
    }
    Ok(Ingress { xdp: Some(mode), why: String::new() })
}

/// The MAC address of a tunnel device that exists already. It is kept, because peers know it.
async fn present_mac(netlink: &Netlink, name: &str) -> Result<Option<Mac>> {
    let link = netlink.link_named(name).await?;
    Ok(link.filter(|link| matches!(link.kind, LinkKind::Vxlan(_))).and_then(|link| link.mac))
}

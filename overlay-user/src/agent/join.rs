//! How a host joins the network when its agent starts. It finds the underlay interface, takes the lock, reads the config,
//! acquires the lease and writes the record; then come the device and the programs.
use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use log::{info, warn};
use overlay_common::{
    ENCAPSULATION_UDP, SETTING_DIRECT, SETTING_OUTER_DF, SETTING_PART, SETTING_STRICT_PEERS, Settings,
};
use tokio::time::sleep;

use crate::{
    agent::{
        fast_path::Decider,
        options::{AskedIngress, Options},
    },
    datapath::{
        ebpf::EbpfDatapath,
        layouts::Older,
        links::{AttachMethod, Links},
        load,
        state::{Adoption, Lock, Paths, Record},
        xdp::XdpLink,
        xdp_fitness,
    },
    host::{
        device::{self, Device, DeviceKind, DeviceSpec, Prepared},
        firewall::analysis::{Names, Site},
        netlink::{LinkKind, Netlink},
        overlaps::{Overlaps, REMEDY},
        subnet_env,
        underlay::{self, Underlay},
    },
    model::{
        addr::{OtherFamily, gateway, ipv4, ipv4_net},
        backend::Backend,
        entries::Peer,
        fast_path::{AskedFastPath, FastPath, FastPathStatus},
        ingress::Ingress,
        lease::LeaseBackend,
        mac::Mac,
        network::NetworkConfig,
    },
    store::{
        Origin, Store, StoreError,
        acquire::{self, LeaseRequest, LocalLease, TIME_TO_LIVE},
    },
};

/// The limits of the first and of the longest pause between two tries to reach the store at the start. A pause is any time up to
/// its limit, so that hosts which were started together do not ask together.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// A host that has its lease, and has changed nothing in the kernel yet.
pub(crate) struct Joined {
    pub(crate) netlink: Netlink,
    pub(crate) paths: Paths,
    pub(crate) lock: Lock,
    pub(crate) underlay: Underlay,
    pub(crate) network: NetworkConfig,
    pub(crate) backend: Backend,
    pub(crate) local_lease: LocalLease,
    pub(crate) origin: Origin,
    pub(crate) spec: DeviceSpec,
    pub(crate) ingress: Ingress,
    adoption: Adoption,
    older: Vec<Older>,
    tc: AttachMethod,
    /// Which packets the fast path was found to be allowed to carry.
    pub(crate) fast_path: Option<FastPathStatus>,
}

/// Locks the network for this process, and leases a subnet for this host. `private` is the folder of a store that is meant for
/// this host alone.
pub(crate) async fn join(
    store: &mut impl Store,
    private: Option<&Path>,
    options: &Options,
) -> Result<Joined> {
    let netlink = Netlink::open()?;
    let paths = options.paths.clone();
    paths.create()?;
    let lock = paths.lock()?;
    paths.refuse_shared_device(&options.device)?;
    paths.refuse_shared_file(&options.subnet_file)?;
    let underlay = underlay::choose(&netlink, &options.underlay).await?;
    let public_ip = options.public_ip.unwrap_or(underlay.address);
    info!("underlay {} with {}, public ip {public_ip}", underlay.name, underlay.address);
    paths.refuse_foreign(public_ip)?;
    let mut older = paths.older()?;

    let network = config(store).await?;
    paths.refuse_moved(public_ip, &network)?;
    refuse_own_network(&underlay, &network, paths.record()?.is_some())?;
    let backend = Backend::of(&network)?;
    if backend == Backend::HostGw && public_ip != underlay.address {
        bail!(
            "the network's backend is host-gw, which routes to the hosts' own addresses: --public-ip {public_ip} is not that \
             of {} ({}); leave it out, or use vxlan or udp",
            underlay.name,
            underlay.address
        );
    }
    let request = LeaseRequest {
        public_ip,
        backend,
        vtep_mac: present_mac(&netlink, &options.device).await?,
        preferred: paths
            .record()?
            .map(|record| record.subnet)
            .or(subnet_env::read(&options.subnet_file).subnet),
        time_to_live: TIME_TO_LIVE,
    };
    let (local_lease, origin) = lease(store, private, &network, &request).await?;
    let subnet = local_lease.lease.subnet;
    info!("subnet {subnet} is leased to this host, backend {backend}");

    let record = Record {
        backend: backend.name().to_owned(),
        device: Some(options.device.clone()),
        subnet_file: Some(options.subnet_file.clone()),
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
        mtu: backend.device_mtu(underlay.mtu),
        subnet,
        network: network.plan.network,
        prefixes: network.plan.prefixes(),
    };
    let tc = attach_method(options.attach)?;
    let ingress = choose_ingress(&netlink, options, &underlay, &XdpLink::new(&paths.pins)).await?;
    let mut joined = Joined {
        netlink,
        paths,
        lock,
        underlay,
        network,
        backend,
        local_lease,
        origin,
        spec,
        ingress,
        adoption,
        older,
        tc,
        fast_path: None,
    };
    joined.fast_path = Some(joined.decider(options.fast_path)?.decide().await);
    Ok(joined)
}

/// Refuses a network from which a container may get this host's own address, since hosts may lease any address of the leasable
/// range. A host that is part of the network already (`is_member`) is only warned, because an agent that refused to start would
/// leave it without one.
fn refuse_own_network(underlay: &Underlay, network: &NetworkConfig, is_member: bool) -> Result<()> {
    let Underlay { name, address, .. } = underlay;
    let (first, last) = network.plan.leasable();
    if (first..=last).contains(address) {
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

    /// Decides which packets the fast path carries on this host.
    pub(crate) fn decider(&self, asked: AskedFastPath) -> Result<Decider> {
        let site = Site {
            network: self.network.plan.network,
            leasable: self.network.plan.leasable(),
            subnet: self.local_lease.lease.subnet,
            device: self.spec.name.clone(),
            underlay: self.underlay.name.clone(),
            address: self.underlay.address,
            port: self.backend.port(),
            is_direct: self.backend.is_direct(),
            names: Names::default(),
        };
        // A netlink socket of its own, because the kernel refuses a second dump on a socket while one is under way (EBUSY).
        Ok(Decider::new(asked, site, Netlink::open()?, self.fast_path.clone()))
    }

    /// This host's address as its peers know it.
    pub(crate) fn public_ip(&self) -> IpAddr {
        self.local_lease.lease.public_ip
    }

    /// Makes the device, which is still down, attaches the programs to it, and only then brings it up, so that no frame enters
    /// the stack unchecked. If a step fails, what was made here is removed again.
    pub(crate) async fn attach(&self, options: &Options) -> Result<EbpfDatapath> {
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
        let options = load::LoadOptions {
            settings: self.settings(options, device.ifindex)?,
            pins: self.paths.pins.clone(),
            fast_path: self.fast_path.as_ref().map_or(FastPath::Established, |decided| decided.effective),
            tc: self.tc,
            ingress: self.ingress.clone(),
            max_peers: options.max_peers,
            max_flows: options.max_flows,
            older: self.older.clone(),
            filling: self.paths.filling.clone(),
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
        if self.adoption == Adoption::Fresh {
            if let Err(error) = Links::detach_all(&self.paths.pins) {
                warn!("{error}");
            }
            if let Err(error) = self.paths.clear() {
                warn!("{error}");
            }
        }
    }

    fn settings(&self, options: &Options, device: u32) -> Result<Settings, OtherFamily> {
        let subnet = ipv4_net(self.local_lease.lease.subnet)?;
        let network = ipv4_net(self.network.plan.network)?;
        let (leasable_first, leasable_last) = self.network.plan.leasable();
        let flags = [
            (options.outer_df, SETTING_OUTER_DF),
            (options.strict_peers, SETTING_STRICT_PEERS),
            (self.backend.is_direct(), SETTING_DIRECT),
            (!self.network.plan.is_whole(), SETTING_PART),
        ];
        // RFC 7348 section 5 recommends source ports of "the range 49152-65535 ... [RFC6335]". flannel's udp backend sends from
        // its own port, but takes datagrams from any, so that the hash of the flow spreads packets over the receiver's queues
        // in that backend, too. With DF, however, routers answer by ICMP, and the kernel learns from an answer only if it finds
        // a socket by this source port. For VXLAN it looks for the tunnel's own socket (encap_err_lookup). The agent's socket
        // in UDP mode is an ordinary one, which is found only if packets are sent from its port.
        let is_told_by_port = options.outer_df && self.backend.encapsulation() == ENCAPSULATION_UDP;
        let (port_min, port_count) = if is_told_by_port { (self.backend.port(), 1) } else { (49152, 16384) };
        Ok(Settings {
            network: network.network().octets(),
            network_mask: network.netmask().octets(),
            subnet: subnet.network().octets(),
            subnet_mask: subnet.netmask().octets(),
            local: ipv4(self.underlay.address)?.octets(),
            underlay: self.underlay.ifindex,
            device,
            vni: self.backend.vni().unwrap_or_default(),
            port: self.backend.port().to_be_bytes(),
            vtep_mac: self.spec.kind.mac().map_or([0; 6], |mac| mac.0),
            flags: flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum(),
            port_min,
            port_count,
            // subnet.env tells Docker and CNI to give the bridge the subnet's first address.
            gateway: ipv4(gateway(subnet.into()))?.octets(),
            underlay_mac: self.underlay.mac.map_or([0; 6], |mac| mac.0),
            encapsulation: self.backend.encapsulation(),
            host_bits: subnet.max_prefix_len() - subnet.prefix_len(),
            leasable_first: ipv4(leasable_first)?.into(),
            leasable_last: ipv4(leasable_last)?.into(),
        })
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

/// Reads the network's config. This waits for a store that does not answer, and for a config that nobody has written yet, since
/// both happen on a cluster that is starting. An error that waiting cannot cure ends the agent.
async fn config(store: &mut impl Store) -> Result<NetworkConfig> {
    let mut limit = PAUSE.0;
    loop {
        let pause = limit.mul_f64(rand::random());
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
        limit = (limit * 2).min(PAUSE.1);
    }
}

/// Acquires this host's lease, and reads which cluster and revision it came from.
async fn lease(
    store: &mut impl Store,
    private: Option<&Path>,
    network: &NetworkConfig,
    request: &LeaseRequest,
) -> Result<(LocalLease, Origin)> {
    let mut limit = PAUSE.0;
    loop {
        let pause = limit.mul_f64(rand::random());
        let acquired = async {
            if let Some(folder) = private {
                acquire::refuse_other_hosts(store, request.public_ip)
                    .await
                    .with_context(|| format!("use {} as this host's store", folder.display()))?;
            }
            let local_lease = acquire::acquire(store, network, request).await?;
            anyhow::Ok((local_lease, store.origin().await?))
        };
        match acquired.await {
            Err(error) if is_passing(&error) => warn!("{error:#}; trying again in {pause:?}"),
            other => return other.context("acquire a lease"),
        }
        sleep(pause).await;
        limit = (limit * 2).min(PAUSE.1);
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StoreError::Unavailable { .. })))
}

/// The MAC address of a tunnel device that exists already. It is kept, because peers know it.
async fn present_mac(netlink: &Netlink, name: &str) -> Result<Option<Mac>> {
    let link = netlink.link_named(name).await?;
    Ok(link.filter(|link| matches!(link.kind, LinkKind::Vxlan(_))).and_then(|link| link.mac))
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
        assert!(is_passing(&anyhow::Error::from(away()).context("use a folder")));
        assert!(!is_passing(&refuses.into()));
        assert!(!is_passing(&anyhow::anyhow!("no free subnet")));
    }
}

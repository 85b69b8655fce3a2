//! The eBPF datapath: it loads the programs, adopts what is pinned, and carries the reconciler's changes out in the maps.
mod peers;
mod vteps;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use aya::{Ebpf, maps::MapError};
use ipnet::IpNet;
use log::{info, warn};
use nix::{errno::Errno, ifaddrs::getifaddrs, net::if_::if_nameindex};
use overlay_common::{SETTING_DEVICE_DOWN, Settings};
use tokio::sync::watch;

pub use self::peers::MANY_OUTLYING;
use super::{
    Datapath, DatapathError, Installed, PinsKept,
    error::{errno, removed},
    index,
    keys::key,
    layouts,
    lifetimes::Lifetimes,
    links::{Attachment, Links},
    load::{Attached, LoadOptions, endpoint_capacity, load_object, take_over},
    newcomers::Newcomers,
    pin_keeper::PinKeeper,
    programs_log::ProgramsLog,
    slots::Slots,
    tables::{self, Tables},
    xdp::{XdpLink, XdpTargets},
};
use crate::model::{
    change::{Change, LocalChange, PeerChange, XdpTargetChange},
    entries::{Endpoint, Peer, PortKind},
    ingress::Ingress,
};

/// The programs and maps of one network on this host.
pub struct EbpfDatapath {
    ebpf: Ebpf,
    log: ProgramsLog,
    tables: Tables,
    links: Links,
    xdp_targets: XdpTargets,
    xdp_link: XdpLink,
    /// What XDP does.
    ingress: Ingress,
    /// The interface that XDP was last attached to, or that this was tried at. Attaching may reset a NIC, so it is tried once.
    tried: Option<u32>,
    options: LoadOptions,
    prefix_len: u8,
    slots: Slots,
    /// Index of the tunnel device that has its programs. Zero before there is one.
    device: watch::Sender<u32>,
    /// Peers' subnets outside the leasable range.
    outlying: watch::Sender<BTreeSet<IpNet>>,
    pins: PinKeeper,
    newcomers: Newcomers,
}

impl EbpfDatapath {
    /// Loads the programs with the pinned maps, or pins new maps. It replaces each attached program in place, and attaches
    /// the programs of the underlay device and of overlay0. Traffic flows all the time, through the old or the new program.
    ///
    /// # Errors
    /// With the verifier's log if the kernel refuses a program. Also if a pin cannot be read or made.
    pub fn load(options: LoadOptions) -> Result<Self, DatapathError> {
        Self::load_knowing(options, &[])
    }

    /// The same with peers that must be known from the first packet on, since the programs drop what comes from strangers.
    pub fn load_knowing(mut options: LoadOptions, peers: &[(IpNet, Peer)]) -> Result<Self, DatapathError> {
        fs::create_dir_all(&options.pins).map_err(|error| {
            DatapathError::failed(format!("make the folder {}", options.pins.display()), &error)
        })?;
        layouts::check_links(&options.pins)?;
        let (mut ebpf, mut tables) = match options.older.last() {
            Some(older) if !layouts::is_filled(&options.pins)? => {
                let loaded = take_over(older, &options)?;
                options.keep_sizes()?;
                loaded
            }
            _ => {
                tables::check(&options.pins)?;
                index::unpin(&options.pins)?;
                options.keep_sizes()?;
                load_object(&options, &options.pins)?
            }
        };
        let xdp_targets = XdpTargets::take(&mut ebpf)?;
        let pins = PinKeeper::open(&options.pins, &options.settings6, options.lock.clone())?;
        let Attached { links, xdp: xdp_link } = Attached::of(&options)?;
        for older in &options.older {
            layouts::move_links(older, &options.pins)?;
        }
        let taken = tables.peers.entries()?.into_iter();
        let taken = taken.map(|(base, peer)| (base.into(), peer.slot, peer.outer));
        let slots = Slots::new(options.max_peers, taken);
        vteps::mend(&mut tables, &slots)?;
        tables.mend_indexes()?;
        tables.stack_flows.mark_all()?;
        let prefix_len = u32::from_be_bytes(options.settings.subnet_mask).count_ones() as u8;
        let ingress = Ingress::default();
        let (tried, device) = (None, watch::Sender::new(0));
        let newcomers = Newcomers::besides(&interfaces()?);
        let log = ProgramsLog::default();
        log.read_from(&mut ebpf);
        let mut datapath = Self {
            ebpf,
            log,
            tables,
            links,
            xdp_targets,
            xdp_link,
            ingress,
            tried,
            options,
            prefix_len,
            slots,
            device,
            outlying: watch::Sender::default(),
            pins,
            newcomers,
        };
        datapath.find_outlying()?;
        for (subnet, peer) in peers {
            datapath.put_peer(*subnet, peer)?;
        }
        datapath.adopt()?;
        for older in &datapath.options.older {
            layouts::copy_the_rest(older, &mut datapath.tables);
        }
        // Older programs may have made stack flows without marks.
        datapath.tables.stack_flows.mark_all()?;
        Ok(datapath)
    }

    /// What is attached, for a data path that is loaded anew while this one is kept.
    pub fn attached(&self) -> Attached {
        Attached { links: self.links.clone(), xdp: self.xdp_link.clone() }
    }

    /// The log of the programs. It stays the same when they are loaded anew.
    pub fn log(&self) -> ProgramsLog {
        self.log.clone()
    }

    /// Index of the tunnel device whose programs are attached. Before that, no frame may come in there.
    pub fn device(&self) -> watch::Receiver<u32> {
        self.device.subscribe()
    }

    /// Ends what [`SETTING_DEVICE_DOWN`] says. Each program is replaced in place.
    ///
    /// # Errors
    /// As [`EbpfDatapath::load`].
    pub fn device_is_up(&mut self) -> Result<(), DatapathError> {
        let settings = self.options.settings;
        if settings.flags & SETTING_DEVICE_DOWN == 0 {
            return Ok(());
        }
        self.load_anew(Settings { flags: settings.flags & !SETTING_DEVICE_DOWN, ..settings })
    }

    /// Attaches `overlay_encap` alone to a container's veth whose address is not an endpoint yet. Without an endpoint the program
    /// leaves everything to the stack, so that the endpoint, once it is put, begins the fast path in both directions at once.
    /// `overlay_track` has to come later ([`LocalChange::Attach`]): it would take what the stack delivers meanwhile for connections
    /// that keep to the stack.
    ///
    /// # Errors
    /// [`DatapathError::Gone`] if there is no such interface.
    pub fn attach_sender(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.pins.check_owner()?;
        if self.links.takes_a_qdisc(ifindex)? {
            self.newcomers.admit(ifindex)?;
        }
        self.links.attach(&mut self.ebpf, Attachment::Encap, ifindex)
    }

    fn adopt(&mut self) -> Result<(), DatapathError> {
        let Settings { underlay, device, .. } = self.options.settings;
        let adopted = self.links.adopt(&mut self.ebpf)?;
        if adopted > 0 {
            info!("adopted {adopted} attached programs of an earlier agent, replacing them in place");
        }
        // overlay0 comes first, because what the underlay device's program leaves to the stack is checked there.
        self.attach(device, PortKind::Device)?;
        self.attach(underlay, PortKind::Underlay)
    }

    /// Attaches or detaches XDP, last of all programs and first of all: what it has decapsulated needs TC's program behind it,
    /// which understands its strip mark in every mode.
    fn take_in(&mut self) -> Result<(), DatapathError> {
        let underlay = self.options.settings.underlay;
        let Some(mode) = self.options.ingress.xdp else {
            self.ingress = self.options.ingress.clone();
            return self.xdp_link.detach_others(None);
        };
        self.xdp_link.detach_others(Some(underlay))?;
        let used = Ingress { xdp: Some(mode), why: String::new() };
        if self.xdp_link.replace(&mut self.ebpf, mode, underlay)? {
            (self.ingress, self.tried) = (used, Some(underlay));
            return Ok(());
        }
        if self.tried == Some(underlay) {
            if self.ingress.xdp.is_some() {
                let why = "somebody detached its program; start the agent again to attach it again";
                warn!("XDP at interface {underlay}: {why}");
                self.ingress = Ingress::without(why);
            }
            return Ok(());
        }
        self.tried = Some(underlay);
        // XDP targets of an earlier time need not take frames any more.
        self.xdp_targets.clear()?;
        self.ingress = match self.xdp_link.attach(&mut self.ebpf, mode, underlay) {
            Ok(()) => {
                info!("XDP at interface {underlay} {mode}");
                used
            }
            Err(error @ DatapathError::Gone(_)) => return Err(error),
            Err(error) => {
                warn!("{error}: TC takes packets in");
                Ingress::without(error.to_string())
            }
        };
        Ok(())
    }

    fn attach(&mut self, ifindex: u32, kind: PortKind) -> Result<(), DatapathError> {
        let Settings { underlay, underlay_mac, device, .. } = self.options.settings;
        match kind {
            PortKind::Underlay => {
                let mac = mac_of(ifindex)?.unwrap_or(underlay_mac);
                if (ifindex, mac) != (underlay, underlay_mac) {
                    self.load_anew(Settings {
                        underlay: ifindex,
                        underlay_mac: mac,
                        ..self.options.settings
                    })?;
                }
            }
            PortKind::Device if ifindex != device => {
                self.load_anew(Settings { device: ifindex, ..self.options.settings })?;
            }
            _ => {}
        }
        self.pins.check_owner()?;
        if kind == PortKind::Veth && self.links.takes_a_qdisc(ifindex)? {
            self.newcomers.admit(ifindex)?;
        }
        let wanted = Attachment::of_port(kind);
        for (done, attachment) in wanted.iter().enumerate() {
            if let Err(error) = self.links.attach(&mut self.ebpf, *attachment, ifindex) {
                for attachment in wanted[..done].iter().filter(|_| kind.is_containers()) {
                    if let Err(error) = self.links.detach(*attachment, ifindex) {
                        warn!("{error}");
                    }
                }
                return Err(error);
            }
        }
        if kind.is_containers() {
            return Ok(());
        }
        let Settings { underlay, device, .. } = self.options.settings;
        self.links.retain_host(underlay, device)?;
        if kind == PortKind::Underlay {
            return self.take_in();
        }
        self.device.send_if_modified(|known| std::mem::replace(known, ifindex) != ifindex);
        Ok(())
    }

    /// Loads the programs anew, with the same maps, and replaces every one in place. They hold the devices' indexes and addresses
    /// as constants.
    fn load_anew(&mut self, settings: Settings) -> Result<(), DatapathError> {
        let options = LoadOptions { settings, ..self.options.clone() };
        // The programs must get the maps that there are. The loader makes others where it finds no pins.
        self.pins.keep(&self.links, &self.xdp_link)?;
        let (mut ebpf, mut tables) = load_object(&options, &options.pins)?;
        tables.mend_indexes()?;
        let xdp_targets = XdpTargets::take(&mut ebpf)?;
        // The new settings hold only once every program is replaced. Until then, all of it is to be tried again.
        self.links.adopt(&mut ebpf)?;
        self.log.read_from(&mut ebpf);
        (self.ebpf, self.tables, self.xdp_targets, self.options) = (ebpf, tables, xdp_targets, options);
        Ok(())
    }

    fn put_endpoint(&mut self, address: IpAddr, endpoint: &Endpoint) -> Result<(), DatapathError> {
        let key = key(address, || format!("add endpoint {address}"))?;
        self.tables
            .endpoints
            .put(key, tables::endpoint_entry(endpoint))
            .map_err(|error| self.write_failed("endpoints", format!("add endpoint {address}"), &error))
    }

    fn write_failed(&self, table: &'static str, action: String, error: &MapError) -> DatapathError {
        if errno(error) == Some(Errno::E2BIG) {
            let capacity = match table {
                "peers" => self.options.max_peers,
                _ => endpoint_capacity(self.prefix_len),
            };
            DatapathError::full(table, capacity)
        } else {
            DatapathError::failed(action, &error)
        }
    }
}

impl Datapath for EbpfDatapath {
    fn mend(&mut self) -> Result<usize, DatapathError> {
        self.pins.check_owner()?;
        Ok(vteps::mend(&mut self.tables, &self.slots)? + self.tables.mend_indexes()?)
    }

    fn installed(&self) -> Result<Installed, DatapathError> {
        let peers = self.tables.peers.entries()?.into_iter().filter_map(|(base, peer)| {
            let subnet = IpNet::new(base.into(), self.prefix_len).ok()?;
            Some((subnet, tables::peer_of(&peer)))
        });
        let endpoints = self.tables.endpoints.entries()?.into_iter();
        let endpoints =
            endpoints.map(|(address, entry)| (IpAddr::from(address), tables::endpoint_of(&entry)));
        Ok(Installed {
            peers: peers.collect::<BTreeMap<_, _>>(),
            endpoints: endpoints.collect(),
            ports: self.links.ports(&self.ebpf)?,
            ingress: self.ingress.clone(),
            xdp_targets: self.xdp_targets.list()?.into_iter().collect(),
        })
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        match change {
            Change::Peer(PeerChange::Put(subnet, peer)) => self.put_peer(*subnet, peer),
            Change::Peer(PeerChange::Remove(subnet)) => self.remove_peer(*subnet),
            Change::Local(LocalChange::PutEndpoint(address, endpoint)) => {
                self.put_endpoint(*address, endpoint)
            }
            Change::Local(LocalChange::RemoveEndpoint(address)) => {
                let action = || format!("remove endpoint {address}");
                removed(self.tables.endpoints.remove(key(*address, action)?))
                    .map_err(|error| DatapathError::failed(action(), &error))
            }
            Change::Local(LocalChange::Attach(ifindex, kind)) => self.attach(*ifindex, *kind),
            Change::XdpTarget(XdpTargetChange { port, takes }) => self.xdp_targets.set(*port, *takes),
            Change::Local(LocalChange::Detach(ifindex)) => {
                self.newcomers.forget(*ifindex);
                for attachment in [Attachment::Encap, Attachment::Track, Attachment::Bridge] {
                    self.links.detach(attachment, *ifindex)?;
                }
                Ok(())
            }
        }
    }

    fn keep_pins(&mut self) -> Result<PinsKept, DatapathError> {
        let kept = self.pins.keep(&self.links, &self.xdp_link)?;
        let Settings { underlay, device, .. } = self.options.settings;
        let own = [(PortKind::Device, device), (PortKind::Underlay, underlay)];
        // What the kernel does not say now, it may say at the next look.
        let lacks = |(kind, ifindex)| self.links.lacks_program(&self.ebpf, kind, ifindex).unwrap_or(false);
        let bare = own.into_iter().any(lacks);
        Ok(PinsKept { bare, ..kept })
    }

    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError> {
        let (gone, left) = Lifetimes::of_this_host().expire(&mut self.tables.stack_flows)?;
        if gone > 0 {
            self.tables.stack_flows.renew_marks()?;
        }
        let Some(ipv6) = &mut self.tables.ipv6 else { return Ok((gone, left)) };
        let (gone6, left6) = Lifetimes::of_this_host().expire(&mut ipv6.stack_flows)?;
        if gone6 > 0 {
            ipv6.stack_flows.renew_marks()?;
        }
        Ok((gone + gone6, left + left6))
    }
}

/// The indexes of all interfaces of this network namespace.
fn interfaces() -> Result<Vec<u32>, DatapathError> {
    let all = if_nameindex().map_err(|error| DatapathError::failed("list the interfaces", &error))?;
    Ok(all.iter().map(|interface| interface.index()).collect())
}

/// The interface's MAC address. None if it has none.
fn mac_of(ifindex: u32) -> Result<Option<[u8; 6]>, DatapathError> {
    let all = getifaddrs().map_err(|error| DatapathError::failed("list the interfaces", &error))?;
    let mut addresses = all.filter_map(|interface| interface.address);
    Ok(addresses.find_map(|address| {
        let address = address.as_link_addr()?;
        (address.ifindex() == ifindex as usize).then(|| address.addr())?
    }))
}

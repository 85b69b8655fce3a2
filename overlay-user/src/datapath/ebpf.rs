//! The eBPF datapath: loads the programs, adopts what is pinned, and makes the loop's changes in the maps.
use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, MapInfo},
};
use ipnet::Ipv4Net;
use log::{info, warn};
use nix::{errno::Errno, ifaddrs::getifaddrs};
use overlay_common::{Addr4, ENDPOINT_PINNED, Settings, Vtep};
use tokio::sync::watch;

use super::{
    Change, Datapath, DatapathError, Endpoint, Installed, Peer, PortKind,
    flows::Lifetimes,
    index,
    layouts::{self, Older},
    links::{Attachment, Links, TcWay},
    slots::Slots,
    tables::{self, MAPS, Tables},
    xdp::{Receivers, XdpLink, XdpMode},
};
use crate::{ingress::Ingress, mac::Mac};

/// The programs as built by this crate's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay"));

/// What to load, and how large.
#[derive(Clone, Debug)]
pub struct Options {
    /// Constants of the programs.
    pub settings: Settings,
    /// Folder below a bpffs that holds the pins of this network: `/sys/fs/bpf/overlay/v1/default`.
    pub pins: PathBuf,
    /// How programs are attached at TC.
    pub tc: TcWay,
    /// What XDP is to do before TC, or why nothing.
    pub ingress: Ingress,
    /// Capacity of the peer table.
    pub max_peers: u32,
    /// Capacity of the table of the stack's connections.
    pub max_flows: u32,
    /// What agents with older map layouts left of this network, oldest first: taken over if `pins` holds nothing yet.
    pub older: Vec<Older>,
    /// Where maps are filled before they become `pins`, below the same bpffs.
    pub filling: PathBuf,
}

/// The programs and maps of one network on this host.
pub struct EbpfDatapath {
    ebpf: Ebpf,
    tables: Tables,
    links: Links,
    receivers: Receivers,
    xdp_link: XdpLink,
    /// What XDP does.
    ingress: Ingress,
    /// The interface that XDP was last attached to, or tried at: attaching may reset a NIC, so it is tried once.
    tried: Option<u32>,
    options: Options,
    prefix_len: u8,
    slots: Slots,
    /// Index of the tunnel device that has its programs; zero before there is one.
    device: watch::Sender<u32>,
}

impl EbpfDatapath {
    /// Loads the programs with the maps that are pinned (or pins new ones), replaces every attached program in place,
    /// and attaches those of the underlay device and overlay0. Traffic flows throughout, by the old or the new program.
    ///
    /// # Errors
    /// The verifier's log if the kernel refuses a program; a pin that cannot be read or made.
    pub fn load(options: Options) -> Result<Self, DatapathError> {
        Self::load_knowing(options, &[])
    }

    /// The same with peers that are known from the first packet on: the programs drop what comes from others.
    pub fn load_knowing(mut options: Options, peers: &[(Ipv4Net, Peer)]) -> Result<Self, DatapathError> {
        fs::create_dir_all(&options.pins).map_err(|error| {
            DatapathError::failed(format!("make the folder {}", options.pins.display()), &error)
        })?;
        layouts::check_links(&options.pins)?;
        let (mut ebpf, mut tables) = match options.older.last() {
            Some(older) if !layouts::is_filled(&options.pins)? => take_over(older, &options)?,
            _ => {
                tables::check(&options.pins)?;
                index::unpin(&options.pins)?;
                load_object(&options, &options.pins)?
            }
        };
        let receivers = Receivers::take(&mut ebpf)?;
        let (links, xdp_link) = (Links::new(&options.pins, options.tc)?, XdpLink::new(&options.pins));
        for older in &options.older {
            layouts::move_links(older, &options.pins)?;
        }
        options.max_peers = capacity(&options.pins, "peers", options.max_peers)?;
        options.max_flows = capacity(&options.pins, "flows", options.max_flows)?;
        let taken = tables.peer_entries()?.into_values().map(|peer| (peer.slot, peer.outer));
        let slots = Slots::new(options.max_peers, taken);
        forget_strangers(&mut tables, &slots)?;
        tables.fill_index()?;
        tables.flows.mark_all()?;
        let prefix_len = u32::from_be_bytes(options.settings.subnet_mask).count_ones() as u8;
        let ingress = Ingress::default();
        let (tried, device) = (None, watch::Sender::new(0));
        let mut datapath = Self {
            ebpf,
            tables,
            links,
            receivers,
            xdp_link,
            ingress,
            tried,
            options,
            prefix_len,
            slots,
            device,
        };
        for (subnet, peer) in peers {
            datapath.put_peer(*subnet, peer)?;
        }
        datapath.adopt()?;
        // Programs of before there were marks made notes until a moment ago.
        datapath.tables.flows.mark_all()?;
        for older in &datapath.options.older {
            layouts::merge_notes(older, &mut datapath.tables);
        }
        Ok(datapath)
    }

    /// The loaded object, for the programs' log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Index of the tunnel device whose programs are in place: before that no frame may come in there.
    pub fn device(&self) -> watch::Receiver<u32> {
        self.device.subscribe()
    }

    fn adopt(&mut self) -> Result<(), DatapathError> {
        let Settings { underlay, device, .. } = self.options.settings;
        let adopted = self.links.adopt(&mut self.ebpf)?;
        if adopted > 0 {
            info!("adopted {adopted} attached programs of an earlier agent, replacing them in place");
        }
        // overlay0 first: what the underlay's program leaves to the stack is checked there.
        self.attach(device, PortKind::Device)?;
        self.attach(underlay, PortKind::Underlay)
    }

    /// XDP last, and gone first: what it has unwrapped needs TC's program behind it, which understands it in every mode.
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
        // Of an earlier time: who took frames then need not now.
        self.receivers.clear()?;
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

    /// The programs hold the devices' indexes and addresses as constants: loads them anew, with the same maps, and replaces
    /// every one in place.
    fn load_anew(&mut self, settings: Settings) -> Result<(), DatapathError> {
        let options = Options { settings, ..self.options.clone() };
        let (mut ebpf, tables) = load_object(&options, &options.pins)?;
        self.receivers = Receivers::take(&mut ebpf)?;
        (self.ebpf, self.tables, self.options) = (ebpf, tables, options);
        self.links.adopt(&mut self.ebpf).map(drop)
    }

    fn put_peer(&mut self, subnet: Ipv4Net, peer: &Peer) -> Result<(), DatapathError> {
        let key = Addr4::new(subnet.network().octets());
        let old = self.tables.peer(key);
        let slot = match old {
            Some(old) => old.slot,
            None => self.free_slot()?,
        };
        let outer = peer.public_ip.octets();
        let new = tables::peer_entry(peer, slot);
        // The address first: a packet that arrives between the two writes finds its sender known.
        self.tables
            .vteps
            .insert(Addr4::new(outer), Vtep { slot }, 0)
            .map_err(|error| self.write_failed("peers", format!("add VTEP {}", peer.public_ip), &error))?;
        self.slots.take(slot, outer);
        if let Err(error) = self.tables.put_peer(key, new) {
            if old.is_none_or(|old| old.outer != outer) {
                self.forget_vtep(slot, outer)?;
            }
            if old.is_none() {
                self.slots.release(slot);
            }
            return Err(self.write_failed("peers", format!("add peer {subnet}"), &error));
        }
        match old {
            Some(old) if old.outer != outer => self.forget_vtep(slot, old.outer),
            _ => Ok(()),
        }
    }

    fn remove_peer(&mut self, subnet: Ipv4Net) -> Result<(), DatapathError> {
        let key = Addr4::new(subnet.network().octets());
        let Some(old) = self.tables.peer(key) else { return Ok(()) };
        self.tables
            .remove_peer(key)
            .map_err(|error| DatapathError::failed(format!("remove peer {subnet}"), &error))?;
        self.forget_vtep(old.slot, old.outer)?;
        self.slots.release(old.slot);
        Ok(())
    }

    /// The peer with `slot` is no longer at underlay address `outer`. The address goes unless another subnet's peer is
    /// there too, whose slot it then gets.
    fn forget_vtep(&mut self, slot: u32, outer: [u8; 4]) -> Result<(), DatapathError> {
        let (key, address) = (Addr4::new(outer), Ipv4Addr::from(outer));
        match self.slots.leave(slot, outer) {
            Some(slot) => self
                .tables
                .vteps
                .insert(key, Vtep { slot }, 0)
                .map_err(|error| DatapathError::failed(format!("keep VTEP {address}"), &error)),
            None => gone(self.tables.vteps.remove(&key))
                .map_err(|error| DatapathError::failed(format!("remove VTEP {address}"), &error)),
        }
    }

    /// The lowest counter slot nobody has, with its counters at zero.
    fn free_slot(&mut self) -> Result<u32, DatapathError> {
        let full = full("peers", self.options.max_peers);
        let slot = self.slots.lowest().ok_or(full)?;
        self.tables.clear_traffic(slot)?;
        Ok(slot)
    }

    fn put_endpoint(&mut self, address: Ipv4Addr, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.tables
            .put_endpoint(Addr4::new(address.octets()), tables::endpoint_entry(endpoint))
            .map_err(|error| self.write_failed("endpoints", format!("add endpoint {address}"), &error))
    }

    fn write_failed(&self, table: &'static str, action: String, error: &MapError) -> DatapathError {
        if errno(error) == Some(Errno::E2BIG) {
            let capacity = match table {
                "peers" => self.options.max_peers,
                _ => endpoint_capacity(self.prefix_len),
            };
            full(table, capacity)
        } else {
            DatapathError::failed(action, &error)
        }
    }
}

impl Datapath for EbpfDatapath {
    fn installed(&self) -> Result<Installed, DatapathError> {
        // What the programs do not find is not in force, whatever the tables say.
        let peers = self.tables.peer_entries()?.into_iter().filter_map(|(base, peer)| {
            if !self.tables.is_peer_found(base, &peer) {
                return None;
            }
            let subnet = Ipv4Net::new(base, self.prefix_len).ok()?;
            Some((subnet, tables::peer_of(&peer)))
        });
        let endpoints = self.tables.endpoint_entries()?.into_iter();
        let endpoints =
            endpoints.filter(|(address, endpoint)| self.tables.is_endpoint_found(*address, endpoint));
        let endpoints = endpoints.map(|(address, endpoint)| {
            let pinned = endpoint.flags & ENDPOINT_PINNED != 0;
            let (mac, gateway_mac) = (Mac(endpoint.mac), Mac(endpoint.gateway_mac));
            (address, Endpoint { port: endpoint.ifindex, mac, gateway_mac, pinned })
        });
        Ok(Installed {
            peers: peers.collect::<BTreeMap<_, _>>(),
            endpoints: endpoints.collect(),
            ports: self.links.ports(&self.ebpf)?,
            ingress: self.ingress.clone(),
            receivers: self.receivers.list()?.into_iter().collect(),
        })
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        match change {
            Change::PutPeer(subnet, peer) => self.put_peer(*subnet, peer),
            Change::RemovePeer(subnet) => self.remove_peer(*subnet),
            Change::PutEndpoint(address, endpoint) => self.put_endpoint(*address, endpoint),
            Change::RemoveEndpoint(address) => {
                gone(self.tables.remove_endpoint(Addr4::new(address.octets())))
                    .map_err(|error| DatapathError::failed(format!("remove endpoint {address}"), &error))
            }
            Change::Attach(ifindex, kind) => self.attach(*ifindex, *kind),
            Change::Receives(ifindex, receives) => self.receivers.set(*ifindex, *receives),
            Change::Detach(ifindex) => {
                for attachment in [Attachment::Encap, Attachment::Note, Attachment::Bridge] {
                    self.links.detach(attachment, *ifindex)?;
                }
                Ok(())
            }
        }
    }

    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError> {
        let (gone, left) = Lifetimes::of_this_host().expire(&mut self.tables.flows)?;
        if gone > 0 {
            self.tables.flows.renew_marks()?;
        }
        Ok((gone, left))
    }
}

/// Makes maps of the present layout, fills them with what `older` holds, and only then calls them this network's: what
/// ends before that leaves the older layout in force.
fn take_over(older: &Older, options: &Options) -> Result<(Ebpf, Tables), DatapathError> {
    let filled = || {
        layouts::stage(older, &options.filling)?;
        // As large as they were: counters that are shared have no more slots.
        let (max_peers, max_flows) = (size(&older.pins, "peers")?, size(&older.pins, "flows")?);
        let options = Options { max_peers, max_flows, ..options.clone() };
        let (ebpf, mut tables) = load_object(&options, &options.filling)?;
        layouts::fill(older, &mut tables)?;
        layouts::commit(&options.filling, &options.pins)?;
        Ok((ebpf, tables))
    };
    filled().inspect_err(|_| layouts::forget(&options.filling))
}

/// Loads and verifies all programs, with maps from the pins in `folder` where they are there.
fn load_object(options: &Options, folder: &Path) -> Result<(Ebpf, Tables), DatapathError> {
    let prefix_len = u32::from_be_bytes(options.settings.subnet_mask).count_ones() as u8;
    let settings = index::settings(&options.settings);
    let all = MAPS.iter().chain([&Receivers::MAP]).chain(&index::MAPS);
    let paths: Vec<(&str, PathBuf)> = all.map(|(name, pin)| (*name, folder.join(pin))).collect();
    let mut loader = EbpfLoader::new();
    index::size(&mut loader, &settings);
    loader
        .override_global("SETTINGS", &settings, true)
        .map_max_entries("PEERS", options.max_peers)
        .map_max_entries("VTEPS", options.max_peers)
        .map_max_entries("PEER_COUNTERS", options.max_peers)
        .map_max_entries("FLOWS", options.max_flows)
        .map_max_entries("RECEIVERS", endpoint_capacity(prefix_len))
        .map_max_entries("ENDPOINTS", endpoint_capacity(prefix_len));
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut ebpf = load_all(&mut loader)?;
    if let Some(mode) = options.ingress.xdp {
        mode.load(&mut ebpf)?;
    }
    let tables = Tables::take(&mut ebpf, &settings)?;
    Ok((ebpf, tables))
}

/// Loads the object, and every program in it into the kernel, where the verifier has its say.
fn load_all(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, DatapathError> {
    let mut ebpf = loader.load(OBJECT).map_err(|error| DatapathError::failed("load the maps", &error))?;
    for attachment in Attachment::ALL {
        attachment.load(&mut ebpf)?;
    }
    Ok(ebpf)
}

/// Loads the programs without pins or attachments, for test runs.
///
/// # Errors
/// As [`EbpfDatapath::load`].
pub fn load_unpinned(settings: &Settings) -> Result<(Ebpf, Tables, Receivers), DatapathError> {
    let settings = index::settings(settings);
    let mut loader = EbpfLoader::new();
    index::size(&mut loader, &settings);
    let mut ebpf = load_all(loader.override_global("SETTINGS", &settings, true))?;
    for mode in XdpMode::ALL {
        mode.load(&mut ebpf)?;
    }
    let tables = Tables::take(&mut ebpf, &settings)?;
    let receivers = Receivers::take(&mut ebpf)?;
    Ok((ebpf, tables, receivers))
}

fn full(table: &'static str, capacity: u32) -> DatapathError {
    let remedy = match table {
        "peers" => "`overlay down`, then start the agent with a larger --max-peers",
        _ => "it has room for every address of the subnet, up to 65,536: use a smaller subnet",
    };
    DatapathError::Full { table, capacity, remedy }
}

/// Removes underlay addresses that no peer has: an agent that was killed between its two writes leaves one, and it would
/// count as a known peer for ever.
fn forget_strangers(tables: &mut Tables, slots: &Slots) -> Result<(), DatapathError> {
    let known: Result<Vec<Addr4>, MapError> = tables.vteps.keys().collect();
    let known = known.map_err(|error| DatapathError::failed("read the table of VTEPs", &error))?;
    for address in known.into_iter().filter(|address| !slots.knows(address.octets)) {
        warn!("VTEP {} belongs to no peer: removing it", Ipv4Addr::from(address.octets));
        tables.vteps.remove(&address).map_err(|error| DatapathError::failed("remove a VTEP", &error))?;
    }
    Ok(())
}

/// How many entries the pinned table has room for. An adopted one keeps the size it was made with.
fn capacity(pins: &Path, table: &str, wanted: u32) -> Result<u32, DatapathError> {
    let found = size(pins, table)?;
    if found != wanted {
        warn!(
            "the table of {table} keeps room for {found}: --max-{table} {wanted} takes effect after `overlay down`"
        );
    }
    Ok(found)
}

fn size(pins: &Path, table: &str) -> Result<u32, DatapathError> {
    let info = MapInfo::from_pin(pins.join(table)).map_err(|error| {
        DatapathError::failed(
            format!("ask for the size of the table of {table} in {}", pins.display()),
            &error,
        )
    })?;
    Ok(info.max_entries())
}

/// The interface's MAC address; nothing where it has none.
fn mac_of(ifindex: u32) -> Result<Option<[u8; 6]>, DatapathError> {
    let all = getifaddrs().map_err(|error| DatapathError::failed("list the interfaces", &error))?;
    let mut addresses = all.filter_map(|interface| interface.address);
    Ok(addresses.find_map(|address| {
        let address = address.as_link_addr()?;
        (address.ifindex() == ifindex as usize).then(|| address.addr())?
    }))
}

/// One entry for every address of the subnet, up to 65,536.
fn endpoint_capacity(prefix_len: u8) -> u32 {
    1 << (32 - u32::from(prefix_len)).clamp(4, 16)
}

/// The outcome of a removal: what is not there any more is as good as removed.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

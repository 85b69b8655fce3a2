//! Loading the programs: the constants that they are loaded with, and the maps that they get.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{Ebpf, EbpfLoader, maps::MapInfo};
use log::warn;
use overlay_common::{SETTING_IPV6, Settings, Settings6};

use super::{
    DatapathError, index, ipv6,
    layouts::{self, Older},
    links::{AttachMethod, Attachment, Links},
    state::Lock,
    tables::{MAPS, Tables},
    xdp::{self, XdpLink, XdpTargets},
};
use crate::model::{
    fast_path::FastPath,
    ingress::{Ingress, XdpMode},
};

/// The programs, as this crate's build script built them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay"));

/// With which constants, sizes and folders the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Constants of the programs.
    pub settings: Settings,
    /// Those of IPv6, zeros where the network has none.
    pub settings6: Settings6,
    /// Folder below a bpffs that holds the pins of this network: `/sys/fs/bpf/overlay/v2/default`.
    pub pins: PathBuf,
    /// Which packets the programs carry past the stack from their first one on.
    pub fast_path: FastPath,
    /// How programs are attached at TC.
    pub tc: AttachMethod,
    /// What XDP does before TC, or why it does nothing.
    pub ingress: Ingress,
    /// Capacity of the peer table.
    pub max_peers: u32,
    /// Capacity of the table of stack flows.
    pub max_flows: u32,
    /// What agents with older map layouts left of this network, oldest first. It is taken over if `pins` holds nothing yet.
    pub older: Vec<Older>,
    /// Folder in which maps are filled before it becomes `pins`. It is below the same bpffs.
    pub filling: PathBuf,
    /// The lock by which this process owns what is pinned.
    pub lock: Option<Arc<Lock>>,
    /// What an earlier data path of this process has attached and still holds.
    pub attached: Option<Attached>,
}

/// What one network has attached on this host, and this process's descriptors of it. Clones share them: what a data path that is
/// loaded anew detaches must not stay attached by the hand of the one before, and what it attaches must be in that one's hand, too,
/// if the new one does not last.
#[derive(Clone, Debug)]
pub struct Attached {
    pub(super) links: Links,
    pub(super) xdp: XdpLink,
}

impl Attached {
    /// With these options.
    pub(super) fn of(options: &LoadOptions) -> Result<Self, DatapathError> {
        let Some(Self { links, xdp }) = &options.attached else {
            let links = Links::new(&options.pins, options.tc)?;
            return Ok(Self { links, xdp: XdpLink::new(&options.pins) });
        };
        Ok(Self { links: links.again(options.tc)?, xdp: xdp.clone() })
    }
}

impl LoadOptions {
    /// Makes the wanted sizes those of the tables that are pinned already. Tables keep the size they were made with, and the
    /// loader believes what it is told of them.
    pub(super) fn keep_sizes(&mut self) -> Result<(), DatapathError> {
        let tables = [("peers", "peers", &mut self.max_peers), ("stack_flows", "flows", &mut self.max_flows)];
        for (pin, table, wanted) in tables {
            let pin = self.pins.join(pin);
            if !pin.exists() {
                continue;
            }
            let found = size(&pin)?;
            if found != *wanted {
                warn!(
                    "the table of {table} keeps room for {found}: --max-{table} {wanted} takes effect after `overlay down`"
                );
            }
            *wanted = found;
        }
        Ok(())
    }
}

/// Makes maps of the present layout, fills them with what `older` holds, and only then calls them this network's. If the agent
/// ends before that, the older layout is still in force.
pub(super) fn take_over(older: &Older, options: &LoadOptions) -> Result<(Ebpf, Tables), DatapathError> {
    let filled = || {
        layouts::stage(older, &options.filling)?;
        // The tables stay as large as they were: shared counters have no more slots.
        let [peers, flows] = layouts::sized(older)?;
        let (max_peers, max_flows) = (size(&peers)?, size(&flows)?);
        let options = LoadOptions { max_peers, max_flows, ..options.clone() };
        let (ebpf, mut tables) = load_object(&options, &options.filling)?;
        layouts::fill(older, &mut tables)?;
        layouts::commit(&options.filling, &options.pins)?;
        Ok((ebpf, tables))
    };
    filled().inspect_err(|_| layouts::forget(&options.filling))
}

/// Loads and verifies all programs. Maps that are pinned in `folder` are used, and the others are made and pinned there.
pub(super) fn load_object(options: &LoadOptions, folder: &Path) -> Result<(Ebpf, Tables), DatapathError> {
    let prefix_len = u32::from_be_bytes(options.settings.subnet_mask).count_ones() as u8;
    let settings = constants(&options.settings, &options.settings6);
    if !options.settings6.is_on() {
        ipv6::unpin(folder)?;
    }
    let all =
        MAPS.iter().chain([&XdpTargets::MAP]).chain(&index::MAPS).chain(ipv6::pinned(&options.settings6));
    let paths: Vec<(&str, PathBuf)> = all.map(|(name, pin)| (*name, folder.join(pin))).collect();
    let mut loader = EbpfLoader::new();
    index::size(&mut loader, &settings);
    let sizes = [options.max_peers, options.max_flows, endpoint_capacity(prefix_len)];
    ipv6::size(&mut loader, &options.settings6, sizes);
    loader
        .override_global("SETTINGS", &settings, true)
        .override_global("SETTINGS6", &options.settings6, true)
        .map_max_entries("PEERS", options.max_peers)
        // A peer whose address changes has two addresses for a moment.
        .map_max_entries("VTEPS", options.max_peers.saturating_add(1))
        .map_max_entries("PEER_COUNTERS", options.max_peers)
        .map_max_entries("STACK_FLOWS", options.max_flows)
        .map_max_entries("XDP_TARGETS", endpoint_capacity(prefix_len))
        .map_max_entries("ENDPOINTS", endpoint_capacity(prefix_len));
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut ebpf = load_all(&mut loader)?;
    if options.settings6.is_on() {
        ipv6::load_programs(&mut ebpf)?;
    }
    if let Some(mode) = options.ingress.xdp {
        xdp::load(mode, &mut ebpf)?;
    }
    let mut tables = Tables::take(&mut ebpf, &settings)?;
    tables.set_fast_path(options.fast_path)?;
    if let Some(ipv6) = &mut tables.ipv6 {
        // The packet filter has been asked about IPv4 alone.
        ipv6.set_fast_path(options.fast_path)?;
    }
    Ok((ebpf, tables))
}

/// The constants of both families' programs.
fn constants(settings: &Settings, settings6: &Settings6) -> Settings {
    let flag = if settings6.is_on() { SETTING_IPV6 } else { 0 };
    let settings = index::settings(settings);
    Settings { flags: settings.flags & !SETTING_IPV6 | flag, ..settings }
}

/// Loads the object, and every program that is attached into the kernel, whose verifier may refuse it.
fn load_all(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, DatapathError> {
    let mut ebpf = load_maps(loader)?;
    for attachment in Attachment::ALL {
        attachment.load(&mut ebpf)?;
    }
    Ok(ebpf)
}

fn load_maps(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, DatapathError> {
    loader.load(OBJECT).map_err(|error| DatapathError::failed("load the maps", &error))
}

/// Loads the programs without pins or attachments, for test runs.
///
/// # Errors
/// As [`EbpfDatapath::load`].
pub fn load_unpinned(
    settings: &Settings,
    settings6: &Settings6,
) -> Result<(Ebpf, Tables, XdpTargets), DatapathError> {
    let mut made = make_unpinned(settings, settings6)?;
    let names = Attachment::ALL.iter().map(|attachment| attachment.program());
    for name in names.chain(XdpMode::ALL.map(xdp::program_of)) {
        load_program(&mut made.0, name)?;
    }
    if settings6.is_on() {
        ipv6::load_programs(&mut made.0)?;
    }
    Ok(made)
}

/// Makes the maps alone, without pins. [`load_program`] loads the programs then, one by one.
///
/// # Errors
/// When the kernel refuses a map.
pub fn make_unpinned(
    settings: &Settings,
    settings6: &Settings6,
) -> Result<(Ebpf, Tables, XdpTargets), DatapathError> {
    let settings = constants(settings, settings6);
    let mut loader = EbpfLoader::new();
    index::size(&mut loader, &settings);
    loader.override_global("SETTINGS", &settings, true).override_global("SETTINGS6", settings6, true);
    let mut ebpf = load_maps(&mut loader)?;
    let tables = Tables::take(&mut ebpf, &settings)?;
    let xdp_targets = XdpTargets::take(&mut ebpf)?;
    Ok((ebpf, tables, xdp_targets))
}

/// Loads the program of this name into the kernel.
///
/// # Errors
/// When there is none, or the kernel's verifier refuses it.
pub fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
    if let Some(attachment) = Attachment::ALL.into_iter().find(|one| one.program() == name) {
        return attachment.load(ebpf);
    }
    let mode = XdpMode::ALL.into_iter().find(|mode| xdp::program_of(*mode) == name);
    let missing = || DatapathError::missing(format!("find program {name}"), "not in the object");
    xdp::load(mode.ok_or_else(missing)?, ebpf)
}

fn size(pin: &Path) -> Result<u32, DatapathError> {
    let info = MapInfo::from_pin(pin).map_err(|error| {
        DatapathError::failed(format!("ask for the size of the table {}", pin.display()), &error)
    })?;
    Ok(info.max_entries())
}

/// Capacity of the table of endpoints: one entry for every address of the subnet, up to 65,536.
pub(super) fn endpoint_capacity(prefix_len: u8) -> u32 {
    1 << (32 - u32::from(prefix_len)).clamp(4, 16)
}

//! Programs of this project that nobody looks after: they run at an interface, but no pin leads to them. That is so when their
//! pins are on a bpf file system that is mounted elsewhere, in a container for instance. The kernel is asked what is attached.
use std::{collections::BTreeSet, fmt, fs, net::Ipv4Addr, path::Path};

use aya::{
    maps::{Array, Map, MapData, MapType},
    programs::{
        ProgramInfo, SchedClassifier,
        links::{FdLink, PinnedLink},
        loaded_links,
    },
};
use ipnet::{IpNet, Ipv4Net};
use nix::{errno::Errno, net::if_::if_nameindex};
use overlay_common::Settings;

use super::attachment::{Attachment, attach_type};
use crate::{
    datapath::error::{DatapathError, errno},
    host::netlink::tc::Direction,
};

/// A program that nobody looks after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Name of the interface at which it runs.
    pub interface: String,
    /// On which side of it.
    pub direction: Direction,
    /// Its name.
    pub program: String,
    /// Its id.
    pub id: u32,
    /// Id of the link by which it is attached.
    pub link: Option<u32>,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, direction, program, id, link } = self;
        let side = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        write!(
            f,
            "{program} (program {id}) still runs at the {side} of {interface}, and nothing that is pinned here leads to it"
        )?;
        match link {
            Some(link) => write!(f, ": `bpftool link detach id {link}` detaches it"),
            None => Ok(()),
        }
    }
}

/// The orphans at this namespace's interfaces: those of the host with this subnet, or of any if none is given.
pub(super) fn find(bpf_root: &Path, subnet: Option<IpNet>) -> Result<Vec<Orphan>, DatapathError> {
    let mut pinned = BTreeSet::new();
    pinned_programs(&bpf_root.join("overlay"), &mut pinned);
    let all = if_nameindex().map_err(|error| DatapathError::failed("list the interfaces", &error))?;
    let mut found = Vec::new();
    for interface in &all {
        let interface = interface.name().to_string_lossy();
        for direction in [Direction::Ingress, Direction::Egress] {
            for program in attached(&interface, direction)? {
                let name = program.name_as_str().unwrap_or_default();
                let is_ours = Attachment::ALL.into_iter().any(|attachment| attachment.goes_by(name));
                let is_of =
                    |subnet| settings(&program).is_some_and(|settings| subnet_of(&settings) == subnet);
                if is_ours
                    && !pinned.contains(&program.id())
                    && subnet.is_none_or(|subnet| is_of(Some(subnet)))
                {
                    found.push(Orphan {
                        interface: interface.to_string(),
                        direction,
                        program: name.to_owned(),
                        id: program.id(),
                        link: link_of(program.id()),
                    });
                }
            }
        }
    }
    Ok(found)
}

fn attached(interface: &str, direction: Direction) -> Result<Vec<ProgramInfo>, DatapathError> {
    match SchedClassifier::query_tcx(interface, attach_type(direction)) {
        Ok((_, programs)) => Ok(programs),
        // EINVAL: the kernel has no TCX. Filters are found where they are attached, and are nobody's orphans.
        Err(error) if matches!(errno(&error), Some(Errno::EINVAL | Errno::ENODEV | Errno::ENOENT)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(DatapathError::failed(format!("ask for the programs of {interface}"), &error)),
    }
}

/// Adds the ids of all programs that links below a folder run, whichever network's.
fn pinned_programs(folder: &Path, found: &mut BTreeSet<u32>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            pinned_programs(&path, found);
        } else if folder.ends_with("links")
            && let Ok(link) = PinnedLink::from_pin(&path)
            && let Ok(info) = FdLink::from(link).info()
        {
            found.insert(info.program_id());
        }
    }
}

/// The constants that a program was loaded with. None if it is of another version, whose constants are others.
fn settings(program: &ProgramInfo) -> Option<Settings> {
    program.map_ids().ok()??.into_iter().find_map(|id| {
        let map = MapData::from_id(id).ok()?;
        let info = map.info().ok()?;
        let is_constants = info.map_type().ok() == Some(MapType::Array)
            && (info.max_entries(), info.value_size()) == (1, size_of::<Settings>() as u32);
        let map = is_constants.then(|| Map::from_map_data(map).ok())??;
        Array::<_, Settings>::try_from(map).ok()?.get(&0, 0).ok()
    })
}

fn subnet_of(settings: &Settings) -> Option<IpNet> {
    let mask = Ipv4Addr::from(settings.subnet_mask);
    Ipv4Net::with_netmask(settings.subnet.into(), mask).ok().map(IpNet::from)
}

fn link_of(program: u32) -> Option<u32> {
    let link = loaded_links().flatten().find(|link| link.program_id() == program);
    link.map(|link| link.id())
}

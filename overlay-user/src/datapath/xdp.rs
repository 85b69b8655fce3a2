//! XDP at the underlay device: one pinned link, in the driver alone, whose program the next agent replaces in place; and the
//! map of the interfaces that it may redirect to.
use std::path::Path;

use aya::{
    Ebpf,
    maps::{
        MapData, MapError,
        xdp::{DevMapHash, XdpMapError},
    },
    programs::{
        ProgramError, ProgramInfo, Xdp,
        links::{FdLink, LinkError},
        loaded_programs,
        xdp::XdpMode as Place,
    },
};
use log::{debug, info};
use nix::errno::Errno;

use super::{
    DatapathError,
    error::{errno, load_again},
    pinned_links::PinnedLinks,
};
use crate::model::ingress::XdpMode;

/// The name of this mode's program in the object.
pub(super) const fn program_of(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Redirect => "overlay_xdp",
        XdpMode::Strip => "overlay_xdp_strip",
    }
}

/// Loads the program of this mode into the kernel, whose verifier may refuse it.
pub(super) fn load(mode: XdpMode, ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let program = program_in(mode, ebpf)?;
    let loaded = load_again(|| program.load());
    loaded.map_err(|error| DatapathError::failed(format!("load program {}", program_of(mode)), &error))
}

fn program_in(mode: XdpMode, ebpf: &mut Ebpf) -> Result<&mut Xdp, DatapathError> {
    let action = || format!("use program {}", program_of(mode));
    let program = ebpf.program_mut(program_of(mode));
    let program = program.ok_or_else(|| DatapathError::missing(action(), "not in the object"))?;
    program.try_into().map_err(|error: ProgramError| DatapathError::failed(action(), &error))
}

/// The pinned link, `links/xdp-<interface's index>`.
#[derive(Clone, Debug)]
pub struct XdpLink(PinnedLinks);

impl XdpLink {
    /// First part of the pin's name.
    pub const NAME: &str = "xdp";

    /// The link of the network with these pins. Nothing is made.
    pub fn new(pins: &Path) -> Self {
        Self(PinnedLinks::new(pins))
    }

    /// Interfaces that a link is pinned for. A link outlives its interface.
    pub fn pinned(&self) -> Result<Vec<u32>, DatapathError> {
        let index = |name: &String| name.strip_prefix(Self::NAME)?.strip_prefix('-')?.parse().ok();
        Ok(self.0.names()?.iter().filter_map(index).collect())
    }

    /// Id of the program behind our link there. None if there is no link.
    pub fn program(&self, ifindex: u32) -> Option<u32> {
        Some(self.0.open(&name(ifindex)).ok()??.info().ok()?.program_id())
    }

    /// What our link's program does. None if there is no link.
    pub fn mode(&self, ifindex: u32) -> Option<XdpMode> {
        let name = program_name(self.program(ifindex)?)?;
        // The kernel keeps only 15 bytes of a name.
        let kept = |mode: &XdpMode| program_of(*mode).get(..15).unwrap_or(program_of(*mode));
        XdpMode::ALL.into_iter().find(|mode| kept(mode) == name)
    }

    /// Puts this mode's program behind the pinned link. False if there is no link, or only a dead one, which is unpinned.
    pub fn replace(&self, ebpf: &mut Ebpf, mode: XdpMode, ifindex: u32) -> Result<bool, DatapathError> {
        let path = self.0.path(&name(ifindex));
        let action = format!("replace {} at {}", program_of(mode), path.display());
        let failed = |error: &dyn std::error::Error| DatapathError::failed(&action, error);
        let Some(link) = self.0.take(&name(ifindex))? else { return Ok(false) };
        let link = link.try_into().map_err(|error: LinkError| failed(&error))?;
        let program = program_in(mode, ebpf)?;
        match program.attach_to_link(link).and_then(|id| program.take_link(id)) {
            Ok(link) => {
                self.0.hold(&name(ifindex), FdLink::try_from(link).map_err(|error| failed(&error))?);
                Ok(true)
            }
            // The interface is gone, or somebody has detached the link. It stays pinned, but is attached to nothing.
            Err(error) if errno(&error) == Some(Errno::ENOLINK) => {
                info!("the link {} is attached to nothing any more: unpinning it", path.display());
                self.detach(ifindex)?;
                Ok(false)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Attaches in the driver. Generic XDP comes after the packet buffer was made, and would only cost time.
    pub fn attach(&self, ebpf: &mut Ebpf, mode: XdpMode, ifindex: u32) -> Result<(), DatapathError> {
        let action = format!("attach {} to interface {ifindex}", program_of(mode));
        let program = program_in(mode, ebpf)?;
        let link = program
            .attach_to_if_index(ifindex, Place::Driver)
            .and_then(|id| program.take_link(id))
            .map_err(|error| match errno(&error) {
                Some(Errno::ENODEV) => DatapathError::Gone(ifindex),
                Some(Errno::EBUSY | Errno::EEXIST) => {
                    DatapathError::missing(&action, "another XDP program is there")
                }
                Some(Errno::EOPNOTSUPP) => DatapathError::missing(&action, "its driver has no native XDP"),
                _ => DatapathError::failed(&action, &error),
            })?;
        // Where the kernel has no XDP links, aya attaches by netlink, and detaches when its handle is dropped.
        let link: FdLink =
            link.try_into().map_err(|error: LinkError| DatapathError::failed(&action, &error))?;
        self.0.put(&name(ifindex), link)
    }

    /// Removes the pin, closes the descriptor, and so ends the link. It is no error if there is none.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.0.remove(&name(ifindex))
    }

    /// Pins what is held and not pinned any more. Returns how many links that were.
    pub(super) fn restore(&self) -> Result<usize, DatapathError> {
        self.0.restore()
    }

    /// Detaches from all interfaces but one.
    pub fn detach_others(&self, keep: Option<u32>) -> Result<(), DatapathError> {
        for ifindex in self.pinned()?.into_iter().filter(|ifindex| Some(*ifindex) != keep) {
            self.detach(ifindex)?;
        }
        Ok(())
    }
}

fn name(ifindex: u32) -> String {
    format!("{}-{ifindex}", XdpLink::NAME)
}

/// The name of a loaded program, for messages about programs that are not ours.
pub fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    program.as_ref().and_then(ProgramInfo::name_as_str).map(str::to_owned)
}

/// The interfaces that XDP may redirect to.
pub struct XdpTargets(DevMapHash<MapData>);

impl XdpTargets {
    /// The map's name in the programs, and the name of its pin.
    pub const MAP: (&str, &str) = ("XDP_TARGETS", "xdp_targets");

    /// The map of freshly loaded programs.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let map = ebpf.take_map(Self::MAP.0);
        let map = map.ok_or_else(|| DatapathError::missing("find map RECEIVERS", "not in the object"))?;
        let map = map.try_into();
        Ok(Self(map.map_err(|error: MapError| DatapathError::failed("use the map of XDP targets", &error))?))
    }

    /// The interfaces in the map.
    pub fn list(&self) -> Result<Vec<u32>, DatapathError> {
        let all: Result<Vec<u32>, MapError> = self.0.keys().collect();
        all.map_err(|error| DatapathError::failed("read the map of XDP targets", &error))
    }

    /// Adds or removes an interface. An interface that is gone is not added; the kernel has removed it already.
    pub fn set(&mut self, ifindex: u32, takes: bool) -> Result<(), DatapathError> {
        let action = if takes { "add" } else { "remove" };
        let done = if takes {
            self.0.insert(ifindex, ifindex, None, 0)
        } else {
            self.0.remove(ifindex).map_err(XdpMapError::MapError)
        };
        let Err(error) = done else { return Ok(()) };
        match errno(&error) {
            Some(Errno::ENOENT) if !takes => Ok(()),
            Some(Errno::EINVAL | Errno::ENODEV) if takes => Err(DatapathError::Gone(ifindex)),
            Some(Errno::E2BIG) => {
                debug!("the map of XDP targets is full: interface {ifindex} is left to TC");
                Ok(())
            }
            _ => Err(DatapathError::failed(format!("{action} XDP target {ifindex}"), &error)),
        }
    }

    /// Empties the map.
    pub fn clear(&mut self) -> Result<(), DatapathError> {
        for ifindex in self.list()? {
            self.set(ifindex, false)?;
        }
        Ok(())
    }
}

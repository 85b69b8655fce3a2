//! XDP at the underlay device: one pinned link, in the driver alone, whose program the next agent replaces in place; and the
//! map of the interfaces that it may redirect to.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{
        MapData, MapError,
        xdp::{DevMapHash, XdpMapError},
    },
    programs::{
        ProgramError, ProgramInfo, Xdp,
        links::{FdLink, LinkError, PinnedLink},
        loaded_programs,
        xdp::XdpMode as Place,
    },
    sys::SyscallError,
};
use log::{debug, info};
use nix::errno::Errno;

use super::{
    DatapathError,
    error::{errno, load_again},
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
pub struct XdpLink {
    folder: PathBuf,
}

impl XdpLink {
    /// First part of the pin's name.
    pub const NAME: &str = "xdp";

    /// The link of the network with these pins. Nothing is made.
    pub fn new(pins: &Path) -> Self {
        Self { folder: pins.join("links") }
    }

    fn path(&self, ifindex: u32) -> PathBuf {
        self.folder.join(format!("{}-{ifindex}", Self::NAME))
    }

    /// Interfaces that a link is pinned for. A pin outlives its interface.
    pub fn pinned(&self) -> Result<Vec<u32>, DatapathError> {
        let failed = |error| DatapathError::failed("read the folder of pinned links", &error);
        let files = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(failed)?,
        };
        let mut found = Vec::new();
        for file in files {
            let name = file.map_err(failed)?.file_name();
            let index = name
                .to_str()
                .and_then(|name| name.strip_prefix(Self::NAME)?.strip_prefix('-')?.parse::<u32>().ok());
            found.extend(index);
        }
        Ok(found)
    }

    /// Id of the program behind our link there. None if there is no link.
    pub fn program(&self, ifindex: u32) -> Option<u32> {
        let link = FdLink::from(PinnedLink::from_pin(self.path(ifindex)).ok()?);
        Some(link.info().ok()?.program_id())
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
        let path = self.path(ifindex);
        let action = format!("replace {} at {}", program_of(mode), path.display());
        let pinned = match PinnedLink::from_pin(&path) {
            Ok(pinned) => pinned,
            Err(LinkError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(false);
            }
            Err(error) => return Err(DatapathError::failed(&action, &error)),
        };
        let link = FdLink::from(pinned).try_into();
        let link = link.map_err(|error: LinkError| DatapathError::failed(&action, &error))?;
        let program = program_in(mode, ebpf)?;
        match program.attach_to_link(link).and_then(|id| program.take_link(id)) {
            // The link stays when our handle is dropped, because it is pinned.
            Ok(_) => Ok(true),
            // The interface is gone, or somebody has detached the link. It stays pinned, but is attached to nothing.
            Err(error) if errno(&error) == Some(Errno::ENOLINK) => {
                info!("the link {} is attached to nothing any more: unpinning it", path.display());
                self.detach(ifindex)?;
                Ok(false)
            }
            Err(error) => Err(DatapathError::failed(&action, &error)),
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
        let path = self.path(ifindex);
        link.pin(&path).map_err(|error| DatapathError::failed(format!("pin {}", path.display()), &error))?;
        Ok(())
    }

    /// Removes the pin, and with it the link, which nobody else holds. It is no error if there is none.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.path(ifindex);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::failed(format!("unpin {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Detaches from all interfaces but one.
    pub fn detach_others(&self, keep: Option<u32>) -> Result<(), DatapathError> {
        for ifindex in self.pinned()?.into_iter().filter(|ifindex| Some(*ifindex) != keep) {
            self.detach(ifindex)?;
        }
        Ok(())
    }
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

//! Attaching programs so that they outlive the agent: TCX links, pinned, and replaced in place by the next agent.
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::TcAttachOptions,
    },
    sys::SyscallError,
};
use log::{info, warn};
use nix::{errno::Errno, net::if_::if_nameindex};

use super::{DatapathError, PortKind};

/// A program at a hook. The pin's name is the program's short name and the interface's index: `encap-12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attachment {
    /// `overlay_encap` at the ingress of a container's veth.
    Encap,
    /// `overlay_note` at the egress of a container's veth.
    Note,
    /// `overlay_bridge` at the ingress of a bridge.
    Bridge,
    /// `overlay_decap` at the ingress of the underlay device.
    Decap,
    /// `overlay_send` at the egress of overlay0.
    Send,
    /// `overlay_receive` at the ingress of overlay0.
    Receive,
}

impl Attachment {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Encap, Self::Note, Self::Bridge, Self::Decap, Self::Send, Self::Receive];

    /// First part of the pin's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encap => "encap",
            Self::Note => "note",
            Self::Bridge => "bridge",
            Self::Decap => "decap",
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }

    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Encap => "overlay_encap",
            Self::Note => "overlay_note",
            Self::Bridge => "overlay_bridge",
            Self::Decap => "overlay_decap",
            Self::Send => "overlay_send",
            Self::Receive => "overlay_receive",
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::Encap | Self::Bridge | Self::Decap | Self::Receive => TcAttachType::Ingress,
            Self::Note | Self::Send => TcAttachType::Egress,
        }
    }

    /// What a port of this kind needs. The note comes first: a packet delivered by the stack must be noted before the
    /// reply can be seen.
    pub const fn of_port(kind: PortKind) -> &'static [Self] {
        match kind {
            PortKind::Bridge => &[Self::Bridge],
            PortKind::Veth => &[Self::Note, Self::Encap],
            PortKind::Underlay => &[Self::Decap],
            PortKind::Device => &[Self::Receive, Self::Send],
        }
    }
}

/// The folder of pinned links of one network.
#[derive(Clone, Debug)]
pub struct Links {
    folder: PathBuf,
}

impl Links {
    /// Makes the folder below `pins` if it is not there.
    pub fn new(pins: &Path) -> Result<Self, DatapathError> {
        let folder = pins.join("links");
        fs::create_dir_all(&folder).map_err(|error| {
            DatapathError::failed(format!("make the folder {}", folder.display()), &error)
        })?;
        Ok(Self { folder })
    }

    /// The folder as it is, to look at.
    pub fn found(pins: &Path) -> Self {
        Self { folder: pins.join("links") }
    }

    fn path(&self, attachment: Attachment, ifindex: u32) -> PathBuf {
        self.folder.join(format!("{}-{ifindex}", attachment.name()))
    }

    /// What is pinned: interfaces by attachment. A pin may outlive its interface; [`Self::attach`] finds out.
    pub fn pinned(&self) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        let mut found = Vec::new();
        let files = fs::read_dir(&self.folder)
            .map_err(|error| DatapathError::failed("read the folder of pinned links", &error))?;
        for file in files {
            let name = file
                .map_err(|error| DatapathError::failed("read the folder of pinned links", &error))?
                .file_name();
            let Some((kind, ifindex)) = name.to_str().and_then(|name| name.split_once('-')) else {
                continue;
            };
            let attachment = Attachment::ALL.into_iter().find(|attachment| attachment.name() == kind);
            if let (Some(attachment), Ok(ifindex)) = (attachment, ifindex.parse()) {
                found.push((attachment, ifindex));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Ports whose programs are all attached, as the kernel says: a pinned link whose interface is gone, or that
    /// somebody detached, is still there and does nothing.
    pub fn ports(&self, ebpf: &Ebpf) -> Result<BTreeMap<u32, PortKind>, DatapathError> {
        let names = interface_names()?;
        let mut attached = Vec::new();
        for (attachment, ifindex) in self.pinned()? {
            if let Some(name) = names.get(&ifindex)
                && is_attached(ebpf, attachment, name)?
            {
                attached.push((attachment, ifindex));
            }
        }
        let kinds = [PortKind::Bridge, PortKind::Veth, PortKind::Underlay, PortKind::Device];
        let has = |ifindex, kind| {
            Attachment::of_port(kind).iter().all(|wanted| attached.contains(&(*wanted, ifindex)))
        };
        let kind_of = |ifindex| kinds.into_iter().find(|kind| has(ifindex, *kind));
        Ok(attached.iter().filter_map(|(_, ifindex)| Some((*ifindex, kind_of(*ifindex)?))).collect())
    }

    /// Attaches a program, or replaces the one that is there without a moment in between.
    pub fn attach(&self, ebpf: &mut Ebpf, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        if self.replace(ebpf, attachment, ifindex)? {
            return Ok(());
        }
        let names = interface_names()?;
        let name = names.get(&ifindex).ok_or(DatapathError::Gone(ifindex))?;
        let action = format!("attach {} to {name}", attachment.program());
        let program = program(ebpf, attachment)?;
        let link = program
            .attach_with_options(
                name,
                attachment.direction(),
                // Before others' programs: one that ends the chain with TCX_PASS would keep ours from seeing the packet.
                TcAttachOptions::TcxOrder(LinkOrder::first()),
            )
            .and_then(|id| program.take_link(id))
            .map_err(|error| match errno(&error) {
                Some(Errno::ENODEV) => DatapathError::Gone(ifindex),
                Some(Errno::EINVAL | Errno::ENOSYS) => DatapathError::missing(
                    &action,
                    "this kernel has no TCX (Linux 6.6 and newer have it); `overlay check` says more",
                ),
                _ => DatapathError::failed(&action, &error),
            })?;
        let link: FdLink =
            link.try_into().map_err(|error: LinkError| DatapathError::failed(&action, &error))?;
        let path = self.path(attachment, ifindex);
        link.pin(&path).map_err(|error| DatapathError::failed(format!("pin {}", path.display()), &error))?;
        Ok(())
    }

    /// Replaces the program behind a pinned link. False if there is no link, or only a dead one (which is unpinned).
    pub fn replace(
        &self,
        ebpf: &mut Ebpf,
        attachment: Attachment,
        ifindex: u32,
    ) -> Result<bool, DatapathError> {
        let path = self.path(attachment, ifindex);
        let action = format!("replace {} at {}", attachment.program(), path.display());
        let pinned = match PinnedLink::from_pin(&path) {
            Ok(pinned) => pinned,
            Err(LinkError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(false);
            }
            Err(error) => return Err(DatapathError::failed(&action, &error)),
        };
        let link = FdLink::from(pinned)
            .try_into()
            .map_err(|error: LinkError| DatapathError::failed(&action, &error))?;
        let program = program(ebpf, attachment)?;
        match program.attach_to_link(link).and_then(|id| program.take_link(id)) {
            // Dropping our handle changes nothing: the pin holds the link.
            Ok(_) => Ok(true),
            // The interface, or the namespace it was in, is gone; the link stays pinned, attached to nothing.
            Err(error) if errno(&error) == Some(Errno::ENOLINK) => {
                info!("the link {} has lost its interface: unpinning it", path.display());
                self.unpin(attachment, ifindex)?;
                Ok(false)
            }
            Err(error) => Err(DatapathError::failed(&action, &error)),
        }
    }

    /// Detaches a program by removing its pin; nobody else holds the link.
    pub fn unpin(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.path(attachment, ifindex);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::failed(format!("unpin {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Unpins what is left of interfaces that are no longer the network's underlay device or overlay0.
    pub fn retain_host(&self, underlay: u32, device: u32) -> Result<(), DatapathError> {
        for (attachment, ifindex) in self.pinned()? {
            let stale = match attachment {
                Attachment::Decap => ifindex != underlay,
                Attachment::Send | Attachment::Receive => ifindex != device,
                Attachment::Encap | Attachment::Note | Attachment::Bridge => false,
            };
            if stale {
                warn!("detaching {} from interface {ifindex}: no longer used", attachment.program());
                self.unpin(attachment, ifindex)?;
            }
        }
        Ok(())
    }
}

/// Whether the interface runs this very program. One that went meanwhile runs none.
fn is_attached(ebpf: &Ebpf, attachment: Attachment, name: &str) -> Result<bool, DatapathError> {
    let action = || format!("ask for the programs of {name}");
    let program = ebpf
        .program(attachment.program())
        .ok_or_else(|| DatapathError::missing(action(), "the program is not in the object"))?;
    let id = program.info().map_err(|error| DatapathError::failed(action(), &error))?.id();
    match SchedClassifier::query_tcx(name, attachment.direction()) {
        Ok((_, programs)) => Ok(programs.iter().any(|program| program.id() == id)),
        Err(error) if matches!(errno(&error), Some(Errno::ENODEV)) => Ok(false),
        Err(error) => Err(DatapathError::failed(action(), &error)),
    }
}

fn program(ebpf: &mut Ebpf, attachment: Attachment) -> Result<&mut SchedClassifier, DatapathError> {
    let name = attachment.program();
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| DatapathError::missing(format!("find program {name}"), "not in the object"))?;
    program
        .try_into()
        .map_err(|error: ProgramError| DatapathError::failed(format!("use program {name}"), &error))
}

/// Names by index, in this thread's network namespace. Not from /sys, which may show another namespace's.
fn interface_names() -> Result<BTreeMap<u32, String>, DatapathError> {
    let interfaces = if_nameindex().map_err(|error| DatapathError::failed("list the interfaces", &error))?;
    Ok(interfaces.iter().map(|one| (one.index(), one.name().to_string_lossy().into_owned())).collect())
}

fn errno(error: &ProgramError) -> Option<Errno> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(Errno::from_raw(number));
        }
        source = error.source();
    }
    None
}

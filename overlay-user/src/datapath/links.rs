//! Attaching programs so that they outlive the agent, replacing them in place, and asking the kernel what is attached.
mod attacher;
mod attachment;
mod clsact;
pub mod foreign;
mod in_front;
mod orphans;
mod pins;
mod tcx;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use aya::Ebpf;
use ipnet::IpNet;
use log::{info, warn};
use serde::Serialize;

use self::{
    attacher::{Attacher, Interface, interface_name},
    attachment::not_in_object,
    clsact::Clsact,
    pins::Pins,
    tcx::Tcx,
};
pub use self::{attachment::Attachment, in_front::InFront, orphans::Orphan};
use super::{DatapathError, crash::may_crash};
use crate::model::entries::PortKind;

/// How programs are attached at TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMethod {
    /// Pinned TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl AttachMethod {
    /// The better method that this kernel has. It is tried, since versions say little about what distributions backport or leave
    /// out.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN the kernel does not say.
    pub fn best() -> Result<Self, DatapathError> {
        Ok(if tcx::is_there()? { Self::Tcx } else { Self::Clsact })
    }

    /// How the programs of the network with these pins are attached, and the index of its tunnel device. None if they are not
    /// attached. Works with no agent running.
    pub fn in_use(pins: &Path) -> Result<Option<(Self, u32)>, DatapathError> {
        let links = Links::open(pins, Self::Tcx);
        for method in [Self::Tcx, Self::Clsact] {
            let found = links.by(method).found()?;
            let device = found.iter().find(|(attachment, _)| *attachment == Attachment::Receive);
            if let Some((_, device)) = device {
                return Ok(Some((method, *device)));
            }
        }
        Ok(None)
    }
}

impl fmt::Display for AttachMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "TCX links",
            Self::Clsact => "clsact filters",
        })
    }
}

/// The attached programs of one network.
#[derive(Clone, Debug)]
pub struct Links {
    chosen: AttachMethod,
    tcx: Tcx,
    clsact: Clsact,
}

impl Links {
    /// Makes the folders below `pins` if they are not there.
    pub fn new(pins: &Path, chosen: AttachMethod) -> Result<Self, DatapathError> {
        Self::open(pins, chosen).with_folders()
    }

    /// The links of the same network for a data path that is loaded anew. Both share what is held.
    pub(super) fn again(&self, chosen: AttachMethod) -> Result<Self, DatapathError> {
        Self { chosen, ..self.clone() }.with_folders()
    }

    fn with_folders(self) -> Result<Self, DatapathError> {
        for folder in [self.tcx.0.folder(), self.clsact.marks()] {
            fs::create_dir_all(folder).map_err(|error| {
                DatapathError::failed(format!("make the folder {}", folder.display()), &error)
            })?;
        }
        Ok(self)
    }

    fn open(pins: &Path, chosen: AttachMethod) -> Self {
        Self { chosen, tcx: Tcx(Pins::new(pins)), clsact: Clsact::new(pins) }
    }

    fn attacher(&self) -> &dyn Attacher {
        self.by(self.chosen)
    }

    fn by(&self, method: AttachMethod) -> &dyn Attacher {
        match method {
            AttachMethod::Tcx => &self.tcx,
            AttachMethod::Clsact => &self.clsact,
        }
    }

    /// What is attached to which interfaces. An interface may be gone; [`Attacher::replace`] finds out.
    fn found(&self) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        let mut found = self.attacher().found()?;
        found.sort_unstable();
        Ok(found)
    }

    /// Replaces every attached program in place, and returns how many there were. Where an earlier agent used the other method,
    /// the program is replaced too, then attached by the chosen method beside it, and only then detached. In between, a packet
    /// that goes on to the stack passes both, which changes nothing but its count.
    pub fn adopt(&self, ebpf: &mut Ebpf) -> Result<usize, DatapathError> {
        let mut adopted = 0;
        for (attachment, ifindex) in self.found()? {
            adopted += usize::from(self.attacher().replace(ebpf, attachment, ifindex)?);
            may_crash("one program replaced");
        }
        let other = match self.chosen {
            AttachMethod::Tcx => AttachMethod::Clsact,
            AttachMethod::Clsact => AttachMethod::Tcx,
        };
        let left = self.by(other).found()?;
        if !left.is_empty() {
            info!(
                "an earlier agent attached {} programs by {other}: moving them to {}",
                left.len(),
                self.chosen
            );
        }
        for (attachment, ifindex) in left {
            // If its interface is gone, it is not moved to another interface that has the index now.
            if self.by(other).replace(ebpf, attachment, ifindex)? {
                match self.attach(ebpf, attachment, ifindex) {
                    Err(DatapathError::Gone(_)) => {}
                    attached => attached?,
                }
                adopted += 1;
            }
            self.by(other).detach(attachment, ifindex)?;
        }
        self.clsact.forget_gone()?;
        Ok(adopted)
    }

    /// Ports whose programs are all attached, as the kernel says. What we attached may have lost its interface, or somebody may
    /// have detached it.
    pub fn ports(&self, ebpf: &Ebpf) -> Result<BTreeMap<u32, PortKind>, DatapathError> {
        let mut attached = Vec::new();
        for (attachment, index) in self.found()? {
            let Some(name) = interface_name(index)? else { continue };
            let interface = Interface { index, name: &name };
            if self.attacher().runs(program_id(ebpf, attachment)?, attachment, interface)? {
                attached.push((attachment, index));
            }
        }
        let kinds = [PortKind::Bridge, PortKind::Veth, PortKind::Underlay, PortKind::Device];
        let has = |ifindex, kind| {
            Attachment::of_port(kind).iter().all(|wanted| attached.contains(&(*wanted, ifindex)))
        };
        let kind_of = |ifindex| kinds.into_iter().find(|kind| has(ifindex, *kind));
        Ok(attached.iter().filter_map(|(_, ifindex)| Some((*ifindex, kind_of(*ifindex)?))).collect())
    }

    /// Whether attaching to an interface makes a qdisc there, in a place that others may want.
    pub(super) fn takes_a_qdisc(&self, ifindex: u32) -> Result<bool, DatapathError> {
        Ok(self.chosen == AttachMethod::Clsact && clsact::qdisc(ifindex)?.is_none())
    }

    /// Attaches a program, or replaces the one that is there without a moment in between.
    ///
    /// # Errors
    /// [`DatapathError::Gone`] if there is no interface of that index, so that the caller does not try again.
    pub fn attach(&self, ebpf: &mut Ebpf, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        let attacher = self.attacher();
        if attacher.replace(ebpf, attachment, ifindex)? {
            return Ok(());
        }
        by_name(ifindex, |interface| attacher.attach(ebpf, attachment, interface))
    }

    /// Detaches a program. It is no error if it is not there, or if its interface is gone.
    pub fn detach(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        self.attacher().detach(attachment, ifindex)
    }

    /// What is attached of the network with these pins, by either method, to which interfaces. Interfaces may be gone. Works with
    /// no agent running.
    pub fn of(pins: &Path) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        let links = Self::open(pins, AttachMethod::Tcx);
        let mut found = BTreeSet::new();
        for method in [AttachMethod::Tcx, AttachMethod::Clsact] {
            found.extend(links.by(method).found()?);
        }
        Ok(found.into_iter().collect())
    }

    /// Others' programs that see packets before those of the network with these pins. Works with no agent running.
    ///
    /// # Errors
    /// When the kernel does not say what is attached.
    pub fn in_front(pins: &Path) -> Result<Vec<InFront>, DatapathError> {
        let links = Self::open(pins, AttachMethod::Tcx);
        let mut all = in_front::of(&links.tcx.found()?, false)?;
        all.extend(in_front::of(&links.clsact.found()?, true)?);
        all.sort();
        Ok(all)
    }

    /// Programs of this project that run at this namespace's interfaces although nothing below this bpf root names them: those
    /// of the host with this subnet, or of any if none is given. Works with no agent running.
    ///
    /// # Errors
    /// When the kernel does not say what is attached.
    pub fn orphans(bpf_root: &Path, subnet: Option<IpNet>) -> Result<Vec<Orphan>, DatapathError> {
        orphans::find(bpf_root, subnet)
    }

    /// Detaches every program of the network with these pins, by whichever method it is attached.
    pub fn detach_all(pins: &Path) -> Result<(), DatapathError> {
        let links = Self::open(pins, AttachMethod::Tcx);
        for attacher in [AttachMethod::Tcx, AttachMethod::Clsact].map(|method| links.by(method)) {
            for (attachment, ifindex) in attacher.found()? {
                attacher.detach(attachment, ifindex)?;
            }
        }
        links.clsact.remove_qdiscs()
    }

    /// Makes again what should outlive the agent and that somebody has removed from the folder of pins. Returns how many things
    /// that were.
    pub(super) fn restore(&self) -> Result<usize, DatapathError> {
        Ok(self.tcx.restore()? + self.clsact.restore()?)
    }

    /// Whether an interface of this kind lacks a program. One that is gone lacks none.
    ///
    /// # Errors
    /// When the kernel does not say what is attached.
    pub(super) fn lacks_program(
        &self,
        ebpf: &Ebpf,
        kind: PortKind,
        index: u32,
    ) -> Result<bool, DatapathError> {
        let Some(name) = interface_name(index)? else { return Ok(false) };
        for attachment in Attachment::of_port(kind) {
            let interface = Interface { index, name: &name };
            if !self.attacher().runs(program_id(ebpf, *attachment)?, *attachment, interface)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Detaches programs from interfaces that are no longer the network's underlay device or overlay0.
    pub fn retain_host(&self, underlay: u32, device: u32) -> Result<(), DatapathError> {
        for (attachment, ifindex) in self.found()? {
            let stale = match attachment {
                Attachment::Decap => ifindex != underlay,
                Attachment::Send | Attachment::Receive => ifindex != device,
                Attachment::Encap | Attachment::Track | Attachment::Bridge => false,
            };
            if stale {
                warn!("detaching {} from interface {ifindex}: no longer used", attachment.program());
                self.detach(attachment, ifindex)?;
            }
        }
        Ok(())
    }
}

fn program_id(ebpf: &Ebpf, attachment: Attachment) -> Result<u32, DatapathError> {
    let name = attachment.program();
    let program = ebpf.program(name).ok_or_else(|| not_in_object(name))?;
    let info = program.info();
    Ok(info.map_err(|error| DatapathError::failed(format!("ask for the id of {name}"), &error))?.id())
}

/// How often attaching is tried to an interface that has another name each time.
const NAMES: usize = 3;

/// Attaches to an interface. aya takes its name, which may be another interface's or nobody's by then, so only the kernel's
/// answer about the index says that the interface is gone.
fn by_name(
    index: u32,
    mut attach: impl FnMut(Interface<'_>) -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    for _ in 0..NAMES {
        let name = interface_name(index)?.ok_or(DatapathError::Gone(index))?;
        match attach(Interface { index, name: &name }) {
            Err(DatapathError::Gone(_)) => {}
            attached => return attached,
        }
    }
    Err(DatapathError::missing(format!("attach to interface {index}"), "its name changed each time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: u32 = 1;
    /// The kernel counts from one.
    const NOBODY: u32 = i32::MAX as u32;

    #[test]
    fn an_interface_that_is_renamed_is_not_gone() {
        let mut names = Vec::new();
        let attached = by_name(LOOPBACK, |interface| {
            names.push(interface.name.to_owned());
            if names.len() > 1 { Ok(()) } else { Err(DatapathError::Gone(interface.index)) }
        });
        assert!(attached.is_ok(), "{attached:?}");
        assert_eq!(names, ["lo", "lo"]);
        let never = by_name(LOOPBACK, |interface| Err(DatapathError::Gone(interface.index)));
        assert!(matches!(never, Err(DatapathError::Failed { .. })), "{never:?}");
    }

    #[test]
    fn an_index_that_nobody_has_is_gone() {
        assert!(matches!(interface_name(NOBODY), Ok(None)));
        let attached = by_name(NOBODY, |_| Ok(()));
        assert!(matches!(attached, Err(DatapathError::Gone(NOBODY))), "{attached:?}");
    }
}

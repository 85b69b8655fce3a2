//! TCX (e420bed02507, Linux 6.6): a link per program, which is pinned, and which the next agent updates in place.
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError},
        tc::TcAttachOptions,
    },
};
use log::info;
use nix::errno::Errno;

use super::{
    attacher::{Attacher, Interface},
    attachment::{Attachment, attach_type, program},
    pins::Pins,
};
use crate::datapath::error::{DatapathError, errno};

#[derive(Clone, Debug)]
pub(super) struct Tcx(pub(super) Pins);

impl Attacher for Tcx {
    fn found(&self) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        self.0.list()
    }

    fn replace(&self, ebpf: &mut Ebpf, attachment: Attachment, ifindex: u32) -> Result<bool, DatapathError> {
        let Some(link) = self.0.take(attachment, ifindex)? else { return Ok(false) };
        let path = self.0.path(attachment, ifindex);
        let action = format!("replace {} at {}", attachment.program(), path.display());
        let link = link.try_into().map_err(|error: LinkError| DatapathError::failed(&action, &error))?;
        let program = program(ebpf, attachment)?;
        match program.attach_to_link(link).and_then(|id| program.take_link(id)) {
            Ok(link) => {
                let link = FdLink::try_from(link);
                self.0.hold(
                    attachment,
                    ifindex,
                    link.map_err(|error| DatapathError::failed(&action, &error))?,
                );
                Ok(true)
            }
            // The interface, or the namespace it was in, is gone. The link stays pinned, but is attached to nothing.
            Err(error) if errno(&error) == Some(Errno::ENOLINK) => {
                info!("the link {} has lost its interface: unpinning it", path.display());
                self.detach(attachment, ifindex)?;
                Ok(false)
            }
            Err(error) => Err(DatapathError::failed(&action, &error)),
        }
    }

    fn attach(
        &self,
        ebpf: &mut Ebpf,
        attachment: Attachment,
        interface: Interface<'_>,
    ) -> Result<(), DatapathError> {
        let action = format!("attach {} to {}", attachment.program(), interface.name);
        let program = program(ebpf, attachment)?;
        // Ours come before others' programs: one that ends the chain with TCX_PASS would keep ours from seeing the packet.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program
            .attach_with_options(interface.name, attach_type(attachment.direction()), order)
            .and_then(|id| program.take_link(id))
            .map_err(|error| match errno(&error) {
                Some(Errno::ENODEV) => DatapathError::Gone(interface.index),
                Some(Errno::EINVAL | Errno::ENOSYS) => DatapathError::missing(
                    &action,
                    "this kernel has no TCX (Linux 6.6 and newer have it): leave --attach out, or say `--attach clsact`",
                ),
                _ => DatapathError::failed(&action, &error),
            })?;
        let link: FdLink =
            link.try_into().map_err(|error: LinkError| DatapathError::failed(&action, &error))?;
        self.0.put(attachment, interface.index, link)
    }

    fn detach(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        self.0.remove(attachment, ifindex)
    }

    fn restore(&self) -> Result<usize, DatapathError> {
        self.0.restore()
    }

    fn runs(&self, id: u32, attachment: Attachment, interface: Interface<'_>) -> Result<bool, DatapathError> {
        match SchedClassifier::query_tcx(interface.name, attach_type(attachment.direction())) {
            Ok((_, programs)) => Ok(programs.iter().any(|program| program.id() == id)),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(false),
            Err(error) => {
                Err(DatapathError::failed(format!("ask for the programs of {}", interface.name), &error))
            }
        }
    }
}

/// Whether this kernel has TCX. A kernel without it refuses the very question with EINVAL.
pub(super) fn is_there() -> Result<bool, DatapathError> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if errno(&error) == Some(Errno::EINVAL) => Ok(false),
        Err(error) => Err(DatapathError::failed("ask whether the kernel has TCX", &error)),
    }
}

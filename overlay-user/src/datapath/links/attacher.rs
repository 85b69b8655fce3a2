//! What every attach method can do, and the interfaces it does it at.
use aya::Ebpf;
use nix::{errno::Errno, net::if_::if_indextoname};

use super::attachment::Attachment;
use crate::datapath::DatapathError;

/// An interface of this thread's network namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface<'a> {
    pub(super) index: u32,
    pub(super) name: &'a str,
}

/// Attaches programs by one method. Only what belongs to this network is seen and touched.
pub(super) trait Attacher {
    /// What is attached to which interface, by index. Interfaces may be gone.
    fn found(&self) -> Result<Vec<(Attachment, u32)>, DatapathError>;
    /// Replaces the program that is there, without a moment in between. False if there is none.
    fn replace(&self, ebpf: &mut Ebpf, attachment: Attachment, ifindex: u32) -> Result<bool, DatapathError>;
    /// Attaches a program where none of ours is.
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        attachment: Attachment,
        interface: Interface<'_>,
    ) -> Result<(), DatapathError>;
    /// Detaches a program. It is no error if there is none, or no such interface.
    fn detach(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError>;
    /// Makes again what should outlive the agent and that somebody has removed. Returns how many things that were.
    fn restore(&self) -> Result<usize, DatapathError>;
    /// Whether the kernel runs the program with this id there, whatever we have done before.
    fn runs(
        &self,
        program: u32,
        attachment: Attachment,
        interface: Interface<'_>,
    ) -> Result<bool, DatapathError>;
}

/// The name of an interface of this thread's network namespace. None if there is none of this index. /sys is not asked, since
/// it may show another namespace's interfaces.
pub(super) fn interface_name(index: u32) -> Result<Option<String>, DatapathError> {
    let failed =
        |errno: Errno| DatapathError::failed(format!("ask for the name of interface {index}"), &errno);
    match if_indextoname(index) {
        // nix 0.31 takes libc's null pointer for an empty name.
        Ok(name) if name.is_empty() => match Errno::last() {
            Errno::ENXIO | Errno::ENODEV => Ok(None),
            errno => Err(failed(errno)),
        },
        Ok(name) => Ok(Some(name.to_string_lossy().into_owned())),
        Err(Errno::ENXIO | Errno::ENODEV) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

//! Which program is attached to which hook of which kind of port.
use aya::{
    Ebpf,
    programs::{Program, ProgramError, SchedClassifier, TcAttachType},
};

use crate::{datapath::DatapathError, host::netlink::tc::Direction, model::entries::PortKind};

/// A program at a hook.
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

/// The kind of place a program hangs at: decides the program's type, and which [`Way`] attaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Traffic control, where the stack has a packet buffer.
    Tc(Direction),
}

impl Attachment {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Encap, Self::Note, Self::Bridge, Self::Decap, Self::Send, Self::Receive];

    /// Short name.
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

    /// Where it hangs.
    pub const fn hook(self) -> Hook {
        match self {
            Self::Encap | Self::Bridge | Self::Decap | Self::Receive => Hook::Tc(Direction::Ingress),
            Self::Note | Self::Send => Hook::Tc(Direction::Egress),
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

    /// Loads its program into the kernel, where the verifier has its say.
    pub fn load(self, ebpf: &mut Ebpf) -> Result<(), DatapathError> {
        let loaded = match self.hook() {
            Hook::Tc(_) => program::<SchedClassifier>(ebpf, self)?.load(),
        };
        loaded.map_err(|error| DatapathError::failed(format!("load program {}", self.program()), &error))
    }
}

/// The program of an attachment, as one of the type its hook takes.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, attachment: Attachment) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let name = attachment.program();
    let program = ebpf.program_mut(name).ok_or_else(|| not_in_object(name))?;
    program.try_into().map_err(|error| DatapathError::failed(format!("use program {name}"), &error))
}

pub(super) fn not_in_object(name: &str) -> DatapathError {
    DatapathError::missing(format!("find program {name}"), "not in the object")
}

/// The direction of a program at TC, as aya says it.
pub(super) fn attach_type(attachment: Attachment) -> TcAttachType {
    let Hook::Tc(direction) = attachment.hook();
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

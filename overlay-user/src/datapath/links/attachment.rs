//! Which program is attached to which hook of which kind of port.
use aya::{
    Ebpf,
    programs::{ProgramError, SchedClassifier, TcAttachType},
};

use crate::{
    datapath::error::{DatapathError, load_again},
    host::netlink::tc::Direction,
    model::entries::PortKind,
};

/// A program at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attachment {
    /// `overlay_encap` at the ingress of a container's veth.
    Encap,
    /// `overlay_track` at the egress of a container's veth.
    Track,
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
        [Self::Encap, Self::Track, Self::Bridge, Self::Decap, Self::Send, Self::Receive];

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encap => "encap",
            Self::Track => "track",
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
            Self::Track => "overlay_track",
            Self::Bridge => "overlay_bridge",
            Self::Decap => "overlay_decap",
            Self::Send => "overlay_send",
            Self::Receive => "overlay_receive",
        }
    }

    /// Whether the program goes by this name, in this version of the agent or in an earlier one. Layout 1 had another name for
    /// one of them.
    pub(super) fn goes_by(self, program: &str) -> bool {
        program == self.program() || (self, program) == (Self::Track, "overlay_note")
    }

    /// On which side of its interface it hangs.
    pub const fn direction(self) -> Direction {
        match self {
            Self::Encap | Self::Bridge | Self::Decap | Self::Receive => Direction::Ingress,
            Self::Track | Self::Send => Direction::Egress,
        }
    }

    /// The programs that a port of this kind needs, in this order. Tracking comes before encapsulation, because a connection must be
    /// a stack flow before the reply to what the stack has delivered is seen.
    pub const fn of_port(kind: PortKind) -> &'static [Self] {
        match kind {
            PortKind::Bridge => &[Self::Bridge],
            PortKind::Veth => &[Self::Track, Self::Encap],
            PortKind::Underlay => &[Self::Decap],
            PortKind::Device => &[Self::Receive, Self::Send],
        }
    }

    /// Loads its program into the kernel, whose verifier may refuse it.
    pub fn load(self, ebpf: &mut Ebpf) -> Result<(), DatapathError> {
        let program = program(ebpf, self)?;
        let loaded = load_again(|| program.load());
        loaded.map_err(|error| DatapathError::failed(format!("load program {}", self.program()), &error))
    }
}

/// The program of an attachment.
pub(super) fn program(
    ebpf: &mut Ebpf,
    attachment: Attachment,
) -> Result<&mut SchedClassifier, DatapathError> {
    let name = attachment.program();
    let program = ebpf.program_mut(name).ok_or_else(|| not_in_object(name))?;
    let program = program.try_into();
    program.map_err(|error: ProgramError| DatapathError::failed(format!("use program {name}"), &error))
}

pub(super) fn not_in_object(name: &str) -> DatapathError {
    DatapathError::missing(format!("find program {name}"), "not in the object")
}

/// The direction of a program at TC, as aya says it.
pub(super) fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

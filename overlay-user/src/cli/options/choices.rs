//! The values of options that are chosen from a few words.
use clap::ValueEnum;

use crate::model::fast_path::AskedFastPath;

/// Which packets go past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FastPathOption {
    /// As many as the host's firewall allows: `on` while no rule could refuse or alter a packet between containers, else
    /// `established` or `off`, whichever obeys the rules
    Auto,
    /// All that can; the host's firewall does not see them
    On,
    /// Those of connections that the host's firewall has accepted in both directions
    Established,
    /// None: the kernel's own tunnel carries everything
    Off,
}

impl From<FastPathOption> for AskedFastPath {
    fn from(option: FastPathOption) -> Self {
        match option {
            FastPathOption::Auto => Self::Auto,
            FastPathOption::On => Self::On,
            FastPathOption::Established => Self::Established,
            FastPathOption::Off => Self::Off,
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it, and clap would show the comments as help")]
pub enum Switch {
    On,
    Off,
}

/// Where packets from other hosts are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IngressOption {
    /// The best that is safe on any interface: TC
    Auto,
    /// TC: once the stack has a packet buffer, with GSO and GRO kept
    Tc,
    /// XDP: in the NIC's driver, straight into containers that have GRO on; TC takes the rest
    Xdp,
    /// XDP unwraps, so that GRO merges what was inside; TC delivers
    XdpStrip,
}

/// How programs are attached to interfaces at TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachBy {
    /// TCX where the kernel has it, clsact elsewhere
    Auto,
    /// TCX links (Linux 6.6 and newer)
    Tcx,
    /// Filters of a clsact qdisc (any kernel)
    Clsact,
}

/// What a known host may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerCheck {
    /// Packets from its own subnet, or from outside the overlay
    On,
    /// Packets from its own subnet alone
    Strict,
}

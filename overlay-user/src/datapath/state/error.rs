//! Why what outlives an agent cannot be used, and what to do about it.
use std::{
    io,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use overlay_common::ABI;

/// Why state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The root is not on bpffs.
    #[error(
        "{0} is not on a bpf filesystem: run `mount -t bpf bpf /sys/fs/bpf`, or give a --bpf-root that is on one"
    )]
    NotBpffs(PathBuf),
    /// Another agent runs.
    #[error(
        "another agent (pid {pid}) runs network {network} here: it holds {lock}. Stop it first (`kill {pid}`), or give this one its own --network or --state-dir"
    )]
    Locked {
        /// The network's name.
        network: String,
        /// Process id of the other agent, `?` if it did not say.
        pid: String,
        /// Path of the lock.
        lock: String,
    },
    /// The pins are another host's.
    #[error(
        "the pins in {pins} belong to {owner}, not to {claimant}: give this host its own --bpf-root and --state-dir, or remove them with `overlay down --network {network}` (same --bpf-root and --state-dir)"
    )]
    Foreign {
        /// The folder.
        pins: PathBuf,
        /// Whose they are.
        owner: String,
        /// Who asks.
        claimant: String,
        /// The network's name.
        network: String,
    },
    /// Another network of this host has it.
    #[error(
        "{what} is network {other}'s on this host: give network {network} its own {option}, or end the other with \
         `overlay down --network {other}`"
    )]
    Shared {
        /// The device or the file.
        what: String,
        /// The other network's name.
        other: String,
        /// The network's name.
        network: String,
        /// What names another one.
        option: &'static str,
    },
    /// The config has no place any more for what runs here.
    #[error(
        "the network's config has no subnet {subnet} any more, with which network {network} runs on this host: traffic goes \
         on. Put the config back, or let the host move: `overlay down --network {network}`, then start the agent again"
    )]
    Moved {
        /// The subnet of the host's pins and containers.
        subnet: Ipv4Net,
        /// The network's name.
        network: String,
    },
    /// Pins of another version's agent, or of somebody else.
    #[error("{}", unknown_layout(pins, network))]
    UnknownLayout {
        /// Their folder.
        pins: PathBuf,
        /// The network's name.
        network: String,
    },
    /// The system refuses.
    #[error("{action}: {detail}; --state-dir and --bpf-root name other folders")]
    Io {
        /// Verb and object, lower case.
        action: String,
        /// What it said.
        detail: io::Error,
    },
}

impl StateError {
    pub(super) fn io(verb: &str, path: &Path, detail: impl Into<io::Error>) -> Self {
        Self::Io { action: format!("{verb} {}", path.display()), detail: detail.into() }
    }
}

/// What is said of a layout that nobody here can read.
fn unknown_layout(pins: &Path, network: &str) -> String {
    format!(
        "{} holds pins of a map layout that this agent (layout {ABI}) does not know: a newer agent ran here. Start that \
         one again. To go back to this one, take the network off the host first, which interrupts its traffic: `overlay \
         down --network {network}`",
        pins.display()
    )
}

//! The options that say which network of this host is meant, and how things are shown.
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::datapath::state::Paths;

/// The tunnel device's name unless the operator says otherwise.
pub const DEFAULT_DEVICE: &str = "overlay0";

/// Which network on this host.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Name of the network on this host. A host that is in several gives each its own, with a --device, a --subnet-file and a
    /// place in the store (--etcd-prefix, --store-dir); networks on one port need different VNIs
    #[arg(long, default_value = "default", value_parser = network_name)]
    pub network: String,
    /// Folder for the agent's lock, control socket and notes; it need not survive a reboot
    #[arg(long, value_name = "DIR", default_value = "/run/overlay")]
    pub state_dir: PathBuf,
    /// A bpf file system; what carries the traffic is pinned below it, so that it outlives the agent
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpf_root: PathBuf,
}

impl Place {
    /// The folders of this network.
    pub fn paths(&self) -> Paths {
        Paths::new(&self.bpf_root, &self.state_dir, &self.network)
    }
}

/// How a command shows things.
#[derive(Clone, Debug, Args)]
pub struct Show {
    /// Which network.
    #[command(flatten)]
    pub place: Place,
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// A name that is safe as a folder's.
fn network_name(text: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=64).contains(&text.len()) && text.chars().all(fine) {
        Ok(text.to_owned())
    } else {
        bail!("a network's name has 1 to 64 letters, digits, dashes or underscores")
    }
}

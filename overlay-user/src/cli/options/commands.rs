//! The options of every command but the agent's.
use std::{net::IpAddr, path::PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::{
    agent::Agent,
    place::{DEFAULT_DEVICE, Show},
    store::StoreOptions,
    underlay::{UnderlayOptions, ipv4},
};
use crate::model::mac::Mac;

/// `overlay peers`
#[derive(Debug, Args)]
pub struct Peers {
    /// How to show.
    #[command(flatten)]
    pub show: Show,
    /// Lets go of the hosts that are held back: when a store forgets most hosts at once, their routes stay until you say so
    #[arg(long)]
    pub accept_deletions: bool,
    /// Makes the agent read all leases and the data path again now
    #[arg(long, conflicts_with = "accept_deletions")]
    pub resync: bool,
}

/// `overlay config`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Shows the config with every default filled in
    Show {
        /// Which store.
        #[command(flatten)]
        store: StoreOptions,
        /// The text as it stands in the store
        #[arg(long)]
        json: bool,
    },
    /// Checks a config by flannel's rules and writes it
    Set {
        /// The config as JSON, such as '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'; `-` reads standard input
        text: String,
        /// Which store.
        #[command(flatten)]
        store: StoreOptions,
        /// JSON instead of a sentence
        #[arg(long)]
        json: bool,
    },
}

/// `overlay attach`
#[derive(Debug, Args)]
pub struct Attach {
    /// The container's address
    #[arg(value_parser = ipv4)]
    pub address: IpAddr,
    /// Name of the host side of the container's veth
    #[arg(long, value_name = "INTERFACE")]
    pub port: String,
    /// MAC address inside the container; without it, the one the kernel knows
    #[arg(long)]
    pub mac: Option<Mac>,
    /// Which network.
    #[command(flatten)]
    pub show: Show,
}

/// `overlay detach`
#[derive(Debug, Args)]
pub struct Detach {
    /// The container's address
    #[arg(value_parser = ipv4)]
    pub address: IpAddr,
    /// Which network.
    #[command(flatten)]
    pub show: Show,
}

/// `overlay check`
#[derive(Debug, Args)]
pub struct Check {
    /// Which network.
    #[command(flatten)]
    pub show: Show,
    /// Which interface.
    #[command(flatten)]
    pub underlay: UnderlayOptions,
    /// Name of the kernel's tunnel device
    #[arg(long, default_value = DEFAULT_DEVICE)]
    pub device: String,
    /// Which store to look into as well; none unless one is named.
    #[command(flatten)]
    pub store: StoreOptions,
}

const AFTER_DOCKER_OPTS: &str = "\
Without -i and -c both forms are written. What the variable KEY holds already stays in front of the combined form,
but for the options that are written: an earlier run's own do not pile up.

Examples:
  overlay docker-opts -c -d /run/docker_opts.env      for docker.service: EnvironmentFile=/run/docker_opts.env
                                                      and ExecStart=/usr/bin/dockerd $DOCKER_OPTS
  overlay docker-opts -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker
  overlay docker-opts --json                          the same as lines of /etc/docker/daemon.json

Exit codes: 0 done; 1 no subnet.env yet, or one that does not say enough; 2 wrong usage.";

/// `overlay docker-opts`
#[derive(Debug, Args)]
#[command(after_help = AFTER_DOCKER_OPTS)]
pub struct DockerOpts {
    /// The agent's file to read; flanneld's is the same
    #[arg(short = 'f', long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// Writes the variables to this file too, in one step; readers never see half of it
    #[arg(short, long, value_name = "FILE")]
    pub docker_env: Option<PathBuf>,
    /// Each option in a variable of its own: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
    #[arg(short, long)]
    pub individual: bool,
    /// All options in one variable
    #[arg(short, long)]
    pub combined: bool,
    /// Name of that variable
    #[arg(short, long, default_value = "DOCKER_OPTS", value_parser = variable_name)]
    pub key: String,
    /// Says nothing about masquerading (for a Docker that does not know --ip-masq)
    #[arg(short = 'm', long)]
    pub no_ip_masq: bool,
    /// Prints JSON, with daemon.json's names
    #[arg(long)]
    pub json: bool,
}

/// `overlay down`
#[derive(Debug, Args)]
pub struct Down {
    /// Which network.
    #[command(flatten)]
    pub show: Show,
    /// Name of the kernel's tunnel device, if not the one that the network's agent had
    #[arg(long)]
    pub device: Option<String>,
}

const AFTER_ADOPT_FLANNEL: &str = "\
End flanneld first: it would put back what is removed. Traffic goes on without it. The other options are those that the
agent is to be started with afterwards; without --ip-masq it is taken over from flannel.

Examples:
  overlay adopt-flannel --etcd-endpoints http://10.0.0.5:2379 --iface eth0 --dry-run
  overlay adopt-flannel --etcd-endpoints http://10.0.0.5:2379 --iface eth0
  overlay adopt-flannel --etcd-endpoints http://10.0.0.5:2379 --iface eth0 --back     then start flanneld again

Exit codes: 0 done, or done before; 1 failed, and flannel is as it was; 2 wrong usage.";

/// `overlay adopt-flannel`
#[derive(Debug, Args)]
#[command(
    after_help = AFTER_ADOPT_FLANNEL,
    mut_arg("dry_run", |arg| arg.help("Prints the plan and changes nothing, neither here nor in the store"))
)]
pub struct AdoptFlannel {
    /// What the agent will run with.
    #[command(flatten)]
    pub agent: Agent,
    /// Returns the host to flannel, as it was noted when it was moved; end the agent first
    #[arg(long)]
    pub back: bool,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// A name that shells and systemd accept for a variable.
fn variable_name(text: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.chars().all(fine) && text.starts_with(|c: char| !c.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        bail!("a variable's name has letters, digits and underscores, and begins with no digit")
    }
}

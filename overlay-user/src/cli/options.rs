//! The command line: its commands, and what help says of them. No logic but what decides which values are meant.
mod agent;
mod choices;
mod commands;
mod place;
pub mod store;
mod underlay;

use clap::{Parser, Subcommand};

use self::agent::AFTER_HELP;
pub use self::{
    agent::Agent,
    choices::{AttachBy, FastPathOption, IngressOption, PeerCheck, Switch},
    commands::{AdoptFlannel, Attach, Check, Config, Detach, DockerOpts, Down, Peers},
    place::{DEFAULT_DEVICE, Place, Show},
    underlay::UnderlayOptions,
};

/// One network for the containers of many hosts, carried by the kernel itself.
#[derive(Debug, Parser)]
#[command(name = "overlay", version, propagate_version = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs this host's part: leases a subnet, attaches the programs, keeps the peers up to date. Ending it leaves traffic alone
    Agent(Box<Agent>),
    /// Shows how the agent is: store, lease, peers, tiers in use, counters
    Status(Show),
    /// Shows the other hosts, and which of them are in force
    Peers(Peers),
    /// Shows the container addresses of this host, and where they live
    Endpoints(Show),
    /// Shows or writes the network's config in the store
    #[command(subcommand)]
    Config(Config),
    /// Names a container's address, so that nothing has to be learned (for CNI plugins)
    Attach(Attach),
    /// Takes back what `attach` named
    Detach(Detach),
    /// Looks at kernel, capabilities, MTU, ports, sysctls and firewall; says what holds, what does not, what to do
    Check(Check),
    /// Prints or writes the Docker daemon's options from subnet.env, as flannel's mk-docker-opts.sh does
    DockerOpts(DockerOpts),
    /// Removes every trace of a network from this host, once its agent has ended. Its traffic ends; subnet.env stays,
    /// and on a host that was flannel's the note for the way back
    Down(Down),
    /// Moves this host from flannel to the overlay in place, or back: same subnet, VtepMAC and public IP, under traffic
    AdoptFlannel(Box<AdoptFlannel>),
}

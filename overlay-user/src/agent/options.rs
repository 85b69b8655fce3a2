//! What the agent is asked to do, independently of how a command line says it.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    datapath::{links::AttachMethod, state::Paths},
    host::underlay::Choice,
    model::{fast_path::AskedFastPath, ingress::XdpMode},
};

/// What the agent is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folders of the network that the agent serves.
    pub paths: Paths,
    /// How to find the underlay interface, and the address that the lease tells the other hosts.
    pub underlay: Choice,
    /// File that tells Docker or CNI this host's subnet.
    pub subnet_file: PathBuf,
    /// How long before its end the lease is renewed.
    pub renew_margin: Duration,
    /// Address at which health and status are served by HTTP, if they are.
    pub health: Option<SocketAddr>,
    /// Name of the tunnel device.
    pub device: String,
    /// Which packets the programs carry past the stack.
    pub fast_path: AskedFastPath,
    /// Where packets from other hosts are taken in.
    pub ingress: AskedIngress,
    /// How programs are attached at TC; `None` takes the best that the kernel has.
    pub attach: Option<AttachMethod>,
    /// Whether GRO is switched on inside the containers.
    pub endpoint_gro: bool,
    /// Whether packets that a peer forwards from outside the overlay are dropped, too.
    pub strict_peers: bool,
    /// Capacity of the peer table.
    pub max_peers: u32,
    /// Capacity of the table of stack flows.
    pub max_flows: u32,
    /// How often everything is read back and compared.
    pub audit: Duration,
    /// Whether routers must not fragment what this host sends (DF in the outer header).
    pub outer_df: bool,
    /// Whether what leaves the overlay is masqueraded.
    pub ip_masq: bool,
    /// Whether masquerading draws source ports at random.
    pub random_ports: bool,
    /// The longest pause between two looks at our rules in the packet filter.
    pub rules_period: Duration,
    /// Whether the kernel discards packets to containers of this host that are not there (`--ip-blackhole-route`).
    pub blackhole: bool,
    /// File with the network's config, for a store that has none.
    pub net_config: Option<PathBuf>,
    /// Whether the overlay's packets are accepted where iptables' FORWARD chain drops.
    pub forward_rules: bool,
    /// Names of the containers' bridges. If there is none, every bridge with an address of this host's subnet counts.
    pub bridges: Vec<String>,
}

/// Where packets from other hosts are to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedIngress {
    /// The best that is safe on any interface, which is TC.
    Auto,
    /// TC alone.
    Tc,
    /// XDP in the given mode, where the underlay interface is fit for it.
    Xdp(XdpMode),
}

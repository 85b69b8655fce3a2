//! The options of the agent.
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, builder::BoolishValueParser};

use super::{
    choices::{AttachBy, FastPathOption, IngressOption, PeerCheck, Switch},
    place::{DEFAULT_DEVICE, Place},
    store::StoreOptions,
    underlay::UnderlayOptions,
};
use crate::{
    agent::options::{self as agent, AskedIngress},
    datapath::links::AttachMethod,
    host::firewall,
    model::ingress::XdpMode,
};

pub(super) const AFTER_HELP: &str = "\
Every option can come from a variable too: OVERLAY_ and its name in capitals, such as OVERLAY_ETCD_ENDPOINTS.
FLANNELD_ variables are read as well. The option wins over OVERLAY_, and that over FLANNELD_.

Examples:
  overlay config set '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}' --etcd-endpoints http://10.0.0.5:2379
  overlay agent --etcd-endpoints http://10.0.0.5:2379 --iface eth0
  overlay agent --store-dir /srv/overlay --store-shared
  overlay status
  overlay peers --json

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `overlay check` found problems.";

/// `overlay agent`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Agent {
    /// Which network.
    #[command(flatten)]
    pub place: Place,
    /// Which store.
    #[command(flatten)]
    pub store: StoreOptions,
    /// Which interface.
    #[command(flatten)]
    pub underlay: UnderlayOptions,
    /// File that tells Docker or CNI this host's subnet
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// Renews the lease this many minutes before its end
    #[arg(long, value_name = "MINUTES", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=1439))]
    pub subnet_lease_renew_margin: u64,
    /// Address that /healthz (the agent lives), /readyz (store, lease and data path are well) and /status are served on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub healthz_ip: IpAddr,
    /// Port for them; 0 serves none
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub healthz_port: u16,
    /// Name of the kernel's tunnel device, made and kept by the agent
    #[arg(long, default_value = DEFAULT_DEVICE)]
    pub device: String,
    /// Which packets between containers go past the host's stack, and so past its firewall
    #[arg(long, value_enum, default_value_t = FastPathOption::Auto)]
    pub fast_path: FastPathOption,
    /// Where packets from other hosts are taken in
    #[arg(long, value_enum, default_value_t = IngressOption::Auto)]
    pub ingress: IngressOption,
    /// How programs are attached to interfaces
    #[arg(long, value_enum, default_value_t = AttachBy::Auto)]
    pub attach: AttachBy,
    /// `on` switches GRO on inside the containers, which --ingress xdp needs to reach them
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    pub endpoint_gro: Switch,
    /// `strict` also drops what a known host forwards from outside the overlay
    #[arg(long, value_enum, default_value_t = PeerCheck::On)]
    pub peer_check: PeerCheck,
    /// For how many other hosts there is room; more are reported and left out
    #[arg(long, default_value_t = overlay_common::MAX_PEERS, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_peers: u32,
    /// For how many connections there is room that the stack has seen: by default 262144, or 65536 under --fast-path on and off
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_flows: Option<u32>,
    /// Compares what the kernel has with what the store says this often, and puts it right
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_interval: u64,
    /// Forbids routers to fragment what is sent; on paths that lose ICMP, large packets then vanish
    #[arg(long)]
    pub outer_df: bool,
    /// Masquerades what leaves the overlay, by an nftables table of its own, which it keeps in force; needs `nft`
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub ip_masq: bool,
    /// Masquerades with the source ports that are next, instead of random ones
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub ip_masq_fully_random_disable: bool,
    /// Looks at its rules in the packet filter at least this often, besides when the kernel tells of a change [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub iptables_resync: Option<u64>,
    /// Discards packets to containers of this host that are not there, instead of sending them on by another route
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub ip_blackhole_route: bool,
    /// File with the network's config, for a store that has none; a config in the store goes before it
    #[arg(long, value_name = "FILE")]
    pub net_config_path: Option<PathBuf>,
    /// Where iptables' FORWARD chain drops by default (Docker sets that), accepts the overlay's packets at its end: `on`, `off`
    #[arg(
        long,
        alias = "iptables-forward-rules",
        value_name = "on|off",
        num_args = 0..=1,
        default_value = "on",
        default_missing_value = "on",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub forward_rules: bool,
    /// Prints which peers would change and changes nothing, neither here nor in the store; needs no root
    #[arg(long)]
    pub dry_run: bool,
    /// Bridge of the containers; repeat it for more. Without it, every bridge with an address of this host's subnet
    #[arg(long, value_name = "NAME")]
    pub bridge: Vec<String>,
    /// Not supported yet: leases from Kubernetes nodes
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub kube_subnet_mgr: bool,
}

impl Agent {
    /// The same without the words of the command line.
    pub fn options(&self) -> agent::Options {
        agent::Options {
            paths: self.place.paths(),
            underlay: self.underlay.choice(),
            subnet_file: self.subnet_file.clone(),
            renew_margin: Duration::from_secs(self.subnet_lease_renew_margin * 60),
            health: (self.healthz_port != 0).then(|| SocketAddr::new(self.healthz_ip, self.healthz_port)),
            device: self.device.clone(),
            fast_path: self.fast_path.into(),
            ingress: match self.ingress {
                IngressOption::Auto => AskedIngress::Auto,
                IngressOption::Tc => AskedIngress::Tc,
                IngressOption::Xdp => AskedIngress::Xdp(XdpMode::Redirect),
                IngressOption::XdpStrip => AskedIngress::Xdp(XdpMode::Strip),
            },
            attach: match self.attach {
                AttachBy::Auto => None,
                AttachBy::Tcx => Some(AttachMethod::Tcx),
                AttachBy::Clsact => Some(AttachMethod::Clsact),
            },
            endpoint_gro: self.endpoint_gro == Switch::On,
            strict_peers: self.peer_check == PeerCheck::Strict,
            max_peers: self.max_peers,
            max_flows: self.max_flows.unwrap_or(match self.fast_path {
                FastPathOption::Auto | FastPathOption::Established => MAX_FLOWS_ESTABLISHED,
                FastPathOption::On | FastPathOption::Off => overlay_common::MAX_FLOWS,
            }),
            audit: Duration::from_secs(self.audit_interval),
            outer_df: self.outer_df,
            ip_masq: self.ip_masq,
            random_ports: !self.ip_masq_fully_random_disable,
            rules_period: self.iptables_resync.map_or(firewall::PERIOD, Duration::from_secs),
            blackhole: self.ip_blackhole_route,
            net_config: self.net_config_path.clone(),
            forward_rules: self.forward_rules,
            bridges: self.bridge.clone(),
        }
    }
}

/// Room for connections where every connection takes some: as much as the kernel's connection tracking has on a machine with
/// 4 GiB or more (nf_conntrack_init_start).
const MAX_FLOWS_ESTABLISHED: u32 = 262_144;

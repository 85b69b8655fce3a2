//! The command line: names, defaults, help. No logic but what decides which values are meant.
pub mod store;

use std::{
    net::{AddrParseError, IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::BoolishValueParser};

use self::store::StoreOptions;
use crate::{
    agent::options::{self as agent, AskedIngress},
    datapath::{links::AttachMethod, state::Paths},
    host::underlay::Choice,
    model::{fast_path::AskedFastPath, ingress::XdpMode, mac::Mac},
};

const AFTER_HELP: &str = "\
Every option can come from a variable too: OVERLAY_ and its name in capitals, such as OVERLAY_ETCD_ENDPOINTS.
FLANNELD_ variables are read as well. The option wins over OVERLAY_, and that over FLANNELD_.

Examples:
  overlay config set '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}' --etcd-endpoints http://10.0.0.5:2379
  overlay agent --etcd-endpoints http://10.0.0.5:2379 --iface eth0
  overlay agent --store-dir /srv/overlay --store-shared
  overlay status
  overlay peers --json

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `overlay check` found problems.";

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

/// The tunnel device's name unless the operator says otherwise.
pub const DEFAULT_DEVICE: &str = "overlay0";

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

/// Which interface reaches the other hosts.
#[derive(Clone, Debug, Default, Args)]
pub struct UnderlayOptions {
    /// Name or address of the interface that reaches the other hosts; repeat it for more candidates, in order
    #[arg(long)]
    pub iface: Vec<String>,
    /// The same by regular expression, tried after --iface
    #[arg(long, value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Takes the interface by which this address is reached; without any, the default route's
    #[arg(long, value_name = "ADDRESS", value_parser = ipv4)]
    pub iface_can_reach: Option<IpAddr>,
    /// Address by which the other hosts reach this one, if it is not the interface's
    #[arg(long, value_name = "ADDRESS", value_parser = ipv4)]
    pub public_ip: Option<IpAddr>,
}

impl UnderlayOptions {
    /// As flannel chooses by these.
    pub fn choice(&self) -> Choice {
        Choice {
            names: self.iface.clone(),
            patterns: self.iface_regex.clone(),
            can_reach: self.iface_can_reach,
        }
    }
}

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
            public_ip: self.underlay.public_ip,
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
            forward_rules: self.forward_rules,
            bridges: self.bridge.clone(),
        }
    }
}

/// Room for connections where every connection takes some: as much as the kernel's connection tracking has on a machine with
/// 4 GiB or more (nf_conntrack_init_start).
const MAX_FLOWS_ESTABLISHED: u32 = 262_144;

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

/// An address of the only family that there is yet.
fn ipv4(text: &str) -> Result<IpAddr, AddrParseError> {
    text.parse::<Ipv4Addr>().map(IpAddr::from)
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

/// A name that is safe as a folder's.
fn network_name(text: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=64).contains(&text.len()) && text.chars().all(fine) {
        Ok(text.to_owned())
    } else {
        bail!("a network's name has 1 to 64 letters, digits, dashes or underscores")
    }
}

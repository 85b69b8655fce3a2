//! What the agent knows about itself. Its loop writes this, and the health and control servers read it without stopping the
//! loop.
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    agent::{guard::Guard, peers::Skipped},
    datapath::{links::InFront, losses::Reading},
    host::firewall::RulesStatus,
    learn::view::View,
    model::{backend::Backend, clock::unix_now, fast_path::FastPathStatus, ingress::Ingress},
    store::local_lease::LeaseStatus,
};

/// The agent's state. Times of day are seconds since the Unix epoch; durations are what their names say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This host's address on the underlay.
    pub public_ip: IpAddr,
    /// This host's subnet.
    pub subnet: IpNet,
    /// The whole overlay.
    pub network: IpNet,
    /// What this host has of IPv6, in a network of both families.
    #[serde(default)]
    pub ipv6: Option<Ipv6Status>,
    /// flannel's name of the backend, which says how packets travel between hosts.
    #[serde(default, rename = "mode")]
    pub backend: String,
    /// VXLAN network identifier, or zero for a backend that has none.
    pub vni: u32,
    /// When the agent started.
    pub started: u64,
    /// The store, as last heard.
    pub store: StoreStatus,
    /// The local lease.
    pub lease: LeaseStatus,
    /// The underlay interface. Earlier agents leave it out.
    #[serde(default)]
    pub underlay: UnderlayStatus,
    /// The data path, as last read back.
    pub datapath: DatapathStatus,
    /// The peers.
    pub peers: PeersStatus,
    /// Which packets the fast path carries, and why. Earlier agents leave it out.
    #[serde(default)]
    pub fast_path: FastPathStatus,
    /// This agent's rules in the host's packet filter.
    #[serde(default)]
    pub rules: RulesStatus,
    /// The folder of what outlives the agent.
    #[serde(default)]
    pub state: StateStatus,
    /// Bridges and address conflicts, as the learner sees them. They are filled in when somebody asks for the status.
    #[serde(default)]
    pub learned: View,
    /// Others' programs that see packets before ours.
    #[serde(default)]
    pub in_front: Vec<InFront>,
    /// What devices had lost when the agent started; see [`crate::datapath::losses`].
    #[serde(default)]
    pub lost_before: Vec<Reading>,
    /// Last sign of life of the loop; see [`crate::agent::health`].
    #[serde(skip, default = "Instant::now")]
    pub beat: Instant,
    /// Last answer of the store; see [`crate::agent::health`].
    #[serde(skip)]
    pub answered: Option<Instant>,
}

impl Status {
    /// The status of an agent that has just started, and knows nothing of its store, peers and data path yet.
    pub fn new(public_ip: IpAddr, subnet: IpNet, network: IpNet, backend: Backend) -> Self {
        let now = unix_now();
        Self {
            public_ip,
            subnet,
            network,
            ipv6: None,
            backend: backend.to_string(),
            vni: backend.vni().unwrap_or_default(),
            started: now,
            store: StoreStatus { since: now, ..StoreStatus::default() },
            lease: LeaseStatus::default(),
            underlay: UnderlayStatus::default(),
            datapath: DatapathStatus::default(),
            peers: PeersStatus::default(),
            fast_path: FastPathStatus::default(),
            rules: RulesStatus::default(),
            state: StateStatus::default(),
            learned: View::default(),
            in_front: Vec::new(),
            lost_before: Vec::new(),
            beat: Instant::now(),
            answered: None,
        }
    }
}

/// What a host has of IPv6, in a network of both families.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Status {
    /// The whole overlay's addresses of IPv6.
    pub network: IpNet,
    /// This host's IPv6 subnet; `None` for a host that takes part with IPv4 alone.
    pub subnet: Option<IpNet>,
    /// This host's IPv6 address on the underlay.
    pub public_ip: Option<IpAddr>,
    /// Why the host takes part with IPv4 alone.
    pub why: Option<String>,
}

/// The store, as last heard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The store's name.
    pub name: String,
    /// Whether a stream of changes is open: the agent then knows whatever the store knows.
    pub following: bool,
    /// The time since when `following` is as it is.
    pub since: u64,
    /// Revision of the last snapshot or change taken in.
    pub revision: i64,
    /// Identity of the cluster or folder.
    pub cluster: u64,
    /// Snapshots taken so far.
    pub snapshots: u64,
    /// When the store last answered or sent a change.
    #[serde(default)]
    pub heard: u64,
    /// How the agent last came by what it knows of the store. Earlier agents leave it out.
    #[serde(default)]
    pub resync: Option<Resync>,
    /// What an operator should know of the store although it answers.
    #[serde(default)]
    pub remark: Option<String>,
    /// What the last failed call said. This is cleared when the stream is open again.
    pub error: Option<String>,
}

/// The underlay interface.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct UnderlayStatus {
    /// Its name.
    pub name: String,
    /// The address that packets come from.
    pub address: Option<IpAddr>,
    /// Why the other hosts cannot reach this one, as far as the host's own links and addresses show it.
    pub error: Option<String>,
}

/// How the agent came by what it knows of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// In which way.
    pub kind: ResyncKind,
    /// What made it necessary.
    pub why: String,
    /// When.
    pub at: u64,
}

/// In which way the agent came by what it knows of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResyncKind {
    /// It read all leases.
    Listed,
    /// It knew all leases up to some revision, and follows the changes after that.
    Resumed,
}

/// The data path, as last read back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Whether the data path could be read, and the programs of the underlay device and overlay0 are attached.
    pub attached: bool,
    /// What is wrong with the data path.
    pub error: Option<String>,
    /// Endpoints in force.
    pub endpoints: usize,
    /// Bridges, and host sides of containers' veths, that have programs.
    pub ports: usize,
    /// Endpoint and port changes that failed and wait for the next try, which comes when flows are aged (every 30 s) or with
    /// the audit.
    pub waiting: usize,
    /// Entries that audits have found so far to differ from what the agent had left there.
    pub repaired: u64,
    /// What XDP does before TC, or why it does nothing.
    #[serde(default)]
    pub ingress: Ingress,
    /// Endpoints on XDP targets. To the others TC delivers.
    #[serde(default, rename = "receivers")]
    pub xdp_targets: usize,
    /// Stack flows, as they were counted when they were last aged (every 30 s).
    pub flows: usize,
}

/// The peers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeersStatus {
    /// Peers that leases ask for.
    pub wanted: usize,
    /// Peers in force, including those whose removal is held back.
    pub installed: usize,
    /// Peers that could not be put in force.
    pub failed: Vec<FailedPeer>,
    /// Removals held back by the mass-delete guard.
    pub held: Vec<IpNet>,
    /// What the mass-delete guard must know again after a restart; see [`crate::agent::origin`]. `None` until the
    /// loop has published it.
    #[serde(skip)]
    pub guard: Option<Guard>,
    /// Leases that give no peer.
    pub skipped: Vec<Skipped>,
    /// How many changes the first full application made, and how long it took.
    pub first_apply: Option<FirstApply>,
}

/// What outlives the agent: the folder of its state, its pins, and the files that it keeps for others.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StateStatus {
    /// Why the folder cannot be written. This is cleared when it can be written again.
    pub error: Option<String>,
    /// How many maps, links and marks were pinned again because somebody had removed their pins.
    #[serde(default)]
    pub pins_restored: u64,
    /// Why not everything is pinned. This is cleared when it is.
    #[serde(default)]
    pub pins_error: Option<String>,
    /// The number of the bpf file system that holds the pins.
    #[serde(default)]
    pub bpffs: Option<u64>,
    /// How many times a file was written again because somebody had removed or altered it.
    #[serde(default)]
    pub files_restored: u64,
    /// Which file cannot be written again, and why. This is cleared when all are there.
    #[serde(default)]
    pub files_error: Option<String>,
}

/// A peer that could not be put in force or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedPeer {
    /// The peer's subnet.
    pub subnet: IpNet,
    /// What the data path said.
    pub why: String,
}

/// The first full application after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstApply {
    /// Peers in force afterwards.
    pub peers: usize,
    /// Entries that had to be written or removed. The others were adopted as they were found.
    pub changes: usize,
    /// The time from reading back what was in force to the last write, in microseconds.
    pub micros: u64,
}

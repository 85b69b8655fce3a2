//! The cases: networks between two containers. Each has a lab of its own, and all exist at the same time.
use std::{
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use overlay_common::ABI;
use serde_json::{Value, json};

use super::{
    program::ask,
    results::{BASIS, TWIN},
};
use overlay_lab::{
    self as lab, Backend, Carried, Container, ForeignVxlan, Host, Lab, Member, PingOptions, Relay, Store,
    populate_with,
};

/// What is between the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// One veth, which is the upper limit.
    Direct,
    /// Routes between the hosts without any overlay. Ratios are taken to it.
    Bare,
    /// Another bare route, whose ratio to the first shows the machine's noise.
    BareAgain,
    /// The kernel's VXLAN device, as flannel sets it up.
    Kernel,
    /// A process that relays between a TUN and a UDP socket, as flannel's UDP mode does.
    Relay,
    /// Our overlay with VXLAN, at TC. This case and those below have `--fast-path on` unless they name something else.
    Vxlan,
    /// Our overlay with VXLAN; XDP redirects into the containers.
    VxlanXdp,
    /// Our overlay with VXLAN; XDP strips the outer headers.
    VxlanStrip,
    /// Our overlay with IPv4 directly in UDP, at TC.
    Udp,
    /// Our overlay with IPv4 directly in UDP; XDP strips the outer headers.
    UdpStrip,
    /// Our overlay with host-gw.
    HostGw,
    /// Our overlay with VXLAN and `--fast-path established`.
    Established,
    /// Our overlay with VXLAN and `--fast-path off`.
    Stack,
}

impl Case {
    /// Name of the case in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct veth",
            Self::Bare => BASIS,
            Self::BareAgain => TWIN,
            Self::Kernel => "kernel VXLAN",
            Self::Relay => "userspace relay",
            Self::Vxlan => "vxlan",
            Self::VxlanXdp => "vxlan, xdp",
            Self::VxlanStrip => "vxlan, xdp-strip",
            Self::Udp => "udp",
            Self::UdpStrip => "udp, xdp-strip",
            Self::HostGw => "host-gw",
            Self::Established => "vxlan, established",
            Self::Stack => "vxlan, fast path off",
        }
    }

    /// Whether our programs run in this case.
    pub const fn has_programs(self) -> bool {
        self.ours().is_some()
    }

    /// The backend and the agent's options, if our agent runs in this case.
    const fn ours(self) -> Option<(Backend, &'static [&'static str])> {
        Some(match self {
            Self::Vxlan => (Backend::Vxlan, &ON),
            Self::VxlanXdp => {
                (Backend::Vxlan, &["--fast-path", "on", "--ingress", "xdp", "--endpoint-gro", "on"])
            }
            Self::VxlanStrip => (Backend::Vxlan, &STRIP),
            Self::Udp => (Backend::Udp, &ON),
            Self::UdpStrip => (Backend::Udp, &STRIP),
            Self::HostGw => (Backend::HostGw, &ON),
            Self::Established => (Backend::Vxlan, &["--fast-path", "established"]),
            Self::Stack => (Backend::Vxlan, &["--fast-path", "off"]),
            Self::Direct | Self::Bare | Self::BareAgain | Self::Kernel | Self::Relay => return None,
        })
    }
}

/// The fast path carries everything, although the hosts have a packet filter, for which `auto` would be `established`.
const ON: [&str; 2] = ["--fast-path", "on"];
const STRIP: [&str; 4] = ["--fast-path", "on", "--ingress", "xdp-strip"];

/// A case whose network has been built.
pub struct Network {
    /// The case.
    pub case: Case,
    /// The container that sends requests.
    pub from: Container,
    /// The container that answers them.
    pub to: Container,
    /// Whether each frame on the underlay is one segment.
    pub wire_like: bool,
    members: Vec<Member>,
    newcomers: AtomicU8,
    _relays: Vec<Relay>,
    lab: Lab,
}

/// VXLAN's parameters and the UDP backend's port, with flannel's defaults.
const VNI: u32 = 1;
const PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;
const NETWORK: &str = "10.244.0.0/16";
const SUBNETS: [&str; 2] = ["10.244.1.0/24", "10.244.2.0/24"];

/// Last byte of the first newcomer's address, behind those of the containers that are always there.
const FIRST_NEWCOMER: u8 = 10;
/// How many addresses newcomers have.
const NEWCOMERS: u8 = 240;

/// The packet filter that a host with containers has, whoever sets it up: connection tracking, a rule that looks at the
/// state, and masquerading of what leaves the overlay.
const FILTER: &str = "table ip bench {
    chain forward {
        type filter hook forward priority 0;
        ct state invalid drop
        ct state established,related accept
    }
    chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 10.128.0.0/9 ip daddr != 10.128.0.0/9 masquerade
    }
}";

impl Network {
    /// Builds our overlay by VXLAN with this config, and with these options of the agents besides the case's.
    pub(super) fn with_config(
        overlay: &Path,
        program: &Path,
        wire_like: bool,
        config: &str,
        options: &[&str],
    ) -> Result<Self> {
        let lab = Lab::new(lab::Options { wire_like, ..lab::Options::default() })?;
        lay_wire(&lab, program)?;
        let members = populate_with(&lab, overlay, &Store::folder(&lab), config, options)?;
        let (from, to) = (members[0].containers[0].clone(), members[1].containers[0].clone());
        let (newcomers, _relays) = (AtomicU8::new(0), Vec::new());
        let network = Self { case: Case::Vxlan, from, to, wire_like, members, newcomers, _relays, lab };
        network.prove()?;
        Ok(network)
    }

    /// Kills the agents. Programs and maps stay as they are.
    pub(super) fn kill_agents(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::kill_agent)
    }

    /// Builds the network, and checks that the containers' packets take the path that the case names.
    pub fn build(case: Case, overlay: &Path, program: &Path, wire_like: bool) -> Result<Self> {
        let hosts = if case == Case::Direct { 0 } else { 2 };
        let lab = Lab::new(lab::Options { hosts, wire_like, ..lab::Options::default() })?;
        if hosts > 0 {
            lay_wire(&lab, program)?;
        }
        let mut relays = Vec::new();
        let mut members = Vec::new();
        let (from, to) = match (case, case.ours()) {
            (_, Some((backend, options))) => {
                let store = Store::folder(&lab);
                members = populate_with(&lab, overlay, &store, backend.config(), options)?;
                (members[0].containers[0].clone(), members[1].containers[0].clone())
            }
            (Case::Direct, None) => lab.connect_directly()?.into(),
            (Case::Kernel, None) => kernel(&lab)?,
            (Case::Relay, None) => relayed(&lab, &mut relays)?,
            (_, None) => bare(&lab)?,
        };
        for host in lab.hosts() {
            host.namespace()
                .command(&["nft", FILTER])
                .and_then(|mut nft| overlay_lab::command::output(&mut nft))
                .context("load the hosts' packet filter")?;
        }
        let newcomers = AtomicU8::new(0);
        let network = Self { case, from, to, wire_like, members, newcomers, _relays: relays, lab };
        network.prove().with_context(|| network.case.name())?;
        Ok(network)
    }

    /// The host of the sending container, if the case has hosts.
    pub fn sender(&self) -> Option<&Host> {
        self.lab.hosts().first()
    }

    /// The host of the receiving container, if the case has hosts.
    pub fn receiver(&self) -> Option<&Host> {
        self.lab.hosts().get(1)
    }

    /// The lab that the network is in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The hosts that our agents run on; none if the case has no agents.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Makes a container on one of our hosts, which the caller removes. Its address is one that none had lately, since the agent may
    /// still know who had it.
    pub(super) fn newcomer(&self, host: usize) -> Result<Container> {
        let Member { host, subnet, mtu, .. } = self.members.get(host).context("a host with an agent")?;
        let number = self.newcomers.fetch_add(1, Ordering::Relaxed);
        host.add_container("new", subnet, FIRST_NEWCOMER + number % NEWCOMERS, *mtu)
    }

    /// Where our network's maps and links are pinned on both hosts.
    pub fn pins(&self) -> Vec<std::path::PathBuf> {
        self.members.iter().map(|member| pins(&member.host)).collect()
    }

    /// Resolves neighbours and lets agents learn the containers. Then it checks that packets take the tier which the
    /// case is named after, because figures of another tier would be worse than none.
    fn prove(&self) -> Result<()> {
        let ping = |count| {
            let ping = self
                .from
                .ping(self.to.address(), PingOptions { count, interval: 0.02, ..PingOptions::default() })?;
            ensure!(ping.complete(), "pings are lost: {}", ping.output);
            Ok(())
        };
        ping(5)?;
        let before = self.carried()?;
        ping(10)?;
        for (index, (before, after)) in before.iter().zip(self.carried()?).enumerate() {
            let fast = (after.fast_out - before.fast_out, after.fast_in - before.fast_in);
            let stack = (after.stack_out - before.stack_out, after.stack_in - before.stack_in);
            let right = match self.case {
                Case::Stack => fast == (0, 0) && stack >= (10, 10),
                // The first ping asks the firewall, or two do while the packet filter above is news to the agent.
                Case::Established => fast >= (8, 8) && stack <= (2, 2),
                _ => fast >= (10, 10) && stack == (0, 0),
            };
            ensure!(
                right,
                "host {}: of 10 pings the fast path took {fast:?}, the stack {stack:?}",
                index + 1
            );
        }
        Ok(())
    }

    /// What each of our hosts has carried so far.
    fn carried(&self) -> Result<Vec<Carried>> {
        self.members.iter().map(|member| Ok(member.counters()?.carried())).collect()
    }
}

/// Has frames pass the lab's switch without its bridge. For a TCP stream in single frames, the bridge's functions took
/// a quarter of a CPU's time, and a wire takes none.
fn lay_wire(lab: &Lab, program: &Path) -> Result<()> {
    let pins = lab.folder().join("bpf");
    let specification = json!({ "wire": { "interfaces": ["h1", "h2"], "pins": pins } });
    let answer: Value =
        ask(program, lab.switch(), &specification).context("lay the wire between the hosts")?;
    ensure!(answer["ends"] == 2, "the wire has not two ends: {answer}");
    Ok(())
}

/// Where a host's network `default` is pinned.
pub(super) fn pins(host: &Host) -> std::path::PathBuf {
    host.bpf_root().join("overlay").join(format!("v{ABI}")).join("default")
}

/// Adds routes between the hosts, without any overlay.
fn bare(lab: &Lab) -> Result<(Container, Container)> {
    let mut containers = Vec::new();
    for (host, (own, other)) in lab.hosts().iter().zip([(0, 1), (1, 0)]) {
        host.add_bridge(SUBNETS[own], 1500)?;
        containers.push(host.add_container("a", SUBNETS[own], 2, 1500)?);
        let peer = lab.host(other).address();
        host.namespace().ip(&format!("route add {} via {peer} dev eth0", SUBNETS[other]))?;
    }
    both(containers)
}

/// The kernel's VXLAN device on both hosts, as flannel sets it up.
fn kernel(lab: &Lab) -> Result<(Container, Container)> {
    let mut containers = Vec::new();
    let mut devices = Vec::new();
    for (host, subnet) in lab.hosts().iter().zip(SUBNETS) {
        devices.push(ForeignVxlan::new(host, subnet, VNI, PORT)?);
        host.add_bridge(subnet, 1450)?;
        containers.push(host.add_container("a", subnet, 2, 1450)?);
    }
    for (here, there) in [(0, 1), (1, 0)] {
        devices[here].put_peer(SUBNETS[there], devices[there].mac(), lab.host(there).address())?;
    }
    both(containers)
}

/// Starts a userspace relay on both hosts, as flannel's UDP mode does.
fn relayed(lab: &Lab, relays: &mut Vec<Relay>) -> Result<(Container, Container)> {
    let mut containers = Vec::new();
    for (host, subnet) in lab.hosts().iter().zip(SUBNETS) {
        let mtu = host.mtu()? - Relay::OVERHEAD;
        relays.push(host.start_relay(subnet, NETWORK, UDP_PORT)?);
        host.add_bridge(subnet, mtu)?;
        containers.push(host.add_container("a", subnet, 2, mtu)?);
    }
    for (here, there) in [(0, 1), (1, 0)] {
        relays[here].put_route(SUBNETS[there], lab.host(there).address())?;
    }
    both(containers)
}

fn both(containers: Vec<Container>) -> Result<(Container, Container)> {
    let [from, to] = containers.try_into().ok().context("two containers")?;
    Ok((from, to))
}

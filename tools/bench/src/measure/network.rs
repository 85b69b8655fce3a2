//! The cases: networks between two containers, each with a lab of its own, all there at the same time.
use std::path::Path;

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
    /// One veth: the limit.
    Direct,
    /// Plain routes between the hosts, no overlay: what ratios are taken to.
    Bare,
    /// The same once more: the machine's noise.
    BareAgain,
    /// The kernel's VXLAN device, as flannel sets it up.
    Kernel,
    /// A process that relays between a TUN and a UDP socket, as flannel's UDP mode.
    Relay,
    /// Ours, VXLAN, at TC.
    Vxlan,
    /// Ours, VXLAN, by XDP into the containers.
    VxlanXdp,
    /// Ours, VXLAN, unwrapped by XDP.
    VxlanStrip,
    /// Ours, bare IPv4 in UDP, at TC.
    Udp,
    /// Ours, bare IPv4 in UDP, unwrapped by XDP.
    UdpStrip,
    /// Ours, plain routing.
    HostGw,
    /// Ours, VXLAN, `--fast-path off`.
    Stack,
}

impl Case {
    /// Its name in tables and files.
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
            Self::Stack => "vxlan, fast path off",
        }
    }

    /// Whether it is one of ours.
    pub const fn has_programs(self) -> bool {
        self.ours().is_some()
    }

    /// Backend and the agent's options, if it is one of ours.
    const fn ours(self) -> Option<(Backend, &'static [&'static str])> {
        Some(match self {
            Self::Vxlan => (Backend::Vxlan, &[]),
            Self::VxlanXdp => (Backend::Vxlan, &["--ingress", "xdp", "--endpoint-gro", "on"]),
            Self::VxlanStrip => (Backend::Vxlan, &["--ingress", "xdp-strip"]),
            Self::Udp => (Backend::Udp, &[]),
            Self::UdpStrip => (Backend::Udp, &["--ingress", "xdp-strip"]),
            Self::HostGw => (Backend::HostGw, &[]),
            Self::Stack => (Backend::Vxlan, &["--fast-path", "off"]),
            Self::Direct | Self::Bare | Self::BareAgain | Self::Kernel | Self::Relay => return None,
        })
    }
}

/// A case that stands.
pub struct Network {
    /// Which.
    pub case: Case,
    /// The container that sends, or asks.
    pub from: Container,
    /// The one that receives, or answers.
    pub to: Container,
    /// Whether one frame stands for one segment on its underlay.
    pub wire_like: bool,
    members: Vec<Member>,
    _relays: Vec<Relay>,
    lab: Lab,
}

/// VXLAN's parameters, and UDP mode's port, as flannel has them by default.
const VNI: u32 = 1;
const PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;
const NETWORK: &str = "10.244.0.0/16";
const SUBNETS: [&str; 2] = ["10.244.1.0/24", "10.244.2.0/24"];

/// What a host with containers has in its packet filter, whoever makes it: connection tracking, a rule that wants to know
/// the state, masquerading of what leaves the overlay.
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
    /// Ours by VXLAN with this config and, beside the case's, these options of the agents.
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
        let network = Self { case: Case::Vxlan, from, to, wire_like, members, _relays: Vec::new(), lab };
        network.prove()?;
        Ok(network)
    }

    /// Ends the agents; programs and maps stay as they are.
    pub(super) fn kill_agents(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::kill_agent)
    }

    /// Builds it, and has seen the containers talk over what it is said to be.
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
        let network = Self { case, from, to, wire_like, members, _relays: relays, lab };
        network.prove().with_context(|| network.case.name())?;
        Ok(network)
    }

    /// The sending host, if there are hosts.
    pub fn sender(&self) -> Option<&Host> {
        self.lab.hosts().first()
    }

    /// The receiving host.
    pub fn receiver(&self) -> Option<&Host> {
        self.lab.hosts().get(1)
    }

    /// What is between the hosts.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where our network's maps and links are pinned, on both hosts.
    pub fn pins(&self) -> Vec<std::path::PathBuf> {
        self.members.iter().map(|member| pins(&member.host)).collect()
    }

    /// Resolves neighbours, lets agents learn the containers; then sees whether packets take the tier that the case is
    /// named after: a figure of another one would be worse than none.
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

/// Has frames pass the lab's switch without its bridge: five functions of it for each frame were a quarter of what a TCP stream
/// in single frames took of a CPU, and no wire takes any.
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

/// Plain routes between the hosts: no overlay at all.
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

/// A plain relay in user space on both hosts, as flannel's UDP mode is.
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

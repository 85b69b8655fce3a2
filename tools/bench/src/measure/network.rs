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
    others::{Containers, Home, bare, floor, kernel, relayed},
    program::ask,
    results::{BASIS, FLOOR, TWIN},
};
use overlay_lab::{
    self as lab, Backend, Carried, Container, Host, Lab, Member, PingOptions, Relay, Store, populate_with,
};

/// What is between the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// One veth, which is the upper limit.
    Direct,
    /// Another veth, whose ratio to the first shows the noise of what is measured between containers of one host.
    #[value(skip)]
    DirectAgain,
    /// Routes between the hosts without any overlay. Ratios are taken to it.
    Bare,
    /// Another bare route, whose ratio to the first shows the machine's noise.
    BareAgain,
    /// The kernel's VXLAN device, as flannel sets it up.
    Kernel,
    /// A process that relays between a TUN and a UDP socket, as flannel's UDP mode does.
    Relay,
    /// The least that programs at TC can do for VXLAN on this kernel: headers that are ready for each peer, and no checks.
    /// Nobody could use such a network; it shows how far ours is from what is possible.
    Floor,
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
    /// [`Self::Vxlan`] by another build of our overlay, if one was named (`--beside`).
    #[value(skip)]
    Beside,
    /// [`Self::Vxlan`] after a command that alters its hosts and containers, if one was given (`--altered`).
    #[value(skip)]
    Altered,
}

impl Case {
    /// Name of the case in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct veth",
            Self::DirectAgain => "direct veth again",
            Self::Bare => BASIS,
            Self::BareAgain => TWIN,
            Self::Kernel => "kernel VXLAN",
            Self::Relay => "userspace relay",
            Self::Floor => FLOOR,
            Self::Vxlan => "vxlan",
            Self::VxlanXdp => "vxlan, xdp",
            Self::VxlanStrip => "vxlan, xdp-strip",
            Self::Udp => "udp",
            Self::UdpStrip => "udp, xdp-strip",
            Self::HostGw => "host-gw",
            Self::Established => "vxlan, established",
            Self::Stack => "vxlan, fast path off",
            Self::Beside => "vxlan, other build",
            Self::Altered => "vxlan, altered",
        }
    }

    /// Whether one veth connects the containers, without hosts.
    const fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::DirectAgain)
    }

    /// Whether our overlay runs in this case.
    pub const fn is_ours(self) -> bool {
        self.ours().is_some()
    }

    /// Whether our overlay runs in the case of this name.
    pub(super) fn is_called_ours(name: &str) -> bool {
        let all = Self::value_variants().iter().chain([&Self::Beside, &Self::Altered]);
        all.into_iter().any(|case| case.name() == name && case.is_ours())
    }

    /// The backend and the agent's options, if our agent runs in this case.
    const fn ours(self) -> Option<(Backend, &'static [&'static str])> {
        Some(match self {
            Self::Vxlan | Self::Beside | Self::Altered => (Backend::Vxlan, &ON),
            Self::VxlanXdp => {
                (Backend::Vxlan, &["--fast-path", "on", "--ingress", "xdp", "--endpoint-gro", "on"])
            }
            Self::VxlanStrip => (Backend::Vxlan, &STRIP),
            Self::Udp => (Backend::Udp, &ON),
            Self::UdpStrip => (Backend::Udp, &STRIP),
            Self::HostGw => (Backend::HostGw, &ON),
            Self::Established => (Backend::Vxlan, &["--fast-path", "established"]),
            Self::Stack => (Backend::Vxlan, &["--fast-path", "off"]),
            Self::Direct
            | Self::DirectAgain
            | Self::Bare
            | Self::BareAgain
            | Self::Kernel
            | Self::Relay
            | Self::Floor => return None,
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
    /// Another container beside the one that sends requests, if there is one.
    near: Option<Container>,
    /// Whether each frame on the underlay is one segment.
    pub wire_like: bool,
    members: Vec<Member>,
    homes: Vec<Home>,
    newcomers: AtomicU8,
    _relays: Vec<Relay>,
    lab: Lab,
}

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
        let Containers { from, to, near, homes } = of_members(&members);
        let (newcomers, _relays) = (AtomicU8::new(0), Vec::new());
        let network =
            Self { case: Case::Vxlan, from, to, near, wire_like, members, homes, newcomers, _relays, lab };
        network.prove()?;
        Ok(network)
    }

    /// Kills the agents. Programs and maps stay as they are.
    pub(super) fn kill_agents(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::kill_agent)
    }

    /// Builds the network, and checks that the containers' packets take the path that the case names.
    pub fn build(case: Case, overlay: &Path, program: &Path, wire_like: bool) -> Result<Self> {
        let hosts = if case.is_direct() { 0 } else { 2 };
        let lab = Lab::new(lab::Options { hosts, wire_like, ..lab::Options::default() })?;
        if hosts > 0 {
            lay_wire(&lab, program)?;
        }
        let mut relays = Vec::new();
        let mut members = Vec::new();
        let Containers { from, to, near, homes } = match (case, case.ours()) {
            (_, Some((backend, options))) => {
                let store = Store::folder(&lab);
                members = populate_with(&lab, overlay, &store, backend.config(), options)?;
                of_members(&members)
            }
            (Case::Direct | Case::DirectAgain, None) => {
                let [from, to] = lab.connect_directly()?;
                Containers { from, near: Some(to.clone()), to, homes: Vec::new() }
            }
            (Case::Kernel, None) => kernel(&lab)?,
            (Case::Relay, None) => relayed(&lab, &mut relays)?,
            (Case::Floor, None) => floor(&lab, program)?,
            (_, None) => bare(&lab)?,
        };
        for host in lab.hosts() {
            host.namespace()
                .command(&["nft", FILTER])
                .and_then(|mut nft| overlay_lab::command::output(&mut nft))
                .context("load the hosts' packet filter")?;
        }
        let newcomers = AtomicU8::new(0);
        let network =
            Self { case, from, to, near, wire_like, members, homes, newcomers, _relays: relays, lab };
        network.prove().with_context(|| network.case.name())?;
        Ok(network)
    }

    /// Runs a command of the shell in every host and container. The variable `PLACE` says which of the two it is.
    pub(super) fn alter(&self, command: &str) -> Result<()> {
        let hosts = self.lab.hosts().iter().map(|host| ("host", host.namespace()));
        let containers = [&self.from, &self.to].into_iter().chain(&self.near);
        for (place, namespace) in hosts.chain(containers.map(|end| ("container", end.namespace()))) {
            let mut shell = namespace.command(&["sh", "-e", "-c", command])?;
            overlay_lab::command::output(shell.env("PLACE", place))
                .with_context(|| format!("--altered in a {place}"))?;
        }
        self.prove()
    }

    /// The host of the sending container, if the case has hosts.
    pub fn sender(&self) -> Option<&Host> {
        self.lab.hosts().first()
    }

    /// The host of the receiving container, if the case has hosts.
    pub fn receiver(&self) -> Option<&Host> {
        self.lab.hosts().get(1)
    }

    /// The container that sends requests, and the one that answers them.
    pub(super) fn ends(&self) -> [&Container; 2] {
        [&self.from, &self.to]
    }

    /// The same with the container that is beside the first one, on the same bridge.
    pub(super) fn near_ends(&self) -> Result<[&Container; 2]> {
        let near = self.near.as_ref();
        Ok([&self.from, near.with_context(|| format!("{}: no other container there", self.case.name()))?])
    }

    /// The lab that the network is in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The hosts that our agents run on; none if the case has no agents.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Makes a container on one of the hosts, which the caller removes. Its address is one that none had lately, since the agent may
    /// still know who had it.
    pub(super) fn newcomer(&self, host: usize) -> Result<Container> {
        let (host, home) = (self.lab.hosts().get(host), self.homes.get(host));
        let (host, Home { subnet, mtu }) = host.zip(home).context("a host with a bridge")?;
        let number = self.newcomers.fetch_add(1, Ordering::Relaxed);
        host.add_container("new", subnet, FIRST_NEWCOMER + number % NEWCOMERS, *mtu)
    }

    /// The folders below which the network's maps and links are pinned on both hosts, by whichever build: another one may have
    /// another layout of the maps, and so another folder.
    pub(super) fn pinned(&self) -> Vec<std::path::PathBuf> {
        self.lab.hosts().iter().map(Host::bpf_root).collect()
    }

    /// Where our network's maps and links are pinned on both hosts.
    pub fn pins(&self) -> Vec<std::path::PathBuf> {
        self.members.iter().map(|member| pins(&member.host)).collect()
    }

    /// Resolves neighbours and lets agents learn the containers. Then it checks that packets take the tier which the
    /// case is named after, because figures of another tier would be worse than none.
    fn prove(&self) -> Result<()> {
        let ping = |to: &Container, count| {
            let options = PingOptions { count, interval: 0.02, ..PingOptions::default() };
            let ping = self.from.ping(to.address(), options)?;
            ensure!(ping.complete(), "pings are lost: {}", ping.output);
            Ok(())
        };
        self.near.as_ref().map_or(Ok(()), |near| ping(near, 5))?;
        ping(&self.to, 5)?;
        let before = self.carried()?;
        ping(&self.to, 10)?;
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

fn of_members(members: &[Member]) -> Containers {
    let [from, near] = [0, 1].map(|index| members[0].containers[index].clone());
    let home = |member: &Member| Home { subnet: member.subnet.clone(), mtu: member.mtu };
    let homes = members.iter().map(home).collect();
    Containers { from, to: members[1].containers[0].clone(), near: Some(near), homes }
}

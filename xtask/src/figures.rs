//! `cargo xtask figures`: first, rough figures. Networks of two hosts side by side, each measure taken from one after the
//! other, round by round, so that what else the machine does hits all of them alike.
use std::{
    net::UdpSocket,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use xtask::{
    lab::{self, Agent, Container, ForeignVxlan, Lab, Relay, iperf3, latency},
    project, setup,
};

#[derive(Args)]
pub(crate) struct Options {
    /// How many rounds; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of each stream and each flood.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// One frame per segment on the underlay, as behind a real NIC.
    #[arg(long)]
    wire_like: bool,
}

/// A network of two hosts, and a container on each.
struct Network {
    name: &'static str,
    from: Container,
    to: Container,
    _carriers: Carriers,
    _lab: Lab,
}

/// What must run meanwhile.
#[derive(Default)]
struct Carriers {
    _agents: Vec<Agent>,
    _relays: Vec<Relay>,
}

/// Kernel VXLAN's parameters, and UDP mode's port, as flannel has them by default.
const VNI: u32 = 1;
const PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;
const NETWORK: &str = "10.244.0.0/16";
const SUBNETS: [&str; 2] = ["10.244.1.0/24", "10.244.2.0/24"];

pub(crate) fn figures(options: &Options) -> Result<()> {
    setup::setup()?;
    let overlay = project::build_overlay()?;
    let lab = || Lab::new(lab::Options { wire_like: options.wire_like, ..lab::Options::default() });
    let ours = |name, backend, options| ours(name, lab()?, &overlay, backend, options);
    let networks = [
        bare(lab()?)?,
        kernel(lab()?)?,
        ours("overlay", "vxlan", &[])?,
        relayed(lab()?)?,
        ours("overlay, UDP mode", "udp", &[])?,
        ours("overlay, UDP mode, xdp-strip", "udp", &["--ingress", "xdp-strip"])?,
    ];
    // Resolves neighbours, and lets the agents learn the containers.
    for network in &networks {
        for _ in 0..3 {
            let ping = network.from.ping(network.to.address(), lab::PingOptions::default())?;
            ensure!(ping.complete(), "{}: pings are lost", network.name);
        }
    }
    let measures: [(&str, Measure); 3] = [
        ("small packets, thousands per second", flood),
        ("request/response, median us", |network, _| Ok(latency(&network.from, &network.to, 5000)?.p50_us)),
        ("one TCP stream, Mbit/s", |network, seconds| iperf3(&network.from, &network.to, seconds)),
    ];
    println!("underlay: {}", if options.wire_like { "wire-like" } else { "veth default" });
    println!("| measure | {} |", networks.each_ref().map(|network| network.name).join(" | "));
    println!("|---|{}", "---|".repeat(networks.len()));
    for (name, measure) in measures {
        let mut taken = networks.each_ref().map(|_| Vec::new());
        for _ in 0..options.rounds {
            for (network, taken) in networks.iter().zip(&mut taken) {
                taken.push(
                    measure(network, options.seconds).with_context(|| format!("{name}: {}", network.name))?,
                );
            }
        }
        let medians = taken.map(median);
        let cells = medians.map(|value| format!("{value:.1} ({:.2})", value / medians[0]));
        println!("| {name} | {} |", cells.join(" | "));
    }
    println!("medians of {} rounds; in brackets the ratio to the bare route", options.rounds);
    Ok(())
}

type Measure = fn(&Network, u32) -> Result<f64>;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Plain routes between the hosts: no overlay at all.
fn bare(lab: Lab) -> Result<Network> {
    let mut containers = Vec::new();
    for (host, (own, other)) in lab.hosts().iter().zip([(0, 1), (1, 0)]) {
        host.add_bridge(SUBNETS[own], 1500)?;
        containers.push(host.add_container("a", SUBNETS[own], 2, 1500)?);
        let peer = lab.host(other).address();
        host.namespace().ip(&format!("route add {} via {peer} dev eth0", SUBNETS[other]))?;
    }
    network("bare route", lab, containers, Carriers::default())
}

/// The kernel's VXLAN device on both hosts, as flannel sets it up.
fn kernel(lab: Lab) -> Result<Network> {
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
    network("kernel VXLAN", lab, containers, Carriers::default())
}

/// A plain relay in user space on both hosts, as flannel's UDP mode is.
fn relayed(lab: Lab) -> Result<Network> {
    let mut containers = Vec::new();
    let mut relays = Vec::new();
    for (host, subnet) in lab.hosts().iter().zip(SUBNETS) {
        let mtu = host.mtu()? - Relay::OVERHEAD;
        relays.push(host.start_relay(subnet, NETWORK, UDP_PORT)?);
        host.add_bridge(subnet, mtu)?;
        containers.push(host.add_container("a", subnet, 2, mtu)?);
    }
    for (here, there) in [(0, 1), (1, 0)] {
        relays[here].put_route(SUBNETS[there], lab.host(there).address())?;
    }
    let carriers = Carriers { _relays: relays, ..Carriers::default() };
    network("userspace relay", lab, containers, carriers)
}

/// Our agents on both hosts.
fn ours(name: &'static str, lab: Lab, overlay: &Path, backend: &str, options: &[&str]) -> Result<Network> {
    let config = format!(r#"{{"Network":"{NETWORK}","Backend":{{"Type":"{backend}"}}}}"#);
    let folder = lab.folder().join("store").display().to_string();
    let store = ["--store-dir", &folder, "--store-shared"];
    lab.host(0).overlay(overlay, &[&["config", "set", &config], store.as_slice()].concat())?;
    let mut agents = Vec::new();
    let mut containers = Vec::new();
    for host in lab.hosts() {
        let mut agent = host.start_agent(overlay, &[&store, options].concat())?;
        agent.wait_ready(Duration::from_secs(20))?;
        let (subnet, mtu) = agent.subnet()?;
        host.add_bridge(&subnet, mtu)?;
        containers.push(host.add_container("a", &subnet, 2, mtu)?);
        agents.push(agent);
    }
    network(name, lab, containers, Carriers { _agents: agents, ..Carriers::default() })
}

fn network(name: &'static str, lab: Lab, containers: Vec<Container>, carriers: Carriers) -> Result<Network> {
    let [from, to] = containers.try_into().ok().context("two containers")?;
    Ok(Network { name, from, to, _carriers: carriers, _lab: lab })
}

/// Thousands of 60-byte frames a second that arrive in the receiving container, sent by one socket on one CPU as fast as
/// it goes: the sender's share of that CPU is the same in all networks, which flatters the slower ones.
fn flood(network: &Network, seconds: u32) -> Result<f64> {
    // Never read: what does not fit is dropped behind the counter, at no cost.
    let inbox = network.to.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let target = (network.to.address(), inbox.local_addr()?.port());
    let before = received(&network.to)?;
    let started = Instant::now();
    let limit = Duration::from_secs(u64::from(seconds));
    network.from.namespace().enter(move || {
        let mut cpus = CpuSet::new();
        cpus.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(target)?;
        while started.elapsed() < limit {
            for _ in 0..256 {
                socket.send(&[0; 18])?;
            }
        }
        Ok(())
    })?;
    let rate = (received(&network.to)? - before) as f64 / started.elapsed().as_secs_f64();
    Ok(rate / 1000.0)
}

/// Packets that the container's interface has received.
fn received(container: &Container) -> Result<u64> {
    let links: serde_json::Value =
        serde_json::from_str(&container.exec("ip -json -stats link show dev eth0")?)?;
    links[0]["stats64"]["rx"]["packets"].as_u64().context("the interface's counters")
}

//! Packets per second by live XDP frames, one CPU: from container to container, and either half of the way alone.
use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    frame::Head,
    network::{Case, Network},
    program::ask,
};
use overlay_lab::{Container, Namespace};

/// Which part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From the sending container's veth, as its host has received the frame, into the receiving container.
    Whole,
    /// The same, up to where the frame has left the sending host.
    Out,
    /// From the wire: the receiving host's driver gets frames as they were seen on it, up to the container.
    In,
}

impl Part {
    /// As tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "container to container",
            Self::Out => "encapsulation alone",
            Self::In => "decapsulation alone",
        }
    }

    /// Whether there is such a part.
    pub fn is_of(self, case: Case) -> bool {
        self == Self::Whole || case != Case::Direct
    }
}

/// How the frames are.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Bytes of the container's frame, its checksum included: 64 is Ethernet's least.
    pub size: usize,
    /// Connections that take turns.
    pub flows: u32,
    /// Peers that take turns, and addresses that differ between them.
    pub peers: Option<(u32, &'a [Varied])>,
    /// When to end.
    pub until: Until,
    /// Whether the kernel counts every program's time meanwhile, which takes some of it.
    pub statistics: bool,
}

/// An address that differs from peer to peer, in a template.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Varied {
    /// Where the IPv4 header stands.
    pub header: u32,
    /// Where in it the address stands.
    pub field: u32,
    /// The first peer's.
    pub base: u32,
    /// From one to the next.
    pub step: u32,
}

/// When to end.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After one.
    OneFrame,
    /// After so long, in whole goes.
    Time(Duration),
}

/// What became of them.
#[derive(Debug, Deserialize)]
pub struct Sent {
    sent: u64,
    arrived: u64,
    each_once: bool,
    nanoseconds: u64,
    first_length: usize,
    first: Vec<u8>,
}

impl Sent {
    /// Frames per second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / (self.nanoseconds as f64 / 1e9)
    }
}

/// First source port: below the ephemeral ones, so that 4096 connections have one each and meet no socket's.
const FIRST_PORT: u16 = 20_000;

/// Sends, and has counted that each frame arrived once.
pub fn send(network: &Network, program: &Path, part: Part, load: Load<'_>) -> Result<Sent> {
    let plain = plain(network, load.size - 4)?;
    match part {
        Part::Whole | Part::Out => out(network, program, part, &plain, load),
        Part::In => {
            let one = Load { flows: 1, peers: None, until: Until::OneFrame, ..load };
            let seen = out(network, program, Part::Out, &plain, one).context("see a frame on the wire")?;
            let head = Head::seen(&seen.first, seen.first_length, plain.length)?;
            let interface = "h2";
            run(
                program,
                network.lab().switch(),
                json!({ "from": interface, "way": "send" }),
                &head,
                (network.to.namespace(), "eth0"),
                window(network.case),
                load,
            )
        }
    }
}

fn out(network: &Network, program: &Path, part: Part, head: &Head, load: Load<'_>) -> Result<Sent> {
    let (at, from) = match network.sender() {
        Some(host) => (host.namespace(), network.from.port()),
        // The limit: as if received where it has to go.
        None => (network.to.namespace(), "eth0"),
    };
    let to = match part {
        Part::Out => (network.lab().switch(), "h1"),
        Part::Whole | Part::In => (network.to.namespace(), "eth0"),
    };
    let from = json!({ "from": from, "way": "receive" });
    run(program, at, from, head, to, window(network.case), load)
}

/// Frames in one go: of a relay as many as its socket takes (frames of a page each, in 208 KiB). In the kernel each batch of 64 runs
/// to its end before the next.
fn window(case: Case) -> u32 {
    if case == Case::Relay { 32 } else { 1 << 15 }
}

fn run(
    program: &Path,
    at: &Namespace,
    mut specification: Value,
    head: &Head,
    (namespace, interface): (&Namespace, &str),
    window: u32,
    load: Load<'_>,
) -> Result<Sent> {
    let (window, time) = match load.until {
        Until::OneFrame => (1, Duration::ZERO),
        Until::Time(time) => (window, time),
    };
    let (peers, varied) = load.peers.unwrap_or((0, &[]));
    let more = json!({
        "head": head.bytes, "length": head.length, "ports": head.ports,
        "flows": load.flows, "first_port": FIRST_PORT, "peers": peers, "varied": varied,
        "statistics": load.statistics,
        "to": interface, "to_namespace": format!("/run/netns/{}", namespace.name()),
        "window": window, "milliseconds": u64::try_from(time.as_millis())?,
    });
    let (Some(all), Value::Object(more)) = (specification.as_object_mut(), more) else {
        anyhow::bail!("a specification that is no object");
    };
    all.extend(more);
    let sent: Sent = ask(program, at, &json!({ "frames": specification }))?;
    ensure!(
        sent.each_once,
        "{} frames were sent, {} arrived{}",
        sent.sent,
        sent.arrived,
        if sent.sent == sent.arrived { ", but not each once" } else { "" }
    );
    ensure!(sent.sent > 0, "not one frame was sent");
    Ok(sent)
}

/// What the sending container would send.
fn plain(network: &Network, length: usize) -> Result<Head> {
    let source = mac(network.from.namespace(), "eth0")?;
    let next_hop = match network.sender() {
        Some(host) => mac(host.namespace(), "br0")?,
        None => mac(network.to.namespace(), "eth0")?,
    };
    Head::plain([next_hop, source], address(&network.from), address(&network.to), length)
}

fn address(container: &Container) -> Ipv4Addr {
    container.address()
}

fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let links: Value =
        serde_json::from_str(&namespace.exec(&format!("ip -json link show dev {interface}"))?)?;
    let text = links[0]["address"].as_str().with_context(|| format!("no MAC address of {interface}"))?;
    let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<Vec<_>, _>>()?;
    octets.try_into().ok().with_context(|| format!("the MAC address {text}"))
}

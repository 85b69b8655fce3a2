//! Packets per second by live XDP frames on one CPU: from container to container, and each half of the path alone.
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

/// A part of the path between the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From the sending container's veth, where its host receives the frame, into the receiving container.
    Whole,
    /// From the same place to where the frame leaves the sending host.
    Out,
    /// From the wire, where the receiving host's driver gets frames as they were captured there, into the container.
    In,
}

impl Part {
    /// Name of the part in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "container to container",
            Self::Out => "encapsulation alone",
            Self::In => "decapsulation alone",
        }
    }

    /// Whether a case has this part.
    pub fn is_of(self, case: Case) -> bool {
        match case {
            Case::Direct => self == Self::Whole,
            // These frames have one direction only, and what nobody answers keeps to the stack there.
            Case::Established => false,
            _ => true,
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Bytes of the container's frame with its frame check sequence; Ethernet's smallest is 64.
    pub size: usize,
    /// How many connections take turns.
    pub flows: u32,
    /// How many peers take turns, and the addresses that differ between them.
    pub peers: Option<(u32, &'a [Varied])>,
    /// When sending ends.
    pub until: Until,
    /// Whether the kernel measures the run time of every program meanwhile, which costs some time itself.
    pub statistics: bool,
}

/// An address in a template that differs from peer to peer.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Varied {
    /// Offset of the IPv4 header.
    pub header: u32,
    /// Offset of the address in the header.
    pub field: u32,
    /// The first peer's address.
    pub base: u32,
    /// The distance from one address to the next.
    pub step: u32,
}

/// When sending ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After one frame.
    OneFrame,
    /// After this time, when the batch in flight is complete.
    Time(Duration),
}

/// How many frames were sent, and how many arrived.
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

/// The first source port. It is below the ephemeral ones, so that each of 4096 connections has one and meets no
/// socket's.
const FIRST_PORT: u16 = 20_000;

/// Sends frames, and checks that each arrived exactly once.
pub fn send(network: &Network, program: &Path, part: Part, load: Load<'_>) -> Result<Sent> {
    let inner = inner_frame(network, load.size - 4)?;
    match part {
        Part::Whole | Part::Out => out(network, program, part, &inner, load),
        Part::In => {
            let one = Load { flows: 1, peers: None, until: Until::OneFrame, ..load };
            let seen = out(network, program, Part::Out, &inner, one).context("see a frame on the wire")?;
            let head = Head::seen(&seen.first, seen.first_length, inner.length)?;
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
        // In the limit case, the frame is injected where it would be received.
        None => (network.to.namespace(), "eth0"),
    };
    let to = match part {
        Part::Out => (network.lab().switch(), "h1"),
        Part::Whole | Part::In => (network.to.namespace(), "eth0"),
    };
    let from = json!({ "from": from, "way": "receive" });
    run(program, at, from, head, to, window(network.case), load)
}

/// How many frames are sent in one go. A relay gets as many as its socket takes (frames of a page each, in 208 KiB). In
/// the kernel each batch of 64 runs to its end before the next.
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

/// The frame that the sending container would send.
fn inner_frame(network: &Network, length: usize) -> Result<Head> {
    let source = mac(network.from.namespace(), "eth0")?;
    let next_hop = match network.sender() {
        Some(host) => mac(host.namespace(), "br0")?,
        None => mac(network.to.namespace(), "eth0")?,
    };
    Head::inner([next_hop, source], address(&network.from), address(&network.to), length)
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

//! Packets per second by live XDP frames on one CPU: from container to container, and each half of the path alone.
use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    frame::{Head, mac},
    network::{Case, Network},
    program::{ask, ask_at_once},
};
use overlay_lab::{Container, Host, Namespace, queue_overflows};

/// A part of the path between the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From the sending container's veth, where its host receives the frame, into the receiving container.
    Whole,
    /// From the same place to where the frame leaves the sending host.
    Out,
    /// From the wire, where the receiving host's driver gets frames as they were captured there, into the container.
    In,
    /// From the sending container's veth, as above, into another container on the same bridge.
    Near,
}

impl Part {
    /// Name of the part in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "container to container",
            Self::Out => "encapsulation alone",
            Self::In => "decapsulation alone",
            Self::Near => "same host",
        }
    }

    /// Whether a case has this part.
    pub fn is_of(self, case: Case) -> bool {
        match case {
            Case::Direct => matches!(self, Self::Whole | Self::Near),
            Case::DirectAgain => self == Self::Near,
            // Between containers of one host there is a bridge, as on the bare route.
            Case::BareAgain | Case::Kernel | Case::Relay if self == Self::Near => false,
            // These frames have one direction only, and what nobody answers keeps to the stack there.
            Case::Established => self == Self::Near,
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
    let way = Way::of(network, part)?;
    let inner = way.frame(load.size - 4)?;
    let (at, specification) = match part {
        Part::Whole | Part::Near => way.specification(way.end(), &inner, network.case, load)?,
        Part::Out => way.specification((network.lab().switch(), "h1"), &inner, network.case, load)?,
        Part::In => {
            let one = Load { flows: 1, peers: None, until: Until::OneFrame, ..load };
            let seen = send(network, program, Part::Out, one)?;
            let head = Head::seen(&seen.first, seen.first_length, inner.length)?;
            let from = json!({ "from": "h2", "way": "send" });
            (network.lab().switch(), specification(from, way.end(), &head, network.case, load)?)
        }
    };
    undisturbed(|| Ok([ask(program, at, &specification)?])).map(|[sent]| sent)
}

/// Sends frames both ways at once, each way on a CPU of its own, and checks the same. Returns the frames per second of both ways
/// together.
pub(super) fn send_both_ways(network: &Network, program: &Path, load: Load<'_>) -> Result<f64> {
    let there = Way::of(network, Part::Whole)?;
    let back = Way { from: there.to, host: network.receiver(), to: there.from, is_near: false };
    let ask_for = |way: &Way<'_>, cpu| {
        let head = way.frame(load.size - 4)?;
        let (at, mut asked) = way.specification(way.end(), &head, network.case, load)?;
        asked["frames"]["cpu"] = json!(cpu);
        asked["frames"]["waits"] = json!(true);
        Ok::<_, anyhow::Error>((at.clone(), asked))
    };
    let [(here, there), (far, back)] = [ask_for(&there, 0)?, ask_for(&back, 1)?];
    let asked = [(&here, there), (&far, back)];
    let [there, back] = undisturbed(|| ask_at_once(program, asked.clone()))?;
    Ok(there.rate() + back.rate())
}

/// The way of frames from one container to another.
struct Way<'a> {
    from: &'a Container,
    /// The host of the container that sends, if there is one.
    host: Option<&'a Host>,
    to: &'a Container,
    /// Whether the frames are sent to the other container itself rather than to a gateway.
    is_near: bool,
}

impl<'a> Way<'a> {
    fn of(network: &'a Network, part: Part) -> Result<Self> {
        let is_near = part == Part::Near;
        let [from, to] = if is_near { network.near_ends()? } else { network.ends() };
        Ok(Self { from, host: network.sender(), to, is_near })
    }

    /// Where the receiving container gets the frames.
    fn end(&self) -> (&'a Namespace, &'static str) {
        (self.to.namespace(), "eth0")
    }

    /// The frame that the sending container would send.
    fn frame(&self, length: usize) -> Result<Head> {
        let source = mac(self.from.namespace(), "eth0")?;
        let next_hop = match self.host {
            Some(host) if !self.is_near => mac(host.namespace(), "br0")?,
            _ => mac(self.to.namespace(), "eth0")?,
        };
        Head::inner([next_hop, source], self.from.address(), self.to.address(), length)
    }

    /// Where overlay-frames is to send them, and what is asked of it. `end` is where they are counted.
    fn specification(
        &self,
        end: (&Namespace, &str),
        head: &Head,
        case: Case,
        load: Load<'_>,
    ) -> Result<(&'a Namespace, Value)> {
        let (at, from) = match self.host {
            Some(host) => (host.namespace(), self.from.port()),
            // In the limit case, the frame is injected where it would be received.
            None => (self.to.namespace(), "eth0"),
        };
        Ok((at, specification(json!({ "from": from, "way": "receive" }), end, head, case, load)?))
    }
}

/// How many frames are sent in one go. A relay gets as many as its socket takes (frames of a page each, in 208 KiB). In
/// the kernel each batch of 64 runs to its end before the next.
fn window(case: Case) -> u32 {
    if case == Case::Relay { 32 } else { 1 << 15 }
}

/// What overlay-frames is asked for: `from` says where the frames come from.
fn specification(
    mut from: Value,
    (namespace, interface): (&Namespace, &str),
    head: &Head,
    case: Case,
    load: Load<'_>,
) -> Result<Value> {
    let (window, time) = match load.until {
        Until::OneFrame => (1, Duration::ZERO),
        Until::Time(time) => (window(case), time),
    };
    let (peers, varied) = load.peers.unwrap_or((0, &[]));
    let more = json!({
        "head": head.bytes, "length": head.length, "ports": head.ports,
        "flows": load.flows, "first_port": FIRST_PORT, "peers": peers, "varied": varied,
        "statistics": load.statistics,
        "to": interface, "to_namespace": format!("/run/netns/{}", namespace.name()),
        "window": window, "milliseconds": u64::try_from(time.as_millis())?,
    });
    let (Some(all), Value::Object(more)) = (from.as_object_mut(), more) else {
        anyhow::bail!("a specification that is no object");
    };
    all.extend(more);
    Ok(json!({ "frames": from }))
}

/// How often a sample is taken anew that the machine has disturbed.
const DISTURBED: u32 = 5;

/// Sends frames, and checks that each arrived exactly once. It does so anew if this machine's CPUs have thrown away as many frames as
/// are missing, because their queues were full. That is no case's doing: a batch that is sent runs to its end before the next, unless
/// something else keeps the CPU from it.
fn undisturbed<const N: usize>(send: impl Fn() -> Result<[Sent; N]>) -> Result<[Sent; N]> {
    let mut tries = 0;
    loop {
        let before = queue_overflows()?;
        let sent = send()?;
        let missing: u64 = sent.iter().map(|sent| sent.sent.saturating_sub(sent.arrived)).sum();
        tries += 1;
        if missing == 0 || queue_overflows()? - before < missing || tries == DISTURBED {
            for sent in &sent {
                check(sent)?;
            }
            return Ok(sent);
        }
    }
}

/// Each frame must have arrived exactly once.
fn check(sent: &Sent) -> Result<()> {
    ensure!(
        sent.each_once,
        "{} frames were sent, {} arrived{}",
        sent.sent,
        sent.arrived,
        if sent.sent == sent.arrived { ", but not each once" } else { "" }
    );
    ensure!(sent.sent > 0, "not one frame was sent");
    Ok(())
}

//! One frame at a time, for tables of frames: what became of it on our host, and on a host with the kernel's device.
use std::path::Path;

use anyhow::{Context as _, Result};
use overlay_common::{Hook, Reason};

use crate::{
    Pinned, Setup,
    frames::{Frame, Transport},
    headers::checksum,
    kernel_counters::KernelCounters,
    twins::{Counted, Nic, Twins},
    wire::Wire,
    world::{CONTAINER, CONTAINER_MAC, GATEWAY, LOCAL, REMOTE},
};
use overlay_lab::{Container, Host, Member};

/// Two hosts that get the same frames, and a container of ours to send from.
#[derive(Debug)]
pub struct Bench {
    twins: Twins,
    speak: Wire,
    hear: Wire,
    marks: u16,
    _pinned: Pinned,
}

/// What became of some frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What our programs counted, without events.
    pub counted: Vec<(Hook, Reason, u64)>,
    /// The whole frames that came out of our host, at its container or at its underlay device.
    pub ours: Vec<Vec<u8>>,
    /// The whole frames that came out of the kernel's host.
    pub kernel: Vec<Vec<u8>>,
}

impl Bench {
    /// Starts both hosts, ours with the agent's binary at `overlay`.
    pub fn new(setup: Setup, overlay: &Path) -> Result<Self> {
        let pinned = Pinned::new()?;
        let twins = Twins::new(overlay, &setup.agent())?;
        let container = twins.member.containers[0].namespace();
        let speak = Wire::out_of(container, "eth0")?;
        let hear = Wire::into(twins.underlay(), "h1")?;
        Ok(Self { twins, speak, hear, marks: 0, _pinned: pinned })
    }

    /// Sends these frames to both hosts, and waits for what comes out.
    pub fn receive(&mut self, nic: Nic, frames: &[Vec<u8>]) -> Result<Seen> {
        let before = self.twins.counted()?;
        let ours = self.twins.ours.deliver(frames.iter().map(|frame| (nic, frame)))?;
        let mut counted = self.since(&before)?;
        // What the host itself answers is not looked at here.
        counted.retain(|(hook, ..)| !matches!(hook, Hook::Encap | Hook::Send));
        take(&mut counted, (Hook::Decap, Reason::InnerOptions), ours.marks);
        take(&mut counted, (Hook::Receive, Reason::Carried), ours.marks);
        let kernel = self.twins.kernel.deliver(frames.iter().map(|frame| (nic, frame)))?;
        Ok(Seen { counted, ours: ours.frames, kernel: kernel.frames })
    }

    /// Sends these frames, Ethernet headers included, from our container, and returns what left the host on the
    /// underlay.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Result<Seen> {
        while self.hear.next(std::time::Duration::ZERO)?.is_some() {}
        let before = self.twins.counted()?;
        for frame in frames {
            self.speak.send(frame)?;
        }
        // The mark goes through the stack, which is the longest path out.
        self.marks += 1;
        let mut mark = Frame::valid(u32::from(self.marks), Transport::Udp, 0);
        mark.inner.options = vec![1; 4];
        mark.payload = b"everything before has left".to_vec();
        mark.payload.extend(self.marks.to_be_bytes());
        let mark = from_container(&mark);
        self.speak.send(&mark)?;
        let mut left = Vec::new();
        let wanted = &mark[mark.len() - 28..];
        loop {
            let frame =
                self.hear.next(std::time::Duration::from_secs(10))?.context("the mark did not leave")?;
            if frame.ends_with(wanted) {
                break;
            }
            left.push(frame);
        }
        let mut counted = self.since(&before)?;
        take(&mut counted, (Hook::Encap, Reason::InnerOptions), 1);
        take(&mut counted, (Hook::Send, Reason::Carried), 1);
        Ok(Seen { counted, ours: left, kernel: Vec::new() })
    }

    fn since(&self, before: &Counted) -> Result<Vec<(Hook, Reason, u64)>> {
        let counted = self.twins.counted()?.into_iter().filter_map(|((hook, reason), now)| {
            let more = now - before.get(&(hook, reason)).copied().unwrap_or_default();
            (more > 0).then_some((hook, reason, more))
        });
        Ok(counted.filter(|(_, reason, _)| reason.verdict() != overlay_common::Verdict::Event).collect())
    }

    /// Our host.
    pub fn host(&self) -> &Host {
        &self.twins.member.host
    }

    /// Our host's agent and containers.
    pub fn member(&self) -> &Member {
        &self.twins.member
    }

    /// Our container, to which frames are addressed.
    pub fn container(&self) -> &Container {
        &self.twins.member.containers[0]
    }

    /// A counter of the container's own kernel, such as `Udp.InCsumErrors`.
    pub fn counter(&self, name: &str) -> Result<i64> {
        Ok(KernelCounters::read(self.container().namespace())?.get(name))
    }
}

/// Removes a mark from what was counted.
fn take(counted: &mut Vec<(Hook, Reason, u64)>, mark: (Hook, Reason), count: u64) {
    for (hook, reason, packets) in counted.iter_mut() {
        if (*hook, *reason) == mark {
            *packets -= count;
        }
    }
    counted.retain(|(.., packets)| *packets > 0);
}

/// The inner packet of `frame` in the other direction: from our container to the first peer's, by its gateway.
pub fn from_container(frame: &Frame) -> Vec<u8> {
    let [a, b, c, d] = GATEWAY;
    let mut frame = frame.clone();
    if (frame.inner.from, frame.inner.to) == (REMOTE, CONTAINER) {
        (frame.inner.from, frame.inner.to) = (CONTAINER, REMOTE);
    }
    frame.inner_ethernet.from = CONTAINER_MAC;
    frame.inner_ethernet.to = [0x02, 0x42, a, b, c, d];
    frame.inner_frame()
}

/// The IPv4 packet of an Ethernet frame as the next router forwards it.
pub fn forwarded(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    packet[8] -= 1;
    packet[10..12].fill(0);
    let header = usize::from(packet[0] & 15) * 4;
    let sum = checksum(&packet[..header], 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Whether a frame comes from our host on the underlay.
pub fn is_from_us(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 0]) && frame.get(26..30) == Some(&LOCAL)
}

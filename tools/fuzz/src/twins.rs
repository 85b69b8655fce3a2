//! Two hosts that get the same frames: ours, and one that has the kernel's own VXLAN device, set up as flannel does it.
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::{Hook, Reason};

use crate::{
    frames::{Frame, Transport},
    kernel_counters::KernelCounters,
    wire::Wire,
    world::{CONTAINER, CONTAINER_MAC, GATEWAY, LOCAL, PEERS, UNDERLAY_MAC, VTEP_MAC, is_hosts},
};
use overlay_lab::{
    self as lab, Container, ForeignVxlan, Host, Lab, Member, Namespace, Options, PingOptions, Store,
    wait_until,
};

const SUBNET: &str = "10.244.1.0/24";
const MAX_UNSYNCED: usize = 128;
/// How long a frame may take through one host. On an idle machine it takes microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The device that a frame comes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// The underlay device, where our program is attached.
    Underlay,
    /// Another device of the host.
    Second,
}

/// One host, with a wire into its underlay device and one out of its container.
#[derive(Debug)]
pub(crate) struct Twin {
    host: Host,
    inject: Wire,
    second: Wire,
    deliver: Wire,
    marks: u32,
}

/// Both hosts.
#[derive(Debug)]
pub(crate) struct Twins {
    pub(crate) ours: Twin,
    pub(crate) kernel: Twin,
    pub(crate) member: Member,
    labs: [Lab; 2],
}

/// What our programs counted, by hook and reason, in a fixed order.
pub(crate) type Counted = BTreeMap<(Hook, Reason), u64>;

impl Twins {
    /// Starts both hosts. `overlay` is the agent's binary, `agent` the options that its ingress mode needs.
    pub(crate) fn new(overlay: &Path, agent: &[&str]) -> Result<Self> {
        let labs = [alone()?, alone()?];
        let member = ours(&labs[0], overlay, agent)?;
        let container = member.containers[0].clone();

        let host = labs[1].host(0);
        let device = ForeignVxlan::new(host, SUBNET, 1, 8472)?;
        ensure!(device.mac() == mac_text(VTEP_MAC), "the two VtepMACs differ");
        host.add_bridge(SUBNET, 1450)?;
        let other = host.add_container("a", SUBNET, 2, 1450)?;
        other.namespace().ip(&format!("link set eth0 address {}", mac_text(CONTAINER_MAC)))?;
        for (number, (address, [a, b, c])) in PEERS.iter().enumerate() {
            let subnet = format!("{a}.{b}.{c}.0/24");
            device.put_peer(&subnet, &format!("02:00:00:00:00:{:02x}", number + 2), (*address).into())?;
        }
        let ours = Twin::new(&member.host, container, labs[0].switch())?;
        let kernel = Twin::new(host, other, labs[1].switch())?;
        Ok(Self { ours, kernel, member, labs })
    }

    /// The other end of our host's underlay device.
    pub(crate) fn underlay(&self) -> &Namespace {
        self.labs[0].switch()
    }

    /// Waits until neither host keeps fragments of a datagram that was not whole.
    pub(crate) fn forget_fragments(&self) -> Result<()> {
        for twin in [&self.ours, &self.kernel] {
            wait_until(
                "the end of incomplete datagrams",
                PATIENCE,
                || Ok(twin.incomplete_datagrams()? == 0),
            )?;
        }
        Ok(())
    }

    /// What our programs have counted until now. At the underlay device two programs may classify a frame, but only one
    /// counts it. Both are [`Hook::Decap`] here.
    pub(crate) fn counted(&self) -> Result<Counted> {
        let mut counted = Counted::new();
        for (hook, reason, packets, _) in self.member.counters()?.all() {
            let hook = if *hook == Hook::Xdp { Hook::Decap } else { *hook };
            *counted.entry((hook, *reason)).or_default() += packets;
        }
        Ok(counted)
    }
}

fn alone() -> Result<Lab> {
    let lab = Lab::new(Options { hosts: 1, ..Options::default() })?;
    let host = lab.host(0);
    ensure!(host.address().octets() == LOCAL, "the lab's first host is not {LOCAL:?}");
    // No machine answers here except those that the fuzzer plays.
    lab.switch().ip("link set h1 nomaster")?;
    host.namespace().ip(&format!("link set eth0 address {}", mac_text(UNDERLAY_MAC)))?;
    for (address, _) in PEERS {
        let [a, b, c, d] = address;
        host.namespace()
            .ip(&format!("neighbour replace {a}.{b}.{c}.{d} lladdr 06:00:00:00:00:02 dev eth0"))?;
    }
    // Incomplete datagrams must not take the space that others need to be reassembled.
    host.namespace().sysctl("ipv4/ipfrag_high_thresh", "268435456")?;
    host.namespace().sysctl("ipv4/ipfrag_time", "1")?;
    Ok(lab)
}

fn ours(lab: &Lab, overlay: &Path, agent: &[&str]) -> Result<Member> {
    let store = Store::folder(lab);
    lab::configure(lab, overlay, &store, lab::Backend::Vxlan.config())?;
    // The leases exist before the agent starts, which keeps the subnet and the VtepMAC of the lease with its address.
    let subnets = lab.folder().join("store/subnets");
    let lease = |[a, b, c]: [u8; 3], address: [u8; 4], mac: String| {
        let [p, q, r, s] = address;
        let value = format!(
            r#"{{"PublicIP":"{p}.{q}.{r}.{s}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        fs::write(subnets.join(format!("{a}.{b}.{c}.0-24")), value).context("write a lease")
    };
    lease([10, 244, 1], LOCAL, mac_text(VTEP_MAC))?;
    for (number, (address, subnet)) in PEERS.into_iter().enumerate() {
        lease(subnet, address, format!("02:00:00:00:00:{:02x}", number + 2))?;
    }
    let member = lab::populate_some(lab.hosts(), overlay, &store, agent)?.remove(0);
    ensure!(member.subnet == SUBNET, "the agent leased {} instead of {SUBNET}", member.subnet);
    for container in &member.containers {
        container.namespace().sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    }
    let container = &member.containers[0];
    ensure!(container.address().octets() == CONTAINER, "the container is {}", container.address());
    container.namespace().ip(&format!("link set eth0 address {}", mac_text(CONTAINER_MAC)))?;
    wait_until("the endpoint and the peers", PATIENCE, || {
        container.ping(GATEWAY.into(), PingOptions { count: 1, ..Default::default() })?;
        Ok(member.overlay(&["endpoints"])?.contains("10.244.1.2 ")
            && member.overlay(&["peers"])?.contains("10.244.3.0"))
    })?;
    Ok(member)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Twin {
    fn new(host: &Host, container: Container, switch: &Namespace) -> Result<Self> {
        // The container answers nobody, and its host's devices send nothing by themselves.
        container.namespace().ip("route del default")?;
        container.namespace().sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        host.namespace().ip("link set br0 type bridge mcast_snooping 0")?;
        for silent in [host.namespace(), switch] {
            silent.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        }
        // The neighbour entry must not expire while millions of frames pass.
        let (address, mac) = (container.address(), mac_text(CONTAINER_MAC));
        host.namespace().ip(&format!("neighbour replace {address} lladdr {mac} dev br0 nud permanent"))?;
        // None of our programs is attached to the second NIC. It has the same MAC address, so that frames fit both.
        let inside = host.namespace().name();
        let mac = mac_text(UNDERLAY_MAC);
        switch.ip(&format!("link add h1b type veth peer name eth1 address {mac} netns {inside}"))?;
        switch.ip("link set h1b up")?;
        host.namespace().ip("link set eth1 up")?;
        host.namespace().sysctl("ipv4/conf/eth1/rp_filter", "0")?;
        let inject = Wire::out_of(switch, "h1")?;
        let second = Wire::out_of(switch, "h1b")?;
        let deliver = Wire::into(container.namespace(), "eth0")?;
        let mut twin = Self { host: host.clone(), inject, second, deliver, marks: 0 };
        twin.sync(&mut Delivered::default())?;
        Ok(twin)
    }

    /// Sends these frames, and returns what the container received, in the order of arrival.
    pub(crate) fn deliver<'a>(
        &mut self,
        frames: impl IntoIterator<Item = (Nic, &'a Vec<u8>)>,
    ) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        let mut unsynced = 0;
        for (nic, frame) in frames {
            match nic {
                Nic::Underlay => self.inject.send(frame)?,
                Nic::Second => self.second.send(frame)?,
            }
            delivered.sent += 1;
            unsynced += 1;
            if unsynced == MAX_UNSYNCED {
                self.sync(&mut delivered)?;
                unsynced = 0;
            }
        }
        self.sync(&mut delivered)?;
        Ok(delivered)
    }

    /// Waits until everything sent before has been processed. A mark takes the longest path there is, through the
    /// kernel's tunnel, routing and bridge, and every stage of it is a queue of this CPU. What arrives before the mark
    /// is kept.
    fn sync(&mut self, delivered: &mut Delivered) -> Result<()> {
        self.marks += 1;
        delivered.marks += 1;
        let mut mark = Frame::valid(self.marks, Transport::Udp, 0);
        mark.payload = mark_of(self.marks);
        mark.inner.options = vec![1; 4];
        let [mark] = <[Vec<u8>; 1]>::try_from(mark.frames()).ok().context("a mark is one frame")?;
        self.inject.send(&mark)?;
        while let Some(frame) = self.deliver.next(PATIENCE)? {
            if frame.ends_with(&mark_of(self.marks)) {
                return Ok(());
            }
            if !is_local(&frame) {
                delivered.frames.push(frame);
            }
        }
        bail!("{}: mark {} did not arrive within {PATIENCE:?}", self.host.namespace().name(), self.marks)
    }

    /// How many datagrams the host's kernel is putting together.
    fn incomplete_datagrams(&self) -> Result<u64> {
        // The file shows what the calling thread's namespace has.
        let read = || Ok(fs::read_to_string("/proc/thread-self/net/sockstat")?);
        incomplete_datagrams(&self.host.namespace().enter(read)?)
    }

    /// Counters of the host's own kernel.
    pub(crate) fn kernel_counters(&self) -> Result<KernelCounters> {
        KernelCounters::read(self.host.namespace())
    }
}

/// The number of IPv4 datagrams of which some fragments are there, in the text of /proc/net/sockstat.
fn incomplete_datagrams(sockstat: &str) -> Result<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("FRAG: inuse "));
    let number = line.and_then(|rest| rest.split(' ').next()).context("sockstat has no line of fragments")?;
    number.parse().context("read the number of incomplete datagrams")
}

/// What the container received.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    pub(crate) sent: u64,
    /// How many marks were sent beside the frames. Each is counted as an inner packet with options that the stack
    /// carried.
    pub(crate) marks: u64,
    pub(crate) frames: Vec<Vec<u8>>,
}

/// Whether a frame is none that was delivered: the bridge sends ARP requests for unknown neighbours and asks who
/// listens to multicasts, the container may send, and the host answers frames by ICMP, or by a TCP reset. The host
/// answers from whichever of its addresses the frame was for. No host accepts a packet from its own address.
fn is_local(frame: &[u8]) -> bool {
    let arp = frame.get(12..14) == Some(&[0x08, 0x06]);
    let host = frame.get(26..30).is_some_and(|source| is_hosts([source[0], source[1], source[2], source[3]]));
    arp || host || frame.get(6..12) == Some(&CONTAINER_MAC)
}

fn mark_of(number: u32) -> Vec<u8> {
    [b"everything before has gone its way".as_slice(), &number.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_datagrams_are_counted_by_their_line() {
        let text = "sockets: used 5\nTCP: inuse 1 orphan 0 tw 0 alloc 2 mem 0\nFRAG: inuse 7 memory 9\n";
        assert_eq!(incomplete_datagrams(text).unwrap(), 7);
        incomplete_datagrams("RAW: inuse 7\n").unwrap_err();
    }
}

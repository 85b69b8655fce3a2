//! The networks without our agent: a bare route, the kernel's VXLAN device, a userspace relay, and the floor.
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{frame::mac, program::ask};
use overlay_lab::{Container, ForeignVxlan, Host, Lab, Relay};

/// VXLAN's parameters and the UDP backend's port, with flannel's defaults.
const VNI: u32 = 1;
const PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;
const NETWORK: &str = "10.244.0.0/16";
const SUBNETS: [&str; 2] = ["10.244.1.0/24", "10.244.2.0/24"];

/// The containers of a network.
pub(super) struct Containers {
    /// The one that sends requests.
    pub(super) from: Container,
    /// The one that answers them, on the other host if there are hosts.
    pub(super) to: Container,
    /// Another one on the host of the first, if there is one.
    pub(super) near: Option<Container>,
    /// Where containers can be added, on each host.
    pub(super) homes: Vec<Home>,
}

/// The bridge of a host.
pub(super) struct Home {
    /// Its subnet: `10.244.1.0/24`.
    pub(super) subnet: String,
    /// The MTU of its containers, in bytes.
    pub(super) mtu: u32,
}

/// Adds routes between the hosts, without any overlay.
pub(super) fn bare(lab: &Lab) -> Result<Containers> {
    let mut containers = Vec::new();
    for (host, (own, other)) in lab.hosts().iter().zip([(0, 1), (1, 0)]) {
        host.add_bridge(SUBNETS[own], 1500)?;
        containers.push(host.add_container("a", SUBNETS[own], 2, 1500)?);
        let peer = lab.host(other).address();
        host.namespace().ip(&format!("route add {} via {peer} dev eth0", SUBNETS[other]))?;
    }
    let near = lab.host(0).add_container("b", SUBNETS[0], 3, 1500)?;
    both(containers, Some(near), 1500)
}

/// The kernel's VXLAN device on both hosts, as flannel sets it up.
pub(super) fn kernel(lab: &Lab) -> Result<Containers> {
    let (mut containers, mut devices) = (Vec::new(), Vec::new());
    for (host, subnet) in lab.hosts().iter().zip(SUBNETS) {
        let (device, container) = with_device(host, subnet)?;
        devices.push(device);
        containers.push(container);
    }
    for (here, there) in [(0, 1), (1, 0)] {
        devices[here].put_peer(SUBNETS[there], devices[there].mac(), lab.host(there).address())?;
    }
    both(containers, None, 1450)
}

/// A host with the kernel's VXLAN device, which knows no peer, and a container.
fn with_device(host: &Host, subnet: &str) -> Result<(ForeignVxlan, Container)> {
    let device = ForeignVxlan::new(host, subnet, VNI, PORT)?;
    host.add_bridge(subnet, 1450)?;
    Ok((device, host.add_container("a", subnet, 2, 1450)?))
}

/// The floor's programs on both hosts. Nothing else can carry a packet between the containers: the hosts have no routes to each
/// other's subnet, and their VXLAN devices no peers. The devices are there as under our agents, for GRO of what arrives.
pub(super) fn floor(lab: &Lab, program: &Path) -> Result<Containers> {
    let containers = lab.hosts().iter().zip(SUBNETS).map(|(host, subnet)| Ok(with_device(host, subnet)?.1));
    let containers = containers.collect::<Result<Vec<_>>>()?;
    let near = lab.host(0).add_container("b", SUBNETS[0], 3, 1450)?;
    for (here, there) in [(0, 1), (1, 0)] {
        let (host, peer) = (lab.host(here), lab.host(there));
        let its = containers.get(here).into_iter().chain((here == 0).then_some(&near));
        let its = its.map(|container| {
            Ok::<_, anyhow::Error>(json!({
                "address": container.address(), "port": container.port(),
                "mac": mac(container.namespace(), "eth0")?, "gateway_mac": mac(host.namespace(), "br0")?,
            }))
        });
        let its = its.collect::<Result<Vec<_>>>()?;
        let (subnet, _) = SUBNETS[there].split_once('/').context("a subnet's length")?;
        let specification = json!({ "floor": {
            "underlay": "eth0", "local": host.address(), "local_mac": mac(host.namespace(), "eth0")?,
            "peer": { "subnet": subnet, "address": peer.address(), "mac": mac(peer.namespace(), "eth0")? },
            "containers": its, "vni": VNI, "port": PORT, "pins": host.bpf_root(),
        }});
        let answer: Value = ask(program, host.namespace(), &specification).context("lay the floor")?;
        ensure!(answer["containers"] == its.len(), "the floor has not all containers: {answer}");
    }
    both(containers, Some(near), 1450)
}

/// Starts a userspace relay on both hosts, as flannel's UDP mode does.
pub(super) fn relayed(lab: &Lab, relays: &mut Vec<Relay>) -> Result<Containers> {
    let mut containers = Vec::new();
    let mtu = lab.host(0).mtu()? - Relay::OVERHEAD;
    for (host, subnet) in lab.hosts().iter().zip(SUBNETS) {
        relays.push(host.start_relay(subnet, NETWORK, UDP_PORT)?);
        host.add_bridge(subnet, mtu)?;
        containers.push(host.add_container("a", subnet, 2, mtu)?);
    }
    for (here, there) in [(0, 1), (1, 0)] {
        relays[here].put_route(SUBNETS[there], lab.host(there).address())?;
    }
    both(containers, None, mtu)
}

fn both(containers: Vec<Container>, near: Option<Container>, mtu: u32) -> Result<Containers> {
    let [from, to] = containers.try_into().ok().context("two containers")?;
    let homes = SUBNETS.map(|subnet| Home { subnet: subnet.to_owned(), mtu }).into();
    Ok(Containers { from, to, near, homes })
}

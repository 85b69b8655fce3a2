//! Finds what flannel left on this host and compares it with the leases. Only what fits together is taken over. The comparison
//! is pure: it calls neither kernel nor store.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Flannel, rules::Rules};
use crate::{
    host::{
        netlink::{
            BlackholeRoute, ClassicTunnel, Forwarding, GatewayRoute, Netlink, NetlinkError, StaticNeighbour,
        },
        subnet_env,
        underlay::Underlay,
    },
    model::{
        backend::Backend,
        lease::{Lease, LeaseBackend},
        mac::Mac,
    },
};

/// All that was seen on the host.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// VXLAN devices with a VNI of their own, by interface index.
    pub tunnels: Vec<(u32, ClassicTunnel)>,
    /// All addresses of the host, each with the index of its interface.
    pub addresses: Vec<(u32, IpNet)>,
    /// Static neighbours of flannel's device.
    pub neighbours: Vec<StaticNeighbour>,
    /// Forwarding entries of flannel's device.
    pub forwarding: Vec<Forwarding>,
    /// Routes with a gateway.
    pub routes: Vec<GatewayRoute>,
    /// Routes by which the kernel discards packets.
    pub blackholes: Vec<BlackholeRoute>,
    /// flannel's rules.
    pub rules: Rules,
    /// The text of subnet.env.
    pub subnet_env: Option<String>,
}

/// What flannel's entries must fit.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The whole overlay.
    pub network: IpNet,
    /// How packets travel.
    pub backend: Backend,
    /// The interface that reaches the peers.
    pub underlay: Underlay,
    /// This host's identity in the store.
    pub public_ip: IpAddr,
    /// All leases, with their keys.
    pub leases: Vec<(String, Lease)>,
}

/// What is to be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// What flannel is on this host.
    pub flannel: Flannel,
    /// Interface index of flannel's device.
    pub link: Option<u32>,
    /// This host's lease.
    pub lease: Lease,
    /// The lease's VtepMAC, if it has one.
    pub mac: Option<Mac>,
    /// What differs from the leases and is put right by the move, in words.
    pub notes: Vec<String>,
}

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// There is no flannel here. The text says what is missing, and what to do.
    #[error("no flannel here: {0}")]
    Nothing(String),
    /// Parts of flannel contradict each other. Each text names one contradiction, and what to do.
    #[error("flannel's parts do not fit together: {}", .0.join("; "))]
    Inconsistent(Vec<String>),
}

/// The other hosts' leases by their subnets.
type PeersBySubnet<'a> = BTreeMap<IpNet, &'a Lease>;

/// Name of flannel's device.
pub fn device_name(vni: u32) -> String {
    format!("flannel.{vni}")
}

impl Sight {
    /// Looks at the host. `name` is that of flannel's device, if the backend has one.
    pub async fn look(
        netlink: &Netlink,
        name: Option<&str>,
        rules: Rules,
        subnet_env: Option<String>,
    ) -> Result<Self, NetlinkError> {
        let tunnels = netlink.classic_tunnels().await?;
        let named = |(_, tunnel): &&(u32, ClassicTunnel)| Some(tunnel.name.as_str()) == name;
        let link = tunnels.iter().find(named).map(|(link, _)| *link);
        let addresses = netlink.addresses().await?.into_iter();
        let net = |address: IpAddr, length| IpNet::new(address, length).ok();
        let mut sight = Self {
            addresses: addresses
                .filter_map(|address| Some((address.link, net(address.address, address.prefix_len)?)))
                .collect(),
            routes: netlink.gateway_routes().await?,
            blackholes: netlink.blackhole_routes().await?,
            tunnels,
            rules,
            subnet_env,
            ..Self::default()
        };
        if let Some(link) = link {
            sight.neighbours = netlink.static_neighbours(link).await?;
            sight.forwarding = netlink.forwarding(link).await?;
        }
        Ok(sight)
    }
}

/// Puts together what is to be taken over.
///
/// # Errors
/// When there is no flannel, or when parts do not fit together: then the error names all of these, each with what to do.
pub fn discover(sight: Sight, expected: &Expected) -> Result<Discovered, DiscoverError> {
    let mut problems = Vec::new();
    let found = match expected.backend.vni() {
        Some(vni) => {
            let name = device_name(vni);
            let found = sight.tunnels.iter().find(|(_, tunnel)| tunnel.name == name);
            let Some((link, device)) = found else { return Err(no_device(&sight, expected, &name, vni)) };
            check_device(&sight, expected, device, vni, &mut problems);
            Some((*link, device.clone()))
        }
        None => None,
    };
    let (link, device) = found.unzip();
    let own = expected.leases.iter().filter(|(_, lease)| lease.public_ip == expected.public_ip);
    let own: Vec<_> = own.collect();
    let lease = match own[..] {
        [(key, lease)] => check_lease(key, lease, device.as_ref(), &mut problems),
        [] => {
            problems.push(format!(
                "no lease carries {}, this host's public IP: if flannel used another one, give it by --public-ip; if the lease \
                 has ended, start flanneld once more, which takes it anew, and end it again",
                expected.public_ip
            ));
            None
        }
        [(first, _), (second, _), ..] => {
            problems.push(format!(
                "{} has two leases, {first} and {second}: delete the wrong one",
                expected.public_ip
            ));
            None
        }
    };
    let Some((lease, mac)) = lease else { return Err(DiscoverError::Inconsistent(problems)) };
    let addresses: Vec<_> =
        sight.addresses.iter().filter(|(index, _)| Some(*index) == link).map(|(_, net)| *net).collect();
    if let Some(device) = &device
        && !addresses.iter().any(|net| net.addr() == lease.subnet.network())
    {
        let has = match addresses[..] {
            [] => "no address".to_owned(),
            _ => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        problems.push(format!("{} has {has}, but the lease is for {}", device.name, lease.subnet));
    }
    check_subnet_env(sight.subnet_env.as_deref(), expected, &lease, &mut problems);
    let peers: PeersBySubnet<'_> = expected
        .leases
        .iter()
        .filter(|(_, other)| other.subnet != lease.subnet)
        .map(|(_, peer)| (peer.subnet, peer))
        .collect();
    let routes = check_routes(&sight.routes, expected, device.as_ref(), &peers, &mut problems);
    if device.is_none() && problems.is_empty() && routes.is_empty() && sight.rules.is_empty() {
        return Err(DiscoverError::Nothing(
            "there is neither a route of its host-gw backend nor a rule of its. `overlay agent` joins the network without \
             more ado"
                .to_owned(),
        ));
    }
    if !problems.is_empty() {
        return Err(DiscoverError::Inconsistent(problems));
    }
    let notes = differences(&sight, &routes, device.as_ref(), &peers);
    let Sight { neighbours, forwarding, blackholes, rules, subnet_env, .. } = sight;
    let blackhole = blackholes.into_iter().find(|route| route.destination == lease.subnet);
    let flannel = Flannel { device, addresses, neighbours, forwarding, routes, blackhole, rules, subnet_env };
    Ok(Discovered { flannel, link, lease, mac, notes })
}

fn no_device(sight: &Sight, expected: &Expected, name: &str, vni: u32) -> DiscoverError {
    let port = expected.backend.port();
    let flannels = sight.tunnels.iter().map(|(_, tunnel)| tunnel);
    let flannels: Vec<String> = flannels
        .filter(|tunnel| tunnel.name.starts_with("flannel.") || tunnel.port == port)
        .map(|tunnel| format!("{} (vni {}, port {})", tunnel.name, tunnel.vni, tunnel.port))
        .collect();
    let others = match flannels[..] {
        [] => ". `overlay agent` joins the network without more ado".to_owned(),
        _ => format!(", but {}: the config in the store is another network's", flannels.join(", ")),
    };
    DiscoverError::Nothing(format!(
        "there is no vxlan device {name} (vni {vni}, port {port}, as the network's config says){others}"
    ))
}

fn check_device(
    sight: &Sight,
    expected: &Expected,
    device: &ClassicTunnel,
    vni: u32,
    problems: &mut Vec<String>,
) {
    let (Expected { underlay, .. }, port) = (expected, expected.backend.port());
    if (device.vni, device.port) != (vni, port) {
        problems.push(format!(
            "{} has vni {} and port {}, the network's config vni {vni} and port {port}: flanneld was started before the \
             config was altered",
            device.name, device.vni, device.port
        ));
    }
    if device.local.is_some_and(|local| local != underlay.address) {
        let local = device.local.map(|local| local.to_string()).unwrap_or_default();
        problems.push(format!(
            "{} sends from {local}, and the underlay chosen here is {} with {}: choose flannel's by --iface {local}",
            device.name, underlay.name, underlay.address
        ));
    }
    for (_, other) in &sight.tunnels {
        if other.port == port && other.name != device.name {
            problems.push(format!(
                "{} (vni {}) has udp port {port} too, which would not be free for the overlay when {} is gone: move it to \
                 another port, or delete it",
                other.name, other.vni, device.name
            ));
        }
    }
    let v6 = format!("flannel-v6.{vni}");
    if sight.tunnels.iter().any(|(_, tunnel)| tunnel.name == v6) {
        problems.push(format!("flannel carries IPv6 here as well ({v6}), which the overlay does not yet"));
    }
}

fn check_lease(
    key: &str,
    lease: &Lease,
    device: Option<&ClassicTunnel>,
    problems: &mut Vec<String>,
) -> Option<(Lease, Option<Mac>)> {
    if key != lease.key() {
        problems.push(format!("lease {key} is for IPv6 as well, which the overlay does not carry yet"));
    }
    let Some(device) = device else {
        if lease.backend != LeaseBackend::Other("host-gw".to_owned()) {
            problems.push(format!(
                "lease {key} is not of flannel's host-gw backend: start flanneld once more, and end it"
            ));
        }
        return Some((lease.clone(), None));
    };
    let LeaseBackend::Vxlan { vtep_mac, .. } = lease.backend else {
        problems.push(format!(
            "lease {key} is not of flannel's vxlan backend: start flanneld once more, and end it"
        ));
        return None;
    };
    if vtep_mac != device.mac {
        problems.push(format!(
            "{} has MAC address {}, and lease {key} tells the other hosts {vtep_mac}, which nobody answers to: start \
             flanneld once more, which writes the device's address into the lease, and end it again",
            device.name, device.mac
        ));
    }
    Some((lease.clone(), Some(vtep_mac)))
}

fn check_subnet_env(text: Option<&str>, expected: &Expected, lease: &Lease, problems: &mut Vec<String>) {
    // A missing subnet.env is no problem, because the agent writes it.
    let told = text.map(subnet_env::parse).unwrap_or_default();
    if told.subnet.is_some_and(|subnet| subnet != lease.subnet) {
        let subnet = told.subnet.unwrap_or_default();
        problems.push(format!(
            "subnet.env says {subnet}, the lease is for {}: containers may have addresses of either; move those that are not \
             of {}, start flanneld once more, and end it",
            lease.subnet, lease.subnet
        ));
    }
    if told.network.is_some_and(|network| network != expected.network) {
        let network = told.network.unwrap_or_default();
        problems.push(format!("subnet.env says Network {network}, the config {}", expected.network));
    }
}

/// Finds the routes that are flannel's. A route to a peer's subnet, or to a part of it, that leads elsewhere is a problem,
/// because it would be followed before ours.
fn check_routes(
    routes: &[GatewayRoute],
    expected: &Expected,
    device: Option<&ClassicTunnel>,
    peers: &PeersBySubnet<'_>,
    problems: &mut Vec<String>,
) -> Vec<GatewayRoute> {
    let mut flannels = Vec::new();
    for route in routes {
        let peer = peers.range(..=route.destination).next_back().map(|(_, lease)| *lease);
        let peer = peer.filter(|lease| lease.subnet.contains(&route.destination));
        let direct = peer.is_some_and(|lease| {
            (lease.subnet, lease.public_ip) == (route.destination, route.gateway)
                && route.interface == expected.underlay.name
        });
        if device.is_some_and(|device| route.interface == device.name) || direct {
            flannels.push(route.clone());
        } else if let Some(lease) = peer {
            problems.push(format!(
                "{} is routed via {} dev {}, and its lease is of {}: `ip route delete {} via {}`",
                route.destination,
                route.gateway,
                route.interface,
                lease.public_ip,
                route.destination,
                route.gateway
            ));
        }
    }
    flannels
}

/// How flannel's tables and the leases differ in what they say of the peers, in both directions.
fn differences(
    sight: &Sight,
    routes: &[GatewayRoute],
    device: Option<&ClassicTunnel>,
    peers: &PeersBySubnet<'_>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let routed: BTreeMap<_, _> = routes.iter().map(|route| (route.destination, route)).collect();
    let neighbours: BTreeSet<_> = sight.neighbours.iter().collect();
    let forwarding: BTreeSet<_> = sight.forwarding.iter().collect();
    for lease in peers.values() {
        let tunnelled = |route: &GatewayRoute| device.is_some_and(|device| route.interface == device.name);
        let known = match (routed.get(&lease.subnet), &lease.backend) {
            (Some(route), &LeaseBackend::Vxlan { vtep_mac: mac, .. }) if tunnelled(route) => {
                neighbours.contains(&StaticNeighbour { address: route.gateway, mac })
                    && forwarding.contains(&Forwarding { mac, to: lease.public_ip })
            }
            (Some(route), _) => !tunnelled(route),
            (None, _) => false,
        };
        if !known {
            notes.push(format!(
                "{} of {} is not in flannel's tables, or otherwise: the leases say how it is reached after the move",
                lease.subnet, lease.public_ip
            ));
        }
    }
    for route in routes.iter().filter(|route| !peers.contains_key(&route.destination)) {
        notes.push(format!("{} is in flannel's routes and leased by nobody: it goes", route.destination));
    }
    notes
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;

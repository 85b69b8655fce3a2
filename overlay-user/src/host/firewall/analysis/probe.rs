//! The packets that the analysis asks about: what is known of every packet between containers of different hosts, where it meets
//! the host's packet filter.
use std::net::IpAddr;

use overlay_common::header::protocol::UDP;

use super::{
    interface::Interface,
    range::{Holds, Range},
};
use crate::host::site::Site;

/// Which packets between containers are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those between containers of different hosts, and the tunnel's own.
    BetweenHosts,
    /// Those between containers of this host behind one bridge, which forwards them without asking iptables.
    BehindBridge,
}

/// Where in the host packets are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Before routing.
    Prerouting,
    /// To the host itself.
    Input,
    /// From one interface to another.
    Forward,
    /// From the host itself.
    Output,
    /// After routing.
    Postrouting,
    /// What an interface takes in, before everything else.
    Ingress,
    /// What an interface sends.
    Egress,
}

impl Hook {
    /// The hook with nftables' name of it.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "prerouting" => Self::Prerouting,
            "input" => Self::Input,
            "forward" => Self::Forward,
            "output" => Self::Output,
            "postrouting" => Self::Postrouting,
            "ingress" => Self::Ingress,
            "egress" => Self::Egress,
            _ => return None,
        })
    }
}

/// Packets that take the same path through the host, and what is known of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// Where their source lies.
    pub source: Vec<Range<IpAddr>>,
    /// Where their destination lies.
    pub destination: Vec<Range<IpAddr>>,
    /// The interface they came in by.
    pub input: Interface,
    /// The interface they go out by.
    pub output: Interface,
    /// Their protocol, if all have the same.
    pub protocol: Option<u8>,
    /// Their destination port, if all have the same.
    pub port: Option<u16>,
    /// Whether their destination is an address of this host.
    pub is_to_host: bool,
    /// Whether their source is one.
    pub is_from_host: bool,
    /// Whether overlay0 has sent them before, so that the programs have seen them leave.
    pub is_sent: bool,
}

impl Probe {
    /// Packets of any protocol, of which this host is neither source nor destination.
    const fn forwarded(
        source: Vec<Range<IpAddr>>,
        destination: Vec<Range<IpAddr>>,
        input: Interface,
        output: Interface,
    ) -> Self {
        Self {
            source,
            destination,
            input,
            output,
            protocol: None,
            port: None,
            is_to_host: false,
            is_from_host: false,
            is_sent: false,
        }
    }

    /// Whether the source lies in one of these ranges.
    pub(super) fn is_from(&self, ranges: &[Range<IpAddr>]) -> Holds {
        all_in(&self.source, ranges)
    }

    /// Whether the destination lies in one of these ranges.
    pub(super) fn is_to(&self, ranges: &[Range<IpAddr>]) -> Holds {
        all_in(&self.destination, ranges)
    }

    /// Whether the protocol is one of these.
    pub(super) fn has_protocol(&self, protocols: &[u8]) -> Holds {
        self.protocol.map_or(Holds::Maybe, |protocol| Holds::certain(protocols.contains(&protocol)))
    }

    /// Whether the destination port is one of these.
    pub(super) fn has_port(&self, ports: &[Range<u16>]) -> Holds {
        self.port.map_or(Holds::Maybe, |port| Range::one(port).is_in(ports))
    }
}

/// Whether all of `parts` lie in `ranges`.
fn all_in(parts: &[Range<IpAddr>], ranges: &[Range<IpAddr>]) -> Holds {
    let mut all = parts.iter().map(|part| part.is_in(ranges));
    let first = all.next().unwrap_or(Holds::Maybe);
    if all.all(|one| one == first) { first } else { Holds::Maybe }
}

/// The probes that meet a hook of the IP families, each with what the packet filter knows of it there.
pub(super) fn at_ip_hook(site: &Site, hook: Hook) -> Vec<Probe> {
    let inner = || directions(site);
    match hook {
        Hook::Prerouting => {
            let mut probes: Vec<_> =
                inner().into_iter().map(|probe| Probe { output: Interface::Absent, ..probe }).collect();
            probes.push(arriving_tunnel(site));
            probes
        }
        Hook::Forward => inner(),
        Hook::Postrouting => {
            let mut probes = inner();
            probes.push(leaving_tunnel(site));
            probes
        }
        Hook::Input => vec![arriving_tunnel(site)],
        Hook::Output => vec![leaving_tunnel(site)],
        Hook::Ingress | Hook::Egress => Vec::new(),
    }
}

/// The probes that meet a hook of the bridge family. A container's packets to another host go up the stack from its bridge, and
/// those to it come down the stack to its bridge. None is forwarded from one port to another.
pub(super) fn at_bridge_hook(site: &Site, hook: Hook) -> Vec<Probe> {
    let bridge = |probe: Probe| Probe { input: Interface::Any, output: Interface::Any, ..probe };
    let [leaving, arriving, ..] = &directions(site)[..] else { return Vec::new() };
    match hook {
        Hook::Prerouting | Hook::Input => vec![bridge(leaving.clone())],
        Hook::Output | Hook::Postrouting => vec![bridge(arriving.clone())],
        Hook::Forward | Hook::Ingress | Hook::Egress => Vec::new(),
    }
}

/// The probe of frames from one port of a bridge to another, at a hook of the bridge family.
pub(super) fn bridged_at_bridge_hook(site: &Site, hook: Hook) -> Vec<Probe> {
    let is_passed = matches!(hook, Hook::Prerouting | Hook::Forward | Hook::Postrouting);
    is_passed.then(|| bridged(site, Interface::Any, Interface::Any)).into_iter().collect()
}

/// The same at a chain of an interface, if its name is known. It may be a container's port, unless it is known to be another's.
pub(super) fn bridged_at_device_hook(site: &Site, hook: Hook, device: Option<&str>) -> Vec<Probe> {
    let is_elsewhere = |name: &str| {
        [Some(site.device.as_str()), site.underlay.as_deref(), Some("lo")].contains(&Some(name))
            || site.names.elsewhere.contains(name)
    };
    if device.is_some_and(is_elsewhere) {
        return Vec::new();
    }
    let here = device.map_or(Interface::Containers, |name| Interface::Named(name.to_owned()));
    match hook {
        Hook::Ingress => vec![bridged(site, here, Interface::Absent)],
        Hook::Egress => vec![bridged(site, Interface::Absent, here)],
        _ => Vec::new(),
    }
}

/// Frames between containers of this host.
fn bridged(site: &Site, input: Interface, output: Interface) -> Probe {
    let own = || vec![site.subnet.map_or(everywhere(site), Range::from)];
    Probe::forwarded(own(), own(), input, output)
}

/// The probes that meet a chain at the interface with this name. What the programs redirect passes no chain at the egress of an
/// interface (`nf_skip_egress` in `__netif_receive_skb_core`, Linux 5.17).
pub(super) fn at_device_hook(site: &Site, hook: Hook, device: &str) -> Vec<Probe> {
    let all = directions(site);
    let [leaving, arriving, ..] = &all[..] else { return Vec::new() };
    let is_ingress = match hook {
        Hook::Ingress => true,
        Hook::Egress => false,
        _ => return Vec::new(),
    };
    let here = |probe: &Probe| {
        let named = || Interface::Named(device.to_owned());
        let (input, output) =
            if is_ingress { (named(), Interface::Absent) } else { (Interface::Absent, named()) };
        Probe { input, output, ..probe.clone() }
    };
    if Some(device) == site.underlay.as_deref() {
        let (tunnel, inner) = if is_ingress {
            (arriving_tunnel(site), arriving.clone())
        } else {
            (leaving_tunnel(site), Probe { is_sent: true, ..leaving.clone() })
        };
        let inner = site.is_direct.then(|| here(&inner));
        return inner.into_iter().chain([here(&tunnel)]).collect();
    }
    if device == site.device {
        return vec![here(if is_ingress { arriving } else { leaving })];
    }
    if device == "lo" || site.names.elsewhere.contains(device) {
        return Vec::new();
    }
    vec![here(if is_ingress { leaving } else { arriving })]
}

/// The probes that meet a chain at an interface of which nothing is known.
pub(super) fn at_any_device_hook(site: &Site, hook: Hook) -> Vec<Probe> {
    let named = |name: &String| at_device_hook(site, hook, name);
    let mut probes: Vec<Probe> = site.underlay.iter().chain([&site.device]).flat_map(named).collect();
    // No interface is named so. It stands for those that lead to containers.
    probes.extend(at_device_hook(site, hook, ""));
    for probe in &mut probes {
        for interface in [&mut probe.input, &mut probe.output] {
            if *interface == Interface::Named(String::new()) {
                *interface = Interface::Containers;
            }
        }
    }
    probes
}

/// Packets between containers, as they are forwarded: first those that leave, and then those that arrive, by overlay0. Without
/// encapsulation both may pass the underlay's interfaces as well.
fn directions(site: &Site) -> Vec<Probe> {
    let own = || vec![site.subnet.map_or(everywhere(site), Range::from)];
    let network = site.network.map_or(everywhere(site), Range::from);
    let beside = |range: Range<IpAddr>| match site.subnet {
        Some(subnet) => range.without(subnet.into()),
        None => vec![range],
    };
    let others = beside(network);
    let leaving = |output: Interface, others: &[Range<IpAddr>]| {
        Probe::forwarded(own(), others.to_vec(), Interface::Containers, output)
    };
    let arriving = |input: Interface, others: &[Range<IpAddr>]| {
        Probe::forwarded(others.to_vec(), own(), input, Interface::Containers)
    };
    let device = Interface::Named(site.device.clone());
    let mut probes = vec![leaving(device.clone(), &others), arriving(device, &others)];
    if site.is_direct {
        // The way to a peer may lead out of any interface of the underlay. What else of Network takes the underlay is the
        // host's, since nobody can lease it.
        let leasable = beside(site.leasable.map_or(network, |(first, last)| Range { first, last }));
        probes.extend([leaving(Interface::Hosts, &leasable), arriving(Interface::Hosts, &leasable)]);
    }
    probes
}

/// The tunnel's packets from other hosts.
fn arriving_tunnel(site: &Site) -> Probe {
    let probe = Probe::forwarded(hosts(site), this_host(site), Interface::Hosts, Interface::Absent);
    Probe { is_to_host: true, protocol: Some(UDP), port: Some(site.port), ..probe }
}

/// The tunnel's packets to other hosts.
fn leaving_tunnel(site: &Site) -> Probe {
    let probe = Probe::forwarded(this_host(site), hosts(site), Interface::Absent, Interface::Hosts);
    Probe { is_from_host: true, is_sent: true, protocol: Some(UDP), port: Some(site.port), ..probe }
}

/// The address that the tunnel's packets have here.
fn this_host(site: &Site) -> Vec<Range<IpAddr>> {
    vec![site.address.map_or(everywhere(site), Range::one)]
}

/// All addresses that another host may have on the underlay.
fn hosts(site: &Site) -> Vec<Range<IpAddr>> {
    match site.leasable {
        Some((first, last)) => everywhere(site).without(Range { first, last }),
        None => vec![everywhere(site)],
    }
}

/// All addresses. Where something is not known it may be any of them, so that every rule may concern it.
fn everywhere(site: &Site) -> Range<IpAddr> {
    match site.address {
        Some(IpAddr::V6(_)) => Range { first: [0; 16].into(), last: [0xff; 16].into() },
        Some(IpAddr::V4(_)) | None => Range { first: [0; 4].into(), last: [0xff; 4].into() },
    }
}

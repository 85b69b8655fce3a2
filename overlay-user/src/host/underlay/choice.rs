//! The choice of the underlay interface and address as flanneld makes it (its main.go, pkg/ipmatch and pkg/ip): pure, so that
//! every rule is a case of a table.
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, anyhow, bail};
use regex::Regex;

use crate::{
    host::netlink::{FlaggedAddress, Ipv6Address, Link, LinkKind, LinkType, Route, Way},
    model::mac::Mac,
};

/// How to find the underlay interface. The ways are tried in this order, each candidate after the one before it has failed.
/// Without any of them, the interface that holds the public IP is taken, or else that of the default route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `--iface`: names or addresses.
    pub names: Vec<String>,
    /// `--iface-regex`: patterns for addresses, and then for names.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`: the interface by which this address is reached, and the address that packets have from there.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`: the address that the lease tells the other hosts.
    pub public_ip: Option<IpAddr>,
    /// `--public-ipv6`: the same of IPv6, in a network of both families.
    pub public_ipv6: Option<IpAddr>,
}

impl Choice {
    /// The address that the lease tells the other hosts.
    pub fn public_ip(&self, underlay: &Underlay) -> IpAddr {
        self.public_ip.unwrap_or(underlay.address)
    }
}

/// The interface that carries encapsulated packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its MAC address. `None` if the link has none, as a TUN or a point-to-point line.
    pub mac: Option<Mac>,
    /// The smallest MTU of the interfaces that encapsulated packets leave by, in bytes.
    pub mtu: u32,
    /// The address that encapsulated packets come from. It is the public IP wherever this host has that address itself.
    pub address: IpAddr,
}

/// What the choice is made from, in the kernel's order.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// All links.
    pub links: Vec<Link>,
    /// All IPv4 addresses.
    pub addresses: Vec<FlaggedAddress>,
    /// All IPv6 addresses.
    pub ipv6: Vec<Ipv6Address>,
    /// The routes that lead further than this host's own links.
    pub ways: Vec<Way>,
    /// The route to the address of `--iface-can-reach`, or why there is none.
    pub reached: Option<Result<Route, String>>,
}

/// An interface, and the address of this host that packets come from.
struct Found<'a> {
    link: &'a Link,
    address: IpAddr,
}

/// Why a candidate is none: there is no such interface, or the one that there is cannot be taken, in words.
enum Missed {
    Absent,
    Useless(String),
}

const NO_DEFAULT_ROUTE: &str = "there is no default route to choose the interface by: name it with --iface";

/// Chooses the underlay.
///
/// # Errors
/// Why no interface was chosen, and what to do: each candidate is named.
pub fn pick(choice: &Choice, sight: &Sight) -> Result<Underlay> {
    let Found { link, address } = found(choice, sight)?;
    // flanneld sends from the public IP. If that is an address of this host, peers drop what comes from any other; if it is a
    // NAT's, the NAT puts it there.
    let address = choice.public_ip.filter(|&address| sight.holder(address).is_some()).unwrap_or(address);
    let (link, mtu) = sight.leaving(link, address)?;
    if let Some(why) = unfit(link) {
        bail!(why);
    }
    if mtu == 0 {
        bail!("interface {} has no MTU: choose another with --iface", link.name);
    }
    Ok(Underlay { name: link.name.clone(), ifindex: link.index, mac: link.mac, mtu, address })
}

fn found<'a>(choice: &Choice, sight: &'a Sight) -> Result<Found<'a>> {
    let (mut absent, mut useless) = (Vec::new(), Vec::new());
    let mut missed = |flag: &str, asked: &str, why| match why {
        Missed::Absent => absent.push(format!("{flag} {asked}")),
        Missed::Useless(why) => useless.push(why),
    };
    for name in &choice.names {
        match sight.named(name) {
            Ok(found) => return Ok(found),
            Err(why) => missed("--iface", name, why),
        }
    }
    for pattern in &choice.patterns {
        match sight.matching(pattern) {
            Ok(found) => return Ok(found),
            Err(why) => missed("--iface-regex", pattern, why),
        }
    }
    if let Some(address) = choice.can_reach {
        match sight.reaching(address) {
            Ok(found) => return Ok(found),
            Err(why) => useless.push(why),
        }
    }
    if !absent.is_empty() {
        let absent = absent.join(", ");
        useless.insert(0, format!("no interface matches {absent}: `ip address` lists what there is"));
    }
    if !useless.is_empty() {
        bail!(useless.join("; "));
    }
    // flanneld ends here if the public IP is none of this host's. A NAT's is meant then, as behind a cloud's gateway.
    if let Some((link, address)) = choice.public_ip.and_then(|ip| Some((sight.holder(ip)?, ip))) {
        return Ok(Found { link, address });
    }
    let link = sight.default_link().ok_or_else(|| anyhow!(NO_DEFAULT_ROUTE))?;
    sight.first_of(link).map_err(|why| anyhow!(why))
}

impl Sight {
    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface that has this address.
    fn holder(&self, address: IpAddr) -> Option<&Link> {
        let ipv4 = self.addresses.iter().map(|one| (one.address.address, one.address.link));
        let mut held = ipv4.chain(self.ipv6.iter().map(|one| (one.address, one.link)));
        held.find(|(one, _)| *one == address).and_then(|(_, link)| self.link(link))
    }

    /// The addresses of a link that other hosts may reach, in the order in which flanneld prefers them: first those that are
    /// not of the link alone (169.254.0.0/16), then those without an end, then those that are no prefix's second.
    fn usable(&self, link: &Link) -> Vec<IpAddr> {
        let own = self.addresses.iter().filter(|one| one.address.link == link.index);
        let mut own: Vec<_> = own
            .filter(|one| !one.is_deprecated && is_unicast(one.address.address))
            .map(|one| {
                let order = (is_link_local(one.address.address), !one.is_permanent, one.is_secondary);
                (order, one.address.address)
            })
            .collect();
        own.sort_by_key(|(order, _)| *order);
        own.into_iter().map(|(_, address)| address).collect()
    }

    /// The usable addresses of the link with this index, the first choice first.
    pub(super) fn usable_at(&self, index: u32) -> Vec<IpAddr> {
        self.link(index).map(|link| self.usable(link)).unwrap_or_default()
    }

    /// A link with the first of its usable addresses.
    fn first_of<'a>(&'a self, link: &'a Link) -> Result<Found<'a>, String> {
        let usable = self.usable(link);
        let Some(&address) = usable.first() else {
            let own: Vec<_> =
                self.addresses.iter().filter(|one| one.address.link == link.index).map(described).collect();
            let only = if own.is_empty() { String::new() } else { format!(" but {}", own.join(", ")) };
            return Err(format!(
                "interface {} has no IPv4 address{only}: give it one, or choose another with --iface",
                link.name
            ));
        };
        Ok(Found { link, address })
    }

    fn named(&self, wanted: &str) -> Result<Found<'_>, Missed> {
        if let Ok(address) = wanted.parse::<IpAddr>() {
            let link = self.holder(address).ok_or(Missed::Absent)?;
            if address.is_ipv6() {
                // The interface is named by it, and IPv6's choice takes the address itself.
                return self.first_of(link).map_err(Missed::Useless);
            }
            return Ok(Found { link, address });
        }
        let link = self.links.iter().find(|link| link.name == wanted).ok_or(Missed::Absent)?;
        self.first_of(link).map_err(Missed::Useless)
    }

    /// The first interface with a usable address that matches, or else the first whose name does.
    fn matching(&self, pattern: &str) -> Result<Found<'_>, Missed> {
        let regex = Regex::new(pattern)
            .map_err(|error| Missed::Useless(format!("--iface-regex {pattern}: {error}")))?;
        for link in &self.links {
            let mut usable = self.usable(link).into_iter();
            if let Some(address) = usable.find(|address| regex.is_match(&address.to_string())) {
                return Ok(Found { link, address });
            }
        }
        let link = self.links.iter().find(|link| regex.is_match(&link.name)).ok_or(Missed::Absent)?;
        self.first_of(link).map_err(Missed::Useless)
    }

    /// The interface by which an address is reached, with the source address of the route.
    fn reaching(&self, address: IpAddr) -> Result<Found<'_>, String> {
        // The kernel routes to its own addresses through lo. What it names is the interface that has the address.
        if let Some(link) = self.holder(address) {
            return Ok(Found { link, address });
        }
        let none = |why: &str| format!("no route leads to {address} (--iface-can-reach): {why}");
        let route = match &self.reached {
            Some(Ok(route)) => route,
            Some(Err(why)) => return Err(none(why)),
            None => return Err(none("it was not looked up")),
        };
        let link = route.link.and_then(|link| self.link(link));
        let link = link.ok_or_else(|| none("its interface is gone"))?;
        match route.source {
            Some(address) => Ok(Found { link, address }),
            None => self.first_of(link),
        }
    }

    /// The interface of the best default route; of several next hops, the first. (flanneld refuses a route with several.)
    fn default_link(&self) -> Option<&Link> {
        let defaults = self.ways.iter().filter(|way| way.destination.prefix_len() == 0);
        let best = defaults.min_by_key(|way| way.metric)?;
        best.links.iter().find_map(|&link| self.link(link))
    }

    /// The interface by which packets from an address of `link` leave, and their MTU. It is the link itself, unless that is one
    /// that no packet leaves by (lo, a dummy), where routing protocols put the address of a host with several ways out.
    fn leaving<'a>(&'a self, link: &'a Link, address: IpAddr) -> Result<(&'a Link, u32)> {
        if !holds_addresses_only(link) {
            return Ok((link, link.mtu));
        }
        let best = self.ways.iter().min_by_key(|way| (way.destination.prefix_len(), way.metric));
        let out: Vec<&Link> =
            best.into_iter().flat_map(|way| &way.links).filter_map(|&link| self.link(link)).collect();
        match (out.first(), out.iter().map(|link| link.mtu).min()) {
            (Some(link), Some(mtu)) => Ok((link, mtu)),
            _ => bail!(
                "{address} is an address of {}, by which no packet leaves, and no route says by which interface the other \
                 hosts are reached: choose it with --iface",
                link.name
            ),
        }
    }
}

/// Why this interface cannot be the underlay, and what to do, or `None` if it can. The programs at the underlay device read
/// frames that begin with an Ethernet header: on another link they would recognise no packet, and check none.
pub fn unfit(link: &Link) -> Option<String> {
    if link.link_type.has_ethernet_header() {
        return None;
    }
    let kind = match &link.kind {
        LinkKind::Tun(_) => " (tun)".to_owned(),
        LinkKind::Other(kind) if !kind.is_empty() => format!(" ({kind})"),
        _ => String::new(),
    };
    Some(format!(
        "interface {} is of link type {}{kind}, without the Ethernet header that the programs read: choose another with \
         --iface, such as the physical interface; hosts that need WireGuard between them can run flannel's own wireguard \
         backend instead",
        link.name, link.link_type
    ))
}

pub(super) fn holds_addresses_only(link: &Link) -> bool {
    link.link_type == LinkType::LOOPBACK || link.kind == LinkKind::Other("dummy".to_owned())
}

/// Whether an address is one of its link alone (169.254.0.0/16).
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

/// Whether other hosts may have a route to the address: what Go calls a global unicast address, or one of the link.
fn is_unicast(address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else { return false };
    !(address.is_loopback()
        || address.is_multicast()
        || address == Ipv4Addr::UNSPECIFIED
        || address == Ipv4Addr::BROADCAST)
}

/// An address that is not usable, in words.
fn described(one: &FlaggedAddress) -> String {
    let address = one.address.address;
    let why = if one.is_deprecated { "deprecated" } else { "which reaches no other host" };
    format!("{address} ({why})")
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;

//! Which interface and address peers reach this host at: flannel's rules (its pkg/ipmatch).
use std::net::IpAddr;

use anyhow::{Context as _, Result, anyhow, bail};
use regex::Regex;

use crate::{
    host::netlink::{Address, Link, LinkKind, Netlink},
    model::mac::Mac,
};

/// How to find the underlay interface. The ways are tried in this order, and the interface of the default route is last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `--iface`: names or addresses. The first that exists is chosen.
    pub names: Vec<String>,
    /// `--iface-regex`: patterns for addresses, and then for names. The first that matches is chosen.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`: the interface by which this address is reached is chosen.
    pub can_reach: Option<IpAddr>,
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
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The address by which peers reach this host, unless `--public-ip` says otherwise.
    pub address: IpAddr,
}

const NO_DEFAULT_ROUTE: &str = "there is no default route to choose the interface by: name it with --iface";

/// Chooses the underlay interface. If it has several addresses, the first is taken, as flannel does, and that is logged.
///
/// # Errors
/// Why no interface was chosen, and what to do.
pub async fn choose(netlink: &Netlink, choice: &Choice) -> Result<Underlay> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    if !choice.names.is_empty() || !choice.patterns.is_empty() {
        return pick(choice, &links, &addresses);
    }
    let link = match choice.can_reach {
        Some(address) => {
            let route = netlink.route_to(address).await;
            let route = route.map_err(|error| {
                anyhow!("no route leads to {address} (--iface-can-reach): {}", error.detail)
            })?;
            route.link
        }
        None => {
            let routes = netlink.routes().await?;
            let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0);
            let best = defaults.min_by_key(|route| route.metric);
            best.context(NO_DEFAULT_ROUTE)?.link
        }
    };
    let link = links.iter().find(|other| Some(other.index) == link);
    underlay(link.context(NO_DEFAULT_ROUTE)?, &addresses, None)
}

/// The interface that `--iface` and `--iface-regex` name. This needs no routes.
fn pick(choice: &Choice, links: &[Link], addresses: &[Address]) -> Result<Underlay> {
    let holder = |address: &Address| links.iter().find(|link| link.index == address.link);
    for wanted in &choice.names {
        if let Ok(wanted) = wanted.parse::<IpAddr>() {
            let address = addresses.iter().find(|address| address.address == wanted);
            if let Some(link) = address.and_then(holder) {
                return underlay(link, addresses, Some(wanted));
            }
        } else if let Some(link) = links.iter().find(|link| link.name == *wanted) {
            return underlay(link, addresses, None);
        }
    }
    for pattern in &choice.patterns {
        let regex = Regex::new(pattern).map_err(|error| anyhow!("--iface-regex {pattern}: {error}"))?;
        let address = addresses.iter().find(|address| regex.is_match(&address.address.to_string()));
        if let Some((link, address)) = address.and_then(|address| Some((holder(address)?, address))) {
            return underlay(link, addresses, Some(address.address));
        }
        if let Some(link) = links.iter().find(|link| regex.is_match(&link.name)) {
            return underlay(link, addresses, None);
        }
    }
    let flags = choice.names.iter().map(|name| format!("--iface {name}"));
    let patterns = choice.patterns.iter().map(|pattern| format!("--iface-regex {pattern}"));
    let asked = flags.chain(patterns).collect::<Vec<_>>().join(", ");
    bail!("no interface matches {asked}: `ip -4 address` lists what there is")
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

fn underlay(link: &Link, addresses: &[Address], wanted: Option<IpAddr>) -> Result<Underlay> {
    if let Some(why) = unfit(link) {
        bail!(why);
    }
    let own: Vec<_> = addresses.iter().filter(|address| address.link == link.index).collect();
    let first = own.first().with_context(|| {
        format!("interface {} has no IPv4 address: give it one, or choose another with --iface", link.name)
    })?;
    let address = wanted.unwrap_or(first.address);
    if wanted.is_none() && own.len() > 1 {
        log::info!(
            "{} has {} addresses: taking the first, {address}; --iface ADDRESS chooses another",
            link.name,
            own.len()
        );
    }
    Ok(Underlay { name: link.name.clone(), ifindex: link.index, mac: link.mac, mtu: link.mtu, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::{LinkType, Tun};

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: LinkKind::Other(String::new()),
            link_type: LinkType::ETHERNET,
            master: None,
            mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
            mtu: 1500,
            up: true,
            carrier: true,
            noarp: false,
            peer: None,
            peer_netns: None,
        }
    }

    fn choose_among(names: &[&str], patterns: &[&str]) -> Result<(String, IpAddr), String> {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "bare0")];
        let address = |link, octets: [u8; 4]| Address { link, address: octets.into(), prefix_len: 24 };
        let addresses = [
            address(1, [127, 0, 0, 1]),
            address(2, [192, 168, 0, 7]),
            address(3, [10, 9, 0, 1]),
            address(3, [10, 9, 0, 2]),
        ];
        let choice = Choice {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            patterns: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
            can_reach: None,
        };
        pick(&choice, &links, &addresses)
            .map(|underlay| (underlay.name, underlay.address))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn flags_choose_as_flannels_do() {
        let chosen = |name: &str, octets: [u8; 4]| Ok((name.to_owned(), IpAddr::from(octets)));
        assert_eq!(choose_among(&["eth1"], &[]), chosen("eth1", [10, 9, 0, 1]));
        assert_eq!(choose_among(&["10.9.0.2"], &[]), chosen("eth1", [10, 9, 0, 2]));
        assert_eq!(choose_among(&["nope", "eth0"], &["eth1"]), chosen("eth0", [192, 168, 0, 7]));
        assert_eq!(choose_among(&["nope"], &["th1$"]), chosen("eth1", [10, 9, 0, 1]));
        assert_eq!(choose_among(&[], &[r"^10\.9\.0\.2$"]), chosen("eth1", [10, 9, 0, 2]));
        assert_eq!(choose_among(&[], &["192"]), chosen("eth0", [192, 168, 0, 7]));
    }

    #[test]
    fn a_link_without_an_ethernet_header_is_refused_by_name() {
        let of = |link_type, kind| Link { link_type, kind, ..link(5, "wg0") };
        let other = |kind: &str| LinkKind::Other(kind.to_owned());
        for (link_type, kind, says) in [
            (LinkType::NONE, other("wireguard"), "interface wg0 is of link type none (wireguard), without"),
            (
                LinkType::NONE,
                LinkKind::Tun(Tun::default()),
                "interface wg0 is of link type none (tun), without",
            ),
            (LinkType(768), other("ipip"), "interface wg0 is of link type ipip (ipip), without"),
            (LinkType(513), other(""), "interface wg0 is of link type [513], without"),
        ] {
            let why = unfit(&of(link_type, kind)).unwrap();
            assert!(why.starts_with(says) && why.contains("--iface"), "{why}");
        }
        for link_type in [LinkType::ETHERNET, LinkType::LOOPBACK] {
            assert_eq!(unfit(&of(link_type, other(""))), None);
        }
    }

    #[test]
    fn refusals_name_what_was_asked_for() {
        let refusal = |names: &[&str], patterns: &[&str]| choose_among(names, patterns).unwrap_err();
        assert!(refusal(&["bare0"], &[]).starts_with("interface bare0 has no IPv4 address"));
        assert!(
            refusal(&["ens9", "10.0.0.9"], &["^wg"])
                .starts_with("no interface matches --iface ens9, --iface 10.0.0.9, --iface-regex ^wg")
        );
        assert!(refusal(&[], &["("]).starts_with("--iface-regex (: "));
    }
}

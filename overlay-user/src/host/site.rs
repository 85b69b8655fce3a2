//! What is known of the overlay on this host by those who ask what else the host has for packets between containers: rules of
//! the packet filter, and IPsec policies.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    netlink::{FlaggedAddress, Link, Netlink, NetlinkError},
    underlay::is_link_local,
};

/// The overlay's addresses, and where the host's interfaces lead. An agent knows all of it; `overlay check` may know little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// All addresses of the overlay.
    pub network: Option<IpNet>,
    /// The first and the last address that a container can get. No host has one on its underlay.
    pub leasable: Option<(IpAddr, IpAddr)>,
    /// The addresses of this host's containers.
    pub subnet: Option<IpNet>,
    /// Name of the tunnel device.
    pub device: String,
    /// Name of the underlay interface.
    pub underlay: Option<String>,
    /// This host's address on it, between which and other hosts the tunnel's packets travel.
    pub address: Option<IpAddr>,
    /// The UDP port that the tunnel's packets are sent to, in the machine's order. With host-gw it is that of the packets to
    /// peers behind a router.
    pub port: u16,
    /// Whether peers on the same link are reached without encapsulation.
    pub is_direct: bool,
    /// Where the host's interfaces lead.
    pub names: Names,
}

/// Where the host's interfaces lead, as far as their addresses and routes tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names of those that lead to containers of this host.
    pub containers: BTreeSet<String>,
    /// Names of those that lead to none.
    pub elsewhere: BTreeSet<String>,
    /// Whether the tunnel's packets come from the underlay interface's first address, which is the one that masquerading by
    /// interface gives to what leaves there (`inet_select_addr` of the kernel). Peers drop what comes from any other. It also
    /// holds where the interface or the address is not known.
    pub is_masqueraded_alike: bool,
}

impl Site {
    /// A host of 10.244.0.0/16 with the subnet 10.244.1.0/24, for tests.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            network: Some("10.244.0.0/16".parse().unwrap()),
            leasable: Some(([10, 244, 0, 0].into(), [10, 244, 63, 255].into())),
            subnet: Some("10.244.1.0/24".parse().unwrap()),
            device: "overlay0".into(),
            underlay: Some("eth0".into()),
            address: Some([10, 99, 0, 1].into()),
            port: 8472,
            is_direct: false,
            names: Names {
                containers: ["br7".into()].into(),
                elsewhere: ["eth1".into(), "virbr0".into()].into(),
                is_masqueraded_alike: true,
            },
        }
    }

    /// Where the host's interfaces lead now: to containers if they have an address of this host's subnet, or a route to part of
    /// it, and elsewhere if they have other addresses alone. Of the others nothing is known, and of none where there is no
    /// subnet. The tunnel device is left out, since it is known by its own name, and may not be there yet.
    ///
    /// # Errors
    /// When the kernel does not list links, addresses or routes.
    pub async fn look_around(&self, netlink: &Netlink) -> Result<Names, NetlinkError> {
        let (links, addresses) = (netlink.links().await?, netlink.flagged_addresses().await?);
        let is_masqueraded_alike = self.is_masqueraded_alike(&links, &addresses);
        let mut names = Names { is_masqueraded_alike, ..Names::default() };
        let Some(subnet) = self.subnet else { return Ok(names) };
        let routes = netlink.routes().await?;
        for link in links.into_iter().filter(|link| link.name != self.device) {
            let own = addresses.iter().map(|flagged| flagged.address);
            let mut own = own.filter(|address| address.link == link.index).peekable();
            let has_route = |leads: &dyn Fn(&IpNet) -> bool| {
                routes.iter().any(|route| route.link == Some(link.index) && leads(&route.destination))
            };
            let has_address = own.peek().is_some();
            let is_wider = |into: &IpNet| into.prefix_len() > 0 && into.contains(&subnet) && *into != subnet;
            if has_route(&|into| subnet.contains(into))
                || own.any(|address| subnet.contains(&address.address))
            {
                names.containers.insert(link.name);
            } else if has_address && !has_route(&is_wider) {
                // A route to more than the subnet may lead to containers, to hosts, or to both.
                names.elsewhere.insert(link.name);
            }
        }
        Ok(names)
    }

    /// See [`Names::is_masqueraded_alike`]. `addresses` are in the kernel's order. An address of the link alone (169.254.0.0/16)
    /// is passed over, as the kernel passes over what has that scope.
    fn is_masqueraded_alike(&self, links: &[Link], addresses: &[FlaggedAddress]) -> bool {
        let (Some(name), Some(own)) = (&self.underlay, self.address) else { return true };
        let Some(underlay) = links.iter().find(|link| link.name == *name) else { return true };
        let mut given = addresses
            .iter()
            .filter(|one| one.address.link == underlay.index && !one.is_secondary)
            .map(|one| one.address.address);
        given.find(|address| *address == own || !is_link_local(*address)) == Some(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::{Address, LinkKind};

    #[test]
    fn masquerading_gives_the_first_address_of_the_underlay_interface() {
        let link = |index, name: &str| Link::example(index, name, LinkKind::Other(String::new()));
        let links = [link(1, "lo"), link(2, "eth0")];
        let has = |link, address: [u8; 4], is_secondary| FlaggedAddress {
            address: Address { link, address: address.into(), prefix_len: 24 },
            is_deprecated: false,
            is_permanent: true,
            is_secondary,
        };
        let site = Site::example();
        let (own, other) = ([10, 99, 0, 1], [10, 99, 0, 7]);
        for (addresses, is_alike) in [
            (vec![has(1, [127, 0, 0, 1], false), has(2, own, false), has(2, other, true)], true),
            (vec![has(2, own, false), has(2, other, false)], true),
            (vec![has(2, [169, 254, 0, 3], false), has(2, own, false)], true),
            (vec![has(2, other, false), has(2, own, true)], false),
            (vec![has(2, other, false), has(2, own, false)], false),
            (vec![has(1, own, false), has(2, other, false)], false),
        ] {
            assert_eq!(site.is_masqueraded_alike(&links, &addresses), is_alike, "{addresses:?}");
        }
        let unknown = Site { address: None, ..Site::example() };
        assert!(unknown.is_masqueraded_alike(&links, &[has(2, other, false)]));
        assert!(Site { underlay: None, ..Site::example() }.is_masqueraded_alike(&links, &[]));
    }
}

//! Other networks of this host whose addresses are inside Network, so that other hosts' containers with these addresses cannot
//! be reached.
use ipnet::IpNet;

use super::finding::{Finding, Level};
use crate::host::netlink::{Address, Link, Route};

/// The whole overlay: the tunnel device's route that this host's subnet is part of.
pub(super) fn network(routes: &[Route], device: u32, subnet: IpNet) -> Option<IpNet> {
    let ours = |route: &&Route| route.link == Some(device) && route.destination.contains(&subnet);
    routes.iter().filter(ours).map(|route| route.destination).min_by_key(IpNet::prefix_len)
}

/// Addresses inside Network that are not of this host's subnet: the kernel has a route for their network that is more
/// specific than Network's, and other hosts send nothing there.
pub(super) fn others(
    addresses: &[Address],
    links: &[Link],
    device: &str,
    network: Option<IpNet>,
    subnet: Option<IpNet>,
) -> Finding {
    let what = "other networks";
    let (Some(network), Some(subnet)) = (network, subnet) else {
        return Finding::ok(what, "no subnet leased and attached yet: nothing to look for");
    };
    let misplaced =
        addresses.iter().filter(|one| network.contains(&one.address) && !subnet.contains(&one.address));
    let named: Vec<String> = misplaced
        .filter_map(|one| {
            let link = links.iter().find(|link| link.index == one.link && link.name != device)?;
            Some(format!("{}/{} of {}", one.address, one.prefix_len, link.name))
        })
        .collect();
    if named.is_empty() {
        return Finding::ok(what, format!("none inside {network} but this host's subnet {subnet}"));
    }
    Finding::new(
        what,
        Level::Warn,
        format!(
            "inside {network}, but not this host's subnet {subnet}: {}. Containers there are not part of the overlay, and \
             the hosts whose subnet that is cannot be reached from here by the stack",
            named.join(", ")
        ),
        "give that network other addresses; a network of Docker's: docker network rm, and create it anew with a --subnet \
         outside, or of this host's own",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::{LinkKind, LinkType};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn network_is_the_devices_widest_route_around_the_subnet() {
        let route = |destination, link| Route {
            destination: net(destination),
            link: Some(link),
            gateway: None,
            source: None,
            metric: 0,
            table: 254,
        };
        let routes = [
            route("10.0.0.0/8", 2),
            route("10.244.0.0/16", 7),
            route("10.244.1.0/24", 7),
            route("172.16.0.0/12", 7),
        ];
        assert_eq!(network(&routes, 7, net("10.244.1.0/24")), Some(net("10.244.0.0/16")));
        assert_eq!(network(&routes, 9, net("10.244.1.0/24")), None);
    }

    #[test]
    fn a_bridge_in_another_hosts_subnet_is_named() {
        let link = |index, name: &str| Link {
            index,
            name: name.into(),
            kind: LinkKind::Bridge,
            link_type: LinkType::ETHERNET,
            master: None,
            mac: None,
            mtu: 1450,
            up: true,
            carrier: true,
            noarp: false,
            peer: None,
            peer_netns: None,
        };
        let links = [link(1, "overlay0"), link(2, "docker0"), link(3, "br-7"), link(4, "br-8")];
        let address = |link, address: [u8; 4]| Address { link, address: address.into(), prefix_len: 24 };
        let mut addresses =
            vec![address(1, [10, 244, 1, 0]), address(2, [10, 244, 1, 1]), address(4, [172, 18, 0, 1])];
        let found = |addresses: &[Address]| {
            others(addresses, &links, "overlay0", Some(net("10.244.0.0/16")), Some(net("10.244.1.0/24")))
        };
        assert_eq!(found(&addresses).level, Level::Ok);
        addresses.push(address(3, [10, 244, 2, 1]));
        let warned = found(&addresses);
        assert_eq!(warned.level, Level::Warn);
        assert!(warned.detail.contains(": 10.244.2.1/24 of br-7. "), "{warned:?}");
    }
}

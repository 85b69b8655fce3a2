//! Finds addresses and routes of this host that are inside the overlay's range. Because of them, other hosts' containers with
//! these addresses cannot be reached, or are reached in spite of them.
use ipnet::IpNet;

use super::finding::{Finding, Level};
use crate::host::{
    netlink::{Address, Link, Route},
    overlaps::{Overlaps, REMEDY},
};

/// The overlay's ranges as the tunnel device's routes show them: everything that is routed through the device, provided that
/// this host's subnet is among it.
pub(super) fn prefixes(routes: &[Route], device: u32, subnet: IpNet) -> Vec<IpNet> {
    let ours = routes.iter().filter(|route| route.link == Some(device) && route.gateway.is_none());
    let prefixes: Vec<IpNet> = ours.map(|route| route.destination).collect();
    if prefixes.iter().any(|prefix| prefix.contains(&subnet)) { prefixes } else { Vec::new() }
}

/// What is known of the overlay on this host. `subnet` is `None` before it is leased, and `prefixes` is empty before there is a
/// tunnel device.
pub(super) struct Overlay<'a> {
    pub(super) prefixes: &'a [IpNet],
    pub(super) subnet: Option<IpNet>,
    pub(super) underlay: Option<&'a Link>,
}

/// Finds what this host has inside those prefixes, but not in its own subnet. For such addresses the kernel has a more specific
/// route than overlay0's, other hosts send nothing there, and the fast path goes by the leases.
pub(super) fn findings(
    overlay: &Overlay<'_>,
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
) -> Vec<Finding> {
    let Overlay { prefixes, subnet, underlay } = overlay;
    let what = "other networks";
    let (Some(subnet), false) = (subnet, prefixes.is_empty()) else {
        return vec![Finding::ok(what, "no subnet leased and attached yet: nothing to look for")];
    };
    let range = prefixes.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
    let found = Overlaps::find(prefixes, &[*subnet], links, addresses, routes);
    let mut findings = Vec::new();
    let own = addresses.iter().find(|one| {
        underlay.is_some_and(|link| link.index == one.link)
            && prefixes.iter().any(|prefix| prefix.contains(&one.address))
    });
    if let Some(Address { address, .. }) = own {
        let detail =
            format!("{address}, this host's own, is inside the addresses that hosts may lease ({range})");
        findings.push(Finding::new("underlay address", Level::Fail, detail, REMEDY));
    }
    findings.push(if found.addresses.is_empty() {
        Finding::ok(what, format!("none inside {range} but this host's subnet {subnet}"))
    } else {
        Finding::new(
            what,
            Level::Warn,
            format!(
                "inside {range}, but not this host's subnet {subnet}: {}. Containers there are not part of the overlay, and \
                 the hosts whose subnet that is cannot be reached from here by the stack",
                found.addresses.join(", ")
            ),
            "give that network other addresses; a network of Docker's: docker network rm, and create it anew with a --subnet \
             outside, or of this host's own",
        )
    });
    findings.push(if found.routes.is_empty() {
        Finding::ok("other routes", format!("none inside {range}"))
    } else {
        let detail = format!(
            "inside {range}: {}. What takes the stack follows them. The fast path goes by the leases: packets to a subnet that \
             another host has leased pass them by",
            found.routes.join(", ")
        );
        Finding::new("other routes", Level::Warn, detail, format!("remove them; or {REMEDY}"))
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::LinkKind;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_overlay_is_what_is_routed_through_the_device() {
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
        let ours = ["10.244.0.0/16", "10.244.1.0/24", "172.16.0.0/12"].map(net);
        assert_eq!(prefixes(&routes, 7, net("10.244.1.0/24")), ours);
        assert_eq!(prefixes(&routes, 9, net("10.244.1.0/24")), []);
    }

    #[test]
    fn a_bridge_in_another_hosts_subnet_is_named() {
        let link = |index, name: &str| Link::example(index, name, LinkKind::Bridge);
        let links = [link(1, "flannel.1"), link(2, "docker0"), link(3, "br-7"), link(4, "br-8")];
        let address = |link, address: [u8; 4]| Address { link, address: address.into(), prefix_len: 24 };
        let mut addresses =
            vec![address(1, [10, 244, 1, 0]), address(2, [10, 244, 1, 1]), address(4, [172, 18, 0, 1])];
        let prefixes = [net("10.244.0.0/16")];
        let found = |addresses: &[Address], underlay: Option<&Link>, routes: &[Route]| {
            let overlay = Overlay { prefixes: &prefixes, subnet: Some(net("10.244.1.0/24")), underlay };
            findings(&overlay, &links, addresses, routes)
        };
        let levels = |found: &[Finding]| found.iter().map(|it| it.level).collect::<Vec<_>>();
        assert_eq!(levels(&found(&addresses, None, &[])), [Level::Ok, Level::Ok]);
        addresses.push(address(3, [10, 244, 2, 1]));
        let warned = found(&addresses, None, &[]);
        assert_eq!(levels(&warned), [Level::Warn, Level::Ok]);
        assert!(warned[0].detail.contains(": 10.244.2.1/24 of br-7. "), "{warned:?}");
        let destination = net("10.244.3.0/24");
        let gateway = Some([10, 99, 0, 254].into());
        let route = Route { destination, link: Some(4), gateway, source: None, metric: 0, table: 254 };
        let warned = found(&addresses, Some(&links[2]), &[route]);
        assert_eq!(levels(&warned), [Level::Fail, Level::Warn, Level::Warn]);
        assert!(warned[0].detail.starts_with("10.244.2.1, this host's own,"), "{warned:?}");
        assert!(warned[2].detail.contains(": 10.244.3.0/24 via 10.99.0.254. "), "{warned:?}");
    }
}

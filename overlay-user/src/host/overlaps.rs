//! What this host has inside the leasable range beside the overlay: addresses and routes. Another host's containers may have
//! the same addresses.
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    device,
    netlink::{Address, Link, LinkKind, Netlink, NetlinkError, Route},
};
use crate::model::network::AddressPlan;

/// Addresses and routes inside the range, in words for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlaps {
    /// Such as `10.20.0.5/24 of eth0`.
    pub addresses: Vec<String>,
    /// Such as `10.20.0.0/16 via 10.99.0.254`.
    pub routes: Vec<String>,
}

/// What to do about them.
pub const REMEDY: &str =
    "leave these addresses out by SubnetMin and SubnetMax, or choose another Network (`overlay config set`)";

impl Overlaps {
    /// Looks for what lies inside `prefixes` and outside `subnets`, those of this host. Tunnel devices, ours and flannel's, are
    /// the overlay's.
    pub fn find(
        prefixes: &[IpNet],
        subnets: &[IpNet],
        links: &[Link],
        addresses: &[Address],
        routes: &[Route],
    ) -> Self {
        let name = |index: u32| links.iter().find(|link| link.index == index && !is_overlays(link));
        let own: Vec<&Address> = addresses
            .iter()
            .filter(|one| holds(prefixes, one.address) && !holds(subnets, one.address))
            .filter(|one| name(one.link).is_some())
            .collect();
        let is_connected = |route: &Route| {
            route.gateway.is_none()
                && own
                    .iter()
                    .any(|one| Some(one.link) == route.link && route.destination.contains(&one.address))
        };
        let inside = |nets: &[IpNet], route: &Route| nets.iter().any(|net| net.contains(&route.destination));
        let others = routes
            .iter()
            .filter(|route| inside(prefixes, route) && !inside(subnets, route) && !is_connected(route))
            .filter_map(|route| {
                let Route { destination, link, gateway, .. } = route;
                let device = match link {
                    Some(index) => Some(&name(*index)?.name),
                    None => None,
                };
                Some(match (gateway, device) {
                    (Some(gateway), _) => format!("{destination} via {gateway}"),
                    (None, Some(device)) => format!("{destination} by {device}"),
                    (None, None) => format!("{destination} by several paths"),
                })
            });
        let named = own.iter().filter_map(|one| {
            Some(format!("{}/{} of {}", one.address, one.prefix_len, name(one.link)?.name))
        });
        Self { addresses: named.collect(), routes: others.collect() }
    }

    /// The same for a network whose plan is known, on the host of the calling thread's namespace.
    pub async fn read(netlink: &Netlink, plan: &AddressPlan) -> Result<Self, NetlinkError> {
        let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
        let subnets = own_subnets(plan, &links, &addresses);
        Ok(Self::find(&plan.prefixes(), &subnets, &links, &addresses, &netlink.routes().await?))
    }

    /// All of them, in one line. Empty if there are none.
    pub fn named(&self) -> String {
        let routes = self.routes.iter().map(|route| format!("the route {route}"));
        self.addresses.iter().cloned().chain(routes).collect::<Vec<_>>().join(", ")
    }
}

/// The subnets that this host has leased: a tunnel device has the first address of each.
fn own_subnets(plan: &AddressPlan, links: &[Link], addresses: &[Address]) -> Vec<IpNet> {
    let tunnels: Vec<u32> = links.iter().filter(|link| is_overlays(link)).map(|link| link.index).collect();
    let own = addresses.iter().filter(|one| tunnels.contains(&one.link));
    own.filter_map(|one| Some(IpNet::new(one.address, plan.subnet_len).ok()?.trunc())).collect()
}

fn is_overlays(link: &Link) -> bool {
    device::is_tunnel(&link.kind)
        || matches!(link.kind, LinkKind::Vxlan(_))
        || link.name.starts_with("flannel")
}

fn holds(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::netlink::Vxlan, model::network::NetworkConfig};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(destination: &str, link: Option<u32>, gateway: Option<[u8; 4]>) -> Route {
        let (destination, gateway) = (net(destination), gateway.map(IpAddr::from));
        Route { destination, link, gateway, source: None, metric: 0, table: 254 }
    }

    #[test]
    fn addresses_and_routes_inside_the_range_are_named_but_not_the_overlays() {
        let tunnel = LinkKind::Vxlan(Vxlan { vni: 0, port: 8472, collect_metadata: true, vnifilter: true });
        let other = || LinkKind::Other(String::new());
        let links = [
            Link::example(2, "eth0", other()),
            Link::example(3, "overlay0", tunnel),
            Link::example(4, "br0", LinkKind::Bridge),
            Link::example(5, "eth1", other()),
        ];
        let address =
            |link, octets: [u8; 4], prefix_len| Address { link, address: octets.into(), prefix_len };
        let addresses = [
            address(2, [10, 99, 0, 1], 24),
            address(3, [10, 10, 7, 0], 32),
            address(4, [10, 10, 7, 1], 24),
            address(5, [10, 20, 0, 5], 24),
        ];
        let routes = [
            route("0.0.0.0/0", Some(2), Some([10, 99, 0, 254])),
            route("10.99.0.0/24", Some(2), None),
            route("10.77.0.0/16", Some(2), Some([10, 99, 0, 254])),
            route("10.16.0.0/12", Some(3), None),
            route("10.10.7.0/24", Some(4), None),
            route("10.20.0.0/24", Some(5), None),
            route("10.21.0.0/16", Some(2), Some([10, 99, 0, 254])),
            route("10.22.0.0/16", Some(5), None),
            route("10.23.0.0/16", None, None),
        ];
        let plan = |more: &str| {
            NetworkConfig::parse(format!(r#"{{"Network":"10.0.0.0/8"{more}}}"#).as_bytes()).unwrap().plan
        };
        let named = |plan: &AddressPlan| {
            let subnets = own_subnets(plan, &links, &addresses);
            assert_eq!(subnets, [net("10.10.7.0/24")]);
            Overlaps::find(&plan.prefixes(), &subnets, &links, &addresses, &routes).named()
        };
        let part = "10.20.0.5/24 of eth1, the route 10.21.0.0/16 via 10.99.0.254, the route 10.22.0.0/16 by eth1, \
                    the route 10.23.0.0/16 by several paths";
        assert_eq!(named(&plan(r#","SubnetMin":"10.10.0.0","SubnetMax":"10.50.0.0""#)), part);
        let whole = named(&plan(""));
        assert!(
            whole.starts_with("10.99.0.1/24 of eth0, 10.20.0.5/24 of eth1, the route 10.77.0.0/16"),
            "{whole}"
        );
        assert_eq!(named(&plan(r#","SubnetMax":"10.19.0.0""#)), "");
    }
}

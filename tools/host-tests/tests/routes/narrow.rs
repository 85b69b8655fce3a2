//! A leasable range that ends with the subnets of the hosts, so that a route of overlay0's is to the own subnet itself.
use overlay_lab::Options;

use crate::bed::{Bed, Kind};

#[test]
fn the_bridges_route_to_the_own_subnet_comes_first() {
    // The first host that comes leases one of the two, and the other one the other: 10.244.2.0/24 is a prefix of its own.
    let config = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0","Backend":{"Type":"vxlan"}}"#;
    let mut bed = Bed::with_config(Kind::Folder, Options::default(), config, &[]);
    bed.learn_all();
    for host in [0, 1] {
        let routes = bed[host].host.exec("ip route show 10.244.2.0/24").unwrap();
        let is_own = bed[host].subnet == "10.244.2.0/24";
        assert_eq!(routes.contains("dev br0"), is_own, "{routes}");
        assert_eq!(routes.contains("metric 4294967295"), is_own, "{routes}");
        // The bridge is there when the next agent starts.
        bed[host].end_agent().unwrap();
        bed[host].restart_agent().unwrap();
    }
    bed.assert_all_reached();
}

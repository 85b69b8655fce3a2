//! Network 10.0.0.0/8 with SubnetMin and SubnetMax, on hosts whose own network is 10.99.0.0/24: flannel's documentation has
//! such a config.
use std::net::Ipv4Addr;

use overlay_common::{Hook::Encap, Reason};
use overlay_lab::{Host, Lab, Options};

use crate::bed::{Bed, Kind, assert_reaches, peers, wait_for};

/// A machine of the site, behind the router that has [`Lab::SWITCH`].
const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 53);

fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.50.0.0","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// Two hosts of such a network. The router knows no route to any container.
fn bed(backend: &str, options: &[&str]) -> Bed {
    let bed = Bed::with_config(Kind::Folder, Options::default(), &config(backend), options);
    bed.lab.switch().ip(&format!("address add {FAR}/32 dev lo")).unwrap();
    bed.lab.switch().ip("link set lo up").unwrap();
    for host in bed.lab.hosts() {
        host.namespace().ip(&format!("route add default via {}", Lab::SWITCH)).unwrap();
    }
    bed
}

fn host_reaches(host: &Host, words: &str) {
    let pinged = host.exec(&format!("ping -n -c 2 -i 0.02 -W 1 {words}"));
    assert!(pinged.is_ok(), "{}: ping {words}: {pinged:?}", host.name());
}

#[test]
fn addresses_that_no_lease_may_have_are_the_hosts() {
    for backend in ["vxlan", "udp", "host-gw"] {
        let bed = bed(backend, &["--ip-masq"]);
        bed.learn_all();
        let (a, b) = bed.pair();
        let [here, there] = [0, 1].map(|index| bed[index].host.address());
        for to in [here, there, Lab::SWITCH, FAR] {
            assert_reaches(a, to);
        }
        host_reaches(&bed[0].host, &FAR.to_string());
        host_reaches(&bed[0].host, &b.address().to_string());
        // What a host sends from its own address to another host's container is no forgery.
        host_reaches(&bed[0].host, &format!("-I {here} {}", b.address()));
        assert_reaches(a, b.address());
        let counters = bed[0].counters().unwrap();
        assert_eq!(counters.packets(Encap, Reason::NoPeer), 0, "{backend}");
        assert!(counters.packets(Encap, Reason::Carried) > 0, "{backend}");
    }
}

#[test]
fn a_subnet_that_is_nobodys_is_unreachable_and_a_lease_outside_the_range_is_a_peer_all_the_same() {
    let bed = bed("vxlan", &[]);
    bed.learn_all();
    let (a, _) = bed.pair();
    // Between SubnetMin and SubnetMax another host may lease it at any time.
    let nobody = a.exec("ping -n -c 1 -W 2 10.49.255.9").unwrap_err().to_string();
    assert!(nobody.contains("Net Unreachable"), "{nobody}");
    assert!(bed[0].counters().unwrap().packets(Encap, Reason::NoPeer) > 0);
    // An operator has altered SubnetMax since that host leased its subnet.
    let routes = || bed[0].host.exec("ip route show dev overlay0").unwrap();
    assert!(!routes().contains("10.60.7.0/24"), "{}", routes());
    let lease = |subnet: u8| bed.lab.folder().join(format!("store/subnets/10.60.{subnet}.0-24"));
    let put = |subnet: u8| {
        let address = format!(r#""PublicIP":"10.99.0.{subnet}","BackendType":"vxlan""#);
        let text = format!(r#"{{{address},"BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}}}"#);
        std::fs::write(lease(subnet), text).unwrap();
    };
    put(7);
    wait_for("the route to that lease", || routes().contains("10.60.7.0/24"));
    let carried = || bed[0].counters().unwrap().packets(Encap, Reason::Carried);
    let before = carried();
    assert!(a.exec("ping -n -c 1 -W 0.2 10.60.7.9").is_err());
    assert_eq!(carried(), before + 1);
    // So many that the range says nothing any more: all of Network is the overlay's.
    let is_whole = || routes().lines().any(|route| route.starts_with("10.0.0.0/8 "));
    assert!(!is_whole(), "{}", routes());
    (10..74).for_each(put);
    wait_for("a route to Network", is_whole);
    wait_for("the end of the others", || routes().lines().count() == 1);
    // So many removals are held back until somebody says that they are meant.
    let all: Vec<u8> = (10..74).chain([7]).collect();
    all.iter().for_each(|subnet| std::fs::remove_file(lease(*subnet)).unwrap());
    // The word is said again and again, because an agent that has not read the folder yet has nothing to accept.
    wait_for("the removal, and the routes of the range alone", || {
        bed[0].overlay(&["peers", "--accept-deletions"]).unwrap();
        let none = peers(&bed[0]).iter().all(|(subnet, ..)| !subnet.starts_with("10.60."));
        none && !is_whole() && !routes().contains("10.60.")
    });
    assert!(routes().contains("10.16.0.0/12"), "{}", routes());
}

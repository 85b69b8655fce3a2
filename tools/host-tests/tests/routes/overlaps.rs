//! What a host has inside the leasable range: it is named, with what to do, or the agent refuses to start.
use overlay_host_tests::{
    hosts::{JoinedHost, SOON, lab, overlay},
    overlay as binary,
};
use overlay_lab::{Backend, Lab, Options};

use crate::bed::{Bed, Kind, assert_reaches, wait_for};

#[test]
fn an_agent_refuses_a_range_that_holds_its_own_address_and_the_config_is_warned_of() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), lab.folder().join("store").display().to_string());
    let set = |config: &str| overlay(host, &["config", "set", config, "--store-dir", &store]);
    let said = set(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    let range = "the addresses that hosts may lease (10.0.0.0 to 10.255.255.255)";
    said.is(0, &["this host has 10.99.0.1/24 of eth0", range, "SubnetMin and SubnetMax"]);
    let refused = overlay(host, &["agent", "--store-dir", &store, "--iface", "eth0"]);
    refused
        .is(1, &["10.99.0.1, this host's own address on eth0, is inside", range, "SubnetMin and SubnetMax"]);
    assert!(!host.exec("ip link").unwrap().contains("overlay0"), "a half-made device was left");
    // The remedy that both name must help.
    let said = set(
        r#"{"Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.50.0.0","Backend":{"Type":"vxlan"}}"#,
    );
    said.is(0, &["10.0.0.0/8"]);
    assert!(!said.text.contains("this host has"), "{}", said.text);
    let member = JoinedHost::join(host, &["--store-dir", &store]);
    let again = set(r#"{"Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.60.0.0"}"#);
    assert!(!again.text.contains("this host has"), "its own subnet is the overlay's: {}", again.text);
    assert_eq!(member.agent.terminate().unwrap().code(), Some(0));
    // A host that is part of the network already goes on.
    set(r#"{"Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.120.0.0"}"#)
        .is(0, &["10.99.0.1/24"]);
    let mut again = host.start_agent(binary(), &["--store-dir", &store]).unwrap();
    again.wait_ready(SOON).unwrap();
    assert!(again.log().contains("this host's own address on eth0, is inside"));
    assert_eq!(again.terminate().unwrap().code(), Some(0));
}

#[test]
fn routes_inside_the_range_are_named_and_obeyed_where_nobody_has_leased_it() {
    let mut bed = Bed::with_config(Kind::Folder, Options::default(), Backend::Vxlan.config(), &["--ip-masq"]);
    bed.learn_all();
    // The first subnet of Network is never leased.
    let far = std::net::Ipv4Addr::new(10, 244, 0, 9);
    let a = bed[0].containers[0].clone();
    let nobody = a.exec(&format!("ping -n -c 1 -W 2 {far}")).unwrap_err().to_string();
    assert!(nobody.contains("Net Unreachable"), "{nobody}");
    bed.lab.switch().ip(&format!("address add {far}/32 dev lo")).unwrap();
    bed.lab.switch().ip("link set lo up").unwrap();
    let host = bed[0].host.clone();
    host.namespace().ip(&format!("route add 10.244.0.0/24 via {}", Lab::SWITCH)).unwrap();
    // Our rules take it for the overlay's, so the answer needs a route.
    let subnet = bed[0].subnet.clone();
    bed.lab.switch().ip(&format!("route add {subnet} via {}", host.address())).unwrap();
    assert_reaches(&a, far);
    let checked = overlay(&host, &["check", "--iface", "eth0"]).text;
    let routes = checked.lines().find(|line| line.contains("other routes")).unwrap();
    assert!(routes.trim_start().starts_with("warn"), "{routes}");
    assert!(routes.contains("10.244.0.0/24 via 10.99.0.254"), "{routes}");
    bed[0].end_agent().unwrap();
    bed[0].restart_agent().unwrap();
    let words =
        "this host has the route 10.244.0.0/24 via 10.99.0.254, inside the addresses that hosts may lease";
    wait_for("the agent's warning", || std::fs::read_to_string(host.agent_log()).unwrap().contains(words));
}

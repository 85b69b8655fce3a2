//! Interfaces, ports and routes that an agent cannot use or that belong to others.
use std::{fs, net::UdpSocket, path::Path};

use overlay_host_tests::{
    hosts::{CONFIG, JoinedHost, SOON, lab, logged, overlay, store, until},
    overlay as binary,
};
use overlay_lab::{Backend, Numbered, PingOptions, wait_until};

use super::bed::{pins, refuses};

#[test]
fn the_interface() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), store(&lab));
    let agent = |interface: &[&str], words: &[&str]| {
        refuses(host, &[interface, &["--store-dir", &store]].concat(), words);
    };
    agent(&["--iface", "nope"], &["no interface matches --iface nope", "`ip address` lists"]);
    agent(&["--iface-regex", "^en"], &["no interface matches --iface-regex ^en"]);
    agent(&["--iface-regex", "("], &["--iface-regex (", "unclosed group"]);
    agent(&[], &["there is no default route to choose the interface by", "--iface"]);
    agent(
        &["--iface", "nope", "--iface-regex", "^en"],
        &["no interface matches --iface nope, --iface-regex ^en"],
    );
    agent(&["--iface-can-reach", "192.0.2.1"], &["no route leads to 192.0.2.1 (--iface-can-reach)"]);
    host.namespace().ip("link add bare0 type bridge").unwrap();
    host.namespace().ip("link set bare0 up").unwrap();
    agent(&["--iface", "bare0"], &["interface bare0 has no IPv4 address", "--iface"]);
    assert_eq!(pins(host), [""; 0]);

    // Of several addresses the agent takes the first and says so; another is chosen by naming it.
    host.namespace().ip("address add 10.99.0.77/24 dev eth0").unwrap();
    let dry = |interface: &str, words: &[&str]| {
        overlay(host, &["agent", "--dry-run", "--iface", interface, "--store-dir", &store]).is(0, words);
    };
    dry(
        "eth0",
        &["eth0 has 2 addresses: taking the first, 10.99.0.1", "would lease a free subnet", "for 10.99.0.1"],
    );
    dry("10.99.0.77", &["for 10.99.0.77"]);
}

/// The programs read Ethernet frames: on a TUN, as Tailscale's and WireGuard's devices are, they would recognise no packet and
/// check none. The agent refuses it, however it is chosen, and leaves nothing; so do the dry run and `overlay check`.
#[test]
fn an_interface_without_an_ethernet_header() {
    for config in [CONFIG, Backend::Udp.config(), Backend::HostGw.config()] {
        let lab = lab(1);
        let host = lab.host(0);
        let store = lab.folder().join("store").display().to_string();
        overlay(host, &["config", "set", config, "--store-dir", &store]).is(0, &[]);
        let ip = |words: &str| host.namespace().ip(words).unwrap();
        ip("tuntap add dev tailscale0 mode tun");
        ip("address add 10.98.0.1/24 dev tailscale0");
        ip("link set tailscale0 up");
        ip("route add default dev tailscale0");
        let words = [
            "interface tailscale0 is of link type none (tun), without the Ethernet header that the programs read",
            "choose another with --iface, such as the physical interface",
            "flannel's own wireguard backend",
        ];
        for choice in [
            &["--iface", "tailscale0"][..],
            &["--iface", "10.98.0.1"],
            &["--iface-regex", "^tail"],
            &["--iface-can-reach", "10.98.0.9"],
            &[],
        ] {
            refuses(host, &[choice, &["--store-dir", &store]].concat(), &words);
            refuses(host, &[choice, &["--store-dir", &store, "--dry-run"]].concat(), &words);
            let check = overlay(host, &[&["check"], choice].concat());
            check.is(3, &["FAIL", "underlay interface", words[0]]);
        }
        assert_eq!(pins(host), [""; 0]);
        assert!(!host.exec("ip link").unwrap().contains("overlay0"), "a half-made device was left");
        let leases = fs::read_dir(lab.folder().join("store/subnets")).into_iter().flatten().count();
        assert_eq!(leases, 0, "a subnet was leased");

        // What has such a header works: a TAP. Loopback has one too, but no address that another host could reach.
        let dry = |interface: &str, words: &[&str]| {
            overlay(host, &["agent", "--dry-run", "--iface", interface, "--store-dir", &store]).is(0, words);
        };
        let lo = ["agent", "--dry-run", "--iface", "lo", "--store-dir", &store];
        overlay(host, &lo).is(1, &["interface lo has no IPv4 address but 127.0.0.1"]);
        ip("tuntap add dev tap0 mode tap");
        ip("address add 10.97.0.1/24 dev tap0");
        dry("tap0", &["for 10.97.0.1"]);
    }
}

/// An interface of the same name takes the underlay's place while the agent runs.
#[test]
fn an_underlay_that_comes_back_without_an_ethernet_header() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), store(&lab));
    let member = JoinedHost::join(host, &["--store-dir", &store]);
    let ip = |words: &str| host.namespace().ip(words).unwrap();
    ip("link delete eth0");
    logged(host, "interface eth0 is gone");
    ip("tuntap add dev eth0 mode tun");
    ip("link set eth0 up");
    ip("address add 10.99.0.1/24 dev eth0");
    logged(host, "interface eth0 is of link type none (tun), without the Ethernet header");
    let log = fs::read_to_string(host.agent_log()).unwrap();
    assert!(!log.contains("eth0 was made anew"), "{log}");
    assert_eq!(member.agent.terminate().unwrap().code(), Some(0));
}

#[test]
fn a_device_a_port_or_a_route_of_somebody_elses() {
    let lab = lab(2);
    let (host, store) = (lab.host(0), store(&lab));
    let arguments = ["--iface", "eth0", "--store-dir", &store];
    let ip = |words: &str| host.namespace().ip(words).unwrap();

    ip("link add overlay0 type bridge");
    refuses(host, &arguments, &["interface overlay0 exists and is a bridge", "--device"]);
    assert!(host.exec("ip -d link show overlay0").unwrap().contains("bridge"), "overlay0 was altered");
    ip("link delete overlay0");

    ip("link add flannel.1 type vxlan id 1 dstport 8472 nolearning");
    ip("link set flannel.1 up");
    refuses(
        host,
        &arguments,
        &["udp port 8472 belongs to vxlan device flannel.1 (vni 1)", "`ip link delete flannel.1`"],
    );
    assert!(host.exec("ip link show flannel.1").unwrap().contains("UP"), "flannel.1 was altered");
    ip("link delete flannel.1");

    let socket = host.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:8472")?)).unwrap();
    refuses(host, &arguments, &["udp port 8472 is bound by process ", "ss -ulnp 'sport = :8472'"]);
    drop(socket);

    // The socket of a VXLAN device stays where the device was made.
    ip("link add vx9 type vxlan id 9 dstport 8472 nolearning");
    ip(&format!("link set vx9 netns {}", lab.host(1).namespace().name()));
    lab.host(1).namespace().ip("link set vx9 up").unwrap();
    refuses(host, &arguments, &["udp port 8472 is taken, and no process", "a VXLAN device that was made in"]);
    lab.host(1).namespace().ip("link delete vx9").unwrap();

    ip("link add wan0 type bridge");
    ip("link set wan0 up");
    ip("route add 10.244.0.0/18 dev wan0");
    refuses(
        host,
        &arguments,
        &[
            "10.244.0.0/18 is already routed through interface wan0",
            "`ip route delete 10.244.0.0/18 dev wan0`",
        ],
    );
    assert!(host.exec("ip route show dev wan0").unwrap().contains("10.244.0.0/18"), "the route was altered");
    assert_eq!(pins(host), [""; 0]);
    assert!(!host.exec("ip link").unwrap().contains("overlay0"), "a half-made device was left");

    // The remedy that the message names must help.
    ip("route delete 10.244.0.0/18 dev wan0");
    let member = JoinedHost::join(host, &["--store-dir", &store]);
    assert_eq!(member.agent.terminate().unwrap().code(), Some(0));
}

/// Two networks on one host: neither takes anything of the other's, at its start or at its end.
#[test]
fn a_device_or_a_subnet_file_of_another_network() {
    let lab = lab(2);
    let (host, default) = (lab.host(0), store(&lab));
    let arguments = ["--store-dir", &default, "--store-shared"];
    let (a, b) = (JoinedHost::join(host, &arguments), JoinedHost::join(lab.host(1), &arguments));
    a.reaches(&b);
    let blue = lab.folder().join("blue").display().to_string();
    let config = r#"{"Network":"10.245.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;
    overlay(host, &["config", "set", config, "--store-dir", &blue]).is(0, &[]);

    let file = host.folder().join("blue.env").display().to_string();
    let agent = ["agent", "--network", "blue", "--iface", "eth0", "--store-dir", &blue];
    overlay(host, &agent).is(1, &["interface overlay0 is network default's on this host", "--device"]);
    let agent = [&agent[..], &["--device", "overlay1"]].concat();
    overlay(host, &agent).is(1, &["is network default's on this host", "--subnet-file"]);
    let agent = [&agent[..], &["--subnet-file", &file]].concat();
    let running = host.start_overlay(binary(), &agent).unwrap();
    wait_until("the second network", SOON, || Ok(Path::new(&file).exists())).unwrap();
    let is_up = |name: &str| host.exec(&format!("ip link show dev {name}")).is_ok();
    assert!(is_up("overlay0") && is_up("overlay1"));
    a.reaches(&b);

    drop(running);
    let down = ["down", "--network", "blue"];
    overlay(host, &[&down[..], &["--device", "overlay0"]].concat())
        .is(1, &["interface overlay0 is network default's on this host"]);
    assert!(is_up("overlay0") && is_up("overlay1"));
    overlay(host, &down).is(0, &["network blue is gone from this host: programs, maps, overlay1,"]);
    assert!(is_up("overlay0") && !is_up("overlay1"));
    a.reaches(&b);
}

#[test]
fn links_whose_namespace_went() {
    let lab = lab(3);
    let (host, store) = (lab.host(0), store(&lab));
    let arguments = ["--store-dir", &store, "--store-shared"];
    let a = JoinedHost::join(host, &arguments);
    let b = JoinedHost::join(lab.host(1), &arguments);
    a.reaches(&b);
    let (subnet, mtu) = a.agent.subnet().unwrap();
    let gone = host.add_container("gone", &subnet, 3, mtu).unwrap();
    let address = gone.address();
    let once = PingOptions { count: 1, ..PingOptions::default() };
    wait_until("an answer", SOON, || Ok(gone.ping(b.container.address(), once)?.complete())).unwrap();
    until(host, "two endpoints", |status| status["agent"]["datapath"]["endpoints"] == 2);
    let links = overlay_host_tests::pins(host).join("links");
    let count = || fs::read_dir(&links).unwrap().count();
    let before = count();
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();

    // The namespace of a container goes while no agent runs.
    assert_eq!(a.agent.terminate().unwrap().code(), Some(0));
    overlay_lab::command::sh(&format!("ip netns delete {}", gone.namespace().name())).unwrap();
    wait_until("its veth to go", SOON, || Ok(host.exec(&format!("ip link show {}", gone.port())).is_err()))
        .unwrap();
    assert_eq!(count(), before);
    let mut again = host.start_agent(binary(), &arguments).unwrap();
    again.wait_ready(SOON).unwrap();
    logged(host, "has lost its interface");
    assert_eq!(count(), before - 2);
    until(host, "one endpoint", |status| status["agent"]["datapath"]["endpoints"] == 1);
    let listed = overlay(host, &["endpoints", "--json"]);
    assert!(!listed.text.contains(&address.to_string()), "{}", listed.text);
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");

    // The namespace of the host itself goes. That cannot be told from a namespace which still exists elsewhere, so the
    // agent only says whose pins they are, and the operator removes them.
    let last = lab.host(2);
    let c = JoinedHost::join(last, &arguments);
    assert_eq!(c.agent.terminate().unwrap().code(), Some(0));
    let (root, state) =
        (last.bpf_root().display().to_string(), last.folder().join("state").display().to_string());
    overlay_lab::command::sh(&format!("ip netns delete {}", last.namespace().name())).unwrap();
    let places = ["--bpf-root", &root, "--state-dir", &state];
    let agent = ["agent", "--iface", "eth0", "--device", "overlay9", "--store-dir", &store, "--store-shared"];
    overlay(host, &[&agent[..], &places].concat())
        .is(1, &["belong to 10.99.0.3", "in network namespace", "overlay down --network default"]);
    overlay(host, &[&["down", "--device", "overlay9"], &places[..]].concat())
        .is(0, &["network default is gone"]);
    assert!(!last.bpf_root().join("overlay").exists());
}

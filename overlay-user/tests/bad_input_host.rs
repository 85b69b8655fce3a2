//! What stands in an agent's way on its own host: each thing named, with the remedy, and left as it was found.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]

#[path = "support/hosts.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod hosts;

use std::{fs, net::UdpSocket, path::Path};

use xtask::lab::{Host, Numbered};

use self::hosts::{CONFIG, Member, OVERLAY, SOON, lab, logged, overlay, store};

/// Runs an agent that is expected to end by itself.
#[track_caller]
fn refuses(host: &Host, arguments: &[&str], words: &[&str]) {
    overlay(host, &[&["agent"], arguments].concat()).is(1, words);
}

/// What is pinned, whoever's it is.
fn pins(host: &Host) -> Vec<String> {
    let folder = host.bpf_root().join("overlay/v1/default");
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn the_interface() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), store(&lab));
    let agent = |interface: &[&str], words: &[&str]| {
        refuses(host, &[interface, &["--store-dir", &store]].concat(), words);
    };
    agent(&["--iface", "nope"], &["no interface matches --iface nope", "`ip -4 address` lists"]);
    agent(&["--iface-regex", "^en"], &["no interface matches --iface-regex ^en"]);
    agent(&["--iface-regex", "("], &["--iface-regex (", "unclosed group"]);
    agent(&[], &["there is no default route to choose the interface by", "--iface"]);
    agent(&["--iface-can-reach", "192.0.2.1"], &["no route leads to 192.0.2.1 (--iface-can-reach)"]);
    host.namespace().ip("link add bare0 type bridge").unwrap();
    host.namespace().ip("link set bare0 up").unwrap();
    agent(&["--iface", "bare0"], &["interface bare0 has no IPv4 address", "--iface"]);
    assert_eq!(pins(host), [""; 0]);

    // Of several addresses the first, said aloud; any other by name.
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

#[test]
fn a_device_a_port_or_a_route_of_somebody_elses() {
    let lab = lab(1);
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
    refuses(host, &arguments, &["udp port 8472 is bound by a process", "ss -ulnp 'sport = :8472'"]);
    drop(socket);

    ip("link add wan0 type bridge");
    ip("link set wan0 up");
    ip("route add 10.244.0.0/16 dev wan0");
    refuses(
        host,
        &arguments,
        &[
            "10.244.0.0/16 is already routed through interface wan0",
            "`ip route delete 10.244.0.0/16 dev wan0`",
        ],
    );
    assert!(host.exec("ip route show dev wan0").unwrap().contains("10.244.0.0/16"), "the route was altered");
    assert_eq!(pins(host), [""; 0]);
    assert!(!host.exec("ip link").unwrap().contains("overlay0"), "a half-made device was left");

    // What the message says helps.
    ip("route delete 10.244.0.0/16 dev wan0");
    let member = Member::join(host, &["--store-dir", &store]);
    assert_eq!(member.agent.terminate().unwrap().code(), Some(0));
}

#[test]
fn folders_that_cannot_serve() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), store(&lab));
    let path = |name: &str| lab.folder().join(name).display().to_string();
    let agent = |more: &[&str], words: &[&str]| {
        refuses(host, &[&["--iface", "eth0", "--store-dir", &store], more].concat(), words);
    };
    let plain = path("plain");
    fs::create_dir(&plain).unwrap();
    agent(&["--bpf-root", &plain], &[&plain, "is not on a bpf filesystem", "mount -t bpf bpf"]);

    let fixed = path("fixed");
    fs::create_dir(&fixed).unwrap();
    xtask::command::sh(&format!("mount -t tmpfs -o ro none {fixed}")).unwrap();
    agent(
        &["--state-dir", &fixed],
        &[&format!("create {fixed}/default"), "Read-only file system", "--state-dir"],
    );
    agent(
        &["--subnet-file", &format!("{fixed}/subnet.env")],
        &[&format!("write {fixed}/subnet.env"), "Read-only file system", "--subnet-file"],
    );
    refuses(host, &["--iface", "eth0", "--store-dir", &fixed], &[&fixed, "Read-only file system"]);

    // The host's own address is taken, by a health port say.
    let listener = host.namespace().enter(|| Ok(std::net::TcpListener::bind("127.0.0.1:8471")?)).unwrap();
    agent(&["--healthz-ip", "127.0.0.1", "--healthz-port", "8471"], &["127.0.0.1:8471", "--healthz-port"]);
    drop(listener);

    // A subnet.env that makes no sense is no reason to stay away, nor is one of another network.
    for text in [
        "FLANNEL_SUBNET=\u{0}\u{0}\nFLANNEL_NETWORK",
        "FLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_NETWORK=10.1.0.0/16\n",
    ] {
        fs::write(host.subnet_file(), text).unwrap();
        let mut agent = host.start_agent(Path::new(OVERLAY), &["--store-dir", &store]).unwrap();
        agent.wait_ready(SOON).unwrap();
        assert!(agent.subnet().unwrap().0.starts_with("10.244."), "{:?}", agent.subnet_env());
        agent.terminate().unwrap();
        overlay(host, &["down"]).is(0, &["network default is gone"]);
    }
}

#[test]
fn a_second_agent_and_another_hosts_pins() {
    let lab = lab(2);
    let (one, two) = (lab.host(0), lab.host(1));
    let store = store(&lab);
    let arguments = ["--store-dir", &store, "--store-shared"];
    let mut a = Member::join(one, &arguments);
    let b = Member::join(two, &arguments);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    let mut before = pins(one);
    before.sort();

    let pid = a.agent.pid().unwrap().to_string();
    refuses(
        one,
        &["--iface", "eth0", "--store-dir", &store, "--store-shared"],
        &[&format!("another agent (pid {pid}) runs network default"), &format!("`kill {pid}`"), "--network"],
    );
    overlay(one, &["down"]).is(1, &["end the agent first", &pid]);

    // Another host by mistake with this one's folders: after its agent ended, and with a state folder of its own.
    let root = one.bpf_root().display().to_string();
    let state = one.folder().join("state").display().to_string();
    let foreign = ["--iface", "eth0", "--store-dir", &store, "--store-shared", "--bpf-root", &root];
    refuses(
        two,
        &[&foreign[..], &["--state-dir", &lab.folder().join("elsewhere").display().to_string()]].concat(),
        &[
            &format!("the pins in {root}/overlay/v1/default belong to a host whose record is not in"),
            "--bpf-root",
            "overlay down",
        ],
    );
    assert_eq!(a.agent.terminate().unwrap().code(), Some(0));
    refuses(
        two,
        &[&foreign[..], &["--state-dir", &state]].concat(),
        &[&format!("belong to 10.99.0.1 with subnet {}", a.subnet), "not to 10.99.0.2", "--bpf-root"],
    );
    let mut after = pins(one);
    after.sort();
    assert_eq!(before, after);

    let mut again = one.start_agent(Path::new(OVERLAY), &arguments).unwrap();
    again.wait_ready(SOON).unwrap();
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn the_networks_config() {
    let lab = lab(1);
    let host = lab.host(0);
    let store = lab.folder().join("store");
    let folder = store.display().to_string();
    let arguments = ["--iface", "eth0", "--store-dir", &folder];

    // Missing: the agent waits, and says so.
    let mut agent = host.start_agent(Path::new(OVERLAY), &["--store-dir", &folder]).unwrap();
    logged(host, "has no network config: write one with `overlay config set`");
    assert_eq!(agent.status().unwrap(), None);
    assert_eq!(pins(host), [""; 0]);
    overlay(host, &["config", "set", CONFIG, "--store-dir", &folder]).is(0, &[]);
    agent.wait_ready(SOON).unwrap();
    assert_eq!(agent.terminate().unwrap().code(), Some(0));
    overlay(host, &["down"]).is(0, &[]);

    for (text, words) in [
        ("{", &["read from", "Network"][..]),
        (r#"{"Network":"10.244.0.0/33"}"#, &["Network is 10.244.0.0/33"]),
        (
            r#"{"Network":"10.244.0.0/16"}"#,
            &[
                "backend is udp (also what a config without `Backend` means)",
                "only vxlan is supported",
                "overlay config set",
                r#""Type":"vxlan""#,
            ],
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#,
            &["backend is wireguard", "overlay config set"],
        ),
    ] {
        // By hand, since `overlay config set` would refuse it.
        fs::write(store.join("config"), text).unwrap();
        refuses(host, &arguments, words);
        assert_eq!(pins(host), [""; 0]);
    }
}

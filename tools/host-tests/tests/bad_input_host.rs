//! What is in an agent's way on its own host. The agent names each such thing with the remedy, and leaves it as it was
//! found.
use std::{fs, net::UdpSocket, path::Path};

use overlay_host_tests::{
    hosts::{CONFIG, JoinedHost, SOON, lab, logged, overlay, store, until},
    overlay as binary,
};
use overlay_lab::{Agent, Host, Numbered, PingOptions, wait_until};

/// Runs an agent that is expected to end by itself.
#[track_caller]
fn refuses(host: &Host, arguments: &[&str], words: &[&str]) {
    overlay(host, &[&["agent"], arguments].concat()).is(1, words);
}

/// The names of all pins of the network, whichever host they belong to.
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

    // The remedy that the message names must help.
    ip("route delete 10.244.0.0/16 dev wan0");
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
    let places = format!(
        "env OVERLAY_BPF_ROOT={} OVERLAY_STATE_DIR={} {}",
        host.bpf_root().display(),
        host.folder().join("state").display(),
        binary().display()
    );
    let running = host.spawn(&format!("{places} {}", agent.join(" "))).unwrap();
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

/// The host keeps its lease, and its containers keep their network, even if the config no longer contains their subnet.
#[test]
fn a_config_without_the_subnet_that_the_host_runs_with() {
    let lab = lab(2);
    let (host, store) = (lab.host(0), store(&lab));
    let arguments = ["--store-dir", &store, "--store-shared"];
    let (a, b) = (JoinedHost::join(host, &arguments), JoinedHost::join(lab.host(1), &arguments));
    a.reaches(&b);
    let other = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.99.0","Backend":{"Type":"vxlan"}}"#;
    overlay(host, &["config", "set", other, "--store-dir", &store]).is(0, &[]);
    let JoinedHost { agent, subnet, container, host: member, .. } = a;
    assert_eq!(agent.terminate().unwrap().code(), Some(0));
    let says = format!("the network's config has no subnet {subnet} any more");
    overlay(host, &[&["agent", "--iface", "eth0"], &arguments[..]].concat())
        .is(1, &[&says, "`overlay down --network default`"]);
    let lease = Path::new(&store).join("subnets").join(subnet.replace('/', "-"));
    assert!(lease.exists(), "the lease was given back");

    overlay(host, &["config", "set", CONFIG, "--store-dir", &store]).is(0, &[]);
    let mut agent = host.start_agent(binary(), &arguments).unwrap();
    agent.wait_ready(SOON).unwrap();
    let a = JoinedHost { agent, subnet, container, host: member };
    a.reaches(&b);
}

#[test]
fn folders_that_cannot_serve() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), store(&lab));
    let path = |name: &str| lab.folder().join(name).display().to_string();
    let agent = |more: &[&str], words: &[&str]| {
        refuses(host, &[&["--iface", "eth0", "--store-dir", &store], more].concat(), words);
    };
    let ordinary = path("ordinary");
    fs::create_dir(&ordinary).unwrap();
    agent(&["--bpf-root", &ordinary], &[&ordinary, "is not on a bpf filesystem", "mount -t bpf bpf"]);

    let fixed = path("fixed");
    fs::create_dir(&fixed).unwrap();
    overlay_lab::command::sh(&format!("mount -t tmpfs -o ro none {fixed}")).unwrap();
    agent(
        &["--state-dir", &fixed],
        &[&format!("create {fixed}/default"), "Read-only file system", "--state-dir"],
    );
    agent(
        &["--subnet-file", &format!("{fixed}/subnet.env")],
        &[&format!("write {fixed}/subnet.env"), "Read-only file system", "--subnet-file"],
    );
    refuses(host, &["--iface", "eth0", "--store-dir", &fixed], &[&fixed, "Read-only file system"]);

    // The address for health checks is in use.
    let listener = host.namespace().enter(|| Ok(std::net::TcpListener::bind("127.0.0.1:8471")?)).unwrap();
    agent(&["--healthz-ip", "127.0.0.1", "--healthz-port", "8471"], &["127.0.0.1:8471", "--healthz-port"]);
    drop(listener);

    // A subnet.env that makes no sense, or that is of another network, must not keep the agent from starting.
    for text in [
        "FLANNEL_SUBNET=\u{0}\u{0}\nFLANNEL_NETWORK",
        "FLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_NETWORK=10.1.0.0/16\n",
    ] {
        fs::write(host.subnet_file(), text).unwrap();
        let mut agent = host.start_agent(binary(), &["--store-dir", &store]).unwrap();
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
    let mut a = JoinedHost::join(one, &arguments);
    let b = JoinedHost::join(two, &arguments);
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

    // Another host uses this one's folders by mistake, after this one's agent has ended: first with a state folder of
    // its own, then with this host's.
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

    let mut again = one.start_agent(binary(), &arguments).unwrap();
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

    // Without a config the agent waits, and says so.
    let mut agent = host.start_agent(binary(), &["--store-dir", &folder]).unwrap();
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
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#,
            &[
                "backend is wireguard",
                "vxlan, udp and host-gw are",
                "overlay config set",
                r#""Type":"vxlan""#,
            ],
        ),
    ] {
        // The file is written by hand, because `overlay config set` would refuse the text.
        fs::write(store.join("config"), text).unwrap();
        refuses(host, &arguments, words);
        assert_eq!(pins(host), [""; 0]);
    }
}

#[test]
fn two_agents_started_at_once() {
    let lab = lab(2);
    let store = store(&lab);
    let arguments = ["--store-dir", &store, "--store-shared"];
    let a = JoinedHost::join(lab.host(0), &arguments);
    let b = JoinedHost::join(lab.host(1), &arguments);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    assert_eq!(a.agent.terminate().unwrap().code(), Some(0));
    for _ in 0..4 {
        let mut both = [0, 1].map(|_| lab.host(0).start_agent(binary(), &arguments).unwrap());
        let ended = |agents: &mut [Agent; 2]| {
            let [one, other] = agents.each_mut().map(|agent| agent.status().unwrap());
            one.or(other)
        };
        wait_until("one of them to give way", SOON, || Ok(ended(&mut both).is_some())).unwrap();
        assert_eq!(ended(&mut both).unwrap().code(), Some(1));
        logged(lab.host(0), "another agent (pid ");
        let [mut one, mut other] = both;
        let winner = if one.status().unwrap().is_some() { &mut other } else { &mut one };
        winner.wait_ready(SOON).unwrap();
        let log = winner.log();
        assert!(log.contains(&format!("another agent (pid {})", winner.pid().unwrap())), "{log}");
    }
    let mut last = lab.host(0).start_agent(binary(), &arguments).unwrap();
    last.wait_ready(SOON).unwrap();
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn a_state_folder_that_is_full_or_read_only() {
    let lab = lab(2);
    let (host, store) = (lab.host(0), store(&lab));
    let state = lab.folder().join("tiny");
    fs::create_dir(&state).unwrap();
    let folder = state.display().to_string();
    let sh = |line: &str| overlay_lab::command::sh(line).unwrap();
    // This file system has space for the lock, the record, the origin and one file that is being written.
    sh(&format!("mount -t tmpfs -o size=24k none {folder}"));
    let arguments = ["--store-dir", &store, "--store-shared", "--state-dir", &folder];
    let refused = |words: &[&str]| refuses(host, &[&["--iface", "eth0"], &arguments[..]].concat(), words);

    let fill = || {
        // The rest of the file system is filled up.
        fs::write(state.join("filler"), vec![0; 1 << 20]).unwrap_err();
    };
    fill();
    refused(&[&folder, "No space left on device", "--state-dir"]);
    assert_eq!(pins(host), [""; 0]);
    fs::remove_file(state.join("filler")).unwrap();

    let a = JoinedHost::join(host, &arguments);
    let b = JoinedHost::join(lab.host(1), &["--store-dir", &store, "--store-shared"]);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    let status = || {
        let words = ["status", "--json", "--state-dir", &folder];
        serde_json::from_str::<serde_json::Value>(&host.overlay(binary(), &words).unwrap()).unwrap()
    };
    let lease = |third: u8| {
        let value = format!(
            r#"{{"PublicIP":"10.99.1.{third}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}}}"#
        );
        fs::write(Path::new(&store).join(format!("subnets/10.244.{third}.0-24")), value).unwrap();
    };
    let tells = |what: &str| {
        wait_until(what, SOON, || {
            Ok(status()["agent"]["state"]["error"].as_str().is_some_and(|error| error.contains(what)))
        })
        .unwrap();
    };
    let recovers = || {
        wait_until("all well", SOON, || Ok(status()["agent"]["state"]["error"].is_null())).unwrap();
    };
    fill();
    lease(201);
    tells("No space left on device");
    let text = host.overlay(binary(), &["status", "--state-dir", &folder]).unwrap();
    assert!(text.contains("state folder") && text.contains("No space left on device"), "{text}");
    assert_eq!(status()["peers"], 2);
    fs::remove_file(state.join("filler")).unwrap();
    recovers();

    // The folder becomes a mount of its own, because the agent's open lock keeps the outer mount from becoming
    // read-only.
    let own = format!("{folder}/default");
    sh(&format!("mount --bind {own} {own}"));
    sh(&format!("mount -o remount,bind,ro {own}"));
    lease(202);
    tells("Read-only file system");
    assert_eq!(status()["peers"], 3);
    a.reaches(&b);
    assert_eq!(a.agent.terminate().unwrap().code(), Some(0));
    refused(&[&format!("lock {folder}/default/lock"), "Read-only file system", "--state-dir"]);
    sh(&format!("umount {own}"));
    let mut again = host.start_agent(binary(), &arguments).unwrap();
    again.wait_ready(SOON).unwrap();
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn a_bpf_filesystem_that_is_read_only() {
    let lab = lab(2);
    let (host, store) = (lab.host(0), store(&lab));
    let bpf = lab.folder().join("bpf").display().to_string();
    let remount = |how: &str| overlay_lab::command::sh(&format!("mount -o remount,{how} {bpf}")).unwrap();
    let arguments = ["--store-dir", &store, "--store-shared"];
    remount("ro");
    refuses(
        host,
        &[&["--iface", "eth0"], &arguments[..]].concat(),
        &[&bpf, "Read-only file system", "--bpf-root"],
    );
    remount("rw");

    let a = JoinedHost::join(host, &arguments);
    let b = JoinedHost::join(lab.host(1), &arguments);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    remount("ro");
    // The container that is added now is reached through the stack.
    let (subnet, mtu) = a.agent.subnet().unwrap();
    let late = host.add_container("late", &subnet, 3, mtu).unwrap();
    logged(host, "it will be tried again");
    // On this file system the kernel opens no pinned map for writing, so only the agent itself can be asked.
    wait_until("what waits", SOON, || {
        let status: serde_json::Value = serde_json::from_str(&host.http_get(8471, "/status")?.1)?;
        Ok(status["datapath"]["waiting"].as_u64() > Some(0))
    })
    .unwrap();
    let once = PingOptions { count: 1, ..PingOptions::default() };
    wait_until("an answer", SOON, || Ok(late.ping(b.container.address(), once)?.complete())).unwrap();
    remount("rw");
    overlay(host, &["peers", "--resync"]).is(0, &["read again"]);
    until(host, "nothing that waits", |status| {
        status["agent"]["datapath"]["waiting"] == 0 && status["agent"]["datapath"]["endpoints"] == 2
    });
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn pins_that_are_not_what_they_are_called() {
    let lab = lab(2);
    let (host, store) = (lab.host(0), store(&lab));
    let arguments = ["--store-dir", &store, "--store-shared"];
    let a = JoinedHost::join(host, &arguments);
    let b = JoinedHost::join(lab.host(1), &arguments);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    assert_eq!(a.agent.terminate().unwrap().code(), Some(0));
    let all = host.bpf_root().join("overlay");
    let make = |pin: &Path| {
        fs::create_dir_all(pin.parent().unwrap()).unwrap();
        let pin = pin.display();
        overlay_lab::command::sh(&format!(
            "bpftool map create {pin} type hash key 4 value 8 entries 4 name other flags 0"
        ))
        .unwrap();
    };
    let refused = |words: &[&str]| refuses(host, &[&["--iface", "eth0"], &arguments[..]].concat(), words);

    // A map of another shape is pinned under the name of one of ours.
    let (pin, aside) = (all.join("v1/default/endpoints"), host.bpf_root().join("aside"));
    fs::rename(&pin, &aside).unwrap();
    make(&pin);
    refused(&[&pin.display().to_string(), "is not the map `endpoints` of layout 1", "overlay down"]);
    fs::remove_file(&pin).unwrap();
    fs::rename(&aside, &pin).unwrap();

    // A link is pinned that only a newer agent would know.
    let link = all.join("v1/default/links/whim-7");
    make(&link);
    refused(&[&link.display().to_string(), "knows no such link", "newer agent", "overlay down"]);
    fs::remove_file(&link).unwrap();

    // There are pins of layouts that this agent cannot read.
    for layout in ["v9", "whim"] {
        let pin = all.join(layout).join("default/peers");
        make(&pin);
        refused(&[
            &all.join(layout).display().to_string(),
            "does not know",
            "overlay down --network default",
        ]);
        assert!(pin.exists());
        fs::remove_dir_all(all.join(layout)).unwrap();
    }

    let mut again = host.start_agent(binary(), &arguments).unwrap();
    again.wait_ready(SOON).unwrap();
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
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
    let links = host.bpf_root().join("overlay/v1/default/links");
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

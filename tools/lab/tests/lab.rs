//! Tests of the lab itself, with the kernel's own VXLAN devices on both sides. If these fail, no other test of hosts
//! means anything. They need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like the tests")]

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlay_lab::{
    Container, Docker, DockerContainer, ForeignVxlan, Lab, Numbered, Options, PingOptions, etcd::Etcd,
    iperf3, latency, leaks, orphans, sweep, transfer, wait_until,
};

const SUBNETS: [&str; 2] = ["10.244.1.0/24", "10.244.2.0/24"];
const MTU: u32 = 1450;

/// Two hosts with the kernel's VXLAN device and one container each.
fn two_foreign_hosts(options: Options) -> (Lab, [Container; 2], [ForeignVxlan; 2]) {
    let lab = Lab::new(options).unwrap();
    let devices = [0, 1].map(|i| ForeignVxlan::new(lab.host(i), SUBNETS[i], 1, 8472).unwrap());
    let containers = [0, 1].map(|i| {
        lab.host(i).add_bridge(SUBNETS[i], MTU).unwrap();
        lab.host(i).add_container("a", SUBNETS[i], 2, MTU).unwrap()
    });
    for (own, peer) in [(0, 1), (1, 0)] {
        devices[own].put_peer(SUBNETS[peer], devices[peer].mac(), lab.host(peer).address()).unwrap();
    }
    (lab, containers, devices)
}

fn df(payload: u32) -> PingOptions {
    PingOptions { count: 1, size: payload, df: true, ..PingOptions::default() }
}

#[test]
fn foreign_hosts_talk_up_to_the_exact_mtu() {
    let (_lab, [a, b], _) = two_foreign_hosts(Options::default());
    assert!(a.ping(b.address(), PingOptions::default()).unwrap().complete());
    assert!(a.ping(b.address(), df(MTU - 28)).unwrap().complete());
    let beyond = a.ping(b.address(), df(MTU - 27)).unwrap();
    assert_eq!(beyond.received, 0, "{}", beyond.output);
}

#[test]
fn a_transfer_is_whole_with_either_kind_of_underlay() {
    for wire_like in [false, true] {
        let (_lab, [a, b], _) = two_foreign_hosts(Options { wire_like, ..Options::default() });
        let done = transfer(&a, &b, 100 << 20).unwrap();
        assert_eq!(done.bytes, 100 << 20);
    }
}

#[test]
fn relayed_hosts_talk_and_each_relay_takes_its_hop() {
    let lab = Lab::new(Options::default()).unwrap();
    let [a, b] = [0, 1].map(|i| {
        lab.host(i).add_bridge(SUBNETS[i], 1472).unwrap();
        lab.host(i).add_container("a", SUBNETS[i], 2, 1472).unwrap()
    });
    let relays = [0, 1].map(|i| lab.host(i).start_relay(SUBNETS[i], "10.244.0.0/16", 8285).unwrap());
    assert_eq!(a.ping(b.address(), df(56)).unwrap().received, 0, "nobody has told them of each other");
    for (own, peer) in [(0, 1), (1, 0)] {
        relays[own].put_route(SUBNETS[peer], lab.host(peer).address()).unwrap();
    }
    // Four machines decrement the TTL of 64: a host, a relay, a relay, a host.
    let ping = a.ping(b.address(), df(56)).unwrap();
    assert!(ping.complete() && ping.output.contains("ttl=60"), "{}", ping.output);
    assert!(a.ping(b.address(), df(1472 - 28)).unwrap().complete());
    transfer(&a, &b, 16 << 20).unwrap();

    drop(relays);
    assert!(lab.host(0).exec("ip link show dev flannel0").is_err(), "it outlived its relay");
}

#[test]
fn without_a_path_nothing_arrives_and_everything_ends() {
    let (lab, [a, b], devices) = two_foreign_hosts(Options::default());
    // Nobody has this MAC address, so the other host's stack discards every frame.
    devices[0].put_peer(SUBNETS[1], "02:00:00:00:00:99", lab.host(1).address()).unwrap();
    assert_eq!(a.ping(b.address(), df(56)).unwrap().received, 0);
    assert!(latency(&a, &b, 10).is_err());
    let stream = Numbered::start(&a, &b, 1000).unwrap();
    thread::sleep(Duration::from_millis(300));
    let report = stream.finish().unwrap();
    assert!(report.sent > 100 && report.lost == report.sent, "{report:?}");
}

#[test]
fn numbered_packets_all_arrive_at_the_rate_asked_for() {
    let (lab, [a, b], devices) = two_foreign_hosts(Options::default());
    let stream = Numbered::start(&a, &b, 20_000).unwrap();
    thread::sleep(Duration::from_secs(2));
    let report = stream.finish().unwrap();
    assert!(report.rate > 15_000, "{report:?}");
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");

    // A gap in the path is seen as lost packets.
    let stream = Numbered::start(&a, &b, 5_000).unwrap();
    thread::sleep(Duration::from_millis(200));
    devices[0].put_peer(SUBNETS[1], "02:00:00:00:00:99", lab.host(1).address()).unwrap();
    thread::sleep(Duration::from_millis(200));
    devices[0].put_peer(SUBNETS[1], devices[1].mac(), lab.host(1).address()).unwrap();
    thread::sleep(Duration::from_millis(200));
    let report = stream.finish().unwrap();
    assert!(report.lost > 500 && report.received > 500, "{report:?}");
    assert!(report.longest_gap > Duration::from_millis(150), "{report:?}");
}

#[test]
fn figures_are_plausible() {
    let (_lab, [a, b], _) = two_foreign_hosts(Options::default());
    assert!(iperf3(&a, &b, 1).unwrap() > 10.0);
    let times = latency(&a, &b, 1000).unwrap();
    assert!(times.p50_us > 1.0 && times.p50_us <= times.p99_us, "{times:?}");
}

#[test]
fn a_capture_shows_the_outer_packets() {
    let (lab, [a, b], _) = two_foreign_hosts(Options { wire_like: true, ..Options::default() });
    let capture = lab.host(1).capture("eth0", "udp port 8472").unwrap();
    assert!(a.ping(b.address(), PingOptions::default()).unwrap().complete());
    let packets = capture.lines().unwrap();
    assert_eq!(packets.len(), 6, "{packets:#?}");
    for packet in packets {
        // tcpdump calls port 8472 OTV, which has VXLAN's header.
        assert!(packet.contains("instance 1") && packet.contains("ICMP echo"), "{packet}");
        assert!(!packet.contains("bad udp cksum"), "{packet}");
    }
}

#[test]
fn nothing_is_left_behind_even_when_a_test_panics() {
    let name = thread::spawn(|| {
        let (lab, [a, _], _) = two_foreign_hosts(Options::default());
        let name = lab.name().to_owned();
        std::mem::forget(a.namespace().spawn("sleep 600").unwrap());
        assert!(leaks(&name).len() >= 7, "{:?}", leaks(&name));
        let _lab = lab;
        std::panic::panic_any(name);
    })
    .join()
    .unwrap_err();
    let name = name.downcast::<String>().unwrap();
    assert_eq!(leaks(&name), Vec::<String>::new());
}

/// Starts Docker on the first host, with a container whose port is published. The daemon brings processes, mounts and
/// control groups that the lab did not make itself.
fn docker_on(lab: &Lab) -> (Docker, DockerContainer) {
    let docker = lab.host(0).start_docker(&[]).unwrap();
    let container = docker.run("one", "--publish 8000:80").unwrap();
    (docker, container)
}

#[test]
fn a_docker_daemon_stops_and_starts_with_its_containers_and_goes_with_the_lab() {
    let name = thread::spawn(|| {
        let lab = Lab::new(Options { hosts: 1, ..Options::default() }).unwrap();
        let name = lab.name().to_owned();
        let (docker, mut container) = docker_on(&lab);
        assert!(docker.stop().unwrap().success());
        assert!(container.exec("true").is_err());
        let docker = lab.host(0).start_docker(&[]).unwrap();
        container.start().unwrap();
        assert_eq!(container.fetch("127.0.0.1").unwrap(), "a page\n");
        let left = leaks(&name);
        assert!(left.iter().any(|left| left.starts_with("control group")), "{left:?}");
        // There are the daemon, its init and the process that waits for it, containerd, two proxies, and two processes
        // of the container.
        assert!(left.iter().filter(|left| left.starts_with("process")).count() >= 8, "{left:?}");
        assert!(!left.iter().any(|left| left.contains("mount") && left.contains("docker")), "{left:?}");
        std::mem::forget(docker);
        let _lab = lab;
        std::panic::panic_any(name);
    })
    .join()
    .unwrap_err();
    let name = name.downcast::<String>().unwrap();
    assert_eq!(leaks(&name), Vec::<String>::new());
}

#[test]
fn a_removed_container_is_gone_with_its_veth() {
    let (lab, [a, b], _) = two_foreign_hosts(Options::default());
    let port = b.port().to_owned();
    assert!(lab.host(1).exec(&format!("ip link show {port}")).is_ok());
    let address = b.address();
    b.remove().unwrap();
    assert!(lab.host(1).exec(&format!("ip link show {port}")).is_err());
    assert_eq!(a.ping(address, df(56)).unwrap().received, 0);
}

/// This is no test, but a process with a lab, which tests of signals start and end.
#[test]
#[ignore = "waits to be killed; run by the tests of signals"]
fn a_process_that_holds_a_lab() {
    let (lab, [a, _], _) = two_foreign_hosts(Options::default());
    let _sleep = a.namespace().spawn("sleep 600").unwrap();
    let _docker = docker_on(&lab);
    println!("lab {}", lab.name());
    thread::sleep(Duration::from_secs(60));
}

/// Starts a process with a lab and returns it with the lab's name.
fn hold_a_lab() -> (std::process::Child, String) {
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_holds_a_lab", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let name = BufReader::new(process.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().split("lab ").nth(1).map(str::to_owned))
        .unwrap();
    (process, name)
}

#[test]
fn ctrl_c_cleans_up_before_the_process_ends() {
    let (mut process, name) = hold_a_lab();
    assert!(!leaks(&name).is_empty());
    kill(Pid::from_raw(process.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(130));
    assert_eq!(leaks(&name), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_leaves_is_found_and_removed() {
    let (mut process, name) = hold_a_lab();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(orphans().contains(&name));
    assert!(leaks(&name).iter().any(|left| left.starts_with("namespace")));
    sweep(&name).unwrap();
    assert_eq!(leaks(&name), Vec::<String>::new());
}

/// Makes a program that takes the place of the overlay's binary, so that the lab's handling of agents is seen without
/// one.
fn stand_in(lab: &Lab, script: &str) -> PathBuf {
    let path = lab.folder().join("stand-in");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_agent_that_ends_is_reported_with_what_it_said() {
    let lab = Lab::new(Options { hosts: 1, ..Options::default() }).unwrap();
    let binary = stand_in(&lab, "echo no lease today; exit 3");
    let mut agent = lab.host(0).start_agent(&binary, &[]).unwrap();
    let error = format!("{:#}", agent.wait_ready(Duration::from_secs(5)).unwrap_err());
    assert!(error.contains("no lease today") && error.contains("exit status: 3"), "{error}");
}

#[test]
fn an_agent_gets_its_hosts_places_and_its_subnet_is_read_back() {
    let lab = Lab::new(Options { hosts: 1, ..Options::default() }).unwrap();
    let host = lab.host(0);
    let env = host.subnet_file().display().to_string();
    let binary = stand_in(
        &lab,
        &format!(
            "echo $OVERLAY_BPF_ROOT $*; printf 'FLANNEL_SUBNET=10.244.7.1/24\\nFLANNEL_MTU=1450\\n' >{env}; exec sleep 600"
        ),
    );
    let agent = host.start_agent(&binary, &["--store-dir", "/nowhere"]).unwrap();
    wait_until("subnet.env", Duration::from_secs(5), || Ok(agent.subnet().is_ok())).unwrap();
    assert_eq!(agent.subnet().unwrap(), ("10.244.7.0/24".to_owned(), 1450));
    let said = agent.log();
    assert!(said.starts_with(&host.bpf_root().display().to_string()), "{said}");
    assert!(said.contains("agent --iface eth0") && said.contains("--store-dir /nowhere"), "{said}");
    assert!(agent.terminate().unwrap().code().is_none(), "ended by the signal");
}

#[test]
fn etcd_in_the_switch_is_reached_from_the_hosts() {
    let lab = Lab::new(Options::default()).unwrap();
    let etcd = Etcd::start_in_netns(&lab.folder(), lab.switch().name(), Lab::SWITCH).unwrap();
    let line = format!("etcdctl --endpoints {} endpoint health", etcd.client_url());
    lab.host(1).exec(&line).unwrap();
}

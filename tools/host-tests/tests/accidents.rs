//! What an operator does by accident under a running agent (removes its folders, mounts something over them, starts another agent
//! on them) costs no packet, and is told.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use overlay_host_tests::{
    hosts::{
        JoinedHost, SOON, carried, lab, logged, overlay, program, said, start_logged, status, store, until,
    },
    overlay as binary, pins,
};
use overlay_lab::{Container, Host, Lab, Numbered, PingOptions, command::sh, wait_until};
use overlay_user::datapath::links::Links;

fn members(lab: &Lab) -> (JoinedHost, JoinedHost) {
    let store = store(lab);
    let arguments = ["--store-dir", &store, "--store-shared"];
    let (a, b) = (JoinedHost::join(lab.host(0), &arguments), JoinedHost::join(lab.host(1), &arguments));
    a.reaches(&b);
    (a, b)
}

#[track_caller]
fn soon(what: &str, mut is: impl FnMut() -> bool) {
    wait_until(what, SOON, || Ok(is())).unwrap();
}

/// How many programs of this project run at TC of an interface, as the kernel says: no pin leads to any from a folder that does
/// not exist.
fn programs(host: &Host, interface: &str) -> usize {
    let found = host.namespace().enter(|| Ok(Links::orphans(Path::new("/nonexistent"), None)?)).unwrap();
    found.iter().filter(|one| one.interface == interface).count()
}

/// Whether a container has become an endpoint, which it can when its port has programs. It must say something to be known.
fn is_endpoint(host: &Host, container: &Container, other: &JoinedHost) -> bool {
    let once = PingOptions { count: 1, timeout: 0.3, ..PingOptions::default() };
    let _ = container.ping(other.container.address(), once);
    let listed = host.overlay(binary(), &["endpoints", "--json"]).unwrap();
    listed.contains(&format!("\"{}\"", container.address()))
}

fn state(host: &Host) -> std::path::PathBuf {
    host.folder().join("state/default")
}

#[test]
fn removed_pins_and_files_are_put_back_and_no_packet_is_lost() {
    let lab = lab(2);
    let (a, b) = members(&lab);
    let host = &a.host;
    let traffic = [
        Numbered::start(&a.container, &b.container, 2000),
        Numbered::start(&b.container, &a.container, 2000),
    ];
    let traffic = traffic.map(Result::unwrap);
    let restored = || status(host)["agent"]["state"]["pins_restored"].as_u64().unwrap();

    let links = pins(host).join("links");
    let count = fs::read_dir(&links).unwrap().count();
    fs::remove_dir_all(&links).unwrap();
    soon("the links", || fs::read_dir(&links).is_ok_and(|links| links.count() == count));
    logged(host, &format!("somebody removed pins: {count} maps and links are pinned again"));
    until(host, "told", |status| status["agent"]["state"]["pins_restored"] == count);
    fs::remove_dir_all(pins(host)).unwrap();
    soon("all pins", || {
        pins(host).join("peers").exists() && fs::read_dir(&links).is_ok_and(|all| all.count() == count)
    });
    soon("told again", || restored() > 2 * count as u64);
    assert!(overlay(host, &["status"]).text.contains("because somebody removed them"));

    fs::remove_file(host.subnet_file()).unwrap();
    soon("subnet.env", || host.subnet_file().exists());
    logged(host, "subnet.env: written again");
    fs::write(host.subnet_file(), "FLANNEL_MTU=9000\n").unwrap();
    soon("its text", || {
        fs::read_to_string(host.subnet_file()).is_ok_and(|text| text.contains("FLANNEL_SUBNET="))
    });
    fs::remove_dir_all(state(host)).unwrap();
    for file in ["record.json", "lock", "control.sock", "origin"] {
        soon(file, || state(host).join(file).exists());
    }
    until(host, "an answer", |status| status["agent"]["state"]["files_restored"].as_u64() >= Some(3));
    // The lock that was made anew is locked.
    overlay(host, &["down"]).is(1, &["another agent (pid"]);

    let (subnet, mtu) = a.agent.subnet().unwrap();
    let another = host.add_container("late", &subnet, 9, mtu).unwrap();
    soon("an endpoint", || is_endpoint(host, &another, &b));
    // The programs survive the agent again, and the next one finds them.
    let a = a.restarted(&["--store-dir", &store(&lab), "--store-shared"]);
    a.reaches(&b);
    assert_eq!(programs(&a.host, "eth0"), 1);
    for stream in traffic {
        let report = stream.finish().unwrap();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
}

fn mount_over(host: &Host) {
    sh(&format!("mount -t bpf bpf {}", host.bpf_root().display())).unwrap();
}

#[test]
fn a_bpffs_that_is_mounted_over_the_pins_gets_them_under_an_agent_and_without_one() {
    let lab = lab(2);
    let (a, b) = members(&lab);
    let arguments = store(&lab);
    let arguments = ["--store-dir", &arguments, "--store-shared"];
    let host = a.host.clone();
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    let port = a.container.port().to_owned();
    let is_whole = || {
        assert_eq!((programs(&host, "eth0"), programs(&host, &port), programs(&host, "overlay0")), (1, 2, 2));
    };

    mount_over(&host);
    let (subnet, mtu) = a.agent.subnet().unwrap();
    let late = host.add_container("late", &subnet, 9, mtu).unwrap();
    logged(&host, "somebody mounted another bpf filesystem over the pins");
    soon("an endpoint", || is_endpoint(&host, &late, &b));
    soon("a new record", || {
        let record = fs::read_to_string(state(&host).join("record.json")).unwrap_or_default();
        let device = status(&host)["agent"]["state"]["bpffs"].to_string();
        record.contains(&format!("\"bpffs\": {device}"))
    });
    let a = a.restarted(&arguments);
    a.reaches(&b);
    is_whole();

    // This time no agent runs.
    a.agent.terminate().unwrap();
    mount_over(&host);
    let mut agent = host.start_agent(binary(), &arguments).unwrap();
    agent.wait_ready(SOON).unwrap();
    logged(&host, "were brought into the new one");
    is_whole();
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");

    agent.terminate().unwrap();
    mount_over(&host);
    overlay(&host, &["down"]).is(0, &["is gone from this host"]);
    soon("no programs", || programs(&host, "eth0") + programs(&host, &port) == 0);
}

/// The words of an agent that uses this store.
fn agent(store: &str) -> [&str; 6] {
    ["agent", "--iface", "eth0", "--store-dir", store, "--store-shared"]
}

/// What goes before the words of an agent that should end by itself: if it does not, it is ended after so many seconds.
const AT_MOST: [&str; 2] = ["timeout", "60"];

#[test]
fn an_agent_that_lost_its_folders_to_another_one_touches_nothing_and_ends() {
    let lab = lab(2);
    let store = store(&lab);
    let (first, second) = (lab.host(0), lab.host(1));
    let mut owner = first.start_agent(binary(), &["--store-dir", &store, "--store-shared"]).unwrap();
    owner.wait_ready(SOON).unwrap();
    owner.signal(Signal::SIGSTOP).unwrap();
    fs::remove_dir_all(pins(first)).unwrap();
    fs::remove_dir_all(state(first)).unwrap();

    // In the same network namespace the first one is found without any file.
    let refused = said(&mut program(first, first, &AT_MOST, &agent(&store)));
    refused.is(1, &["another agent runs network default", "in this network namespace"]);
    // In another one nothing tells of it, and the folders are that agent's from now on.
    let mut other = start_logged(second, &mut program(second, first, &[], &agent(&store)));
    let socket = state(first).join("control.sock");
    soon("the second agent", || socket.exists() && pins(first).join("links").is_dir());
    soon("its programs", || programs(second, "eth0") == 1 && programs(second, "overlay0") == 2);
    let held = || -> Vec<String> {
        let shown = |path: &Path| sh(&format!("bpftool -j link show pinned {}", path.display())).unwrap();
        let mut links: Vec<_> = fs::read_dir(pins(first).join("links"))
            .unwrap()
            .map(|link| shown(&link.unwrap().path()))
            .collect();
        links.sort();
        links
    };
    let before = held();
    owner.signal(Signal::SIGCONT).unwrap();
    let mut ended = None;
    soon("the first one's end", || {
        ended = owner.status().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(1));
    logged(first, "owns network default on this host now");
    logged(first, "This agent touches nothing any more, and ends");
    assert_eq!(held(), before);
    assert!(socket.exists(), "the socket is the second one's");
    assert_eq!(other.status().unwrap(), None, "the second one goes on");
}

#[test]
fn an_agent_that_could_not_last_or_not_work_says_so_before_it_changes_anything() {
    let lab = lab(1);
    let (host, store) = (lab.host(0), store(&lab));
    let refused =
        |words: &[&str]| said(&mut program(host, host, &[&AT_MOST, words].concat(), &agent(&store)));
    // This agent has a mount namespace of its own, in which the host's bpffs is not mounted.
    let alone = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done; export OVERLAY_BPF_ROOT=/sys/fs/bpf; exec \"$@\"";
    let found = refused(&["unshare", "--mount", "sh", "-c", alone, "sh"]);
    found.is(1, &["in a mount namespace of its own", "--bind /sys/fs/bpf", "-v /sys/fs/bpf:/sys/fs/bpf"]);
    let bound = |capabilities: &str| format!("--bounding-set=-all,{capabilities}");
    let few = bound("+net_admin,+net_raw,+bpf,+perfmon");
    let found = refused(&["setpriv", &few]);
    found.is(1, &["CAP_SYS_ADMIN", "which programs are attached"]);
    assert!(host.exec("ip link show dev overlay0").is_err());
    assert!(!state(host).exists() && !pins(host).exists());

    // The check says the same as the start.
    let check = |capabilities: &str| {
        said(&mut program(host, host, &["setpriv", &bound(capabilities)], &["check", "--iface", "eth0"])).text
    };
    assert!(check("+net_admin,+net_raw,+bpf,+perfmon").contains("missing: CAP_SYS_ADMIN"));
    // What is asked for is enough.
    let enough = "+net_admin,+net_raw,+sys_admin";
    assert!(!check(enough).contains("missing:"));
    let mut allowed =
        start_logged(host, &mut program(host, host, &["setpriv", &bound(enough)], &agent(&store)));
    logged(host, "following");
    soon("its programs", || (programs(host, "eth0"), programs(host, "overlay0")) == (1, 2));
    allowed.signal(Signal::SIGTERM).unwrap();
    assert_eq!(allowed.wait(SOON).unwrap().code(), Some(0));
}

/// How long the agent leaves a new port to others, as docs/running.md has it.
const LEFT_ALONE: Duration = Duration::from_secs(3);

#[test]
fn a_new_port_without_tcx_is_left_to_others_for_a_moment() {
    let lab = lab(2);
    let store = store(&lab);
    let arguments = ["--store-dir", &store, "--store-shared", "--attach", "clsact"];
    let (mut a, b) = (JoinedHost::join(lab.host(0), &arguments), JoinedHost::join(lab.host(1), &arguments));
    a.reaches(&b);
    let (subnet, mtu) = a.agent.subnet().unwrap();
    let host = a.host.clone();
    let tc = |words: &str| host.exec(&format!("tc {words}")).unwrap();

    // A port that nobody limits gets its programs, but no sooner than others have had their time. However slow the machine is,
    // that time begins after this.
    let began = Instant::now();
    let free = host.add_container("free", &subnet, 20, mtu).unwrap();
    let has = |side: &str, name: &str| tc(&format!("filter show dev {} {side}", free.port())).contains(name);
    soon("its programs", || {
        is_endpoint(&host, &free, &b);
        has("ingress", "overlay_encap") && has("egress", "overlay_track")
    });
    assert!(began.elapsed() >= LEFT_ALONE, "{:?}", began.elapsed());
    soon("an endpoint", || is_endpoint(&host, &free, &b));

    // CNI's plugin `bandwidth` makes its qdisc right after the plugin `bridge` has made the port. So that the agent cannot be
    // faster on a busy machine, it is stopped meanwhile.
    a.agent.signal(Signal::SIGSTOP).unwrap();
    let limited = host.add_container("limited", &subnet, 10, mtu).unwrap();
    tc(&format!("qdisc add dev {} ingress", limited.port()));
    a.agent.signal(Signal::SIGCONT).unwrap();
    let limited = JoinedHost { container: limited, ..a };
    limited.reaches(&b);
    let port = limited.container.port();
    logged(&host, &format!("{port} has an ingress qdisc, which takes the place of clsact"));
    // The stack goes on carrying what it sends, and what is sent to it arrives.
    let before = carried(&host, "send");
    limited.reaches(&b);
    assert!(carried(&host, "send") >= before + 10, "{before}");
    b.reaches(&limited);
    let qdiscs = tc(&format!("qdisc show dev {port}"));
    assert!(qdiscs.contains("ingress") && !qdiscs.contains("clsact"), "{qdiscs}");
}

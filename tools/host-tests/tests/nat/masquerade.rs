//! `--ip-masq`: who is masqueraded and who is not, and a table that is kept as it was written.
use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use overlay_lab::{Host, Lab, Member};
use serde_json::Value;

use super::traffic::{
    BOTH, Protocol, Server, Talk,
    Tier::{Fast, Neither, Stack},
    assert_nothing_invalid, nft, own, strict_bed, talk,
};
use crate::bed::{Bed, Kind, MODES, json, wait_for};

const TABLE: &str = "overlay-default";
/// How many rules it has. The lab's network has a leasable range of its own, which takes one more.
const RULES: usize = 6;

/// Our table, chain and rules with their handles, as `nft` shows them, or nothing if there is no table.
fn objects(host: &Host) -> Vec<Value> {
    let Ok(listed) = host.exec(&format!("nft -j list table ip {TABLE}")) else { return Vec::new() };
    let listed: Value = serde_json::from_str(&listed).unwrap();
    listed["nftables"].as_array().unwrap().clone()
}

/// The rules of our table.
fn rules(host: &Host) -> Vec<Value> {
    objects(host).iter().filter_map(|object| object.get("rule")).cloned().collect()
}

fn status(member: &Member) -> (String, u64) {
    let rule = json(member, &["status"])["agent"]["rules"]["masquerade"].clone();
    (rule["state"].as_str().unwrap().to_owned(), rule["restored"].as_u64().unwrap())
}

#[test]
fn what_leaves_the_overlay_is_masqueraded_and_nothing_else() {
    MODES.into_iter().for_each(leave_and_enter);
}

fn leave_and_enter(mode: &[&str]) {
    let bed = strict_bed(1, &[&["--ip-masq"][..], mode].concat());
    let (a, b) = bed.pair();
    let outside = bed.lab.switch();
    let _servers = [Server::start(outside, Lab::SWITCH, 9000), Server::of(a), Server::of(b)];
    // A container talks to a machine outside, and the overlay has nothing to do with it.
    let out = talk(&bed, a.namespace(), Lab::SWITCH, 9000);
    assert_eq!(out, (bed[0].host.address(), vec![Neither, Neither]));
    assert!(a.ping(Lab::SWITCH, crate::bed::pings(3)).unwrap().complete());
    // Within the overlay, containers see each other's own addresses.
    assert_eq!(talk(&bed, a.namespace(), b.address(), 8080), (a.address(), vec![Fast, Fast]));
    // From outside, a container sees who sends to it through its own host.
    outside.ip("route add 10.244.0.0/16 via 10.99.0.1").unwrap();
    assert_eq!(talk(&bed, outside, a.address(), 8080), (Lab::SWITCH, vec![Neither, Neither]));
    // Packets that kube-proxy has marked are kube-proxy's to masquerade, whichever other bits are set.
    let marking = "chain c { type filter hook prerouting priority mangle; meta mark set 0x14001; }";
    nft(&bed[0].host, &format!("table ip marking {{ {marking}; }}"));
    assert_eq!(talk(&bed, a.namespace(), Lab::SWITCH, 9000), (a.address(), vec![Neither, Neither]));
    assert_nothing_invalid(&bed);
}

#[test]
fn d9_what_comes_from_outside_to_another_hosts_container_is_masqueraded() {
    MODES.into_iter().for_each(come_from_outside);
}

fn come_from_outside(mode: &[&str]) {
    let bed = strict_bed(1, &[&["--ip-masq"][..], mode].concat());
    let b = &bed[1].containers[0];
    let _server = Server::of(b);
    let outside = bed.lab.switch();
    outside.ip("route add 10.244.0.0/16 via 10.99.0.1").unwrap();
    assert_eq!(talk(&bed, outside, b.address(), 8080), (own(&bed, 0, 0), vec![Stack, Fast]));
    assert_nothing_invalid(&bed);
}

#[test]
fn the_table_is_put_back_and_others_are_left_alone() {
    let bed = Bed::with(Kind::Folder, Default::default(), &["--ip-masq"]);
    let (member, host) = (&bed[0], &bed[0].host);
    nft(
        host,
        "table ip other { chain c { type nat hook postrouting priority 99; ip saddr 1.2.3.4 masquerade; }; }",
    );
    let other = host.exec("nft -a list table ip other").unwrap();
    let written = rules(host);
    assert_eq!((written.len(), status(member)), (RULES, ("active".to_owned(), 0)));
    assert!(fs::read_to_string(host.subnet_file()).unwrap().contains("FLANNEL_IPMASQ=true\n"));
    let damages = [
        format!("delete table ip {TABLE}"),
        format!("flush table ip {TABLE}"),
        format!("add rule ip {TABLE} postrouting accept"),
        format!("add table ip {TABLE} {{ flags dormant ; }}"),
        format!("delete rule ip {TABLE} postrouting handle HANDLE"),
    ];
    for (count, damage) in (1..).zip(&damages) {
        let handle = rules(host)[1]["handle"].to_string();
        host.exec(&format!("nft {}", damage.replace("HANDLE", &handle))).unwrap();
        wait_for(damage, || status(member).1 == count);
        assert_eq!(rules(host).len(), RULES, "{damage}");
        let table = host.exec(&format!("nft list table ip {TABLE}")).unwrap();
        assert!(!table.contains("dormant") && !table.contains(" accept\n"), "{damage}: {table}");
    }
    assert_eq!(status(member), ("active".to_owned(), damages.len() as u64));
    // Nobody has altered the table, so it is not written again and again.
    let written = objects(host);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(objects(host), written);
    assert_eq!(host.exec("nft -a list table ip other").unwrap(), other);
}

#[test]
fn the_next_agent_adopts_it_and_there_is_no_moment_without() {
    let mut bed = Bed::with(Kind::Folder, Default::default(), &["--ip-masq"]);
    let (a, host) = (bed[0].containers[0].clone(), bed[0].host.clone());
    let _server = Server::start(bed.lab.switch(), Lab::SWITCH, 9000);
    // A request that is not masqueraded is answered, too, so it shows itself.
    bed.lab.switch().ip("route add 10.244.0.0/16 via 10.99.0.1").unwrap();
    let mut lasting = BOTH.map(|protocol| Talk::open(a.namespace(), protocol, Lab::SWITCH, 9000).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let asking = a.namespace().clone();
    let asked = thread::spawn(move || {
        let mut heard: Vec<Ipv4Addr> = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            heard.push(Talk::open(&asking, Protocol::Udp, Lab::SWITCH, 9000).unwrap().ask().unwrap());
            thread::sleep(Duration::from_millis(2));
        }
        heard
    });
    for _ in 0..2 {
        let before = objects(&host);
        bed[0].kill_agent().unwrap();
        assert_eq!(objects(&host), before);
        bed[0].restart_agent().unwrap();
        wait_for("the table", || status(&bed[0]) == ("active".to_owned(), 0));
        let after = objects(&host);
        assert!(rules(&host).len() == RULES && after != before, "not written anew: {after:?}");
        for talk in &mut lasting {
            assert_eq!(talk.ask().unwrap(), host.address());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let heard = asked.join().unwrap();
    let bare = heard.iter().filter(|address| **address != host.address()).count();
    assert_eq!(bare, 0, "of {}", heard.len());
    assert!(heard.len() > 50, "{}", heard.len());

    // An agent without the option removes the table. So does `overlay down`, which knows only the network's name.
    let keep = host.exec(&format!("nft list table ip {TABLE}")).unwrap();
    bed[0].end_agent().unwrap();
    bed[0].drop_argument("--ip-masq");
    bed[0].restart_agent().unwrap();
    assert_eq!((rules(&host).len(), status(&bed[0])), (0, ("off".to_owned(), 0)));
    assert!(fs::read_to_string(host.subnet_file()).unwrap().contains("FLANNEL_IPMASQ=false\n"));
    bed[0].end_agent().unwrap();
    nft(&host, &keep);
    nft(&host, &keep.replace(TABLE, "overlay-other"));
    bed[0].overlay(&["down"]).unwrap();
    assert_eq!(host.exec("nft list tables").unwrap(), "table ip overlay-other\n");
}

#[test]
fn down_finds_what_path_leaves_out_and_calls_nothing_gone_that_it_could_not_look_at() {
    let mut bed = Bed::with(Kind::Folder, Default::default(), &["--ip-masq"]);
    bed[0].end_agent().unwrap();
    let host = bed[0].host.clone();
    let broken = host.folder().join("broken");
    fs::create_dir(&broken).unwrap();
    for name in ["nft", "iptables-nft-save"] {
        let file = broken.join(name);
        fs::write(&file, "#!/bin/sh\necho out of order >&2\nexit 1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let down = |path: &str| {
        let words = [&format!("PATH={path}"), crate::bed::overlay().to_str().unwrap(), "down"];
        host.overlay(Path::new("env"), &words)
    };
    let said = format!("{:#}", down(&format!("{}:/usr/bin:/bin", broken.display())).unwrap_err());
    for expected in [
        "network default is not wholly gone",
        "table ip overlay-default may be there: nft list tables ip: out of order",
        "iptables-nft-save: out of order",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(rules(&host).len(), RULES);
    // This is the PATH after Debian's `su` without options.
    down("/usr/local/bin:/usr/bin:/bin").unwrap();
    assert_eq!(host.exec("nft list tables").unwrap(), "");
}

#[test]
fn without_nft_the_agent_says_so_and_changes_nothing() {
    let lab = Lab::new(Default::default()).unwrap();
    let store = lab.folder().join("store").display().to_string();
    // The time is limited, because an agent that does not refuse runs on.
    let words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        // No `nft` can be run, wherever it is looked for.
        "mount --bind /dev/null /usr/sbin/nft && exec \"$@\"",
        "sh",
        "timeout",
        "20",
        crate::bed::overlay().to_str().unwrap(),
        "agent",
        "--ip-masq",
        "--store-dir",
        &store,
        "--iface",
        "eth0",
    ];
    let mut command = lab.host(0).namespace().command(&words).unwrap();
    command.env("OVERLAY_STATE_DIR", lab.folder().join("state"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("there is no `nft`: install nftables, or start the agent without --ip-masq"),
        "{said}"
    );
    assert!(!lab.folder().join("state").exists());
}

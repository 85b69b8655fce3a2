//! `--forward-rules`: hosts whose FORWARD chain drops what no rule accepts.
use overlay_host_tests::hosts::overlay;
use overlay_lab::{Host, Member};

use super::traffic::{
    Protocol::Tcp,
    Server, Talk,
    Tier::{Fast, Stack},
    publish, talk,
};
use crate::bed::{Bed, Kind, json, wait_for};

const SERVICE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);

fn ours(host: &Host) -> usize {
    host.exec("iptables-save").unwrap().matches("overlay-forward:default").count()
}

fn state(member: &Member) -> (String, u64) {
    let rule = json(member, &["status"])["agent"]["rules"]["forward"].clone();
    (rule["state"].as_str().unwrap().to_owned(), rule["restored"].as_u64().unwrap())
}

fn drop_by_default(bed: &Bed) {
    for member in &bed.members {
        member.host.exec("iptables -P FORWARD DROP").unwrap();
    }
}

#[test]
fn what_takes_the_stack_passes_a_forward_chain_that_drops() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let host = bed[0].host.clone();
    let _server = Server::of(&b);
    publish(&host, SERVICE, 80, &b);
    assert_eq!(state(&bed[0]).0, "unneeded");
    assert_eq!(host.exec("iptables-save").unwrap(), "", "looking made tables");
    assert_eq!(host.exec("cat /proc/net/ip_tables_names").unwrap(), "", "looking made tables");

    // Docker starts later than the agent.
    host.exec("iptables -N DOCKER-USER").unwrap();
    host.exec("iptables -A FORWARD -j DOCKER-USER").unwrap();
    drop_by_default(&bed);
    wait_for("the rules", || ours(&host) == 2 && state(&bed[0]) == ("active".to_owned(), 0));
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));
    let chain = host.exec("iptables -S FORWARD").unwrap();
    let lines: Vec<_> = chain.lines().collect();
    assert!(lines[1].ends_with("-j DOCKER-USER") && lines.len() == 4, "{chain}");

    // Rules of users decide before ours.
    host.exec(&format!("iptables -A DOCKER-USER -s {} -p tcp -j REJECT", a.address())).unwrap();
    assert!(Talk::open(a.namespace(), Tcp, SERVICE, 80).is_err());
    host.exec("iptables -F DOCKER-USER").unwrap();

    // The rules are put back, and not doubled.
    host.exec("iptables -F FORWARD").unwrap();
    wait_for("the rules again", || ours(&host) == 2 && state(&bed[0]) == ("active".to_owned(), 1));
    bed[0].kill_agent().unwrap();
    bed[0].restart_agent().unwrap();
    assert_eq!((ours(&host), state(&bed[0])), (2, ("active".to_owned(), 0)));
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));

    // No other rule is touched, and none of ours stays.
    host.exec("iptables -A FORWARD -s 1.2.3.4/32 -j ACCEPT").unwrap();
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    let chain = host.exec("iptables -S FORWARD").unwrap();
    assert_eq!(chain, "-P FORWARD DROP\n-A FORWARD -s 1.2.3.4/32 -j ACCEPT\n");
}

#[test]
fn a_packet_passes_the_forward_chains_of_both_variants() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let host = bed[0].host.clone();
    let _server = Server::of(&b);
    publish(&host, SERVICE, 80, &b);
    let ours = |variant: &str| {
        host.exec(&format!("{variant}-save")).unwrap().matches("overlay-forward:default").count()
    };
    let levels = |member: &Member| {
        ["iptables-nft", "iptables-legacy"].map(|variant| {
            let findings = json(member, &["check", "--iface", "eth0"]);
            let what = format!("{variant} forward rules");
            let found = findings.as_array().unwrap().iter().find(|found| found["what"] == what.as_str());
            found.unwrap_or_else(|| panic!("{findings}"))["level"].as_str().unwrap().to_owned()
        })
    };
    assert_eq!(levels(&bed[0]), ["ok", "ok"]);
    assert_eq!(host.exec("cat /proc/net/ip_tables_names").unwrap(), "", "checking made tables");

    // The older variant sends no events, so any change of nftables makes the agent look at both.
    host.exec("iptables-legacy -P FORWARD DROP").unwrap();
    host.exec("nft add table ip other").unwrap();
    wait_for("the legacy rules", || ours("iptables-legacy") == 2 && state(&bed[0]).0 == "active");
    assert_eq!(ours("iptables-nft"), 0);
    host.exec("iptables-nft -P FORWARD DROP").unwrap();
    wait_for("the other rules", || ours("iptables-nft") == 2);
    assert_eq!(ours("iptables-legacy"), 2);
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));
    assert_eq!(levels(&bed[0]), ["ok", "ok"]);

    bed[0].end_agent().unwrap();
    host.exec("iptables-legacy -F FORWARD").unwrap();
    assert_eq!(levels(&bed[0]), ["ok", "warn"]);
    bed[0].restart_agent().unwrap();
    assert_eq!(ours("iptables-legacy"), 2);
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    for variant in ["iptables-nft", "iptables-legacy"] {
        assert_eq!(host.exec(&format!("{variant} -S FORWARD")).unwrap(), "-P FORWARD DROP\n");
    }
}

/// A chain that a last rule closes, as many firewalls have it, in place of a policy.
#[test]
fn the_rules_stand_where_they_act() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let host = bed[0].host.clone();
    let _server = Server::of(&b);
    publish(&host, SERVICE, 80, &b);
    host.exec("iptables -A FORWARD -s 1.2.3.4 -j DROP").unwrap();
    host.exec("iptables -A FORWARD -j REJECT").unwrap();
    wait_for("the rules", || ours(&host) == 2);
    let chain = || host.exec("iptables -S FORWARD").unwrap();
    let lines: Vec<_> = chain().lines().map(str::to_owned).collect();
    assert!(lines[1].ends_with("-j DROP") && lines[2].contains("overlay-forward"), "{lines:?}");
    assert!(lines[4].contains("-j REJECT") && lines.len() == 5, "{lines:?}");
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));

    // Somebody stops everything: that is obeyed, and told.
    host.exec("iptables -I FORWARD -j DROP").unwrap();
    let mut udp = Talk::open(a.namespace(), super::traffic::Protocol::Udp, SERVICE, 80).unwrap();
    assert!(udp.ask().is_err());
    host.exec("nft add table ip other").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(chain().lines().nth(1).unwrap().ends_with("-j DROP"), "{}", chain());
    let findings = json(&bed[0], &["check", "--iface", "eth0"]).to_string();
    assert!(findings.contains("a rule refuses everything"), "{findings}");
    assert!(!findings.contains("--forward-rules on"), "{findings}");
    host.exec("iptables -D FORWARD 1").unwrap();
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    assert_eq!((ours(&host), chain().lines().count()), (0, 3));
}

/// INPUT is behind the fast path, so learned containers talk; what takes the stack arrives there.
#[test]
fn a_closed_input_chain_is_named_with_what_opens_it() {
    // Under `auto` the chain that is closed below would be obeyed, and nothing would arrive.
    let bed = Bed::with(Kind::Folder, Default::default(), &["--fast-path", "on"]);
    bed.learn_all();
    let (a, b) = bed.pair();
    let _server = Server::of(b);
    let host = &bed[0].host;
    publish(host, SERVICE, 80, b);
    let check = ["check", "--iface", "eth0"];
    overlay(host, &check).is(0, &[]);
    host.exec("iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT").unwrap();
    host.exec("iptables -P INPUT DROP").unwrap();
    assert_eq!(talk(&bed, a.namespace(), b.address(), 8080), (a.address(), vec![Fast, Fast]));
    let mut udp = Talk::open(a.namespace(), super::traffic::Protocol::Udp, SERVICE, 80).unwrap();
    assert!(udp.ask().is_err(), "the answer passed INPUT");
    // What it says is what helps.
    let remedy = "iptables-nft -I INPUT -p udp --dport 8472 -j ACCEPT";
    overlay(host, &[&check[..], &["--json"]].concat()).is(3, &["UDP to port 8472 is refused", remedy]);
    host.exec(remedy).unwrap();
    overlay(host, &check).is(0, &[]);
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));
}

#[test]
fn forward_rules_off_adds_none() {
    // Under `auto` the chain that drops below would be obeyed.
    let bed = Bed::with(Kind::Folder, Default::default(), &["--forward-rules", "off", "--fast-path", "on"]);
    bed.learn_all();
    let (a, b) = bed.pair();
    let _server = Server::of(b);
    publish(&bed[0].host, SERVICE, 80, b);
    assert_eq!(talk(&bed, a.namespace(), SERVICE, 80), (a.address(), vec![Stack, Fast]));
    drop_by_default(&bed);
    let mut udp = Talk::open(a.namespace(), super::traffic::Protocol::Udp, SERVICE, 80).unwrap();
    assert!(udp.ask().is_err());
    assert_eq!((ours(&bed[0].host), state(&bed[0]).0.as_str()), (0, "off"));
    // The fast path's packets do not pass that chain.
    assert_eq!(talk(&bed, a.namespace(), b.address(), 8080), (a.address(), vec![Fast, Fast]));
}

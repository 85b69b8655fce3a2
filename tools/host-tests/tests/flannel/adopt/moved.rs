//! Hosts that are moved and moved back, under traffic.
use std::{fs, path::PathBuf, time::Duration};

use overlay_lab::{DIRECT_VXLAN, NumberedReport, Steady};
use serde_json::Value;

use super::super::{
    bed::{Flannel, Mode, assert_reaches, flannels, overlay, subnet_env},
    rules::{self, By},
};
use super::{
    live::of_the_host,
    scene::{Picture, Scene, Traffic, parsed},
};

/// What the other host knows about the one that is moved.
fn known_on_the_other_host(scene: &Scene) -> String {
    let (subnet, host) = (&scene.moved().subnet, &scene.other().host);
    let lines =
        ["ip neigh show dev flannel.1", "bridge fdb show dev flannel.1"].map(|it| host.exec(it).unwrap());
    format!("{}{}", lines.concat(), scene.other().route(subnet))
        + &host.exec(&format!("ip route get {}", subnet.replace("0/24", "2"))).unwrap()
}

fn moves_under_traffic(flannel: &Flannel, by: By, options: &[&str]) -> ([NumberedReport; 2], Value) {
    let mut scene = Scene::new(flannel);
    rules::write(&scene.moved().host, by, &scene.moved().subnet);
    scene.bed.flannel[0].stop();
    let (lease, known) = (scene.lease(), known_on_the_other_host(&scene));
    let before = Picture::of(&scene.moved().host);

    let plan = scene.done(&[&["--dry-run"], options].concat());
    assert!(plan.contains(" 1. renew lease") && plan.contains("remove flannel.1, with 1 routes"), "{plan}");
    before.same(&Picture::of(&scene.moved().host), "--dry-run");

    // These connections begin under flannel, and end under it.
    let (a, b) = scene.containers();
    let through = [(a, b), (b, a)].map(|(from, to)| Steady::start(from, to).unwrap());
    let traffic = Traffic::start(&scene);
    let report = parsed(&scene.done(&[&["--json"], options].concat()));
    let lost = traffic.finish();
    let disruption = &report["toll"];
    // How long that is depends on the machine: usual are 8 to 20 ms, and more than a second was seen on a busy one.
    assert!(disruption["interruption_us"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!(disruption["refused"], 0, "{report:#}");
    assert_eq!(scene.invalid(), 0, "connection tracking calls no packet of a live connection invalid");

    // The store and the other host have not noticed anything.
    assert_eq!(scene.lease(), lease);
    assert_eq!(known_on_the_other_host(&scene), known);
    // Nothing of flannel's is left, and everything else is.
    let after = Picture::of(&scene.moved().host);
    assert!(!after.0["links"].contains("flannel"), "{}", after.0["links"]);
    assert!(!after.0["routes"].contains("flannel") && !after.0["routes"].contains("blackhole"), "{after:?}");
    let (old, new) = (&before.0["rules"], &after.0["rules"]);
    assert!(!new.to_lowercase().contains("flannel"), "{new}");
    let others = old.lines().filter(|line| line.contains("192.0.2.") || line.contains("docker0"));
    assert!(others.into_iter().all(|line| new.contains(line)), "{new}");
    assert!(new.contains("table ip overlay-default"), "masquerading goes on: {new}");

    // The agent finds everything and goes on with it.
    let line = report["next"].as_str().unwrap();
    assert!(line.starts_with("overlay agent") && line.ends_with("--ip-masq"), "{line}");
    let etcd = scene.etcd.clone();
    let arguments = [&["--etcd-endpoints", &etcd, "--ip-masq"], options].concat();
    let traffic = Traffic::start(&scene);
    let mut agent = scene.moved().host.start_agent(overlay(), &arguments).unwrap();
    agent.wait_ready(Duration::from_secs(60)).unwrap();
    assert!(agent.log().contains("adopting what an earlier agent left"), "{}", agent.log());
    for report in traffic.finish() {
        assert_eq!(report.lost, 0, "{report:?}");
    }
    assert_eq!(
        subnet_env(&scene.moved().host),
        before.0["subnet.env"].replace("IPMASQ=false", "IPMASQ=true")
    );
    // A second run has nothing to do.
    assert!(scene.done(&[]).contains("nothing to adopt"));

    // Now the host is moved back.
    scene.refused(&["--back"], &["end the agent first"]);
    agent.terminate().unwrap();
    let traffic = Traffic::start(&scene);
    let back = parsed(&scene.done(&["--back", "--json"]));
    traffic.finish();
    for steady in through {
        let silent = steady.finish().unwrap().longest_gap;
        assert!(silent < Duration::from_secs(5), "nothing for {silent:?}");
    }
    assert!(back["toll"]["interruption_us"].as_u64().unwrap() > 0, "{back:#}");
    before.same(&Picture::of(&scene.moved().host), "--back");
    let left = |folder: PathBuf| fs::read_dir(folder).map_or(0, Iterator::count);
    assert_eq!(left(scene.moved().host.folder().join("state")), 0);
    let mac = scene.moved().mac();
    scene.bed.flannel[0].start_again();
    assert_eq!(scene.moved().mac(), mac, "flannel finds its device as it left it");
    assert_eq!(scene.lease(), lease);
    scene.bed.know_each_other();
    let (a, b) = scene.containers();
    assert_reaches(a, b.address());
    (lost, report)
}

#[test]
fn a_host_is_moved_under_traffic_without_a_packet_lost_in_the_fast_path() {
    for flannel in flannels() {
        let (lost, report) = moves_under_traffic(&flannel, By::Iptables("iptables-nft"), &[]);
        assert_eq!((lost[0].lost, lost[1].lost), (0, 0), "{lost:?} {report:#}");
    }
}

#[test]
fn what_the_stack_carries_is_interrupted_for_a_moment_and_the_packets_are_counted() {
    for flannel in flannels() {
        for by in [By::Iptables("iptables-legacy"), By::Nftables] {
            let (lost, report) = moves_under_traffic(&flannel, by, &["--fast-path", "off"]);
            let disruption = &report["toll"];
            let told = |name: &str| disruption[name].as_u64().unwrap();
            println!("{by:?}: lost {} and {}, told {disruption}", lost[0].lost, lost[1].lost);
            // The acknowledgements and segments of the two connections are among the packets that the report counts.
            assert!(lost[0].lost <= told("from_containers"), "{lost:?} {disruption}");
            assert!(lost[1].lost <= told("from_peers"), "{lost:?} {disruption}");
        }
    }
}

/// How many packets devices have lost, as the command prints it: `device losses eth0 tx_dropped 2, va queue_drops 1`.
fn device_losses(printed: &str) -> u64 {
    let line = printed.lines().find_map(|line| line.trim().strip_prefix("device losses "));
    let line = line.unwrap_or_else(|| panic!("no device losses: {printed}"));
    line.split(", ").filter_map(|loss| loss.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn direct_routing_loses_no_packet_by_any_path_and_its_routes_go_and_come_back() {
    for flannel in flannels() {
        let mut scene = Scene::with(&flannel, DIRECT_VXLAN);
        rules::write(&scene.moved().host, By::Iptables("iptables-nft"), &scene.moved().subnet);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        let direct = format!("{} via 10.99.0.2 dev eth0", scene.other().subnet);
        assert!(before.0["routes"].contains(&direct), "{before:?}");
        // The kernel translates the host's own connections, too, and remembers by which interface they leave.
        let mut own = of_the_host(&scene);
        assert!(scene.done(&["--dry-run"]).contains("keep the translation of 1 masqueraded connections"));
        // clsact is the attach method on kernels without TCX. Where one is put at a device, the kernel stops the device's queues for
        // a moment (qdisc_graft) and drops what is being sent there, which the command shows among the losses of devices.
        for options in [&[][..], &["--fast-path", "off"], &["--attach", "clsact"]] {
            let traffic = Traffic::start(&scene);
            let plan = scene.done(options);
            let lost: u64 = traffic.finish().iter().map(|numbered| numbered.lost).sum();
            let excused = if options.contains(&"clsact") { device_losses(&plan) } else { 0 };
            assert!(lost <= excused, "{options:?}: {lost} of at most {excused} {plan}");
            assert!(
                plan.contains(&format!("remove flannel's plain routes: {}", scene.other().subnet)),
                "{plan}"
            );
            let (a, b) = scene.containers();
            assert_reaches(a, b.address());
            own.talk();
            assert_eq!(scene.invalid(), 0, "{options:?}");
            scene.done(&["--back"]);
            own.talk();
            before.same(&Picture::of(&scene.moved().host), "--back");
        }
    }
}

#[test]
fn a_host_of_the_host_gw_backend_is_moved_without_a_gap() {
    for flannel in flannels() {
        let mut scene = Scene::with(&flannel, Mode::HostGw.config());
        let subnet = scene.moved().subnet.clone();
        rules::write(&scene.moved().host, By::Nftables, &subnet);
        // flannel makes this route with --ip-blackhole-route.
        scene.moved().host.namespace().ip(&format!("route append blackhole {subnet}")).unwrap();
        scene.bed.flannel[0].stop();
        let mut kept = of_the_host(&scene);
        let (lease, route) = (scene.lease(), scene.other().route(&scene.moved().subnet));
        let before = Picture::of(&scene.moved().host);
        let traffic = Traffic::start(&scene);
        let report = parsed(&scene.done(&["--json"]));
        let lost = traffic.finish().map(|numbered| numbered.lost);
        assert_eq!(lost, [0, 0], "{report:#}");
        assert_eq!(report["toll"]["interruption_us"], 0, "{report:#}");
        assert_eq!((scene.lease(), scene.other().route(&scene.moved().subnet)), (lease, route));
        let after = Picture::of(&scene.moved().host);
        assert!(!after.0["routes"].contains(" via 10.99.0.2 "), "{after:?}");
        let routes = after.0["routes"].lines().filter(|line| line.starts_with("blackhole"));
        let routes: Vec<_> = routes.collect();
        assert!(matches!(routes[..], [one] if one.ends_with("metric 4294967295")), "{routes:?}");
        let next = report["next"].as_str().unwrap();
        assert!(next.ends_with("--ip-masq --ip-blackhole-route"), "{next}");
        kept.talk();
        assert_eq!(scene.invalid(), 0);
        assert!(scene.done(&[]).contains("nothing to adopt"));

        let etcd = scene.etcd.clone();
        let arguments = ["--etcd-endpoints", &etcd, "--ip-masq", "--ip-blackhole-route", "--fast-path", "on"];
        let mut agent = scene.moved().host.start_agent(overlay(), &arguments).unwrap();
        agent.wait_ready(Duration::from_secs(60)).unwrap();
        assert!(agent.log().contains("adopting what an earlier agent left"), "{}", agent.log());
        agent.terminate().unwrap();
        let plan = scene.done(&["--back", "--dry-run"]);
        assert!(!plan.contains("of this host itself end"), "{plan}");
        let _ending = of_the_host(&scene);
        let plan = scene.done(&["--back", "--dry-run"]);
        assert!(plan.contains("1 connections of this host itself end"), "{plan}");
        let traffic = Traffic::start(&scene);
        scene.done(&["--back"]);
        kept.talk();
        for report in traffic.finish() {
            assert_eq!(report.lost, 0, "{report:?}");
        }
        before.same(&Picture::of(&scene.moved().host), "--back");
        scene.bed.flannel[0].start_again();
        scene.bed.know_each_other();
    }
}

//! Moves that fail, are cut off, or cannot be taken back wholly.
use std::{fs, process::Stdio, time::Duration};

use overlay_lab::PingOptions;

use serde_json::json;

use super::super::{
    bed::{Mode, flannels, overlay, wait_for},
    rules::{self, By},
};
use super::scene::{Picture, Scene, Traffic, in_place_of, is_up, parsed, text};

#[test]
fn a_move_that_fails_half_way_is_undone() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        rules::write(&scene.moved().host, By::Iptables("iptables-nft"), &scene.moved().subnet);
        scene.bed.flannel[0].stop();
        let lease = scene.lease();
        let before = Picture::of(&scene.moved().host);
        let seen = scene.moved().host.folder().join("seen");
        // Writing the rules is the last step that can fail. flannel's device has given up the port by then, and ours
        // has taken it.
        let does = format!("ip -br link > {}; echo no such luck >&2; exit 1", seen.display());
        let path = in_place_of(&scene.moved().host, "iptables-nft-restore", &does);
        let traffic = Traffic::start(&scene);
        let output = scene.command(&[], Some(&path)).output().unwrap();
        let lost = traffic.finish();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        for said in ["no such luck", "Nothing has changed: all is flannel's again"] {
            assert!(text(&output).contains(said), "{}", text(&output));
        }
        let links = fs::read_to_string(&seen).unwrap();
        assert!(is_up(&links, "overlay0") && !is_up(&links, "flannel.1"), "{links}");
        before.same(&Picture::of(&scene.moved().host), "undone");
        assert_eq!(scene.lease(), lease);
        assert!(!scene.moved().host.folder().join("state/default").exists());
        // The fast path went on during the move and its undoing.
        assert_eq!((lost[0].lost, lost[1].lost), (0, 0), "{lost:?}");
        // After that the move succeeds.
        scene.done(&[]);
    }
}

#[test]
fn a_move_that_is_cut_off_can_be_taken_back() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        rules::write(&scene.moved().host, By::Iptables("iptables-nft"), &scene.moved().subnet);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        let there = scene.moved().host.folder().join("there");
        let does = format!("touch {}; while kill -0 $PPID; do sleep 0.05; done", there.display());
        let path = in_place_of(&scene.moved().host, "iptables-nft-restore", &does);
        let traffic = Traffic::start(&scene);
        let mut command = scene.command(&[], Some(&path));
        let mut cut_off = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the last step", || there.exists());
        cut_off.kill().unwrap();
        cut_off.wait().unwrap();
        traffic.finish();

        scene.refused(&[], &["an earlier move was cut off", "--back"]);
        let traffic = Traffic::start(&scene);
        let plan = scene.done(&["--back"]);
        traffic.finish();
        assert!(plan.contains("this host is flannel's again"), "{plan}");
        before.same(&Picture::of(&scene.moved().host), "--back");
    }
}

#[test]
fn the_way_back_is_found_by_the_leases_too() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        scene.done(&[]);
        let host = scene.moved().host.clone();
        fs::remove_file(host.folder().join("state/default/flannel.json")).unwrap();
        assert!(scene.done(&["--back", "--dry-run"]).contains("1. make flannel.1 as it was"));
        scene.done(&["--back"]);
        before.same(&Picture::of(&host), "--back");
        scene.bed.flannel[0].start_again();
        scene.bed.assert_all_reached();
    }
}

#[test]
fn a_route_that_cannot_be_put_back_is_named_and_stops_nothing() {
    for flannel in flannels() {
        for mode in [Mode::Vxlan, Mode::HostGw] {
            let mut scene = Scene::with(&flannel, mode.config());
            scene.bed.flannel[0].stop();
            let host = scene.moved().host.clone();
            let before = Picture::of(&host);
            scene.done(&[]);
            // The routes are as after a NIC was renamed, and after an address of the underlay was removed.
            let record = host.folder().join("state/default/flannel.json");
            let mut recorded = parsed(&fs::read_to_string(&record).unwrap());
            let route = |destination: &str, gateway: &str, interface: &str| {
                json!({
                    "destination": destination, "gateway": gateway, "interface": interface, "onlink": false, "protocol": 3,
                })
            };
            let routes = recorded["flannel"]["routes"].as_array_mut().unwrap();
            routes.insert(0, route("10.244.200.0/24", "10.99.0.9", "gone0"));
            routes.insert(1, route("10.244.201.0/24", "192.0.2.9", "eth0"));
            fs::write(&record, recorded.to_string()).unwrap();

            let output = scene.run(&["--back"]);
            assert!(output.status.success(), "{}", text(&output));
            for says in [
                "10.244.200.0/24 via 10.99.0.9 dev gone0 is not put back: gone0 is gone",
                "10.244.201.0/24 via 192.0.2.9 dev eth0 is not put back: add the route",
            ] {
                assert!(text(&output).contains(says), "`{says}` is not in: {}", text(&output));
            }
            before.same(&Picture::of(&host), "--back");
            assert!(!record.exists());
        }
    }
}

#[test]
fn a_way_back_that_fails_leaves_nothing_that_drops_packets() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let host = scene.moved().host.clone();
        scene.done(&[]);
        let before = host.exec("ip route show").unwrap();
        // This is what remains of a move that is killed while neither device has the port.
        host.namespace().ip("route add blackhole 10.244.0.0/16 metric 4294967295 proto static").unwrap();
        host.namespace().ip("link add flannel.1 type vxlan id 9 dev eth0 dstport 4000").unwrap();
        scene.refused(&["--back"], &["there is a flannel.1 already, and it is not as it was"]);
        assert_eq!(host.exec("ip route show").unwrap(), before);
        host.namespace().ip("link delete flannel.1").unwrap();
        scene.done(&["--back"]);
    }
}

/// systemd starts a flanneld that was stopped and not disabled when the host boots, or when somebody starts what depends on it.
#[test]
fn a_flanneld_that_is_started_again_is_answered_at_once_and_does_not_bar_the_way_back() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        let lease = scene.lease();
        scene.done(&[]);
        let etcd = scene.etcd.clone();
        let mut agent = scene.moved().host.start_agent(overlay(), &["--etcd-endpoints", &etcd]).unwrap();
        agent.wait_ready(Duration::from_secs(60)).unwrap();
        let status = |words: &[&str]| scene.moved().host.overlay(overlay(), words).unwrap();
        assert!(!status(&["status"]).contains("altered"));
        for _ in 0..3 {
            scene.moved().start_in_vain();
        }
        let altered = || parsed(&status(&["status", "--json"]))["agent"]["lease"]["alteration"].clone();
        wait_for("three answers", || altered()["times"] == 3 && altered()["stands"] == false);
        assert!(altered()["what"].as_str().unwrap().contains("VtepMAC"), "{}", altered());
        assert!(status(&["status"]).contains("altered from outside 3 times"), "{}", status(&["status"]));
        assert!(agent.log().contains("was altered from outside (VtepMAC"), "{}", agent.log());
        // The other host has heard of the last answer, too.
        let (a, b) = scene.containers();
        let once = PingOptions { count: 1, timeout: 0.3, ..PingOptions::default() };
        wait_for("an answer to a ping", || b.ping(a.address(), once).unwrap().complete());
        scene.refused(&[], &["what a flanneld has left", "ip link delete flannel.1"]);
        agent.terminate().unwrap();
        let output = scene.run(&["--back"]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("flannel.1 was made anew since the move"), "{}", text(&output));
        before.same(&Picture::of(&scene.moved().host), "--back");
        assert_eq!(scene.lease(), lease);
        scene.bed.flannel[0].start_again();
        scene.bed.assert_all_reached();
    }
}

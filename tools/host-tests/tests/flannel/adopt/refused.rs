//! Moves that are refused, with the reason.
use std::{fs, path::Path, process::Stdio};

use super::super::bed::{Mode, flannels, wait_for};
use super::scene::{Picture, Scene, in_place_of, is_up, links, parsed, text};

#[test]
fn an_interface_that_is_not_ours_is_refused_as_device_and_left_alone_by_the_way_back() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let host = scene.moved().host.clone();
        let record = host.folder().join("state/default/flannel.json");
        host.namespace().ip("link add other type vxlan id 9 dev eth0 dstport 4000").unwrap();
        host.namespace().ip("link set other up").unwrap();
        let (before, up) = (Picture::of(&host), links(&host));
        let taken = "there is an interface of that name, and it is not of the overlay's making";
        let flannels = "flannel's own device is called so";
        for (device, says) in [("eth0", taken), ("br0", taken), ("other", taken), ("flannel.1", flannels)] {
            for mode in ["--dry-run", "--json", "--back"] {
                scene.refused(&["--device", device, mode], &[&format!("--device {device}: {says}")]);
                assert!(!record.exists(), "{device} {mode}");
            }
        }
        assert_eq!(links(&host), up);
        before.same(&Picture::of(&host), "refused");

        // Earlier versions wrote records of such devices, and then could not undo the move.
        scene.done(&[]);
        let mut recorded = parsed(&fs::read_to_string(&record).unwrap());
        scene.done(&["--back"]);
        let before = Picture::of(&host);
        for device in ["eth0", "other", "flannel.1"] {
            (recorded["finished"], recorded["tunnel"]) = (false.into(), device.into());
            fs::create_dir_all(record.parent().unwrap()).unwrap();
            fs::write(&record, recorded.to_string()).unwrap();
            scene.refused(&[], &["an earlier move was cut off"]);
            let output = scene.run(&["--back"]);
            assert!(output.status.success(), "{}", text(&output));
            let says = format!("{device} is not of the overlay's making: it stays as it is");
            assert!(text(&output).contains(&says), "{}", text(&output));
            assert!(!record.exists());
            for link in ["eth0", "br0", "other", "flannel.1"] {
                assert!(is_up(&links(&host), link), "{device}: {}", links(&host));
            }
            before.same(&Picture::of(&host), device);
        }
        scene.done(&[]);
    }
}

#[test]
fn what_cannot_be_moved_is_refused_with_the_reason() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let host = scene.moved().host.clone();
        let before = Picture::of(&host);
        // Any process of this name is refused on this host; on another host it does not matter.
        let called_flanneld = host.folder().join("flanneld");
        fs::copy(Path::new("/bin/sleep"), &called_flanneld).unwrap();
        let line = format!("{} 1000", called_flanneld.display());
        let running = host.spawn(&line).unwrap();
        let _elsewhere = scene.other().host.spawn(&line).unwrap();
        let named =
            |pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "flanneld\n");
        wait_for("a flanneld", || named(running.pid()));
        let pid = format!("flanneld runs here (pid {})", running.pid());
        scene.refused(&[], &[&pid, "end it first"]);
        assert!(scene.done(&["--dry-run"]).contains(&format!("note: {pid}")));
        drop(running);

        // Another flanneld starts after the first check, before anything is changed.
        let (asked, go) = (host.folder().join("asked"), host.folder().join("go"));
        let does = format!(
            "touch {}; while kill -0 $PPID && ! [ -e {} ]; do sleep 0.05; done; PATH=${{PATH#*:}}; exec iptables-nft-save \"$@\"",
            asked.display(),
            go.display()
        );
        let path = in_place_of(&host, "iptables-nft-save", &does);
        let mut command = scene.command(&[], Some(&path));
        let moving = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the look for rules", || asked.exists());
        let running = host.spawn(&line).unwrap();
        wait_for("a flanneld", || named(running.pid()));
        fs::write(&go, "").unwrap();
        let output = moving.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let pid = format!("flanneld runs here (pid {})", running.pid());
        assert!(text(&output).contains(&pid), "{}", text(&output));
        let left = ["flannel.json", "record.json"].map(|it| host.folder().join("state/default").join(it));
        assert!(left.iter().all(|it| !it.exists()));
        before.same(&Picture::of(&host), "refused");
        drop(running);

        // A device of another network uses the port, and would receive the packets.
        host.namespace().ip("link add other type vxlan id 9 dev eth0 dstport 8472").unwrap();
        scene.refused(&[], &["other (vni 9) has udp port 8472 too"]);
        host.namespace().ip("link delete other").unwrap();
        before.same(&Picture::of(&host), "refused");

        // flannel's packets leave by a device without an Ethernet header, which is no underlay for the programs.
        let ip = |words: &str| host.namespace().ip(words).unwrap();
        ip("tuntap add dev tun0 mode tun");
        ip("address add 10.98.0.1/24 dev tun0");
        for mode in ["--dry-run", "--json"] {
            scene.refused(
                &["--iface", "tun0", mode],
                &["interface tun0 is of link type none (tun)", "--iface"],
            );
        }
        ip("link delete tun0");
        before.same(&Picture::of(&host), "refused");

        // The config has another backend than the one that flannel was started with.
        for (mode, says) in
            [(Mode::Udp, "leaves nothing to adopt"), (Mode::HostGw, "is not of flannel's host-gw backend")]
        {
            scene.bed.etcd().ctl(&["put", "/coreos.com/network/config", mode.config()]).unwrap();
            scene.refused(&[], &[says]);
        }
        scene.bed.etcd().ctl(&["put", "/coreos.com/network/config", Mode::Vxlan.config()]).unwrap();
        before.same(&Picture::of(&host), "refused");

        host.namespace().ip("link delete flannel.1").unwrap();
        scene.refused(&[], &["no flannel here", "flannel.1 (vni 1, port 8472"]);
    }
}

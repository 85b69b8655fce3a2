//! Folders, file systems and pins that an agent cannot use.
use std::{fs, path::Path};

use overlay_common::ABI;
use overlay_host_tests::{
    hosts::{JoinedHost, SOON, lab, logged, overlay, store, until},
    overlay as binary,
};
use overlay_lab::{Numbered, PingOptions, wait_until};

use super::bed::{pins, refuses};

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
    let (pin, aside) = (overlay_host_tests::pins(host).join("endpoints"), host.bpf_root().join("aside"));
    fs::rename(&pin, &aside).unwrap();
    make(&pin);
    refused(&[
        &pin.display().to_string(),
        &format!("is not the map `endpoints` of layout {ABI}"),
        "overlay down",
    ]);
    fs::remove_file(&pin).unwrap();
    fs::rename(&aside, &pin).unwrap();

    // A link is pinned that only a newer agent would know.
    let link = overlay_host_tests::pins(host).join("links/whim-7");
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

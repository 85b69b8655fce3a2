//! Configs that do not fit this host, and other agents on the same host or with the same pins.
use std::{fs, path::Path};

use overlay_host_tests::{
    hosts::{CONFIG, JoinedHost, SOON, lab, logged, overlay, store},
    overlay as binary,
};
use overlay_lab::{Agent, Numbered, wait_until};

use super::bed::{pins, refuses};

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
            &format!(
                "the pins in {} belong to a host whose record is not in",
                overlay_host_tests::pins(one).display()
            ),
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

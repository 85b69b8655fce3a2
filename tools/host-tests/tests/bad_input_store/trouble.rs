//! An etcd that is away, hangs, was wiped, or refuses the agent.
use std::fs;

use overlay_host_tests::{
    hosts::{CONFIG, JoinedHost, SOON, lab, logged, overlay, status, until},
    overlay as binary,
};
use overlay_lab::{Numbered, wait_until};

use super::bed::{SUBNETS, configured, in_force, lease};

#[test]
fn etcd_is_down_at_the_start_then_hangs_then_is_back() {
    let lab = lab(2);
    let mut etcd = configured(&lab);
    let url = etcd.client_url();
    etcd.stop().unwrap();
    let mut agent = lab.host(0).start_agent(binary(), &["--etcd-endpoints", &url]).unwrap();
    logged(lab.host(0), "does not answer");
    logged(lab.host(0), "trying again in");
    assert!(agent.log().contains(&url), "{}", agent.log());
    assert_eq!(agent.status().unwrap(), None);
    etcd.restart().unwrap();
    agent.wait_ready(SOON).unwrap();
    agent.terminate().unwrap();

    let mut a = JoinedHost::join(lab.host(0), &["--etcd-endpoints", &url]);
    let b = JoinedHost::join(lab.host(1), &["--etcd-endpoints", &url]);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    etcd.pause().unwrap();
    until(lab.host(0), "an etcd that hangs", |status| {
        status["agent"]["store"]["following"] == false
            && status["agent"]["store"]["error"].as_str().is_some_and(|error| error.contains(&url))
    });
    let text = lab.host(0).overlay(binary(), &["status"]).unwrap();
    assert!(text.contains("NO for"), "{text}");
    assert_eq!(in_force(lab.host(0)), [b.subnet.trim_end_matches("/24")]);
    assert_eq!(a.agent.status().unwrap(), None);
    etcd.resume().unwrap();
    lease(&etcd, 201);
    until(lab.host(0), "the peer that came after", |status| status["peers"] == 2);
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn an_etcd_that_is_wiped_takes_no_route_away() {
    let lab = lab(2);
    let mut etcd = configured(&lab);
    let url = etcd.client_url();
    let a = JoinedHost::join(lab.host(0), &["--etcd-endpoints", &url]);
    let b = JoinedHost::join(lab.host(1), &["--etcd-endpoints", &url]);
    for third in 201..=204 {
        lease(&etcd, third);
    }
    a.reaches(&b);
    until(lab.host(0), "five peers", |status| status["peers"] == 5);
    let before = in_force(lab.host(0));
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();

    etcd.stop().unwrap();
    fs::remove_dir_all(lab.folder().join("etcd")).unwrap();
    etcd.restart().unwrap();
    // Hosts that are alive write their leases into the empty store again; the other peers are kept until an operator
    // lets them go.
    until(lab.host(0), "four held removals", |status| {
        status["agent"]["peers"]["held"].as_array().is_some_and(|held| held.len() == 4)
            && status["agent"]["store"]["following"] == true
            && status["agent"]["lease"]["state"] == "held"
    });
    assert_eq!(in_force(lab.host(0)), before);
    let keys = etcd.ctl(&["get", "--prefix", "--keys-only", SUBNETS]).unwrap();
    assert!(keys.contains(&a.key()) && keys.contains(&b.key()), "{keys}");
    let text = lab.host(0).overlay(binary(), &["status"]).unwrap();
    assert!(text.contains("4 removals HELD BACK (`overlay peers --accept-deletions`)"), "{text}");

    // An agent that starts now finds another cluster than the one that its predecessor left.
    a.reaches(&b);
    overlay(lab.host(0), &["peers", "--accept-deletions"]).is(0, &["4 removals accepted"]);
    until(lab.host(0), "one peer", |status| status["peers"] == 1);
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn an_etcd_wiped_while_the_agent_was_away_is_noticed_too() {
    let lab = lab(1);
    let mut etcd = configured(&lab);
    let url = etcd.client_url();
    let a = JoinedHost::join(lab.host(0), &["--etcd-endpoints", &url]);
    // These are too few for the rule about more than half of the peers, so only the change of the cluster makes their
    // removal suspicious.
    for third in 201..=203 {
        lease(&etcd, third);
    }
    until(lab.host(0), "three peers", |status| status["peers"] == 3);
    let revision = status(lab.host(0))["agent"]["store"]["revision"].to_string();
    let origin = lab.host(0).folder().join("state/default/origin");
    let recorded = || Ok(fs::read_to_string(&origin)?.trim().ends_with(&revision));
    wait_until("the record of the last revision", SOON, recorded).unwrap();
    a.agent.terminate().unwrap();
    etcd.stop().unwrap();
    fs::remove_dir_all(lab.folder().join("etcd")).unwrap();
    etcd.restart().unwrap();
    etcd.ctl(&["put", "/coreos.com/network/config", CONFIG]).unwrap();
    let mut again = lab.host(0).start_agent(binary(), &["--etcd-endpoints", &url]).unwrap();
    again.wait_ready(SOON).unwrap();
    until(lab.host(0), "three held removals", |status| {
        status["peers"] == 3
            && status["agent"]["peers"]["held"].as_array().is_some_and(|held| held.len() == 3)
    });
    assert_eq!(again.subnet().unwrap().0, a.subnet);
    // What the operator accepted once stays accepted over the next restart.
    overlay(lab.host(0), &["peers", "--accept-deletions"]).is(0, &["3 removals accepted"]);
    again.terminate().unwrap();
    let mut last = lab.host(0).start_agent(binary(), &["--etcd-endpoints", &url]).unwrap();
    last.wait_ready(SOON).unwrap();
    until(lab.host(0), "no peer and nothing held", |status| {
        status["peers"] == 0 && status["agent"]["peers"]["held"].as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn etcd_refuses_the_password() {
    let lab = lab(1);
    let etcd = configured(&lab);
    let url = etcd.client_url();
    for words in
        [&["user", "add", "root:right"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
    {
        etcd.ctl(words).unwrap();
    }
    let agent = |login: &[&str], words: &[&str]| {
        let arguments = [&["agent", "--iface", "eth0", "--etcd-endpoints", &url], login].concat();
        let said = overlay(lab.host(0), &arguments);
        said.is(1, words);
        assert!(!said.text.contains("wrong-secret"), "the password is in the log: {}", said.text);
    };
    agent(
        &["--etcd-username", "root", "--etcd-password", "wrong-secret"],
        &["refuses", &url, "--etcd-username", "--etcd-password"],
    );
    agent(&[], &["refuses", &url, "--etcd-username"]);
    let mut agent = lab
        .host(0)
        .start_agent(
            binary(),
            &["--etcd-endpoints", &url, "--etcd-username", "root", "--etcd-password", "right"],
        )
        .unwrap();
    agent.wait_ready(SOON).unwrap();
}

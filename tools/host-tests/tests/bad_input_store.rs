//! What a store may hold or do that an agent cannot use. The agent names it and shows it in the status, and nothing
//! that is in force is lost.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]

use std::{fs, time::Duration};

use overlay_host_tests::{
    hosts::{CONFIG, JoinedHost, SOON, lab, logged, overlay, status, until},
    overlay as binary,
};
use overlay_lab::{Lab, Numbered, etcd::Etcd, wait_until};

const SUBNETS: &str = "/coreos.com/network/subnets";
const MAC: &str = r#""BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}"#;

/// Starts an etcd that all hosts reach.
fn etcd(lab: &Lab) -> Etcd {
    Etcd::start_in_netns(&lab.folder(), lab.switch().name(), Lab::SWITCH).unwrap()
}

fn configured(lab: &Lab) -> Etcd {
    let etcd = etcd(lab);
    etcd.ctl(&["put", "/coreos.com/network/config", CONFIG]).unwrap();
    etcd
}

fn put(etcd: &Etcd, key: &str, value: &str) {
    etcd.ctl(&["put", &format!("{SUBNETS}/{key}"), value]).unwrap();
}

/// Writes a lease of a host that does not exist.
fn lease(etcd: &Etcd, third: u8) {
    put(etcd, &format!("10.244.{third}.0-24"), &format!(r#"{{"PublicIP":"10.99.0.{third}",{MAC}}}"#));
}

/// The subnets in force on a host, as the pinned maps say.
fn in_force(host: &overlay_lab::Host) -> Vec<String> {
    let said = host.overlay(binary(), &["peers", "--json"]).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&said).unwrap();
    let rows = rows.as_array().unwrap().iter();
    rows.filter(|row| row["installed"] != "no")
        .map(|row| row["subnet"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn leases_that_make_no_sense_are_skipped_by_name() {
    let lab = lab(2);
    let etcd = configured(&lab);
    let url = etcd.client_url();
    let a = JoinedHost::join(lab.host(0), &["--etcd-endpoints", &url]);
    let b = JoinedHost::join(lab.host(1), &["--etcd-endpoints", &url]);
    a.reaches(&b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();

    put(&etcd, "10.244.250.0-24", "{not json");
    put(&etcd, "garbage", "{}");
    put(&etcd, "10.244.251.0-24", r#"{"PublicIP":"10.99.0.251","BackendType":"host-gw"}"#);
    put(&etcd, "10.244.252.0-24", &format!(r#"{{"PublicIP":"10.99.0.2522",{MAC}}}"#));
    // The strange lease needs a subnet that a host could have leased; any other would be skipped for that reason.
    let drawn = [&a.subnet, &b.subnet];
    let second = (61..=63).map(|third| format!("10.244.{third}.0/24")).find(|free| !drawn.contains(&free));
    let second = second.unwrap().replace('/', "-");
    put(&etcd, &second, &format!(r#"{{"PublicIP":"10.99.0.1",{MAC}}}"#));
    // This key sorts before the good one of the same subnet. The lease that was written later holds.
    put(&etcd, "10.244.249.0-24&fd00::-64", &format!(r#"{{"PublicIP":"10.99.0.248",{MAC}}}"#));
    lease(&etcd, 249);
    let expected = [
        ("10.244.249.0-24&fd00::-64", "10.244.249.0/24 is leased twice; 10.244.249.0-24 was written later"),
        ("10.244.250.0-24", "JSON"),
        ("10.244.251.0-24", "BackendType is host-gw, not vxlan"),
        ("10.244.252.0-24", "PublicIP"),
        (&*second, "10.99.0.1 is this host's own public IP"),
        ("garbage", "not of the form 10.244.61.0-24"),
    ];
    until(lab.host(0), "six skipped leases, two peers", |status| {
        let skipped = status["agent"]["peers"]["skipped"].as_array().map_or(0, Vec::len);
        skipped == expected.len() && status["peers"] == 2
    });
    let text = lab.host(0).overlay(binary(), &["status"]).unwrap();
    for (key, why) in expected {
        let line = text
            .lines()
            .find(|line| line.contains(&format!("{key}:")))
            .unwrap_or_else(|| panic!("{key} is not in {text}"));
        assert!(line.contains(why), "{line}");
    }
    // A restart of the agent with all these leases in the store changes nothing.
    a.agent.terminate().unwrap();
    let mut again = lab.host(0).start_agent(binary(), &["--etcd-endpoints", &url]).unwrap();
    // Two leases carry this host's own address. Only an operator can tell which of them is the host's.
    wait_until("its end", SOON, || Ok(again.status()?.is_some())).unwrap();
    assert_eq!(again.status().unwrap().unwrap().code(), Some(1));
    for words in
        ["public IP 10.99.0.1 has two leases", &a.subnet.replace('/', "-"), &second, "delete the wrong lease"]
    {
        assert!(again.log().contains(words), "{words}");
    }
    etcd.ctl(&["del", &format!("{SUBNETS}/{second}")]).unwrap();
    drop(again);
    let mut again = lab.host(0).start_agent(binary(), &["--etcd-endpoints", &url]).unwrap();
    again.wait_ready(SOON).unwrap();
    assert_eq!(again.subnet().unwrap().0, a.subnet);

    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn a_second_host_with_the_same_public_ip_is_noticed_and_does_not_make_a_storm() {
    let lab = lab(2);
    let etcd = configured(&lab);
    let url = etcd.client_url();
    let a = JoinedHost::join(lab.host(0), &["--etcd-endpoints", &url]);
    let mut thief =
        lab.host(1).start_agent(binary(), &["--etcd-endpoints", &url, "--public-ip", "10.99.0.1"]).unwrap();
    logged(lab.host(0), "does another host use public IP 10.99.0.1?");
    until(lab.host(0), "the error in the status", |status| {
        status["agent"]["lease"]["error"].as_str().is_some_and(|error| error.contains("--public-ip"))
    });
    let revision = || status(lab.host(0))["agent"]["store"]["revision"].as_i64().unwrap();
    let before = revision();
    std::thread::sleep(Duration::from_secs(3));
    assert!(revision() - before <= 2, "{} writes in three seconds", revision() - before);
    assert_eq!(thief.status().unwrap(), None);
    assert_eq!(a.agent.subnet().unwrap().0, a.subnet);
}

#[test]
fn no_subnet_is_free() {
    let lab = lab(1);
    let etcd = etcd(&lab);
    let config = r#"{"Network":"10.244.0.0/22","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    etcd.ctl(&["put", "/coreos.com/network/config", config]).unwrap();
    for third in 1..=3 {
        lease(&etcd, third + 10);
        put(
            &etcd,
            &format!("10.244.{third}.0-24"),
            &format!(r#"{{"PublicIP":"10.99.0.{}",{MAC}}}"#, third + 20),
        );
    }
    let arguments = ["agent", "--iface", "eth0", "--etcd-endpoints", &etcd.client_url()];
    overlay(lab.host(0), &arguments).is(
        1,
        &[
            "no free subnet in 10.244.0.0/22: all 3 subnets from 10.244.1.0 to 10.244.3.0 are leased",
            "delete leases of hosts that are gone",
        ],
    );
    let keys = etcd.ctl(&["get", "--prefix", "--keys-only", SUBNETS]).unwrap();
    assert_eq!(keys.lines().filter(|line| !line.is_empty()).count(), 6, "{keys}");
}

#[test]
fn a_full_table_of_peers() {
    let lab = lab(2);
    let etcd = configured(&lab);
    let url = etcd.client_url();
    let a = JoinedHost::join(lab.host(0), &["--etcd-endpoints", &url, "--max-peers", "2"]);
    let b = JoinedHost::join(lab.host(1), &["--etcd-endpoints", &url]);
    a.reaches(&b);
    lease(&etcd, 201);
    until(lab.host(0), "two peers", |status| status["peers"] == 2);
    lease(&etcd, 202);
    until(lab.host(0), "a peer that does not fit", |status| {
        let failed = &status["agent"]["peers"]["failed"][0];
        failed["subnet"] == "10.244.202.0/24"
            && failed["why"].as_str().is_some_and(|why| {
                why.contains("table of peers is full (2 entries)") && why.contains("--max-peers")
            })
    });
    logged(lab.host(0), "10.244.202.0/24 first: the table of peers is full");
    let text = lab.host(0).overlay(binary(), &["status"]).unwrap();
    assert!(text.contains("3 wanted, 2 installed"), "{text}");
    a.reaches(&b);

    // A peer that moves to another address needs no more space than it has.
    put(&etcd, "10.244.201.0-24", &format!(r#"{{"PublicIP":"10.99.0.211",{MAC}}}"#));
    until(lab.host(0), "the peer's other address", |_| {
        let said = lab.host(0).overlay(binary(), &["peers", "--json"]).unwrap();
        said.contains("10.99.0.211")
            && status(lab.host(0))["agent"]["peers"]["failed"].as_array().is_some_and(|all| all.len() == 1)
    });

    etcd.ctl(&["del", &format!("{SUBNETS}/10.244.201.0-24")]).unwrap();
    until(lab.host(0), "the peer that had found no space", |status| {
        status["peers"] == 2 && status["agent"]["peers"]["failed"].as_array().is_some_and(Vec::is_empty)
    });
    assert!(in_force(lab.host(0)).contains(&"10.244.202.0".to_owned()));
    a.reaches(&b);

    // If the next start asks for a smaller table, the table keeps its size, and the peers' counters keep theirs.
    etcd.ctl(&["del", &format!("{SUBNETS}/10.244.202.0-24")]).unwrap();
    until(lab.host(0), "one peer", |status| status["peers"] == 1);
    let a = a.restarted(&["--etcd-endpoints", &url, "--max-peers", "1"]);
    logged(lab.host(0), "the table of peers keeps room for 2");
    lease(&etcd, 203);
    until(lab.host(0), "a second peer", |status| status["peers"] == 2);
    assert!(in_force(lab.host(0)).contains(&"10.244.203.0".to_owned()));
    a.reaches(&b);
}

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

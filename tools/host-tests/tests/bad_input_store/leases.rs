//! Leases that an agent cannot use: malformed, too many, or of its own address.
use std::time::Duration;

use overlay_host_tests::{
    hosts::{JoinedHost, SOON, lab, logged, overlay, status, until},
    overlay as binary,
};
use overlay_lab::{Numbered, wait_until};

use super::bed::{MAC, SUBNETS, configured, etcd, in_force, lease, put};

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

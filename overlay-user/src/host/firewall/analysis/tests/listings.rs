//! What `nft --json list ruleset` lists, and what the analysis says of it.
use std::collections::HashSet;

use serde_json::json;

use super::{super::nftables, field, forward, judge, matches, nft};
use crate::{
    host::site::Site,
    model::fast_path::FastPath::{Established, Off, On},
};

#[test]
fn the_overlays_own_masquerading_is_harmless() {
    let range = json!({"range": ["10.244.0.0", "10.244.63.255"]});
    let subnet = json!({"prefix": {"addr": "10.244.1.0", "len": 24}});
    let multicast = json!({"prefix": {"addr": "224.0.0.0", "len": 4}});
    let (saddr, daddr) = (|| field("ip", "saddr"), || field("ip", "daddr"));
    let is_not = |left, right| json!({"match": {"op": "!=", "left": left, "right": right}});
    let mark = json!({"&": [{"meta": {"key": "mark"}}, 16384]});
    let device = matches(json!({"meta": {"key": "oifname"}}), json!("overlay0"));
    let rules = [
        json!([matches(mark, json!(16384)), {"return": null}]),
        json!([matches(saddr(), subnet.clone()), matches(daddr(), range.clone()), {"return": null}]),
        json!([matches(saddr(), subnet.clone()), device, {"return": null}]),
        json!([matches(daddr(), subnet), {"return": null}]),
        json!([matches(saddr(), range.clone()), is_not(daddr(), multicast), {"masquerade": null}]),
        json!([is_not(saddr(), range.clone()), matches(daddr(), range), {"masquerade": null}]),
    ];
    let chain = json!({"type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"});
    let tables = nft("ip", chain, &rules);
    for is_direct in [false, true] {
        assert_eq!(judge(&tables, &Site { is_direct, ..Site::example() }), (On, String::new()));
    }
}

#[test]
fn statements_of_nftables_are_told_apart() {
    let drop = json!({"drop": null});
    let meta = |key: &str| json!({"meta": {"key": key}});
    let daddr = || field("ip", "daddr");
    for (statements, expected) in [
        (json!([matches(daddr(), json!("@bad")), drop]), Established),
        (json!([matches(daddr(), json!("@others")), drop]), On),
        (json!([matches(daddr(), json!("@counted")), drop]), Off),
        (json!([matches(daddr(), json!({"range": ["10.244.1.1", "10.244.1.9"]})), drop]), Established),
        (
            json!([matches(daddr(), json!({"set": [{"range": ["10.0.0.1", "10.0.0.9"]}, "8.8.8.8"]})), drop]),
            On,
        ),
        (json!([matches(meta("nfproto"), json!("ipv6")), drop]), On),
        (json!([matches(field("ip6", "saddr"), json!("::1")), drop]), On),
        (json!([matches(meta("iifname"), json!("eth1")), drop]), On),
        (json!([matches(meta("iifname"), json!({"set": ["eth1", "br-x"]})), drop]), Established),
        (json!([matches(meta("length"), json!(500)), drop]), Off),
        (json!([matches(meta("l4proto"), json!("tcp")), {"reject": {"type": "tcp reset"}}]), Established),
        (
            json!([matches(json!({"&": [field("tcp", "flags"), ["fin", "syn"]]}), json!("syn")), drop]),
            Established,
        ),
        (json!([matches(json!({"&": [field("tcp", "flags"), ["fin", "rst"]]}), json!("rst")), drop]), Off),
        (
            json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", drop], ["established", {"accept": null}]]}}}]),
            Established,
        ),
        (json!([{"vmap": {"key": daddr(), "data": "@verdicts"}}]), Established),
        (json!([{"vmap": {"key": daddr(), "data": {"set": [["8.8.8.8", drop]]}}}]), On),
        (
            json!([{"vmap": {"key": {"numgen": {"mode": "random", "mod": 2}}, "data": {"set": [[0, drop]]}}}]),
            Off,
        ),
        (json!([{"limit": {"rate": 10, "per": "second", "inv": true}}, drop]), Off),
        (json!([{"limit": {"rate": 10, "per": "second"}}, {"log": null}]), On),
        (json!([{"mangle": {"key": meta("mark"), "value": 5}}]), Off),
        (
            json!([{"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": 1360}}]),
            Established,
        ),
        (
            json!([matches(daddr(), json!("8.8.8.8")), {"mangle": {"key": field("ip", "ttl"), "value": 5}}]),
            On,
        ),
        (json!([{"queue": {"num": 1}}]), Off),
        (json!([{"no such statement": null}]), Off),
        (json!([{"xt": null}]), Off),
        (
            json!([{"vmap": {"key": meta("nfproto"), "data": {"set": [["ipv6", {"accept": null}], ["*", drop]]}}}]),
            Established,
        ),
        (
            json!([{"vmap": {"key": meta("iifname"), "data": {"set": [["*", {"accept": null}], ["overlay0", drop]]}}}]),
            Established,
        ),
        (
            json!([
                matches(json!({"&": [field("tcp", "flags"), "syn"]}), json!({"set": ["syn", "rst"]})),
                drop
            ]),
            Off,
        ),
        (json!([matches(meta("iif"), json!(7)), drop]), Established),
        (json!([{"counter": {"packets": 1, "bytes": 2}}, {"accept": null}]), On),
        (json!([{"flow": {"op": "add", "flowtable": "@f"}}]), On),
        (
            json!([{"xt": {"type": "match", "name": "multiport"}}, {"xt": {"type": "target", "name": "REJECT"}}]),
            Established,
        ),
        (
            json!([{"xt": {"type": "match", "name": "hashlimit"}}, {"xt": {"type": "target", "name": "REJECT"}}]),
            Off,
        ),
    ] {
        assert_eq!(forward(std::slice::from_ref(&statements)), expected, "{statements}");
    }
}

/// nft asks by itself for the protocol of a field, and its listing does not tell.
#[test]
fn a_field_of_another_protocol_is_not_there_and_not_different_either() {
    let drop = json!({"drop": null});
    let not = |left, right: &str| json!({"match": {"op": "!=", "left": left, "right": right}});
    let rules = [
        json!([not(field("ip6", "saddr"), "fd00::1"), {"accept": null}]),
        json!([matches(field("ip", "saddr"), json!("10.244.2.9")), drop]),
    ];
    assert_eq!(forward(&rules), Established);
    let input = json!({"type": "filter", "hook": "input", "prio": 0, "policy": "drop"});
    let of = |rule| judge(&nft("inet", input.clone(), &[rule]), &Site::example()).0;
    assert_eq!(
        of(json!([matches(field("tcp", "dport"), json!({"set": [22, 8472]})), {"accept": null}])),
        Established
    );
    assert_eq!(of(json!([not(field("tcp", "dport"), "25"), {"accept": null}])), Established);
    assert_eq!(of(json!([matches(field("udp", "dport"), json!(8472)), {"accept": null}])), On);
}

#[test]
fn a_table_of_iptables_with_a_set_in_it_is_read_in_both_listings() {
    let rule = json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 3,
        "expr": [matches(field("ip", "saddr"), json!("@good")), {"accept": null}]}});
    let chain = json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}});
    let but = HashSet::from(["filter".to_owned()]);
    let read = |objects: &[&serde_json::Value]| {
        nftables::read(&json!({"nftables": objects}).to_string(), &but).unwrap()
    };
    assert_eq!(read(&[&chain]), []);
    assert_eq!(judge(&read(&[&chain, &rule]), &Site::example()).0, Off, "nobody says what is in the set");
}

#[test]
fn chains_stand_where_packets_pass_or_not() {
    let both = json!({"set": ["10.244.1.2", "10.244.9.9"]});
    let rule = [json!([matches(field("ip", "daddr"), both), {"drop": null}])];
    let at = |family: &str, hook: &str, device: &str| {
        let chain = json!({"type": "filter", "hook": hook, "prio": 0, "dev": device, "policy": "accept"});
        judge(&nft(family, chain, &rule), &Site::example()).0
    };
    assert_eq!(at("ip", "prerouting", ""), Established);
    assert_eq!(at("ip", "input", ""), On, "the tunnel's packets go to the host");
    assert_eq!(at("ip6", "forward", ""), On);
    // A frame to a container passes the bridge on its way down, and one from a container is not forwarded there.
    assert_eq!(at("bridge", "postrouting", ""), Established);
    assert_eq!(at("bridge", "forward", ""), On);
    assert_eq!(at("netdev", "ingress", "veth7"), Established);
    assert_eq!(at("netdev", "egress", "veth7"), Established);
    assert_eq!(at("netdev", "ingress", "eth1"), On);
    assert_eq!(at("netdev", "ingress", "overlay0"), Established);
    // What the underlay takes in is encapsulated, and no packet of the tunnel has this destination.
    assert_eq!(at("netdev", "ingress", "eth0"), On);
    assert_eq!(at("inet", "ingress", "veth7"), Established);
    let everything = json!({"type": "filter", "hook": "egress", "prio": 0, "dev": "eth0", "policy": "drop"});
    assert_eq!(
        judge(&nft("netdev", everything, &[]), &Site::example()).0,
        Off,
        "overlay0 has sent the packet by then"
    );
}

#[test]
fn a_policy_is_a_rule_about_what_is_left() {
    let chain = |policy: &str| json!({"type": "filter", "hook": "forward", "prio": 0, "policy": policy});
    let accept = |end: &str| json!([matches(field("ip", end), json!({"prefix": {"addr": "10.244.0.0", "len": 16}})), {"accept": null}]);
    assert_eq!(judge(&nft("ip", chain("drop"), &[]), &Site::example()).0, Established);
    assert_eq!(judge(&nft("ip", chain("drop"), &[accept("saddr"), accept("daddr")]), &Site::example()).0, On);
    assert_eq!(
        judge(
            &nft("ip", chain("drop"), &[json!([{"limit": {"rate": 1}}, {"accept": null}])]),
            &Site::example()
        )
        .0,
        Off
    );
}

#[test]
fn a_chain_without_an_interface_may_stand_at_any() {
    let rule = [json!([matches(field("ip", "daddr"), json!("10.244.1.2")), {"drop": null}])];
    let chain = json!({"type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"});
    let mut tables = nft("netdev", chain, &rule);
    assert_eq!(judge(&tables, &Site::example()).0, Established);
    assert_eq!(nftables::without_devices(&tables), [(0, "c".to_owned())]);
    let listed = "table netdev t {\n\tchain c {\n\t\ttype filter hook ingress devices = { \"eth1\", \"eth2\" } priority filter;\n\t}\n}";
    assert_eq!(nftables::devices(listed), ["eth1", "eth2"]);
    tables[0].chains.get_mut("c").unwrap().base.as_mut().unwrap().devices = vec!["eth1".into()];
    assert_eq!(judge(&tables, &Site::example()).0, On);
}

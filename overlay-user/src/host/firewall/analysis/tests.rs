//! Rule sets as people have them, and what the analysis says of them.
use std::collections::HashSet;

use serde_json::json;

use super::{
    iptables, nftables,
    rules::{Quote, Table},
    site::{Names, Site},
    walk,
};
use crate::model::fast_path::FastPath::{self, Established, Off, On};

fn site() -> Site {
    Site {
        network: "10.244.0.0/16".parse().unwrap(),
        leasable: ([10, 244, 0, 0].into(), [10, 244, 63, 255].into()),
        subnet: "10.244.1.0/24".parse().unwrap(),
        device: "overlay0".into(),
        underlay: "eth0".into(),
        address: [10, 99, 0, 1].into(),
        port: 8472,
        is_direct: false,
        names: Names {
            containers: ["br7".into()].into(),
            elsewhere: ["eth1".into(), "virbr0".into()].into(),
        },
    }
}

fn judge(tables: &[Table], site: &Site) -> (FastPath, String) {
    let found = walk::walk(tables, site);
    assert!(!found.is_cut_short);
    found.harms.into_iter().next().map_or((On, String::new()), |harm| match harm.quote {
        Quote::Text(text) => (harm.at_most, text),
        Quote::Handle { handle, .. } => (harm.at_most, handle.to_string()),
    })
}

/// What the rules of a table of iptables, with their chains, allow.
fn table(name: &str, rules: &str) -> FastPath {
    let chains = "PREROUTING INPUT FORWARD OUTPUT POSTROUTING";
    let chains: String = chains.split(' ').map(|chain| format!(":{chain} ACCEPT [0:0]\n")).collect();
    judge(&iptables::read("iptables-nft", &format!("*{name}\n{chains}{rules}\nCOMMIT\n")), &site()).0
}

fn filter(rules: &str) -> FastPath {
    table("filter", rules)
}

#[test]
fn what_no_packet_between_containers_meets_is_harmless() {
    for rules in [
        "",
        "-A FORWARD -s 172.17.0.0/16 -j DROP",
        "-A FORWARD ! -s 10.0.0.0/8 -j DROP",
        "-A FORWARD -i eth1 -j DROP",
        "-A FORWARD -i virbr0 -o overlay0 -j DROP",
        "-A FORWARD ! -i overlay0 -o eth1 -j DROP",
        "-A INPUT -p tcp -m tcp --dport 22 -m limit --limit 3/min -j DROP",
        "-A INPUT -p udp -m udp --dport 53 -j DROP",
        "-A OUTPUT -d 10.99.0.2/32 -p tcp -j REJECT",
        "-A FORWARD -j LOG --log-prefix \"a b -j DROP\"",
        "-A FORWARD -j ACCEPT\n-A FORWARD -j DROP",
        "-A FORWARD -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment ours -j ACCEPT\n-A FORWARD -j REJECT",
        ":u - [0:0]\n-A FORWARD -j u\n-A FORWARD -j ACCEPT\n-A u -j RETURN\n-A u -j DROP",
        ":u - [0:0]\n-A u -j DROP",
        "-A FORWARD -f -j DROP",
        "-A FORWARD -m addrtype --dst-type LOCAL -j DROP",
        "-A INPUT -m addrtype ! --dst-type LOCAL -j DROP",
    ] {
        assert_eq!(filter(rules), On, "{rules}");
    }
}

#[test]
fn what_decides_on_connections_needs_the_stack_once() {
    for rules in [
        "-A FORWARD -s 10.244.1.5/32 -j DROP",
        "-A FORWARD -d 10.244.9.0/24 -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset",
        ":u - [0:0]\n-A FORWARD -j u\n-A u -d 10.244.1.5/32 -j DROP",
        ":u - [0:0]\n-A FORWARD -g u\n-A u -j DROP",
        "-A FORWARD -i docker7 -j DROP",
        "-A FORWARD -i br-+ -j DROP",
        "-A FORWARD -o overlay0 -j DROP",
        "-A INPUT -p udp -m udp --dport 8472 -s 10.99.0.2/32 -j DROP",
        "-A INPUT -p udp -m multiport --dports 1:9000 -j DROP",
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
        ":FORWARD DROP [0:0]\n-A FORWARD -i docker7 -j ACCEPT",
        // Only what is not established meets the limit.
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -m limit --limit 3/min -j ACCEPT\n\
         -A FORWARD -j DROP",
        // A rule about another interface leaves all the others.
        "-A FORWARD -i eth1 -m limit --limit 3/min -j ACCEPT\n-A FORWARD -d 10.244.1.5/32 -j DROP",
    ] {
        assert_eq!(filter(rules), Established, "{rules}");
    }
    assert_eq!(
        table("nat", "-A PREROUTING -d 10.244.2.9/32 -p tcp -j DNAT --to-destination 10.244.2.10:80"),
        Established
    );
    assert_eq!(table("nat", "-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE"), Established);
    // A table for translation sees the first packet alone.
    assert_eq!(
        table("nat", "-A PREROUTING -m statistic --mode random --probability 0.5 -j MARK --set-mark 1"),
        Established
    );
    assert_eq!(table("nat", "-A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j MASQUERADE"), On);
    // The tunnel's own packets meet it too, of which only the first has the mark.
    assert_eq!(table("nat", "-A POSTROUTING -j MARK --set-xmark 0x4000/0x0"), Established);
    // What leaves by its own address is not altered.
    assert_eq!(table("nat", "-A POSTROUTING -o eth0 -j MASQUERADE"), On);
    assert_eq!(table("raw", "-A PREROUTING -d 10.244.1.2/32 ! -i docker0 -j DROP"), Established);
    let clamp = "-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu";
    assert_eq!(table("mangle", clamp), Established);
}

#[test]
fn what_decides_on_packets_needs_the_stack_always() {
    for rules in [
        "-A FORWARD -s 10.244.1.5/32 -m limit --limit 1/sec -j DROP",
        "-A FORWARD -m limit --limit 1/sec -j ACCEPT\n-A FORWARD -j DROP",
        ":u - [0:0]\n-A FORWARD -m length --length 1000:2000 -j u\n-A u -j REJECT",
        ":u - [0:0]\n-A FORWARD -j u\n-A FORWARD -d 10.244.1.5/32 -j DROP\n-A u -m quota --quota 100 -j ACCEPT",
        "-A FORWARD -m set --match-set banned src -j DROP",
        "-A FORWARD -m u32 --u32 0x0=0 -j DROP",
        "-A FORWARD -p tcp -m tcp --tcp-flags RST RST -j DROP",
        "-A FORWARD -m no-such-match -j DROP",
        "-A FORWARD -j NO-SUCH-TARGET",
        "-A FORWARD -j NOTRACK",
        "-A FORWARD -s 10.244.1.0/24 -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
        "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -p udp -m udp --dport 8472 -m limit --limit 9/sec -j ACCEPT\n-A INPUT -j DROP",
        "-A FORWARD -p sctp -m sctp --chunk-types only DATA -j DROP",
        "-A FORWARD -j NFQUEUE --queue-num 1",
        // The programs have seen the packet leave when its tunnel's packet is stopped.
        "-A OUTPUT -d 10.99.0.2/32 -j DROP",
        ":OUTPUT DROP [0:0]\n-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A FORWARD -s 10.244.1.9/32 -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A FORWARD -m time --timestart 1 -j DROP",
    ] {
        assert_eq!(filter(rules), Off, "{rules}");
    }
    assert_eq!(table("mangle", "-A PREROUTING -j MARK --set-mark 7"), Off);
    assert_eq!(table("mangle", "-A POSTROUTING -o overlay0 -j TTL --ttl-dec 1"), Off);
    assert_eq!(table("mangle", "-A FORWARD -s 10.244.1.3/32 -j DSCP --set-dscp 8"), Off);
    assert_eq!(table("mangle", "-A FORWARD -s 172.17.1.3/32 -j DSCP --set-dscp 8"), On);
}

/// Docker 20.10 with a container that publishes a port, in whose FORWARD chain the agent accepts the overlay's packets.
#[test]
fn dockers_rules_are_harmless_until_it_filters_direct_access() {
    let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
        -A DOCKER -i docker0 -j RETURN\n-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n\
        COMMIT\n*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-ISOLATION-STAGE-1 - [0:0]\n\
        :DOCKER-ISOLATION-STAGE-2 - [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
        -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A FORWARD -o docker0 -j DOCKER\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n-A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
        -A FORWARD -s 10.244.0.0/16 -m comment --comment \"overlay-forward:default\" -j ACCEPT\n\
        -A FORWARD -d 10.244.0.0/16 -m comment --comment \"overlay-forward:default\" -j ACCEPT\n\
        -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT\n\
        -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n-A DOCKER-ISOLATION-STAGE-1 -j RETURN\n\
        -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP\n-A DOCKER-ISOLATION-STAGE-2 -j RETURN\n-A DOCKER-USER -j RETURN\nCOMMIT\n";
    let of = |saved: &str| judge(&iptables::read("iptables-nft", saved), &site());
    assert_eq!(of(saved), (On, String::new()));
    let guarded = saved.replace(
        "-A DOCKER-USER -j RETURN",
        "-A DOCKER ! -i docker0 -o docker0 -j DROP\n-A DOCKER-USER -j RETURN",
    );
    assert_eq!(
        of(&guarded),
        (Established, "iptables-nft -t filter -A DOCKER ! -i docker0 -o docker0 -j DROP".into())
    );
    let published = saved.replace(
        "-A DOCKER -i docker0 -j RETURN",
        "-A POSTROUTING -s 10.244.1.2/32 -d 10.244.1.2/32 -p tcp -j MASQUERADE",
    );
    assert_eq!(of(&published), (On, String::new()), "another host's container is not this one");
    let refused = saved.replace(
        "-A DOCKER-USER -j RETURN",
        "-A DOCKER-USER -s 10.244.1.7/32 -j REJECT\n-A DOCKER-USER -j RETURN",
    );
    assert_eq!(
        of(&refused),
        (Established, "iptables-nft -t filter -A DOCKER-USER -s 10.244.1.7/32 -j REJECT".into())
    );
}

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
        assert_eq!(judge(&tables, &Site { is_direct, ..site() }), (On, String::new()));
    }
}

#[test]
fn unencapsulated_packets_pass_the_underlay() {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth0 -d 10.244.1.0/24 -j DROP\nCOMMIT\n";
    let tables = iptables::read("iptables-legacy", rules);
    assert_eq!(judge(&tables, &site()).0, On);
    let direct = Site { is_direct: true, ..site() };
    assert_eq!(judge(&tables, &direct).0, Established);
    let isolation = "*filter\n:FORWARD ACCEPT [0:0]\n:u - [0:0]\n-A FORWARD -i br7 ! -o br7 -j u\n-A u -o br7 -j DROP\nCOMMIT\n";
    assert_eq!(judge(&iptables::read("iptables-nft", isolation), &direct).0, On);
}

/// A chain of nftables with these rules, each a list of statements.
fn nft(family: &str, chain: serde_json::Value, rules: &[serde_json::Value]) -> Vec<Table> {
    let mut objects = vec![
        json!({"set": {"family": family, "table": "t", "name": "bad", "type": "ipv4_addr",
            "elem": ["1.2.3.4", {"prefix": {"addr": "10.244.9.0", "len": 24}}]}}),
        json!({"set": {"family": family, "table": "t", "name": "others", "type": "ipv4_addr", "elem": ["1.2.3.4"]}}),
        json!({"set": {"family": family, "table": "t", "name": "counted", "type": "ipv4_addr", "flags": ["timeout"], "timeout": 60}}),
        json!({"map": {"family": family, "table": "t", "name": "verdicts", "type": "ipv4_addr", "map": "verdict",
            "elem": [["10.244.1.1", {"drop": null}], ["10.244.1.2", {"jump": {"target": "u"}}]]}}),
        json!({"chain": {"family": family, "table": "t", "name": "u", "handle": 1}}),
    ];
    let mut base = chain;
    base["family"] = family.into();
    base["table"] = "t".into();
    base["name"] = "c".into();
    objects.push(json!({"chain": base}));
    for (handle, rule) in rules.iter().enumerate() {
        objects.push(
            json!({"rule": {"family": family, "table": "t", "chain": "c", "handle": handle, "expr": rule}}),
        );
    }
    nftables::read(&json!({"nftables": objects}).to_string(), &HashSet::new()).unwrap()
}

fn matches(left: serde_json::Value, right: serde_json::Value) -> serde_json::Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn field(protocol: &str, field: &str) -> serde_json::Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn forward(rules: &[serde_json::Value]) -> FastPath {
    let chain = json!({"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"});
    judge(&nft("inet", chain, rules), &site()).0
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
    let of = |rule| judge(&nft("inet", input.clone(), &[rule]), &site()).0;
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
    assert_eq!(judge(&read(&[&chain, &rule]), &site()).0, Off, "nobody says what is in the set");
}

#[test]
fn chains_stand_where_packets_pass_or_not() {
    let both = json!({"set": ["10.244.1.2", "10.244.9.9"]});
    let rule = [json!([matches(field("ip", "daddr"), both), {"drop": null}])];
    let at = |family: &str, hook: &str, device: &str| {
        let chain = json!({"type": "filter", "hook": hook, "prio": 0, "dev": device, "policy": "accept"});
        judge(&nft(family, chain, &rule), &site()).0
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
        judge(&nft("netdev", everything, &[]), &site()).0,
        Off,
        "overlay0 has sent the packet by then"
    );
}

#[test]
fn a_policy_is_a_rule_about_what_is_left() {
    let chain = |policy: &str| json!({"type": "filter", "hook": "forward", "prio": 0, "policy": policy});
    let accept = |end: &str| json!([matches(field("ip", end), json!({"prefix": {"addr": "10.244.0.0", "len": 16}})), {"accept": null}]);
    assert_eq!(judge(&nft("ip", chain("drop"), &[]), &site()).0, Established);
    assert_eq!(judge(&nft("ip", chain("drop"), &[accept("saddr"), accept("daddr")]), &site()).0, On);
    assert_eq!(
        judge(&nft("ip", chain("drop"), &[json!([{"limit": {"rate": 1}}, {"accept": null}])]), &site()).0,
        Off
    );
}

#[test]
fn what_returns_early_meets_the_policy() {
    let of = |rules: &str| filter(&format!(":u - [0:0]\n:FORWARD DROP [0:0]\n{rules}\n-A FORWARD -j ACCEPT"));
    assert_eq!(of(""), On);
    assert_eq!(of("-A FORWARD -p udp -m udp --dport 81 -j RETURN"), Established);
    assert_eq!(of("-A FORWARD -p udp -m udp --dport 81 -g u\n-A u -j RETURN"), Established);
    assert_eq!(of("-A FORWARD -p udp -m udp --dport 81 -j u\n-A u -j RETURN"), On);
    assert_eq!(of("-A FORWARD -p udp -m udp --dport 81 -g u\n-A u -j ACCEPT"), On);
    assert_eq!(of("-A FORWARD -m limit --limit 1/sec -j RETURN"), Off);
}

#[test]
fn a_chain_without_an_interface_may_stand_at_any() {
    let rule = [json!([matches(field("ip", "daddr"), json!("10.244.1.2")), {"drop": null}])];
    let chain = json!({"type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"});
    let mut tables = nft("netdev", chain, &rule);
    assert_eq!(judge(&tables, &site()).0, Established);
    assert_eq!(nftables::without_devices(&tables), [(0, "c".to_owned())]);
    let listed = "table netdev t {\n\tchain c {\n\t\ttype filter hook ingress devices = { \"eth1\", \"eth2\" } priority filter;\n\t}\n}";
    assert_eq!(nftables::devices(listed), ["eth1", "eth2"]);
    tables[0].chains.get_mut("c").unwrap().base.as_mut().unwrap().devices = vec!["eth1".into()];
    assert_eq!(judge(&tables, &site()).0, On);
}

#[test]
fn too_many_rules_are_not_followed() {
    let line = "-A FORWARD -s 172.17.0.0/16 -j DROP\n";
    let saved = format!("*filter\n:FORWARD ACCEPT [0:0]\n{}COMMIT\n", line.repeat(50_000));
    let tables = iptables::read("iptables-nft", &saved);
    let found = walk::walk(&tables, &site());
    assert!(!found.is_cut_short && found.harms.is_empty());
    assert!(walk::walk_within(150_000, &tables, &site()).is_cut_short);
}

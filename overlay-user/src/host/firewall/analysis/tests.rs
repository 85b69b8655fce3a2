//! Rule sets as people have them, and what the analysis says of them.
use std::collections::HashSet;

use serde_json::json;

use super::{iptables, nftables, probe::Scope, quote::Quote, rules::Table, walk};
use crate::{
    host::site::Site,
    model::fast_path::FastPath::{self, Established, Off, On},
};

mod bridged;
mod gates;
mod listings;
mod odd_words;

fn judge(tables: &[Table], site: &Site) -> (FastPath, String) {
    let found = walk::walk(tables, site, Scope::BetweenHosts);
    assert!(!found.is_cut_short);
    found.harms.into_iter().next().map_or((On, String::new()), |harm| match harm.quote {
        Quote::Text(text) => (harm.at_most, text),
        Quote::Handle { handle, .. } => (harm.at_most, handle.to_string()),
    })
}

/// The tables in the output of `iptables-nft-save`.
fn saved(text: &str) -> Vec<Table> {
    iptables::read("iptables-nft", text).unwrap()
}

/// What the rules of a table of iptables, with their chains, allow.
fn table(name: &str, rules: &str) -> FastPath {
    let chains = "PREROUTING INPUT FORWARD OUTPUT POSTROUTING";
    let chains: String = chains.split(' ').map(|chain| format!(":{chain} ACCEPT [0:0]\n")).collect();
    judge(&saved(&format!("*{name}\n{chains}{rules}\nCOMMIT\n")), &Site::example()).0
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
        "-A INPUT -s 10.99.0.2/32 -p udp -m udp --dport 8472 -j DROP",
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
    // What leaves by its own address is not altered. What has another one gets that, and peers drop it.
    let hides = saved("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n");
    assert_eq!(judge(&hides, &Site::example()).0, On);
    let mut other = Site::example();
    other.names.is_masqueraded_alike = false;
    assert_eq!(judge(&hides, &other).0, Off);
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
    let docker = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
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
    let of = |text: &str| judge(&saved(text), &Site::example());
    assert_eq!(of(docker), (On, String::new()));
    let guarded = docker.replace(
        "-A DOCKER-USER -j RETURN",
        "-A DOCKER ! -i docker0 -o docker0 -j DROP\n-A DOCKER-USER -j RETURN",
    );
    assert_eq!(
        of(&guarded),
        (Established, "iptables-nft -t filter -A DOCKER ! -i docker0 -o docker0 -j DROP".into())
    );
    let published = docker.replace(
        "-A DOCKER -i docker0 -j RETURN",
        "-A POSTROUTING -s 10.244.1.2/32 -d 10.244.1.2/32 -p tcp -j MASQUERADE",
    );
    assert_eq!(of(&published), (On, String::new()), "another host's container is not this one");
    let refused = docker.replace(
        "-A DOCKER-USER -j RETURN",
        "-A DOCKER-USER -s 10.244.1.7/32 -j REJECT\n-A DOCKER-USER -j RETURN",
    );
    assert_eq!(
        of(&refused),
        (Established, "iptables-nft -t filter -A DOCKER-USER -s 10.244.1.7/32 -j REJECT".into())
    );
}

#[test]
fn unencapsulated_packets_pass_the_underlay() {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth0 -d 10.244.1.0/24 -j DROP\nCOMMIT\n";
    let tables = saved(rules);
    assert_eq!(judge(&tables, &Site::example()).0, On);
    let direct = Site { is_direct: true, ..Site::example() };
    assert_eq!(judge(&tables, &direct).0, Established);
    let isolation = "*filter\n:FORWARD ACCEPT [0:0]\n:u - [0:0]\n-A FORWARD -i br7 ! -o br7 -j u\n-A u -o br7 -j DROP\nCOMMIT\n";
    assert_eq!(judge(&saved(isolation), &direct).0, On);
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
    judge(&nft("inet", chain, rules), &Site::example()).0
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
fn too_many_rules_are_not_followed() {
    let line = "-A FORWARD -s 172.17.0.0/16 -j DROP\n";
    let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{}COMMIT\n", line.repeat(50_000));
    let tables = saved(&text);
    let found = walk::walk(&tables, &Site::example(), Scope::BetweenHosts);
    assert!(!found.is_cut_short && found.harms.is_empty());
    assert!(walk::walk_within(150_000, &tables, &Site::example(), Scope::BetweenHosts).is_cut_short);
}

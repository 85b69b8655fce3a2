//! Chains that refuse what no rule accepts, and rules that there is advice about.
use serde_json::{Value, json};

use super::{
    super::{
        findings::{End, Gate, Kind},
        probe::Scope,
        quote::Quote,
        rules::Table,
        walk::walk,
    },
    field, matches, nft, saved,
};
use crate::host::site::Site;

fn gates(tables: &[Table]) -> Vec<Gate<Quote>> {
    walk(tables, &Site::example(), Scope::BetweenHosts).gates
}

/// Whether an INPUT chain with this policy and these rules is said to refuse the tunnel's packets, or to accept them. `None` if
/// there is nothing to say.
fn input(policy: &str, rules: &str) -> Option<bool> {
    let gates = gates(&saved(&format!("*filter\n:INPUT {policy} [0:0]\n:u - [0:0]\n{rules}COMMIT\n")));
    assert!(gates.iter().all(|gate| gate.is_input && gate.end.is_none() <= gate.accepting.is_some()));
    gates.first().map(|gate| gate.accepting.is_some())
}

#[test]
fn an_input_chain_is_closed_unless_a_rule_was_written_for_the_tunnel() {
    let related = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    let last = "-A INPUT -j REJECT --reject-with icmp-host-prohibited\n";
    assert_eq!(input("ACCEPT", related), None);
    assert_eq!(input("DROP", ""), Some(false));
    assert_eq!(input("DROP", related), Some(false));
    assert_eq!(input("ACCEPT", &format!("{related}{last}")), Some(false));
    for accepting in [
        "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n",
        "-A INPUT -i eth0 -p udp -m udp --dport 8000:9000 -j ACCEPT\n",
        "-A INPUT -p udp -m multiport --dports 53,8472 -j ACCEPT\n",
        "-A INPUT -s 10.99.0.0/24 -j ACCEPT\n",
        "-A INPUT -p udp -m state --state NEW -m udp --dport 8472 -j ACCEPT\n",
        "-A INPUT -m set --match-set peers src -j ACCEPT\n",
        "-A INPUT -p udp -j u\n-A u -p udp -m udp --dport 8472 -j ACCEPT\n",
    ] {
        assert_eq!(input("DROP", accepting), Some(true), "{accepting}");
        assert_eq!(input("ACCEPT", &format!("{accepting}{last}")), Some(true), "{accepting}");
        let behind = input("ACCEPT", &format!("{last}{accepting}"));
        assert_eq!(behind, Some(false), "{accepting}");
    }
    for other in [
        "-A INPUT -p udp -m udp --dport 53 -j ACCEPT\n",
        "-A INPUT -p udp -m udp --sport 53 -j ACCEPT\n",
        "-A INPUT -p tcp -m tcp --dport 8472 -j ACCEPT\n",
        "-A INPUT -i lo -j ACCEPT\n",
        "-A INPUT ! -s 10.99.0.0/24 -j ACCEPT\n",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j u\n-A u -j ACCEPT\n",
        "-A u -p udp -m udp --dport 8472 -j ACCEPT\n",
    ] {
        assert_eq!(input("DROP", other), Some(false), "{other}");
    }
    // A firewall that answers each protocol in its own way refuses the tunnel before the last rule.
    let arch = gates(&saved(
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -j REJECT\n-A INPUT -j REJECT\nCOMMIT\n",
    ));
    assert!(matches!(&arch[0].end, Some(End::By(Quote::Text(rule))) if rule.ends_with("-p udp -j REJECT")));
}

#[test]
fn a_chain_of_nftables_is_told_by_hook_and_family() {
    let accept = || json!({"accept": null});
    let chain =
        |hook: &str, policy: &str| json!({"type": "filter", "hook": hook, "prio": 10, "policy": policy});
    let state = || matches(json!({"ct": {"key": "state"}}), json!({"set": ["established", "related"]}));
    let port = |port: Value| json!([matches(field("udp", "dport"), port), accept()]);
    let of = |family: &str, hook: &str, policy: &str, rules: &[Value]| {
        let gates = gates(&nft(family, chain(hook, policy), rules));
        gates.into_iter().next().map(|gate| (gate.table, gate.is_input, gate.accepting.is_some()))
    };
    let closed = Some(("inet t".to_owned(), true, false));
    let established = json!([state(), accept()]);
    assert_eq!(of("inet", "input", "drop", std::slice::from_ref(&established)), closed);
    assert_eq!(of("inet", "input", "drop", &[established.clone(), port(json!(53))]), closed);
    let both = port(json!({"set": [53, 8472]}));
    assert_eq!(of("inet", "input", "drop", &[both]), Some(("inet t".to_owned(), true, true)));
    assert_eq!(of("inet", "input", "accept", std::slice::from_ref(&established)), None);
    // firewalld closes its chains by a last rule.
    let reject = || json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]);
    assert_eq!(of("inet", "input", "accept", &[established, reject()]), closed);
    assert_eq!(of("ip", "forward", "accept", &[reject()]), Some(("ip t".to_owned(), false, false)));
    // Neither of these sees a packet of the overlay's.
    assert_eq!(of("ip6", "input", "drop", &[]), None);
    assert_eq!(of("bridge", "forward", "drop", &[]), None);
}

/// What is at the end of a FORWARD chain with these rules: nothing, that it is closed, or a rule.
fn forward(rules: &str) -> Option<Option<End<Quote>>> {
    let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n:u - [0:0]\n{rules}COMMIT\n");
    gates(&saved(&text)).into_iter().next().map(|gate| gate.end)
}

#[test]
fn a_forward_chain_must_accept_both_directions_before_it_refuses() {
    let of = |end, more| format!("-A FORWARD {end} 10.244.0.0/16 {more}-j ACCEPT\n");
    let comment = "-m comment --comment \"overlay-forward:default\" ";
    let (both, close) = (of("-s", comment) + &of("-d", comment), "-A FORWARD -j REJECT\n");
    let drop = ":FORWARD DROP [0:0]\n";
    let closed = Some(Some(End::Closed));
    assert_eq!(forward(""), None);
    assert_eq!(forward(close), closed);
    assert_eq!(forward(&format!("{both}{close}")), Some(None));
    let is_stopped = |rules: &str| matches!(forward(rules), Some(Some(End::Stopped(_))));
    // Nothing behind it is reached, be it the agent's or somebody else's, whatever the policy is.
    assert!(is_stopped(&format!("{close}{both}")));
    assert!(is_stopped(&format!("{drop}{close}{both}")));
    assert!(is_stopped(&format!("{close}-A FORWARD -i eth1 -j ACCEPT\n")));
    assert_eq!(forward(&format!("{drop}-A FORWARD -i eth1 -j ACCEPT\n{close}")), closed);
    assert_eq!(forward(&format!("{drop}{both}")), Some(None));
    // Either end is enough, since both are in Network.
    assert_eq!(forward(&format!("{drop}{}", of("-s", ""))), Some(None));
    for partial in [
        of("-s", "-p tcp ") + &of("-d", "-p tcp "),
        of("-s", "-i br7 ") + &of("-d", "-i eth1 "),
        of("-s", "").replace("10.244.0.0/16", "10.244.1.0/24"),
    ] {
        assert_eq!(forward(&format!("{drop}{partial}")), closed, "{partial}");
    }
    assert!(is_stopped("-A FORWARD -j u\n-A u -j DROP\n"));
    let flannels = format!("{drop}-A FORWARD -j u\n{}", both.replace("-A FORWARD", "-A u"));
    assert_eq!(forward(&flannels), Some(None));
    // That is about the overlay, and not about what nobody has thought of.
    let by = forward("-A FORWARD -i overlay0 -j u\n-A u -j DROP\n");
    assert!(matches!(by, Some(Some(End::By(_)))), "{by:?}");
    assert_eq!(forward("-A FORWARD -d 10.244.1.5/32 -j DROP\n"), None);
    assert_eq!(forward("-A FORWARD -i docker7 -j DROP\n"), None);
}

fn kinds(table: &str, rules: &str) -> Vec<Kind> {
    let text = format!(
        "*{table}\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n{rules}\n"
    );
    let harms = walk(&saved(&text), &Site::example(), Scope::BetweenHosts).harms;
    harms.into_iter().map(|harm| harm.kind).collect()
}

#[test]
fn dockers_masquerading_is_found_and_others_is_not() {
    let of = |rule: &str| kinds("nat", rule);
    assert_eq!(of("-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE"), [Kind::Masquerading]);
    assert_eq!(of("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"), []);
    assert_eq!(of("-A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j MASQUERADE"), []);
    // Docker's for a container that reaches its own published port hides nobody from another host.
    assert_eq!(
        of("-A POSTROUTING -s 10.244.1.2/32 -d 10.244.1.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE"),
        []
    );
    // kube-proxy's, for what it has marked.
    assert_eq!(of("-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE"), [Kind::Other]);
    // However many other rules there are.
    let others: String = (1..9)
        .map(|port| format!("-A PREROUTING -p tcp -m tcp --dport {port} -j DNAT --to 10.244.1.2\n"))
        .collect();
    let all = of(&format!("{others}-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE"));
    assert!(all.contains(&Kind::Masquerading), "{all:?}");
}

#[test]
fn dockers_guards_of_a_bridge_are_recognized() {
    let filter = |rule: &str| kinds("filter", &format!("-A FORWARD -j DOCKER\n{rule}"));
    assert_eq!(filter("-A DOCKER ! -i br7 -o br7 -j DROP"), [Kind::DirectAccess]);
    assert_eq!(filter("-A DOCKER ! -i virbr0 -o virbr0 -j DROP"), []);
    assert_eq!(filter("-A DOCKER -d 10.244.1.2/32 ! -i br7 -o br7 -p tcp -j ACCEPT"), []);
    assert_eq!(filter("-A DOCKER -d 10.244.1.2/32 -j DROP"), [Kind::Other]);
    assert_eq!(kinds("raw", "-A PREROUTING -d 10.244.1.2/32 ! -i br7 -j DROP"), [Kind::DirectAccess]);
}

/// As Docker writes its rules with `--firewall-backend=nftables`.
#[test]
fn so_are_both_in_nftables() {
    let name = |key: &str| json!({"meta": {"key": key}});
    let not = |left: Value, right: &str| json!({"match": {"op": "!=", "left": left, "right": right}});
    let kinds = |hook: &str, kind: &str, rule: Value| {
        let chain = json!({"type": kind, "hook": hook, "prio": 0, "policy": "accept"});
        let harms = walk(&nft("ip", chain, &[rule]), &Site::example(), Scope::BetweenHosts).harms;
        harms.into_iter().map(|harm| harm.kind).collect::<Vec<_>>()
    };
    let guard = |bridge: &str| {
        json!([not(name("iifname"), bridge), matches(name("oifname"), json!(bridge)), {"counter": {"packets": 0, "bytes": 0}},
            {"drop": null}])
    };
    assert_eq!(kinds("forward", "filter", guard("br7")), [Kind::DirectAccess]);
    assert_eq!(kinds("forward", "filter", guard("virbr0")), []);
    let subnet = json!({"prefix": {"addr": "10.244.1.0", "len": 24}});
    let hides =
        json!([matches(field("ip", "saddr"), subnet), not(name("oifname"), "br7"), {"masquerade": null}]);
    assert_eq!(kinds("postrouting", "nat", hides), [Kind::Masquerading]);
}

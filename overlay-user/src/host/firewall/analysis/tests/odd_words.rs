//! Comments and names that look like something else. What iptables and nft print of them is what iptables 1.8.9 and nft 1.0.6 have
//! printed.
use std::collections::HashSet;

use serde_json::json;

use super::{
    super::{nftables, rules::Action},
    filter, forward, judge, saved,
};
use crate::{
    host::{firewall::analysis::iptables, site::Site},
    model::fast_path::FastPath::{Established, Off, On},
};

#[test]
fn a_comment_is_no_rule_and_no_option() {
    let drop = "-s 10.244.1.5/32 -m comment --comment";
    for comment in [
        "\"a\nb\"",
        "\"a\n-A FORWARD -j ACCEPT\"",
        "\"a\nCOMMIT\n*raw\"",
        "-j",
        "-s",
        "\"!\"",
        "\"-j ACCEPT\"",
        "\"it\\'s \\\"quoted\\\" \\\\\"",
        "\"\"",
    ] {
        let rule = format!("-A FORWARD {drop} {comment} -j DROP");
        assert_eq!(filter(&rule), Established, "{rule}");
        let harmless = rule.replace("10.244.1.5/32", "172.17.0.5/32");
        assert_eq!(filter(&harmless), On, "{harmless}");
    }
}

/// What `iptables-nft-save` and `iptables-legacy-save` print alike of rules whose comments, chains and interfaces have in them what
/// can be in them.
const PRINTED: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:\"q - [0:0]\n:a\"b - [0:0]\n\
    :a\\b - [0:0]\n-A FORWARD -m comment --comment \"a\nb\" -j RETURN\n-A FORWARD -m comment --comment \"it\\'s \\\"q\\\" \\\\ x\" -j DROP\n\
    -A FORWARD -m comment --comment -j -j DROP\n-A FORWARD -m comment --comment \"\" -j DROP\n-A FORWARD -j a\"b\n-A FORWARD -g \"q\n\
    -A FORWARD -i \"x -o y\\z -j DROP\n-A FORWARD -j LOG --log-prefix \"a \\\"b\\\" \\\\ c\"\n\
    -A FORWARD -m string --hex-string \"|6122625c|\" --algo bm -j DROP\n-A FORWARD -m recent --set --name x y --mask 255.255.255.255 \
    --rsource -j DROP\nCOMMIT\n# Completed\n";

#[test]
fn every_rule_of_the_tools_own_output_is_read() {
    use Action::{Continue, Refuse, Return};
    let tables = saved(PRINTED);
    let chain = &tables[0].chains["FORWARD"];
    let actions: Vec<Action> = chain.rules.iter().map(|rule| rule.action.clone()).collect();
    let jump = |name: &str| Action::Jump(name.to_owned());
    let goto = |name: &str| Action::Goto(name.to_owned());
    let expected =
        [Return, Refuse, Refuse, Refuse, jump("a\"b"), goto("\"q"), Refuse, Continue, Refuse, Refuse];
    assert_eq!(actions, expected);
    let asks: Vec<usize> = chain.rules.iter().map(|rule| rule.conditions.len()).collect();
    assert_eq!(asks[..8], [0, 0, 0, 0, 0, 0, 2, 0], "comments ask nothing");
    assert_eq!(tables[0].chains.len(), 6);
}

#[test]
fn names_stand_as_they_are() {
    // A chain's, an interface's, and a set's, none of which iptables quotes.
    assert_eq!(filter(":a\"b - [0:0]\n-A FORWARD -j a\"b\n-A a\"b -s 10.244.1.5/32 -j DROP"), Established);
    assert_eq!(filter(":\"a - [0:0]\n-A FORWARD -j \"a\n-A \"a -s 10.244.1.5/32 -j DROP"), Established);
    assert_eq!(filter("-A FORWARD -i \"x -j DROP"), Established);
    assert_eq!(filter("-A FORWARD -i -j -j DROP"), Established);
    // A set whose name has spaces looks like options. Nobody can tell then what the rule asks or does.
    for name in ["x -j ACCEPT y", "x -s 1.2.3.4/32", "x -m udp --dport 9", "x y"] {
        let rule = format!("-A FORWARD -m set --match-set {name} src -j DROP");
        assert_eq!(filter(&rule), Off, "{rule}");
    }
}

#[test]
fn a_line_of_no_known_form_is_not_passed_over() {
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n:a\nb - [0:0]\n-A FORWARD -j a\nb\n-A a\nb -j DROP\nCOMMIT\n";
    assert!(iptables::read("iptables-nft", text).unwrap_err().contains("no known form"));
    assert!(iptables::read("iptables-nft", "-A FORWARD -j DROP\n").is_err(), "of no table");
    assert_eq!(judge(&saved("# a comment\n*filter\n\nCOMMIT\n"), &Site::example()).0, On);
}

#[test]
fn what_nft_names_and_does_not_list_may_do_anything() {
    assert_eq!(forward(&[json!([{"jump": {"target": "unlisted"}}])]), Off);
    let key = json!({"payload": {"protocol": "ip", "field": "daddr"}});
    assert_eq!(forward(&[json!([{"vmap": {"key": key, "data": "@unlisted"}}])]), Off);
    // Names as the listing has them, whatever is in them.
    let name = "a \"b\"\n{;}";
    let chain = json!({"family": "ip", "table": name, "name": name, "hook": "forward", "policy": "accept"});
    let rule = json!({"family": "ip", "table": name, "chain": name, "handle": 1, "comment": "x\n\\", "expr": [{"drop": null}]});
    let listing = json!({"nftables": [{"chain": chain}, {"rule": rule}]}).to_string();
    assert_eq!(judge(&nftables::read(&listing, &HashSet::new()).unwrap(), &Site::example()).0, Established);
}

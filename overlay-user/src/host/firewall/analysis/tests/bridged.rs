//! Rules that frames between containers behind one bridge may meet, and rules that they never meet.
use serde_json::json;

use super::*;

/// What is found of a chain of the family `bridge` or `netdev` with these rules.
fn seen(family: &str, base: serde_json::Value, rules: &[serde_json::Value]) -> bool {
    let mut chain = json!({ "family": family, "table": "t", "name": "c", "handle": 1 });
    chain.as_object_mut().unwrap().extend(base.as_object().unwrap().clone());
    let mut listing = vec![
        json!({ "metainfo": { "json_schema_version": 1 } }),
        json!({ "table": { "family": family, "name": "t", "handle": 1 } }),
        json!({ "chain": chain }),
    ];
    for (number, rule) in rules.iter().enumerate() {
        let rule =
            json!({ "family": family, "table": "t", "chain": "c", "handle": number + 2, "expr": rule });
        listing.push(json!({ "rule": rule }));
    }
    let tables = nftables::read(&json!({ "nftables": listing }).to_string(), &HashSet::new()).unwrap();
    !walk::walk(&tables, &Site::example(), Scope::BehindBridge).harms.is_empty()
}

fn at(hook: &str) -> serde_json::Value {
    json!({ "type": "filter", "hook": hook, "prio": 0, "policy": "accept" })
}

fn at_device(hook: &str, device: &str) -> serde_json::Value {
    json!({ "type": "filter", "hook": hook, "dev": device, "prio": 0, "policy": "accept" })
}

fn source(address: &str) -> serde_json::Value {
    json!({ "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": "saddr" } }, "right": address } })
}

#[test]
fn rules_of_bridges_count_where_forwarded_frames_pass() {
    let drop = || json!([{ "drop": null }]);
    for hook in ["prerouting", "forward", "postrouting"] {
        assert!(seen("bridge", at(hook), &[drop()]), "{hook}");
        assert!(!seen("bridge", at(hook), &[]), "{hook} without a rule");
        assert!(!seen("bridge", at(hook), &[json!([{ "accept": null }])]), "{hook} that accepts");
    }
    for hook in ["input", "output"] {
        assert!(!seen("bridge", at(hook), &[drop()]), "{hook}");
    }
    let closed = json!({ "type": "filter", "hook": "forward", "prio": 0, "policy": "drop" });
    assert!(seen("bridge", closed, &[]));
    assert!(seen("bridge", at("forward"), &[json!([source("10.244.1.7"), { "drop": null }])]));
    assert!(!seen("bridge", at("forward"), &[json!([source("10.9.0.1"), { "drop": null }])]));
    // Whoever follows a mark may do anything.
    let mark = json!([{ "mangle": { "key": { "meta": { "key": "mark" } }, "value": 7 } }]);
    assert!(seen("bridge", at("prerouting"), &[mark]));
}

#[test]
fn rules_of_interfaces_count_at_containers_ports_and_rules_of_ip_do_not() {
    let drop = || json!([{ "drop": null }]);
    for hook in ["ingress", "egress"] {
        assert!(seen("netdev", at_device(hook, "veth7"), &[drop()]), "{hook}");
        assert!(!seen("netdev", at_device(hook, "eth0"), &[drop()]), "{hook} of the underlay");
        assert!(!seen("netdev", at_device(hook, "virbr0"), &[drop()]), "{hook} of another network");
    }
    for hook in ["prerouting", "forward", "postrouting"] {
        assert!(!seen("ip", at(hook), &[drop()]), "{hook}");
        assert!(!seen("inet", at(hook), &[drop()]), "{hook}");
    }
}

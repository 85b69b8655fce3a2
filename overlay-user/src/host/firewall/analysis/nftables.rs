//! Reads what `nft --json list ruleset` lists: its tables, chains, sets and rules. What rules ask is read in `expressions.rs`.
//!
//! The crate `nftables` knows the form of this listing, but gives all of it up for one statement that it does not know. Here
//! an unknown statement may only count as harmful.
use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{
    expressions::{self, Set, Sets},
    extensions,
    probe::Hook,
    quote::Quote,
    rules::{Action, Asked, Base, Condition, Family, Rule, Table},
};

/// Families, tables and names of the chains at single interfaces of which a listing does not tell the interfaces. nft 1.0.6 tells
/// them in its other listings alone.
pub(super) fn without_devices(tables: &[Table]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        for (name, chain) in &table.chains {
            let is_at_device = |base: &Base| matches!(base.hook, Hook::Ingress | Hook::Egress);
            if chain.base.as_ref().is_some_and(|base| is_at_device(base) && base.devices.is_empty()) {
                found.push((at, name.clone()));
            }
        }
    }
    found
}

/// The interfaces that a chain stands at, by what `nft list chain` says of it: `type filter hook ingress device "eth0" priority 0`,
/// or `devices = { "eth0", "eth1" }`.
pub(super) fn devices(listed: &str) -> Vec<String> {
    let line =
        listed.lines().find(|line| line.contains(" hook ") && line.contains(" device")).unwrap_or_default();
    let quoted = line.split('"').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

/// The tables of a listing, without those of IPv4 that are named in `but`, because another command has listed them better.
///
/// # Errors
/// When the listing has not the form that libnftables-json(5) describes.
pub(super) fn read(listing: &str, but: &HashSet<String>) -> Result<Vec<Table>, String> {
    let listing: Value = serde_json::from_str(listing).map_err(|error| error.to_string())?;
    let objects = listing["nftables"].as_array().ok_or("no list of objects in it")?;
    let mut tables = BTreeMap::new();
    let mut sets: HashMap<(&str, &str), Sets<'_>> = HashMap::new();
    // Sets are read first, because a rule can be listed before the set that it names.
    for object in objects {
        for kind in ["set", "map"] {
            let set = &object[kind];
            if let Some((family, table, name)) = place(set, "name") {
                sets.entry((family, table)).or_default().insert(name, Set::read(set));
            }
        }
    }
    // iptables' listing leaves out what its own rules cannot say: that an address is in a set.
    let asks_sets = |rule: &Value| rule["expr"].as_array().is_some_and(|all| all.iter().any(names_set));
    let with_sets = objects.iter().map(|object| &object["rule"]).filter(|rule| asks_sets(rule));
    let with_sets: HashSet<&str> = with_sets.filter_map(|rule| rule["table"].as_str()).collect();
    let empty = Sets::new();
    for object in objects {
        let (chain, rule) = (&object["chain"], &object["rule"]);
        let at = place(chain, "name").or_else(|| place(rule, "chain"));
        let Some((family, table_name, name)) = at else { continue };
        let Some(kind) = family_of(family) else { continue };
        if family == "ip" && but.contains(table_name) && !with_sets.contains(table_name) {
            continue;
        }
        let table = tables.entry((family, table_name)).or_insert_with(|| Table {
            family: kind,
            command: "nft".to_owned(),
            place: format!("{family} {table_name}"),
            chains: BTreeMap::new(),
        });
        let target = table.chains.entry(name.to_owned()).or_default();
        if rule.is_null() {
            target.base = base(chain);
        } else {
            let quote = Quote::Handle {
                family: family.to_owned(),
                table: table_name.to_owned(),
                chain: name.to_owned(),
                handle: rule["handle"].as_u64().unwrap_or_default(),
            };
            let sets = sets.get(&(family, table_name)).unwrap_or(&empty);
            target.rules.extend(rules(rule["expr"].as_array().map_or(&[], Vec::as_slice), sets, &quote));
        }
    }
    Ok(tables.into_values().collect())
}

/// Whether a statement looks something up in a set or a map.
fn names_set(statement: &Value) -> bool {
    let right = &statement["match"]["right"];
    let is_named = right.as_str().is_some_and(|name| name.starts_with('@'));
    is_named || !right["set"].is_null() || !statement["vmap"].is_null() || !statement["set"].is_null()
}

fn place<'a>(object: &'a Value, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    Some((object["family"].as_str()?, object["table"].as_str()?, object[name].as_str()?))
}

fn family_of(name: &str) -> Option<Family> {
    match name {
        "ip" | "inet" => Some(Family::Ip),
        "bridge" => Some(Family::Bridge),
        "netdev" => Some(Family::Device),
        _ => None,
    }
}

fn base(chain: &Value) -> Option<Base> {
    let devices = match &chain["dev"] {
        Value::String(device) => vec![device.clone()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Some(Base {
        hook: Hook::named(chain["hook"].as_str()?)?,
        devices,
        drops: chain["policy"] == "drop",
        is_first_only: chain["type"] == "nat",
    })
}

/// A rule of nftables is a list of statements, of which each may hold or not, or do something. It becomes one rule here for each
/// thing that it does.
fn rules<'a>(statements: &'a [Value], sets: &Sets<'a>, quote: &Quote) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut conditions: Vec<Asked> = Vec::new();
    for statement in statements {
        let Some((kind, body)) = statement.as_object().and_then(|statement| statement.iter().next()) else {
            continue;
        };
        let mut does = |action: Action, more: Vec<Asked>| {
            let conditions = [conditions.clone(), more].concat();
            rules.push(Rule { conditions, action, quote: quote.clone() });
        };
        match kind.as_str() {
            "match" => conditions.push(expressions::asked(body, sets)),
            "vmap" => match expressions::verdicts(body, sets) {
                Some(verdicts) => {
                    for (asked, verdict) in verdicts {
                        does(verdict_of(verdict), vec![asked]);
                    }
                }
                // A map that is not listed may hold any verdict.
                None => does(Action::Alter, vec![]),
            },
            // These may stop the rule, by counts that change with every packet.
            "limit" | "quota" | "ct count" | "meter" | "last" => conditions.push(Condition::Varying.into()),
            // Adding to a set stops the rule when the set is full, or when a limit that hangs on its elements does.
            "set" => conditions.push(Condition::Varying.into()),
            "counter" | "log" | "comment" => {}
            "mangle" if is_segment_size(body) => does(Action::Translate, vec![]),
            "xt" => {
                let name = body["name"].as_str().unwrap_or_default();
                match body["type"].as_str() {
                    Some("match") if extensions::is_fixed_whatever_it_asks(name) => {
                        conditions.push(Condition::Fixed.into());
                    }
                    Some("match") => conditions.push(Condition::Varying.into()),
                    Some("target") => does(extensions::action(name), vec![]),
                    Some("watcher") => {}
                    // Earlier versions of nft tell neither the kind nor the name.
                    _ => does(Action::Alter, vec![]),
                }
            }
            _ => does(verdict_of(statement), vec![]),
        }
    }
    rules
}

/// The maximum segment size is set in packets with SYN alone, because the option stands nowhere else.
fn is_segment_size(body: &Value) -> bool {
    body["key"]["tcp option"]["name"] == "maxseg"
}

/// What a statement with a verdict does: `{"jump": {"target": "other"}}`.
fn verdict_of(statement: &Value) -> Action {
    let Some((kind, body)) = statement.as_object().and_then(|statement| statement.iter().next()) else {
        return Action::Alter;
    };
    let target = || body["target"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "accept" => Action::Accept,
        "continue" => Action::Continue,
        "return" => Action::Return,
        "jump" => Action::Jump(target()),
        "goto" => Action::Goto(target()),
        "drop" | "reject" => Action::Refuse,
        "snat" | "dnat" | "redirect" | "ct helper" | "ct timeout" | "ct expectation" => Action::Translate,
        "masquerade" => Action::Masquerade,
        // An offloaded connection has been accepted. What its flowtable then does is what forwarding would have done.
        "flow" => Action::Continue,
        _ => Action::Alter,
    }
}

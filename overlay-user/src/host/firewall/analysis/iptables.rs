//! Reads what `iptables-save` lists.
use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    extensions,
    probe::Hook,
    range::Range,
    rules::{Action, Asked, Base, Chain, Condition, Family, Quote, Rule, Table, protocol_named},
};

/// The tables of one variant of iptables, as its `-save` command lists them.
pub(super) fn read(variant: &str, saved: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let name = format!("{variant} -t {name}");
            tables.push(Table { family: Family::Ip, name, chains: BTreeMap::new() });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                let is_first_only = table.name.ends_with(" nat");
                let base = hook(name).filter(|_| policy != "-").map(|hook| Base {
                    hook,
                    devices: Vec::new(),
                    drops: policy == "DROP",
                    is_first_only,
                });
                table.chains.insert(name.to_owned(), Chain { base, rules: Vec::new() });
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let text = format!("{} {line}", table.name);
            let rule = parse(rule, text, &|name| table.chains.contains_key(name));
            table.chains.entry(chain.to_owned()).or_default().rules.push(rule);
        }
    }
    tables
}

fn hook(chain: &str) -> Option<Hook> {
    Hook::named(&chain.to_ascii_lowercase())
}

/// Reads a rule without its chain: `-s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DROP`. Chains are listed before all rules, so that
/// `is_chain` tells a chain from an extension.
fn parse(rule: &str, text: String, is_chain: &dyn Fn(&str) -> bool) -> Rule {
    let words = words(rule);
    let mut conditions = Vec::new();
    let mut action = Action::Continue;
    let mut module = "";
    let mut is_negated = false;
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(option) = rest.next() {
        if option == "!" {
            is_negated = true;
            continue;
        }
        // An option's values go up to the next option.
        let mut values = Vec::new();
        while rest.peek().is_some_and(|next| *next != "!" && !next.starts_with('-')) {
            values.extend(rest.next());
        }
        let value = values.first().copied().unwrap_or_default();
        match option {
            "-m" => {
                module = value;
                conditions.extend(itself(module).map(|condition| Asked { condition, is_negated: false }));
            }
            "--comment" => {}
            "-j" => {
                action =
                    if is_chain(value) { Action::Jump(value.to_owned()) } else { extensions::action(value) };
                // What follows are the target's options.
                break;
            }
            "-g" => action = Action::Goto(value.to_owned()),
            _ => conditions
                .push(Asked { condition: condition(module, option, &values, is_negated), is_negated }),
        }
        is_negated = false;
    }
    Rule { conditions, action, quote: Quote::Text(text) }
}

/// What a match asks without any option. Those that ask nothing without one have one in every rule.
fn itself(module: &str) -> Option<Condition> {
    const ASK_BY_OPTIONS: [&str; 13] = [
        "addrtype",
        "comment",
        "connmark",
        "conntrack",
        "dccp",
        "icmp",
        "iprange",
        "mark",
        "multiport",
        "sctp",
        "state",
        "tcp",
        "udp",
    ];
    if !extensions::is_fixed(module) && !ASK_BY_OPTIONS.contains(&module) {
        return Some(Condition::Varying);
    }
    (!ASK_BY_OPTIONS.contains(&module)).then_some(Condition::Fixed)
}

fn condition(module: &str, option: &str, values: &[&str], is_negated: bool) -> Condition {
    let value = values.first().copied().unwrap_or_default();
    // What cannot be read is no more than unknown.
    let known = |condition: Option<Condition>| condition.unwrap_or(Condition::Fixed);
    let names = || vec![value.strip_suffix('+').map_or(value.to_owned(), |begin| format!("{begin}*"))];
    match (module, option) {
        ("", "-s") => known(address(value).map(|range| Condition::Source(vec![range]))),
        ("", "-d") => known(address(value).map(|range| Condition::Destination(vec![range]))),
        ("", "-i") => Condition::Input(names()),
        ("", "-o") => Condition::Output(names()),
        ("", "-p") => known(protocol(value).map(|protocol| Condition::Protocol(vec![protocol]))),
        // Fragments never take the fast path.
        ("", "-f") => Condition::Impossible,
        ("iprange", "--src-range") => known(range(value).map(|range| Condition::Source(vec![range]))),
        ("iprange", "--dst-range") => known(range(value).map(|range| Condition::Destination(vec![range]))),
        ("tcp" | "udp" | "sctp" | "dccp" | "udplite", "--dport") | ("multiport", "--dports") => {
            let all: Option<Vec<_>> = value.split(',').map(ports).collect();
            known(all.map(Condition::Port))
        }
        ("addrtype", "--dst-type") if value == "LOCAL" => Condition::ToHost,
        ("addrtype", "--src-type") if value == "LOCAL" => Condition::FromHost,
        ("conntrack", "--ctstate") | ("state", "--state")
            if value.split(',').any(|it| it == "ESTABLISHED") =>
        {
            Condition::Established
        }
        ("conntrack", "--ctexpire" | "--ctstatus") => Condition::Varying,
        // A packet with SYN begins a connection or answers to that, which the stack decides about. All other flags change.
        ("tcp", "--tcp-flags") => {
            let has_syn = values.get(1).is_some_and(|set| set.split(',').any(|flag| flag == "SYN"));
            if has_syn && !is_negated { Condition::Fixed } else { Condition::Varying }
        }
        ("tcp", "--tcp-option") | ("sctp", "--chunk-types") | ("dccp", "--dccp-types" | "--dccp-option") => {
            Condition::Varying
        }
        // Marks are constant as long as no rule sets one, and a rule that does is found by itself.
        ("mark" | "connmark", "--mark") => Condition::Fixed,
        _ if extensions::is_fixed(module) => Condition::Fixed,
        _ => Condition::Varying,
    }
}

/// `10.244.1.0/24`, which may have no prefix length. A mask that is no prefix is not read.
fn address(text: &str) -> Option<Range<IpAddr>> {
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    net.map(Range::from)
}

/// `10.0.0.1-10.0.0.9`
fn range(text: &str) -> Option<Range<IpAddr>> {
    let (first, last) = text.split_once('-')?;
    Some(Range { first: first.parse().ok()?, last: last.parse().ok()? })
}

/// `80` or `80:90`
fn ports(text: &str) -> Option<Range<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(Range { first: first.parse().ok()?, last: last.parse().ok()? })
}

fn protocol(text: &str) -> Option<u8> {
    protocol_named(text).or_else(|| text.parse().ok())
}

/// The words of a line in which quotes keep words together, and a backslash takes the next character as it is.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut is_quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' if !is_quoted => words.extend(word.take()),
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

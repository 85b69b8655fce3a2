//! Reads what `iptables-save` lists.
use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    super::iptables::{Word, Words, lines},
    extensions,
    probe::Hook,
    quote::Quote,
    range::Range,
    rules::{Action, Asked, Base, Chain, Condition, Family, Rule, Table, protocol_named},
};

/// The tables of one variant of iptables, as its `-save` command lists them.
///
/// # Errors
/// When a line is not of the listing's form. A name with a line break in it, which only other commands can make, would do that.
pub(super) fn read(variant: &str, saved: &str) -> Result<Vec<Table>, String> {
    let mut tables: Vec<Table> = Vec::new();
    for line in lines(saved) {
        if line.is_empty() || line == "COMMIT" || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            let (command, place) = (variant.to_owned(), format!("-t {name}"));
            tables.push(Table { family: Family::Ip, command, place, chains: BTreeMap::new() });
            continue;
        }
        let strange = || format!("a line is of no known form: {line}");
        let table = tables.last_mut().ok_or_else(strange)?;
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (Some(name), Some(policy)) = (words.next(), words.next()) else { return Err(strange()) };
            let is_first_only = table.place == "-t nat";
            let base = hook(name).filter(|_| policy != "-").map(|hook| Base {
                hook,
                devices: Vec::new(),
                drops: policy == "DROP",
                is_first_only,
            });
            table.chains.insert(name.to_owned(), Chain { base, rules: Vec::new() });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let quote = Quote::Text(format!("{} {line}", table.name()));
            let words: Vec<Word<'_>> = Words::of(rule).collect();
            let is_chain = |name: &str| table.chains.contains_key(name);
            let rule = match parse(&words, &is_chain) {
                Some((conditions, action)) => Rule { conditions, action, quote },
                None => Rule::unreadable(quote),
            };
            table.chains.entry(chain.to_owned()).or_default().rules.push(rule);
        } else {
            return Err(strange());
        }
    }
    Ok(tables)
}

fn hook(chain: &str) -> Option<Hook> {
    Hook::named(&chain.to_ascii_lowercase())
}

/// Reads a rule without its chain: `-s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DROP`. Chains are listed before all rules, so that
/// `is_chain` tells a chain from an extension. Returns `None` for words that iptables does not write in this order, as if the name
/// of a set had spaces in it and looked like options.
fn parse(words: &[Word<'_>], is_chain: &dyn Fn(&str) -> bool) -> Option<(Vec<Asked>, Action)> {
    let mut conditions = Vec::new();
    let mut action = Action::Continue;
    let mut module = "";
    let mut is_negated = false;
    let is_option = |word: &Word<'_>| !word.is_quoted && (word.text == "!" || word.text.starts_with('-'));
    let is_target = |word: &Word<'_>| !word.is_quoted && matches!(&*word.text, "-j" | "-g");
    if words.iter().any(|word| word.is_open) {
        return None;
    }
    let mut rest = words.iter().peekable();
    while let Some(option) = rest.next().map(|word| &*word.text) {
        if option == "!" {
            is_negated = true;
            continue;
        }
        // An option's values go up to the next option. Comments and the names of chains and interfaces may look like one.
        let mut values = Vec::new();
        if matches!(option, "-j" | "-g" | "-i" | "-o" | "--comment") {
            values.extend(rest.next().map(|word| &*word.text));
        }
        while rest.peek().is_some_and(|next| !is_option(next)) {
            values.extend(rest.next().map(|word| &*word.text));
        }
        let value = values.first().copied().unwrap_or_default();
        match option {
            "-m" => {
                module = value;
                conditions.extend(itself(module).map(|condition| Asked { condition, is_negated: false }));
            }
            "--comment" => {}
            "-j" | "-g" => {
                action = match option {
                    "-g" => Action::Goto(value.to_owned()),
                    _ if is_chain(value) => Action::Jump(value.to_owned()),
                    _ => extensions::action(value),
                };
                // What follows are the target's options.
                if rest.any(is_target) {
                    return None;
                }
                break;
            }
            // What is asked of the packet itself comes first.
            "-s" | "-d" | "-i" | "-o" | "-p" | "-f" if !module.is_empty() => return None,
            "--match-set" if values.len() != 2 => return None,
            _ => conditions
                .push(Asked { condition: condition(module, option, &values, is_negated), is_negated }),
        }
        is_negated = false;
    }
    Some((conditions, action))
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
        ("tcp" | "udp" | "sctp" | "dccp" | "udplite", "--sport") | ("multiport", "--sports") => {
            let all: Option<Vec<_>> = value.split(',').map(ports).collect();
            known(all.map(Condition::SourcePort))
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

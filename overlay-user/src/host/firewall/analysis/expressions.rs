//! Reads what a rule of nftables asks: expressions, as libnftables-json(5) describes them.
use std::{collections::HashMap, net::IpAddr, slice};

use ipnet::IpNet;
use overlay_common::header::protocol;
use serde_json::Value;

use super::{
    range::Range,
    rules::{Asked, Condition, protocol_named},
};

/// A named set or map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Set<'a> {
    /// Its elements; those of a map are pairs.
    elements: &'a [Value],
    /// Whether elements come and go without a change of the rules: by packets, or with time.
    is_dynamic: bool,
}

/// The named sets of a table.
pub(super) type Sets<'a> = HashMap<&'a str, Set<'a>>;

impl<'a> Set<'a> {
    /// Reads the object that declares it.
    pub(super) fn read(object: &'a Value) -> Self {
        let flags = list(&object["flags"]);
        let has = |flag: &str| flags.iter().any(|one| one == flag);
        let has_timeout = !object["timeout"].is_null() || has("timeout");
        let is_dynamic = has_timeout || has("dynamic") || !object["size"].is_null();
        Self { elements: list(&object["elem"]), is_dynamic }
    }
}

/// The values of a field that holds one or several.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(all) => all,
        one => slice::from_ref(one),
    }
}

/// What a `match` statement asks.
pub(super) fn asked(body: &Value, sets: &Sets<'_>) -> Asked {
    let operator = body["op"].as_str().unwrap_or_default();
    let (left, right) = (&body["left"], &body["right"]);
    let is_negated = operator == "!=";
    // Greater and less are not read. They hold or not, depending on what of the packet is compared.
    if !matches!(operator, "==" | "!=" | "in" | "") {
        return unread(left).into();
    }
    match members(right, sets) {
        Some(values) => {
            let (condition, field) = (condition(left, &values), field(left));
            if is_negated && field == "tcp flags" {
                return Condition::Varying.into();
            }
            // nft asks for the protocol by itself before it looks at a field of it, and that is not negated.
            let is_other = ["ip6 ", "arp ", "tcp ", "sctp "].iter().any(|begin| field.starts_with(begin))
                && matches!(condition, Condition::Impossible | Condition::Protocol(_));
            Asked { condition, is_negated: is_negated && !is_other }
        }
        None => Condition::Varying.into(),
    }
}

/// What a `vmap` statement asks, and the verdict that it has for each answer. `None` if the map that it names is not known.
pub(super) fn verdicts<'a>(body: &'a Value, sets: &Sets<'a>) -> Option<Vec<(Asked, &'a Value)>> {
    let key = &body["key"];
    let (elements, is_dynamic) = match &body["data"] {
        Value::String(name) => {
            let set = name.strip_prefix('@').and_then(|name| sets.get(name))?;
            (set.elements, set.is_dynamic)
        }
        data => (list(&data["set"]), false),
    };
    let pairs = elements.iter().filter_map(|pair| Some((pair.get(0)?, pair.get(1)?)));
    let asked = |(answer, verdict)| {
        let condition = if is_dynamic { Condition::Varying } else { condition(key, &[bare(answer)]) };
        (condition.into(), verdict)
    };
    Some(pairs.map(asked).collect())
}

/// The values on the right of a comparison. `None` if they change without a change of the rules.
fn members<'a>(right: &'a Value, sets: &Sets<'a>) -> Option<Vec<&'a Value>> {
    let values = match right {
        Value::String(name) if name.starts_with('@') => {
            let set = sets.get(name.trim_start_matches('@'))?;
            if set.is_dynamic {
                return None;
            }
            set.elements
        }
        Value::Object(object) if object.contains_key("set") => list(&object["set"]),
        other => list(other),
    };
    Some(values.iter().map(bare).collect())
}

/// An element without its comment, counter or timeout.
fn bare(element: &Value) -> &Value {
    let inner = &element["elem"]["val"];
    if inner.is_null() { element } else { inner }
}

fn condition(left: &Value, values: &[&Value]) -> Condition {
    // It stands for whatever no other element of the set says.
    if values.iter().any(|value| *value == "*") {
        return unread(left);
    }
    // What cannot be read is no more than unknown.
    let all =
        |ranges: Option<Vec<_>>, of: fn(Vec<Range<IpAddr>>) -> Condition| ranges.map_or(Condition::Fixed, of);
    let words = || values.iter().filter_map(|value| value.as_str());
    let names = || words().map(str::to_owned).collect();
    let are_words = values.iter().all(|value| value.is_string());
    let has = |wanted: &str| words().any(|word| word == wanted);
    match (path(left).as_deref(), field(left).as_str()) {
        (Some("payload"), "ip saddr") => {
            all(values.iter().copied().map(addresses).collect(), Condition::Source)
        }
        (Some("payload"), "ip daddr") => {
            all(values.iter().copied().map(addresses).collect(), Condition::Destination)
        }
        (Some("payload"), "ip protocol") | (Some("meta"), "l4proto") => protocols(values),
        (Some("payload"), "tcp dport" | "tcp sport") => Condition::Protocol(vec![protocol::TCP]),
        (Some("payload"), "sctp dport" | "sctp sport") => Condition::Protocol(vec![protocol::SCTP]),
        (Some("payload"), "udp dport" | "th dport") => {
            let ports: Option<Vec<_>> = values.iter().copied().map(ports).collect();
            ports.map_or(Condition::Fixed, Condition::Port)
        }
        (Some("payload"), "udp sport" | "th sport") => {
            let ports: Option<Vec<_>> = values.iter().copied().map(ports).collect();
            ports.map_or(Condition::Fixed, Condition::SourcePort)
        }
        (Some("payload"), field) if field.starts_with("ip6 ") || field.starts_with("arp ") => {
            Condition::Impossible
        }
        (Some("meta"), "nfproto") if !has("ipv4") => Condition::Impossible,
        (Some("meta"), "protocol") | (Some("payload"), "ether type")
            if !has("ip") && !values.iter().any(|value| value.is_number()) =>
        {
            Condition::Impossible
        }
        (Some("meta"), "iifname" | "iif") if are_words => Condition::Input(names()),
        (Some("meta"), "oifname" | "oif") if are_words => Condition::Output(names()),
        (Some("ct"), "state") if has("established") => Condition::Established,
        (Some("fib"), _)
            if has("local")
                && values.len() == 1
                && list(&left["fib"]["flags"]).len() == 1
                && left["fib"]["result"] == "type" =>
        {
            match list(&left["fib"]["flags"]).first().and_then(Value::as_str) {
                Some("daddr") => Condition::ToHost,
                Some("saddr") => Condition::FromHost,
                _ => Condition::Fixed,
            }
        }
        // A packet with SYN begins a connection or answers to that, which the stack decides about. All other flags change.
        (_, "tcp flags") if !values.is_empty() && values.iter().all(|value| *value == "syn") => {
            Condition::Fixed
        }
        _ => unread(left),
    }
}

/// What is asked of the packet, without what it is compared with.
fn unread(left: &Value) -> Condition {
    const FIXED: [&str; 28] = [
        "iifname",
        "oifname",
        "iif",
        "oif",
        "iifgroup",
        "oifgroup",
        "iifkind",
        "oifkind",
        "iiftype",
        "oiftype",
        "l4proto",
        "nfproto",
        "protocol",
        "pkttype",
        "skuid",
        "skgid",
        "cgroup",
        "ibrname",
        "obrname",
        "ibridgename",
        "obridgename",
        "sdif",
        "sdifname",
        "ipsec",
        "secpath",
        "rtclassid",
        "mark",
        "broute",
    ];
    const CT_VARYING: [&str; 6] = ["bytes", "packets", "avgpkt", "expiration", "status", "label"];
    let field = field(left);
    let word = field.rsplit(' ').next().unwrap_or_default();
    let is_fixed = match path(left).as_deref() {
        Some("payload") => {
            let fields = ["saddr", "daddr", "sport", "dport", "protocol", "nexthdr", "type", "id", "version"];
            let icmp = field.starts_with("icmp ") && matches!(word, "type" | "code" | "id");
            icmp || fields.contains(&word) && !matches!(field.as_str(), "ip id" | "dccp type")
        }
        // Marks are constant as long as no rule sets one, and a rule that does is found by itself.
        Some("meta") => FIXED.contains(&word),
        Some("ct") => !CT_VARYING.contains(&word),
        Some("fib" | "rt" | "ipsec" | "socket") => true,
        Some("concat") => {
            let parts = left["concat"].as_array().map_or(&[][..], Vec::as_slice);
            parts.iter().all(|part| unread(part) == Condition::Fixed)
        }
        _ => false,
    };
    if is_fixed { Condition::Fixed } else { Condition::Varying }
}

/// The kind of an expression; that of what is masked if it masks something, since the mask is constant. Only flags are read so,
/// because the values behind a mask are no addresses.
fn path(left: &Value) -> Option<String> {
    let (kind, body) = left.as_object()?.iter().next()?;
    if kind == "&" {
        return path(body.get(0)?).map(|inner| format!("masked {inner}"));
    }
    Some(kind.clone())
}

/// The field that an expression reads: `ip saddr`, `iifname`, `state`.
fn field(left: &Value) -> String {
    let Some((kind, body)) = left.as_object().and_then(|left| left.iter().next()) else {
        return String::new();
    };
    if kind == "&" {
        return body.get(0).map(field).unwrap_or_default();
    }
    match (body["protocol"].as_str(), body["field"].as_str(), body["key"].as_str()) {
        (Some(protocol), Some(field), _) => format!("{protocol} {field}"),
        (_, _, Some(key)) => key.to_owned(),
        _ => String::new(),
    }
}

/// An address, a prefix or a range.
fn addresses(value: &Value) -> Option<Range<IpAddr>> {
    if let Some(text) = value.as_str() {
        return Some(Range::one(text.parse().ok()?));
    }
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        return Some(IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()?.into());
    }
    let range = value.get("range")?;
    let end = |at: usize| range.get(at)?.as_str()?.parse().ok();
    Some(Range { first: end(0)?, last: end(1)? })
}

fn ports(value: &Value) -> Option<Range<u16>> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some(range) = value.get("range") {
        return Some(Range { first: number(range.get(0)?)?, last: number(range.get(1)?)? });
    }
    number(value).map(Range::one)
}

fn protocols(values: &[&Value]) -> Condition {
    let number = |value: &&Value| match value.as_str() {
        Some(name) => protocol_named(name),
        None => u8::try_from(value.as_u64()?).ok(),
    };
    let numbers: Option<Vec<u8>> = values.iter().map(number).collect();
    numbers.map_or(Condition::Fixed, Condition::Protocol)
}

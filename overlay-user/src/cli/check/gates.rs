//! Says of the packet filter's chains at INPUT and FORWARD whether they let pass what takes the stack. The fast path takes packets
//! in before any filter, so containers that are learned can talk in any case, unless the fast path obeys the rules. But a new
//! container's first packets, connections that NAT changes, fragments, and the hosts' own packets arrive at the tunnel's socket,
//! which is behind INPUT, and are forwarded.
use ipnet::IpNet;

use super::finding::{Finding, Level};
use crate::host::firewall::{
    analysis::{End, Gate},
    nft::is_nft_name,
};

/// Judges the chains that refuse something, and the variants of iptables that have none of these. There is no finding of an INPUT
/// chain that nobody has closed. `network` is what is known for certain.
pub(super) fn findings(
    gates: &[Gate<String>],
    variants: &[&str],
    network: Option<IpNet>,
    port: u16,
) -> Vec<Finding> {
    let has_forward = |variant: &str| {
        gates.iter().any(|gate| !gate.is_input && gate.command == variant && gate.table == FILTER)
    };
    let open = variants.iter().filter(|variant| !has_forward(variant)).map(|variant| {
        let what = format!("{variant} forward rules");
        Finding::ok(&what, "the FORWARD chain accepts what no rule refuses")
    });
    let judged = gates
        .iter()
        .filter_map(|gate| if gate.is_input { input(gate, port) } else { Some(forward(gate, network)) });
    open.chain(judged).collect()
}

/// The table in which firewalls of iptables filter.
const FILTER: &str = "-t filter";

/// What a finding about a chain is called.
fn subject(gate: &Gate<String>, hook: &str) -> String {
    match (is_nft(gate), gate.table.strip_prefix("-t ")) {
        (true, _) => format!("nftables {hook} rules of {}", gate.table),
        (false, Some("filter") | None) => format!("{} {hook} rules", gate.command),
        (false, Some(table)) => format!("{} {hook} rules of {table}", gate.command),
    }
}

fn is_nft(gate: &Gate<String>) -> bool {
    gate.command == "nft"
}

/// The command of iptables that inserts a rule in front of a chain: `iptables-nft -I FORWARD`.
fn insert(gate: &Gate<String>) -> String {
    let Gate { command, table, chain, .. } = gate;
    if table == FILTER { format!("{command} -I {chain}") } else { format!("{command} {table} -I {chain}") }
}

/// The commands of iptables that accept the overlay's packets in front of a chain.
fn accept(gate: &Gate<String>, network: Option<IpNet>) -> String {
    let network = network.map_or_else(|| "NETWORK".to_owned(), |network| network.to_string());
    let insert = insert(gate);
    format!("{insert} -s {network} -j ACCEPT; {insert} -d {network} -j ACCEPT")
}

fn forward(gate: &Gate<String>, network: Option<IpNet>) -> Finding {
    let what = &subject(gate, "forward");
    let chain = &gate.chain;
    match &gate.end {
        None => Finding::ok(
            what,
            format!("the {chain} chain refuses by default and accepts the overlay's packets"),
        ),
        Some(End::By(rule)) => Finding::new(
            what,
            Level::Warn,
            format!("a rule refuses all packets of the overlay that take the stack: {rule}"),
            "delete that rule, if containers of different hosts are meant to talk",
        ),
        Some(End::Stopped(rule)) => Finding::new(
            what,
            Level::Warn,
            format!(
                "packets that take the stack are lost: a rule refuses everything, and what stands behind it in {chain} is never \
                 reached (the agent obeys it): {rule}"
            ),
            if is_nft(gate) {
                "if that is not meant to last: delete that rule, or accept Network in front of it as source and as destination"
                    .to_owned()
            } else {
                format!(
                    "if that is not meant to last: delete that rule, or put in front of it: {}",
                    accept(gate, network)
                )
            },
        ),
        Some(End::Closed) if is_nft(gate) => Finding::new(
            what,
            Level::Warn,
            format!("chain {chain} refuses what none of its rules accepts"),
            "packets that take the stack must be accepted in that very chain (the agent leaves other tables alone, and an \
             accept in its own would not count): accept Network as source and as destination",
        ),
        Some(End::Closed) => {
            let agent =
                if gate.table == FILTER { "start the agent with --forward-rules on, or: " } else { "" };
            Finding::new(
                what,
                Level::Warn,
                format!(
                    "the {chain} chain refuses what no rule accepts: packets that take the stack are lost, unless the agent \
                     runs and accepts them"
                ),
                format!("{agent}{}", accept(gate, network)),
            )
        }
    }
}

fn input(gate: &Gate<String>, port: u16) -> Option<Finding> {
    let what = &subject(gate, "input");
    let Gate { table, chain, accepting, end, .. } = gate;
    if let Some(rule) = accepting {
        return Some(Finding::ok(what, format!("accepted: {rule}")));
    }
    let lost = "so that what takes the stack is lost: new containers' first packets, NAT, fragments";
    let refused = match end.as_ref()? {
        End::Closed if is_nft(gate) => format!("no rule of {chain} accepts UDP to port {port}, {lost}"),
        End::Closed => format!("UDP to port {port} is refused, {lost}"),
        End::By(rule) | End::Stopped(rule) => {
            format!("UDP to port {port} is refused, {lost}; refused by: {rule}")
        }
    };
    let remedy = if !is_nft(gate) {
        format!("{} -p udp --dport {port} -j ACCEPT", insert(gate))
    } else if table.split(' ').chain([chain.as_str()]).all(is_nft_name) {
        format!("nft insert rule {table} {chain} udp dport {port} accept")
    } else {
        format!("accept UDP to port {port} in that chain")
    };
    Some(Finding::new(what, Level::Fail, refused, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(command: &str, table: &str, chain: &str, end: Option<End<String>>) -> Gate<String> {
        let is_input = chain.to_lowercase().contains("input");
        let (command, table, chain) = (command.into(), table.into(), chain.into());
        Gate { command, table, chain, is_input, accepting: None, end }
    }

    fn judged(gate: Gate<String>) -> Vec<Finding> {
        findings(&[gate], &[], Some("10.244.0.0/16".parse().unwrap()), 8472)
    }

    #[test]
    fn a_forward_chain_that_refuses_by_default_is_named_with_the_remedy() {
        let [found] = &judged(gate("iptables-nft", FILTER, "FORWARD", Some(End::Closed)))[..] else {
            panic!()
        };
        assert_eq!((found.what.as_str(), found.level), ("iptables-nft forward rules", Level::Warn));
        assert!(found.detail.starts_with("the FORWARD chain refuses what no rule accepts"), "{found:?}");
        assert!(found.remedy.contains("iptables-nft -I FORWARD -d 10.244.0.0/16"), "{found:?}");
        assert_eq!(judged(gate("iptables-nft", FILTER, "FORWARD", None))[0].level, Level::Ok);
        // What the agent does to the filter table would not help in another.
        let other = judged(gate("iptables-legacy", "-t mangle", "FORWARD", Some(End::Closed)));
        assert_eq!(other[0].what, "iptables-legacy forward rules of mangle");
        assert!(other[0].remedy.starts_with("iptables-legacy -t mangle -I FORWARD -s"), "{other:?}");
        // Who wrote a rule about these packets is not told to let them pass behind it.
        let by = judged(gate("iptables-nft", FILTER, "FORWARD", Some(End::By("-d it -j DROP".into()))));
        assert!(by[0].level == Level::Warn && !by[0].remedy.contains("ACCEPT"), "{by:?}");
        // The agent adds nothing that such a rule would let be reached, so the advice does not name it.
        let stopped = || Some(End::Stopped("-A FORWARD -j DROP".to_owned()));
        let found = &judged(gate("iptables-nft", FILTER, "FORWARD", stopped()))[0];
        assert!(found.level == Level::Warn && found.detail.ends_with(": -A FORWARD -j DROP"), "{found:?}");
        assert!(found.remedy.contains("put in front of it: iptables-nft -I FORWARD -s 10.244"), "{found:?}");
        assert!(!found.remedy.contains("--forward-rules"), "{found:?}");
        let found = &judged(gate("nft", "inet fw", "fwd", stopped()))[0];
        assert!(found.remedy.contains("in front of it") && !found.remedy.contains("-I "), "{found:?}");
        let nft = judged(gate("nft", "inet fw", "fwd", Some(End::Closed)));
        assert!(nft[0].what.ends_with("inet fw") && nft[0].remedy.contains("in that very chain"), "{nft:?}");
    }

    #[test]
    fn a_variant_without_closed_chains_is_in_order() {
        let closed = gate("iptables-nft", FILTER, "FORWARD", Some(End::Closed));
        let found = findings(&[closed], &["iptables-nft", "iptables-legacy"], None, 8472);
        let levels: Vec<_> = found.iter().map(|it| (it.what.as_str(), it.level)).collect();
        assert_eq!(
            levels,
            [("iptables-legacy forward rules", Level::Ok), ("iptables-nft forward rules", Level::Warn)]
        );
        assert!(found[1].remedy.contains("-s NETWORK"), "{found:?}");
    }

    #[test]
    fn an_input_chain_that_refuses_the_tunnel_is_named_with_the_remedy() {
        let closed = |command, table, chain| gate(command, table, chain, Some(End::Closed));
        let found = judged(closed("iptables-legacy", FILTER, "INPUT"));
        assert_eq!(found[0].remedy, "iptables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT");
        assert!(found[0].detail.starts_with("UDP to port 8472 is refused"), "{found:?}");
        let found = judged(closed("nft", "inet firewalld", "filter_INPUT"));
        assert_eq!(found[0].remedy, "nft insert rule inet firewalld filter_INPUT udp dport 8472 accept");
        assert_eq!(found[0].level, Level::Fail);
        // The remedy is meant to be typed, so nothing that a shell or nft would take for more than a name may be in it.
        let found = judged(closed("nft", "inet t", "input; flush ruleset"));
        assert!(!found[0].remedy.contains("flush"), "{found:?}");
        let found = judged(gate("iptables-nft", FILTER, "INPUT", Some(End::Stopped("-j DROP".into()))));
        assert!(found[0].detail.ends_with("refused by: -j DROP"), "{found:?}");
        let accepting = Some("-A INPUT -p udp -m udp --dport 8472 -j ACCEPT".to_owned());
        for end in [None, Some(End::Closed)] {
            let gate = Gate { accepting: accepting.clone(), ..gate("iptables-nft", FILTER, "INPUT", end) };
            assert_eq!(judged(gate)[0].level, Level::Ok);
        }
        assert_eq!(judged(gate("nft", "inet t", "input", None)), []);
    }
}

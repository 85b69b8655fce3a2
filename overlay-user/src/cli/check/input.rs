//! Checks whether the host's packet filter lets the tunnel's packets in. The fast path takes packets in before any filter, so
//! containers that are learned can talk in any case. But what takes the stack arrives at the tunnel's socket, which is behind
//! INPUT: a new container's first packets, connections that NAT changes, fragments, and the hosts' own packets.
use super::finding::{Finding, Level};
use crate::host::firewall::forward::refuses_all;

/// Looks at INPUT in the output of one variant's `iptables-save`. There is no finding if nobody has closed the chain, so that
/// it accepts whatever no rule refuses.
pub(super) fn iptables(variant: &str, rules: &str, port: u16) -> Option<Finding> {
    let what = format!("{variant} input rules");
    let mut in_filter = false;
    let mut is_closed = false;
    let mut accepting = None;
    for line in rules.lines() {
        if let Some(table) = line.strip_prefix('*') {
            in_filter = table == "filter";
        } else if in_filter && line.starts_with(":INPUT DROP") {
            is_closed = true;
        } else if let Some(rule) = line.strip_prefix("-A INPUT ").filter(|_| in_filter) {
            if refuses_all(rule) {
                is_closed = true;
                break;
            }
            if accepting.is_none() && accepts(rule, port) {
                accepting = Some(line);
            }
        }
    }
    let closed = || {
        Finding::new(
            &what,
            Level::Fail,
            format!(
                "UDP to port {port} is refused, so that what takes the stack is lost: new containers' first packets, NAT, fragments"
            ),
            format!("{variant} -I INPUT -p udp --dport {port} -j ACCEPT"),
        )
    };
    is_closed.then(|| accepting.map_or_else(closed, |rule| Finding::ok(&what, format!("accepted: {rule}"))))
}

/// Whether a rule of INPUT, given without its chain, accepts UDP to this port as it arrives, even if only from a certain
/// interface or address. A rule that asks for a connection's state does not count, because each new source port makes a
/// tunnel's packet a new connection.
fn accepts(rule: &str, port: u16) -> bool {
    let words: Vec<&str> = rule.split(' ').collect();
    let follows = |flag: &str, value: &dyn Fn(&str) -> bool| {
        words.windows(2).any(|pair| pair[0] == flag && value(pair[1]))
    };
    let names_port = |ports: &str| {
        ports.split(',').any(|part| {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u16>().ok();
            matches!((number(first), number(last)), (Some(first), Some(last)) if (first..=last).contains(&port))
        })
    };
    let is_udp = follows("-p", &|protocol| protocol == "udp") || !words.contains(&"-p");
    let asks_for_port =
        words.iter().any(|word| matches!(*word, "--dport" | "--dports" | "--sport" | "--sports"));
    let is_port = follows("--dport", &names_port) || follows("--dports", &names_port) || !asks_for_port;
    let asks_for_more =
        ["--ctstate", "--state", "--icmp-type", "-i lo", "!"].iter().any(|more| rule.contains(more));
    follows("-j", &|verdict| verdict == "ACCEPT") && is_udp && is_port && !asks_for_more
}

/// Looks in `nft list ruleset` for chains hooked to input whose policy drops. Those that iptables wrote were seen above
/// already.
pub(super) fn nftables(rules: &str, iptables_seen: bool, port: u16) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut table, mut chain) = ("", "");
    let mut lines = rules.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        }
        let is_iptables = iptables_seen && chain == "INPUT";
        if !line.contains("hook input") || !line.contains("policy drop") || is_iptables {
            continue;
        }
        let what = format!("nftables input rules of {table}");
        let accepts = |rule: &str| {
            let names_port = rule.split([' ', ',', '{', '}']).any(|word| word.parse() == Ok(port));
            rule.contains("udp dport") && names_port && rule.split(' ').any(|word| word == "accept")
        };
        let accepting = lines.by_ref().take_while(|line| *line != "}").find(|rule| accepts(rule));
        findings.push(match accepting {
            Some(rule) => Finding::ok(&what, format!("accepted: {rule}")),
            None => Finding::new(
                &what,
                Level::Fail,
                format!(
                    "no rule of {chain} accepts UDP to port {port}, so that what takes the stack is lost: new containers' first \
                     packets, NAT, fragments"
                ),
                format!("nft insert rule {table} {chain} udp dport {port} accept"),
            ),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_chain_that_refuses_the_tunnel_is_named_with_the_remedy() {
        let level = |policy: &str, rules: &str| {
            let saved = format!("*filter\n:INPUT {policy} [0:0]\n:FORWARD ACCEPT [0:0]\n{rules}COMMIT\n");
            iptables("iptables-nft", &saved, 8472).map(|found| found.level)
        };
        let related = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        let last = "-A INPUT -j REJECT --reject-with icmp-host-prohibited\n";
        assert_eq!(level("ACCEPT", related), None);
        assert_eq!(level("DROP", ""), Some(Level::Fail));
        assert_eq!(level("DROP", related), Some(Level::Fail));
        assert_eq!(level("ACCEPT", &format!("{related}{last}")), Some(Level::Fail));
        for accepting in [
            "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n",
            "-A INPUT -i eth0 -p udp -m udp --dport 8000:9000 -j ACCEPT\n",
            "-A INPUT -p udp -m multiport --dports 53,8472 -j ACCEPT\n",
            "-A INPUT -s 10.99.0.0/24 -j ACCEPT\n",
        ] {
            assert_eq!(level("DROP", accepting), Some(Level::Ok), "{accepting}");
            assert_eq!(level("ACCEPT", &format!("{accepting}{last}")), Some(Level::Ok), "{accepting}");
            assert_eq!(level("ACCEPT", &format!("{last}{accepting}")), Some(Level::Fail), "{accepting}");
        }
        for other in [
            "-A INPUT -p udp -m udp --dport 53 -j ACCEPT\n",
            "-A INPUT -p tcp -m tcp --dport 8472 -j ACCEPT\n",
            "-A INPUT -i lo -j ACCEPT\n",
            "-A INPUT ! -s 10.99.0.0/24 -j ACCEPT\n",
        ] {
            assert_eq!(level("DROP", other), Some(Level::Fail), "{other}");
        }
        let found = iptables("iptables-legacy", "*filter\n:INPUT DROP [0:0]\nCOMMIT\n", 8285).unwrap();
        assert_eq!(found.remedy, "iptables-legacy -I INPUT -p udp --dport 8285 -j ACCEPT");
        // A chain of that name in another table says nothing.
        assert_eq!(
            iptables("iptables-nft", "*mangle\n:INPUT DROP [0:0]\nCOMMIT\n", 8472).map(|it| it.level),
            None
        );
    }

    #[test]
    fn so_is_one_of_nftables() {
        let rules = |more: &str| {
            format!(
                "table inet firewalld {{\n\tchain filter_INPUT {{\n\t\ttype filter hook input priority filter + 10; policy drop;\n\
                 \t\tct state {{ established, related }} accept\n{more}\t}}\n\
                 \tchain other {{\n\t\tudp dport 8472 accept\n\t}}\n}}\n"
            )
        };
        let found = nftables(&rules(""), true, 8472);
        assert_eq!((found.len(), found[0].level), (1, Level::Fail));
        assert_eq!(found[0].remedy, "nft insert rule inet firewalld filter_INPUT udp dport 8472 accept");
        assert_eq!(nftables(&rules("\t\tudp dport { 53, 8472 } accept\n"), true, 8472)[0].level, Level::Ok);
        assert_eq!(nftables(&rules("\t\tudp dport 53 accept\n"), true, 8472)[0].level, Level::Fail);
        assert!(nftables(&rules("").replace("drop;", "accept;"), true, 8472).is_empty());
    }
}

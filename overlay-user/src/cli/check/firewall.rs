//! Finds firewall rules that break what takes the stack, and says which the fast path bypasses.
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    finding::{Finding, Level, overlaps},
    input, packet_filter,
};
use crate::{
    host::firewall::{
        analysis::{Site, analyse},
        command::{Failed, run},
        forward::refuses_all,
        iptables,
    },
    model::fast_path::AskedFastPath,
};

/// Looks at all rules. `site` says where packets between containers pass, as far as that is known; `network` and
/// `subnet` are what is known for certain.
pub(super) async fn findings(
    network: Option<IpNet>,
    subnet: Option<IpNet>,
    site: &Site,
    fast_path: AskedFastPath,
) -> Vec<Finding> {
    let port = site.port;
    let variants = iptables::variants();
    let mut findings = vec![packet_filter::finding(fast_path, &analyse(site).await.reasons)];
    // The rules of all variants are collected, because what masquerades or drops need not be in the variant that others use.
    let mut iptables = String::new();
    for variant in &variants {
        match iptables::save(variant).await {
            Ok(rules) => {
                findings.push(forward(variant, &rules, network));
                findings.extend(input::iptables(variant, &rules, port));
                iptables += &rules;
            }
            Err(error) => findings.push(not_inspected(variant, &error)),
        }
    }
    if variants.is_empty() {
        findings.push(not_inspected("iptables", &Failed::Missing("iptables-save".into())));
    } else {
        findings.push(masquerade(&iptables, network, subnet));
        findings.push(direct_access(&iptables, subnet).await);
    }
    // A container may have brought an iptables command of the other variant, which made rules that nobody has looked at.
    if variants == ["iptables-nft"] && iptables::is_legacy_in_use().unwrap_or(false) {
        let missing = Failed::Missing(format!("{}-save", iptables::LEGACY));
        findings.push(not_inspected(iptables::LEGACY, &missing));
    }
    match output("nft", &["list", "ruleset"]).await {
        Ok(rules) => {
            let iptables_seen = variants.iter().any(|it| *it != iptables::LEGACY);
            findings.extend(nft_forward(&rules, iptables_seen));
            findings.extend(input::nftables(&rules, iptables_seen, port));
        }
        Err(error) => findings.push(not_inspected("nftables", &error)),
    }
    findings
}

pub(super) async fn output(program: &str, arguments: &[&str]) -> Result<String, Failed> {
    run(program, arguments, "").await
}

fn not_inspected(what: &str, error: &Failed) -> Finding {
    let remedy = match error {
        Failed::Missing(_) => format!("install {what}, if rules of its kind are used on this host"),
        Failed::Unsupported(_) => "nothing, if the kernel is meant to be without".to_owned(),
        Failed::Other(_) => "run this as root; if it is, run that command by hand".to_owned(),
    };
    Finding::new(&format!("{what} rules"), Level::Warn, format!("not inspected: {error}"), remedy)
}

/// Looks whether the filter table of iptables-save refuses what no rule of FORWARD accepts.
fn forward(variant: &str, rules: &str, network: Option<IpNet>) -> Finding {
    let what = &format!("{variant} forward rules");
    // A rule that refuses everything closes the chain, and what stands behind it is never reached.
    let mut is_closed = false;
    let reached: Vec<&str> = rules
        .lines()
        .filter(|line| {
            let Some(rule) = line.strip_prefix("-A FORWARD ") else { return true };
            is_closed |= refuses_all(rule);
            !is_closed
        })
        .collect();
    if is_closed || rules.lines().any(|line| line.starts_with(":FORWARD DROP")) {
        let accepted =
            ["-s", "-d"].iter().all(|end| network.is_some_and(|network| accepts(&reached, end, network)));
        if accepted {
            return Finding::ok(
                what,
                "the FORWARD chain refuses by default and accepts the overlay's packets",
            );
        }
        let network = network.map_or_else(|| "NETWORK".to_owned(), |network| network.to_string());
        return Finding::new(
            what,
            Level::Warn,
            "the FORWARD chain refuses what no rule accepts: packets that take the stack are lost, unless the agent runs \
             and accepts them",
            format!(
                "start the agent with --forward-rules on, or: {variant} -I FORWARD -s {network} -j ACCEPT; {variant} -I \
                 FORWARD -d {network} -j ACCEPT"
            ),
        );
    }
    Finding::ok(what, "the FORWARD chain accepts what no rule refuses")
}

/// Whether a rule of FORWARD (ours) or of flannel's chain accepts all packets with this end in Network, under no other
/// condition.
fn accepts(rules: &[&str], end: &str, network: IpNet) -> bool {
    let begin = |chain: &str| format!("-A {chain} {end} {network} ");
    rules.iter().any(|line| {
        let rest = ["FORWARD", "FLANNEL-FWD"].iter().find_map(|chain| line.strip_prefix(&begin(chain)));
        let mut words = rest.unwrap_or_default().split(' ').skip_while(|word| *word != "-j");
        let conditions = rest.unwrap_or_default().matches(" -").count() + 1;
        let comment = rest.is_some_and(|rest| rest.starts_with("-m comment --comment "));
        words.nth(1) == Some("ACCEPT") && conditions == if comment { 3 } else { 1 }
    })
}

/// Looks for Docker's filters against direct access to containers (28.0). They drop a packet for a container that no port
/// publishes, or that comes in by another interface than the bridge, such as overlay0. The fast path bypasses them.
async fn direct_access(rules: &str, subnet: Option<IpNet>) -> Finding {
    let what = "docker's filters";
    let Some(subnet) = subnet else { return Finding::ok(what, "no subnet leased yet: nothing to look for") };
    for (rule, bridge) in rules.lines().filter_map(|rule| Some((rule, guarded_bridge(rule)?))) {
        let addresses =
            output("ip", &["-o", "-4", "address", "show", "dev", bridge]).await.unwrap_or_default();
        let mut words = addresses.split_whitespace().skip_while(|word| *word != "inet");
        if words.nth(1).is_some_and(|address| overlaps(address, subnet)) {
            return Finding::new(
                what,
                Level::Warn,
                format!("drop what takes the stack to containers: {rule}"),
                "start dockerd (28.2 or newer) with --allow-direct-routing, or make the network with \
                 com.docker.network.bridge.trusted_host_interfaces=overlay0",
            );
        }
    }
    Finding::ok(what, "none between containers of different hosts")
}

/// The bridge that a rule of Docker's guards. Such a rule is `-A DOCKER ! -i docker0 -o docker0 -j DROP`, or, in the raw table,
/// `-A PREROUTING -d 10.244.1.2/32 ! -i docker0 -j DROP`.
fn guarded_bridge(rule: &str) -> Option<&str> {
    let chain = rule.strip_prefix("-A DOCKER ").or_else(|| rule.strip_prefix("-A PREROUTING -d "))?;
    let (_, bridge) = chain.strip_suffix(" -j DROP")?.split_once("! -i ")?;
    bridge.split(' ').next()
}

/// Looks for the rules of Docker's `--ip-masq`, with which containers' packets leave with the host's address, even towards
/// other containers.
fn masquerade(rules: &str, network: Option<IpNet>, subnet: Option<IpNet>) -> Finding {
    let what = "masquerading";
    let Some(subnet) = subnet else {
        return Finding::ok(what, "no subnet leased yet: nothing to look for");
    };
    let hides = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |flag: &str| {
            let at = words.iter().position(|word| *word == flag)?;
            let negated = at > 0 && words[at - 1] == "!";
            Some((negated, *words.get(at + 1)?))
        };
        let from_us = value("-s").is_some_and(|(negated, source)| !negated && overlaps(source, subnet));
        // A destination within the own subnet concerns no other host: Docker translates so what a container sends to a port
        // that it publishes itself.
        let spares = |(negated, target): (bool, &str)| match network {
            _ if !negated && is_within(target, subnet) => true,
            // What is spared by `! -d` must be all of Network, and what is named by `-d` none of it.
            Some(network) if negated => holds(target, network),
            Some(network) => !overlaps(target, network),
            None => true,
        };
        line.starts_with("-A POSTROUTING ")
            && line.contains("-j MASQUERADE")
            && from_us
            && !value("-d").is_some_and(spares)
    };
    rules.lines().find(hides).map_or_else(
        || Finding::ok(what, "none between containers"),
        |rule| {
            Finding::new(
                what,
                Level::Warn,
                format!("hides containers' addresses from other hosts: {rule}"),
                "let the agent masquerade (--ip-masq) instead: start dockerd with --ip-masq=false for docker0, and make \
                 networks with --opt com.docker.network.bridge.enable_ip_masquerade=false",
            )
        },
    )
}

/// Whether all of a rule's address or prefix is inside the subnet.
fn is_within(target: &str, subnet: IpNet) -> bool {
    net_of(target).is_some_and(|net| subnet.contains(&net))
}

/// Whether all of Network is inside a rule's prefix.
fn holds(target: &str, network: IpNet) -> bool {
    net_of(target).is_some_and(|net| net.contains(&network))
}

fn net_of(target: &str) -> Option<IpNet> {
    target.parse().ok().or_else(|| target.parse().ok().map(|address: IpAddr| IpNet::from(address)))
}

/// Looks in `nft list ruleset` for chains hooked to forward whose policy is to drop. Chains that iptables wrote were seen above
/// already, unless this host has no iptables command of that variant.
fn nft_forward(rules: &str, iptables_seen: bool) -> Vec<Finding> {
    let (mut table, mut chain) = ("", "");
    let mut findings = Vec::new();
    for line in rules.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        }
        let is_seen = iptables_seen && chain == "FORWARD";
        if line.contains("hook forward") && line.contains("policy drop") && !is_seen {
            findings.push(Finding::new(
                &format!("nftables forward rules of {table}"),
                Level::Warn,
                format!("chain {chain} refuses what none of its rules accepts"),
                "packets that take the stack must be accepted in that very chain (the agent leaves other tables alone, and an \
                 accept in its own would not count): accept Network as source and as destination",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Option<IpNet> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_forward_chain_that_refuses_by_default_is_named_with_the_remedy() {
        let forward = |rules| forward("iptables-nft", rules, net("10.244.0.0/16"));
        assert_eq!(forward(":FORWARD DROP [0:0]\n-A FORWARD -i eth7 -j ACCEPT\n").level, Level::Warn);
        assert_eq!(forward(":FORWARD ACCEPT [0:0]\n-A INPUT -j DROP\n").level, Level::Ok);
        let dropping = forward(":FORWARD DROP [0:0]\n");
        assert_eq!(dropping.what, "iptables-nft forward rules");
        assert!(dropping.remedy.contains("iptables-nft -I FORWARD -d 10.244.0.0/16"), "{}", dropping.remedy);
    }

    #[test]
    fn a_chain_that_drops_is_no_worry_where_the_overlays_packets_are_accepted() {
        let level = |rules: &str| {
            let rules = format!(":FORWARD DROP [0:0]\n{rules}");
            forward("iptables-nft", &rules, net("10.244.0.0/16")).level
        };
        let of = |end, more| format!("-A FORWARD {end} 10.244.0.0/16 {more}-j ACCEPT\n");
        let comment = "-m comment --comment \"overlay-forward:default\" ";
        assert_eq!(level(&(of("-s", comment) + &of("-d", comment))), Level::Ok);
        assert_eq!(level(&(of("-s", "") + &of("-d", ""))), Level::Ok);
        assert_eq!(level(&of("-s", comment)), Level::Warn);
        assert_eq!(level(&(of("-s", comment) + &of("-d", "-p tcp "))), Level::Warn);
        assert_eq!(level(&(of("-s", comment) + &of("-d", "-i eth1 "))), Level::Warn);
        // A last rule that refuses everything closes the chain as a policy does, but rules that accept count only if they stand
        // before it.
        let closed = |rules: &str| {
            let rules = format!(":FORWARD ACCEPT [0:0]\n{rules}");
            forward("iptables-nft", &rules, net("10.244.0.0/16")).level
        };
        let (both, close) = (of("-s", comment) + &of("-d", comment), "-A FORWARD -j REJECT\n");
        assert_eq!(closed(close), Level::Warn);
        assert_eq!(closed(&format!("{both}{close}")), Level::Ok);
        assert_eq!(closed(&format!("{close}{both}")), Level::Warn);
        let flannels = of("-s", comment) + &of("-d", comment);
        assert_eq!(level(&flannels.replace("-A FORWARD", "-A FLANNEL-FWD")), Level::Ok);
    }

    #[test]
    fn dockers_guards_of_a_bridge_are_recognized() {
        assert_eq!(guarded_bridge("-A DOCKER ! -i br-7 -o br-7 -j DROP"), Some("br-7"));
        assert_eq!(guarded_bridge("-A PREROUTING -d 10.244.1.2/32 ! -i docker0 -j DROP"), Some("docker0"));
        assert_eq!(
            guarded_bridge("-A DOCKER -d 10.244.1.2/32 ! -i docker0 -o docker0 -p tcp -j ACCEPT"),
            None
        );
    }

    #[test]
    fn dockers_masquerading_is_found_and_flannels_is_not() {
        let found = |rule| masquerade(rule, net("10.244.0.0/16"), net("10.244.1.0/24")).level;
        assert_eq!(found("-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE"), Level::Warn);
        assert_eq!(found("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"), Level::Ok);
        assert_eq!(found("-A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j MASQUERADE"), Level::Ok);
        let hairpin =
            "-A POSTROUTING -s 10.244.1.2/32 -d 10.244.1.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE";
        assert_eq!(found(hairpin), Level::Ok, "what a container sends to its own published port");
        assert_eq!(found("-A POSTROUTING -s 10.244.1.2/32 -d 10.244.2.2/32 -j MASQUERADE"), Level::Warn);
        assert_eq!(found("-A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.1.0/24 -j MASQUERADE"), Level::Warn);
        assert_eq!(found("-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE"), Level::Ok);
    }

    #[test]
    fn nftables_chains_are_told_apart_by_their_hook() {
        let rules = "table inet fw {\n\tchain fwd {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n\
                     \tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n";
        assert_eq!(nft_forward(rules, true), []);
        let found = nft_forward(&rules.replace("policy accept", "policy drop"), true);
        assert!(
            found[0].what.ends_with("inet fw") && found[0].remedy.contains("in that very chain"),
            "{found:?}"
        );
        let docker =
            "table ip filter {\n chain FORWARD {\n type filter hook forward priority 0; policy drop;\n }\n}";
        assert_eq!(nft_forward(docker, true), []);
        assert_eq!(nft_forward(docker, false)[0].level, Level::Warn, "nobody else has looked at it");
    }
}

//! Finds routing policies (`ip rule`) that single out packets between containers. The fast path does not ask the kernel about
//! such packets. It asks for the path to the other host, as for a packet of the host's own, and obeys every policy for that.
use ipnet::IpNet;

use super::finding::{Finding, Level, overlaps};
use crate::host::{command::run, netlink::Link};

const WHAT: &str = "routing policies";

pub(super) async fn finding(prefixes: &[IpNet], bridges: &[Link]) -> Finding {
    match run("ip", &["-4", "rule", "list"], "").await {
        Ok(rules) => assess(&rules, prefixes, bridges),
        Err(error) => Finding::new(
            WHAT,
            Level::Warn,
            format!("not inspected: {error}"),
            "install iproute2, run this as root",
        ),
    }
}

fn assess(rules: &str, prefixes: &[IpNet], bridges: &[Link]) -> Finding {
    let bypassed: Vec<&str> =
        rules.lines().map(str::trim).filter(|rule| concerns_containers(rule, prefixes, bridges)).collect();
    if bypassed.is_empty() {
        return Finding::ok(WHAT, "none singles out packets between containers");
    }
    Finding::new(
        WHAT,
        Level::Warn,
        format!("bypassed by the fast path, for packets to other hosts' containers: {}", bypassed.join("; ")),
        "if they are to decide on such packets, start the agent with --fast-path off",
    )
}

/// Whether a rule names the overlay's addresses or bridges. The words come in pairs, such as `from 10.244.1.0/24`.
fn concerns_containers(rule: &str, prefixes: &[IpNet], bridges: &[Link]) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let is_inside =
        |net: Option<&str>| net.is_some_and(|net| prefixes.iter().any(|ours| overlaps(net, *ours)));
    match value("iif") {
        Some(interface) => bridges.iter().any(|bridge| bridge.name == interface),
        None => is_inside(value("from")) || is_inside(value("to")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::LinkKind;

    #[test]
    fn policies_that_name_containers_are_quoted_and_those_for_the_hosts_own_packets_are_not() {
        let bridge = Link::example(1, "br0", LinkKind::Bridge);
        let prefixes: [IpNet; 1] = ["10.244.0.0/16".parse().unwrap()];
        let found = |rules: &str| assess(rules, &prefixes, std::slice::from_ref(&bridge));
        let usual =
            "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n32767:\tfrom all lookup default\n";
        for harmless in [
            "",
            "100:\tfrom all to 10.99.0.2 iif lo lookup 100",
            "100:\tfrom 10.244.1.0/24 iif lo lookup 100",
            "100:\tnot from all fwmark 0xca6c lookup 51820",
            "100:\tfrom 192.0.2.0/24 lookup 7",
        ] {
            assert_eq!(found(&format!("{usual}{harmless}\n")).level, Level::Ok, "{harmless}");
        }
        for bypassed in [
            "100:\tfrom 10.244.1.2 lookup 7",
            "100:\tfrom all to 10.244.2.0/24 blackhole",
            "100:\tfrom all iif br0 lookup 7",
        ] {
            let warned = found(&format!("{usual}{bypassed}\n"));
            assert!(warned.level == Level::Warn && warned.detail.ends_with(bypassed), "{warned:?}");
        }
    }
}

//! What the store says of IPv6: which leases end a flanneld, or are passed by, because of what the config and the other leases say.
//! None of it stops this project's agents, so flannel's hosts would fail without anybody being told.
use std::collections::BTreeMap;

use ipnet::IpNet;

use super::finding::{Finding, Level};
use crate::{
    model::{
        backend::Backend,
        lease::{self, Lease},
        network::NetworkConfig,
    },
    store::LeaseEntry,
};

/// How many leases a line names.
const NAMED: usize = 3;

/// Looks at the network's config, as it stands in the store, and at all leases.
pub fn findings(config: Option<&[u8]>, entries: &[LeaseEntry]) -> Vec<Finding> {
    let what = "network config";
    let Some(text) = config else {
        let detail = "the store has none, so agents wait for one";
        return vec![Finding::new(what, Level::Warn, detail, "write it with `overlay config set`")];
    };
    let remedy = "write another with `overlay config set`, which checks it";
    let mut findings = match NetworkConfig::parse(text) {
        Ok(_) => Vec::new(),
        Err(error) => vec![Finding::new(what, Level::Fail, error.to_string(), remedy)],
    };
    let Ok(config) = NetworkConfig::parse_both_families(text) else { return findings };
    let has_ipv6 = config.ipv6.is_some();
    if findings.is_empty() {
        let families = if has_ipv6 { "IPv4 and IPv6" } else { "IPv4" };
        findings.push(Finding::ok(what, format!("{families}, backend {}", backend_of(&config))));
    }
    findings.push(forms(has_ipv6, entries));
    findings.extend(broken(entries));
    findings.extend(twice(entries));
    findings
}

fn backend_of(config: &NetworkConfig) -> String {
    Backend::of(config).map_or_else(|why| why.to_string(), |backend| backend.to_string())
}

/// Compares the leases' forms with the config. A flanneld that has no device for IPv6 ends over every key with an IPv6 subnet, at
/// each start again; it has one only if the config said `EnableIPv6` when it started.
fn forms(has_ipv6: bool, entries: &[LeaseEntry]) -> Finding {
    let what = "leases and IPv6";
    let (dual, ipv4): (Vec<_>, Vec<_>) =
        entries.iter().filter_map(named).partition(|named| named.ipv6.is_some());
    match (has_ipv6, &dual[..], &ipv4[..]) {
        (false, [], _) => Finding::ok(what, "no lease has an IPv6 subnet, as the config says"),
        (false, dual, _) => Finding::new(
            what,
            Level::Warn,
            format!(
                "the config does not say EnableIPv6, but {} an IPv6 subnet: {}. Every flanneld that starts now ends over it",
                have(dual.len()),
                list(dual)
            ),
            "start the agents of these hosts again: they keep their IPv4 subnets and give back those of IPv6; delete the leases of \
             hosts that are gone",
        ),
        (true, _, []) => Finding::ok(what, "every lease has an IPv6 subnet, as the config says"),
        (true, dual, ipv4) => {
            let ends = if dual.is_empty() {
                "A flanneld that was started before the config said EnableIPv6 will end over the first lease with an IPv6 subnet"
            } else {
                "Where one of these is a flanneld's that was started before the config said EnableIPv6, it ends over the other leases"
            };
            Finding::new(
                what,
                Level::Warn,
                format!(
                    "the config says EnableIPv6, but {} no IPv6 subnet: {}. {ends}",
                    have(ipv4.len()),
                    list(ipv4)
                ),
                "start all flannelds again with this config, and only then the first agent; a host that has no IPv6 address keeps \
                 such a lease",
            )
        }
    }
}

/// Names leases with a broken IPv6 half. A flanneld of both families passes a lease by that has no `BackendV6Data`, and ends over
/// one whose `PublicIPv6` is null.
fn broken(entries: &[LeaseEntry]) -> Option<Finding> {
    let problems: Vec<_> = entries
        .iter()
        .filter_map(|entry| lease::decode_halves(&entry.key, &entry.value).ok()?.1)
        .map(|bad| bad.to_string())
        .collect();
    let first = problems.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    (!problems.is_empty()).then(|| {
        Finding::new(
            "IPv6 of leases",
            Level::Warn,
            format!(
                "{} no IPv6 that can be used: {first}. flannelds of both families pass such a lease by, with its IPv4, or end over \
                 it; agents take its IPv4",
                have(problems.len())
            ),
            "start that host's agent again, which writes its lease anew, or delete the lease",
        )
    })
}

/// Names IPv6 subnets with more than one lease.
fn twice(entries: &[LeaseEntry]) -> Option<Finding> {
    let mut holders: BTreeMap<IpNet, Vec<&str>> = BTreeMap::new();
    for entry in entries {
        if let Some(subnet) = lease::subnets_of(&entry.key).ok().and_then(|subnets| subnets.ipv6) {
            holders.entry(subnet.trunc()).or_default().push(&entry.key);
        }
    }
    let shared: Vec<_> = holders
        .iter()
        .filter(|(_, keys)| keys.len() > 1)
        .map(|(subnet, keys)| format!("{subnet} by {}", keys.join(" and ")))
        .collect();
    (!shared.is_empty()).then(|| {
        Finding::new(
            "IPv6 subnets",
            Level::Warn,
            format!("leased twice: {}. Hosts send to the one whose lease was written last", shared.join("; ")),
            "delete the lease of one of the hosts while its agent is stopped, and start that again: it gets another",
        )
    })
}

/// A lease of either form.
struct Named<'a> {
    key: &'a str,
    lease: Lease,
    ipv6: Option<IpNet>,
}

fn named(entry: &LeaseEntry) -> Option<Named<'_>> {
    let lease = lease::decode(&entry.key, &entry.value).ok()?;
    Some(Named { key: &entry.key, lease, ipv6: lease::subnets_of(&entry.key).ok()?.ipv6 })
}

fn have(leases: usize) -> String {
    if leases == 1 { "1 lease has".to_owned() } else { format!("{leases} leases have") }
}

fn list(leases: &[Named<'_>]) -> String {
    let named = leases.iter().take(NAMED).map(|it| format!("{} of {}", it.key, it.lease.public_ip));
    let more = leases.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", named.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::network::IPV6_CARRIED,
        store::{Lifetime, Revision},
    };

    const IPV4: &[u8] = br#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    const BOTH: &[u8] = br#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;

    fn entry(key: &str, value: &str) -> LeaseEntry {
        LeaseEntry {
            key: key.to_owned(),
            value: value.to_owned().into(),
            modified: Revision(1),
            lifetime: Lifetime::Limited,
        }
    }

    fn ipv4(n: u8) -> LeaseEntry {
        let value = format!(r#"{{"PublicIP":"10.99.0.{n}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
        entry(&format!("10.244.{n}.0-24"), &value)
    }

    fn dual(n: u8) -> LeaseEntry {
        let value =
            format!(r#"{{"PublicIP":"10.99.0.{n}","PublicIPv6":"fd99::{n}","BackendType":"host-gw"}}"#);
        entry(&format!("10.244.{n}.0-24&fd00:244:0:{n}::-64"), &value)
    }

    fn told(config: &[u8], entries: &[LeaseEntry]) -> Vec<String> {
        let found = findings(Some(config), entries);
        let told = found.iter().filter(|finding| finding.what != "network config");
        told.filter(|finding| finding.level != Level::Ok)
            .map(|finding| {
                assert!(finding.level == Level::Warn && !finding.remedy.is_empty(), "{finding:?}");
                format!("{}: {}", finding.what, finding.detail)
            })
            .collect()
    }

    /// F1, before the first lease with an IPv6 subnet, after it, and where there should be none.
    #[test]
    fn leases_of_another_form_than_the_configs_are_named() {
        assert_eq!(told(IPV4, &[ipv4(2), ipv4(3)]), [""; 0]);
        assert_eq!(told(BOTH, &[dual(2), dual(3)]), [""; 0]);
        assert_eq!(told(BOTH, &[]), [""; 0]);
        let before = told(BOTH, &[ipv4(2), ipv4(3), ipv4(4), ipv4(5)]);
        assert_eq!(
            before,
            [
                "leases and IPv6: the config says EnableIPv6, but 4 leases have no IPv6 subnet: 10.244.2.0-24 of 10.99.0.2, \
                 10.244.3.0-24 of 10.99.0.3, 10.244.4.0-24 of 10.99.0.4 and 1 more. A flanneld that was started before the \
                 config said EnableIPv6 will end over the first lease with an IPv6 subnet"
            ]
        );
        let after = told(BOTH, &[dual(2), ipv4(3)]);
        assert!(
            after.len() == 1 && after[0].contains("1 lease has no IPv6 subnet: 10.244.3.0-24 of"),
            "{after:?}"
        );
        assert!(after[0].ends_with("it ends over the other leases"), "{after:?}");
        let off = told(IPV4, &[dual(2), ipv4(3)]);
        assert!(
            off.len() == 1 && off[0].contains("does not say EnableIPv6, but 1 lease has an IPv6"),
            "{off:?}"
        );
        assert!(off[0].contains("10.244.2.0-24&fd00:244:0:2::-64 of 10.99.0.2. Every flanneld"), "{off:?}");
    }

    /// F2 and F3.
    #[test]
    fn broken_halves_and_shared_subnets_are_named() {
        let vxlan = r#"{"PublicIP":"10.99.0.7","PublicIPv6":"fd99::7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}}"#;
        let key = dual(7).key;
        for (value, says) in [
            (vxlan.to_owned(), "BackendV6Data is missing"),
            (vxlan.replace("\"fd99::7\"", "null"), "PublicIPv6 is missing"),
        ] {
            let said = told(BOTH, &[dual(2), entry(&key, &value)]);
            assert!(said.len() == 1 && said[0].contains(&format!("lease {key}: {says}")), "{said:?}");
        }
        let shared = "10.244.9.0-24&fd00:244:0:2::-64";
        let said = told(BOTH, &[dual(2), entry(shared, str::from_utf8(&dual(9).value).unwrap())]);
        let says = format!("IPv6 subnets: leased twice: fd00:244:0:2::/64 by {} and {shared}.", dual(2).key);
        assert!(said.len() == 1 && said[0].starts_with(&says), "{said:?}");
    }

    #[test]
    fn a_config_that_agents_refuse_is_a_fault() {
        let level = |config: Option<&[u8]>| findings(config, &[ipv4(2)])[0].level;
        assert_eq!((level(Some(IPV4)), level(None)), (Level::Ok, Level::Warn));
        assert_eq!(level(Some(b"{}")), Level::Fail);
        assert_eq!(level(Some(BOTH)), if IPV6_CARRIED { Level::Ok } else { Level::Fail });
    }
}

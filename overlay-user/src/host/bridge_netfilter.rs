//! Whether what a bridge forwards passes the packet filter of IP (br_netfilter), for all bridges of this network namespace. A
//! single bridge may ask for it as well, by a setting of its own.
use std::fs;

/// The sysctl below `net`. There is none where br_netfilter is not loaded. Once it is, each network namespace begins with 1.
pub const SYSCTL: &str = "bridge/bridge-nf-call-iptables";

/// What of the host sees the frames that its bridges forward, besides the bridges: bridge netfilter, or this rule, if there is one.
/// Bridge netfilter has connection tracking see them, and translate the answers of services, so it alone is enough.
pub fn seen_by(rule: Option<&String>) -> Option<String> {
    let is_on = fs::read_to_string(format!("/proc/sys/net/{SYSCTL}")).is_ok_and(|value| value.trim() != "0");
    if is_on {
        return Some("net.bridge.bridge-nf-call-iptables is on".to_owned());
    }
    rule.cloned()
}

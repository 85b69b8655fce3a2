//! Checks the sysctls that decide what the stack forwards, and what it takes for spoofed.
use std::fs;

use super::finding::{Finding, Level, Sysctl};
use crate::host::bridge_netfilter;

/// The value of a sysctl below `net`, in the calling thread's network namespace.
pub(super) fn read(name: &str) -> Option<String> {
    let value = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    Some(value.trim().to_owned())
}

pub(super) fn forwarding(interfaces: &[&str], sysctl: Sysctl<'_>) -> Finding {
    let what = "ipv4 forwarding";
    let is_off = |name: &str| sysctl(name).as_deref() != Some("1");
    if is_off("ipv4/ip_forward") {
        let remedy = "sysctl -w net.ipv4.ip_forward=1";
        return Finding::new(what, Level::Fail, "net.ipv4.ip_forward is off", remedy);
    }
    let off = interfaces.iter().find(|name| is_off(&format!("ipv4/conf/{name}/forwarding")));
    off.map_or_else(
        || Finding::ok(what, "on"),
        |name| {
            let detail = format!("off for {name}");
            Finding::new(what, Level::Fail, detail, format!("sysctl -w net.ipv4.conf.{name}.forwarding=1"))
        },
    )
}

/// Checks rp_filter. The kernel applies the larger of `all` and the interface's own value
/// (Documentation/networking/ip-sysctl.rst).
pub(super) fn rp_filter(interface: &str, is_tunnel: bool, sysctl: Sysctl<'_>) -> Finding {
    let what = format!("rp_filter of {interface}");
    let value = |name: &str| {
        sysctl(&format!("ipv4/conf/{name}/rp_filter")).and_then(|value| value.parse::<u8>().ok())
    };
    let (all, own) = (value("all").unwrap_or(0), value(interface).unwrap_or(0));
    match all.max(own) {
        1 if is_tunnel => Finding::new(
            &what,
            Level::Warn,
            "strict: packets that other hosts send from their own addresses are dropped here",
            format!("sysctl -w net.ipv4.conf.{interface}.rp_filter=2"),
        ),
        1 => Finding::ok(&what, "strict: peers must be reached through this interface"),
        2 => Finding::ok(&what, "loose"),
        _ => Finding::ok(&what, "off"),
    }
}

pub(super) fn bridge_netfilter(sysctl: Sysctl<'_>) -> Finding {
    let detail = match sysctl(bridge_netfilter::SYSCTL).as_deref() {
        Some("1") => {
            "on: packets between containers of one bridge pass iptables; between hosts, only those that take the stack do"
        }
        _ => "off, or br_netfilter is not loaded",
    };
    Finding::ok("bridge-nf-call-iptables", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctls(values: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let found = values.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn forwarding_off_is_found_with_its_command() {
        let all_off = forwarding(&["eth0"], &sysctls(&[("ipv4/ip_forward", "0")]));
        assert_eq!(
            (all_off.level, all_off.remedy.as_str()),
            (Level::Fail, "sysctl -w net.ipv4.ip_forward=1")
        );
        let one_off = [("ipv4/ip_forward", "1"), ("ipv4/conf/eth0/forwarding", "0")];
        let found = forwarding(&["eth0"], &|name| {
            one_off.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        assert_eq!(found.remedy, "sysctl -w net.ipv4.conf.eth0.forwarding=1");
        let on = sysctls(&[("ipv4/ip_forward", "1"), ("ipv4/conf/eth0/forwarding", "1")]);
        assert_eq!(forwarding(&["eth0"], &on).level, Level::Ok);
    }

    #[test]
    fn the_larger_rp_filter_counts() {
        let strict = sysctls(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/overlay0/rp_filter", "0")]);
        assert_eq!(rp_filter("overlay0", true, &strict).level, Level::Warn);
        assert_eq!(rp_filter("overlay0", false, &strict).level, Level::Ok);
        let loose = sysctls(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/overlay0/rp_filter", "2")]);
        assert_eq!(rp_filter("overlay0", true, &loose).detail, "loose");
    }
}

//! What the modes udp and host-gw, which send bare IPv4 packets in UDP, need of a host beyond what VXLAN needs.
use super::finding::{Finding, Level, Sysctl};
use crate::host::{
    command::run,
    netlink::{Link, LinkKind},
};

/// Looks at the underlay device and at how routes treat a device without a carrier.
pub(super) async fn findings(underlay: Option<&Link>, sysctl: Sysctl<'_>) -> Vec<Finding> {
    let mut findings = vec![linkdown(sysctl)];
    if let Some(underlay) = underlay.filter(|link| link.kind == LinkKind::Veth) {
        let features = run("ethtool", &["-k", &underlay.name], "").await.unwrap_or_default();
        findings.push(offloads(&underlay.name, &features));
    }
    findings
}

/// A TUN that nobody reads has no carrier. With this sysctl the kernel then ignores its routes
/// (Documentation/networking/ip-sysctl.rst).
fn linkdown(sysctl: Sysctl<'_>) -> Finding {
    let what = "routes of overlay0 without an agent";
    if sysctl("ipv4/conf/all/ignore_routes_with_linkdown").as_deref() != Some("1") {
        return Finding::ok(what, "stay in use");
    }
    Finding::new(
        what,
        Level::Warn,
        "ignored: what takes the stack leaves by another way while no agent runs",
        "sysctl -w net.ipv4.conf.all.ignore_routes_with_linkdown=0",
    )
}

/// Checks a veth's offloads: with them it hands over frames with unfinished checksums, and whole GSO frames.
fn offloads(name: &str, features: &str) -> Finding {
    let what = format!("offloads of {name}");
    let is_on =
        |feature: &&str| features.lines().any(|line| line.trim().starts_with(&format!("{feature}: on")));
    let on: Vec<&str> = ["tx-checksumming", "tx-udp-segmentation"].into_iter().filter(is_on).collect();
    if on.is_empty() {
        return Finding::ok(&what, "segments and checksums are finished before they leave");
    }
    Finding::new(
        &what,
        Level::Warn,
        format!(
            "{} on a veth: flannel's relays read unfinished checksums there, and datagrams sent many at once are lost",
            on.join(" and ")
        ),
        format!(
            "ethtool -K {name} tso off gso off tx off, if hosts of flannel take part or containers use UDP_SEGMENT"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_is_named_and_what_is_not_there_is_off() {
        // This is how ethtool 6.1 prints them.
        let features = "Features for eth0:\nrx-checksumming: on\ntx-checksumming: on\n\ttx-checksum-ip-generic: on\n\
            generic-segmentation-offload: on\n\ttx-udp-segmentation: off [requested on]\n";
        let found = offloads("eth0", features);
        assert_eq!(found.level, Level::Warn);
        assert!(found.detail.starts_with("tx-checksumming on a veth"), "{}", found.detail);
        assert_eq!(offloads("eth0", "rx-checksumming: on\ntx-checksumming: off\n").level, Level::Ok);
        assert_eq!(offloads("eth0", "").level, Level::Ok);
    }

    #[test]
    fn routes_that_go_with_the_carrier_are_named() {
        assert_eq!(linkdown(&|_| Some("1".to_owned())).level, Level::Warn);
        assert_eq!(linkdown(&|_| Some("0".to_owned())).level, Level::Ok);
        assert_eq!(linkdown(&|_| None).level, Level::Ok);
    }
}

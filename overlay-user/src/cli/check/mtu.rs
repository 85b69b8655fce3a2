//! Checks whether bridges of containers send packets that the underlay carries after encapsulation.
use super::{
    finding::{Finding, Level},
    spec::CheckSpec,
};
use crate::host::netlink::Link;

pub(super) fn findings(spec: &CheckSpec, links: &[Link], bridges: &[Link]) -> Vec<Finding> {
    let underlay = links.iter().find(|link| Some(&link.name) == spec.underlay.as_ref());
    let Some(underlay) = underlay else {
        return Vec::new();
    };
    let fits = spec.backend.overlay_mtu(underlay.mtu);
    let assess = |bridge: &Link| {
        let what = format!("mtu of {}", bridge.name);
        let detail = format!("{}; {} carries {fits} after encapsulation", bridge.mtu, underlay.name);
        if bridge.mtu <= fits {
            return Finding::ok(&what, detail);
        }
        let remedy = format!(
            "start containers with mtu {fits} (dockerd --mtu {fits}, or FLANNEL_MTU for CNI): larger packets are \
             answered with ICMP fragmentation needed, or fragmented"
        );
        Finding::new(&what, Level::Warn, detail, remedy)
    };
    bridges.iter().map(assess).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::spec::examples::{link, spec},
        *,
    };
    use crate::host::netlink::LinkKind;

    #[test]
    fn a_bridge_larger_than_the_underlay_carries_is_found() {
        let underlay = link("eth0", LinkKind::Other(String::new()), 1500);
        let level = |mtu| mtu_of(&underlay, mtu);
        assert_eq!((level(1450), level(1451)), (Level::Ok, Level::Warn));
    }

    fn mtu_of(underlay: &Link, bridge: u32) -> Level {
        let bridges = [link("docker0", LinkKind::Bridge, bridge)];
        findings(&spec(), std::slice::from_ref(underlay), &bridges)[0].level
    }
}

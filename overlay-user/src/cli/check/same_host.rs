//! Tells whether the fast path carries frames between containers of this host, or leaves them to their bridge, and why.
use super::finding::Finding;
use crate::{
    host::{
        bridge_netfilter,
        netlink::{Bridging, Link},
    },
    model::fast_path::AskedFastPath,
};

/// How many bridges or ports are named.
const NAMED: usize = 5;

/// One finding about the containers' `bridges`. `rule` is what of the packet filter sees the frames that they forward. What is
/// obeyed is no fault, so there is nothing to mend.
pub(super) fn finding(
    fast_path: AskedFastPath,
    links: &[Link],
    bridges: &[Link],
    rule: Option<&String>,
) -> Finding {
    const WHAT: &str = "containers of this host";
    if fast_path == AskedFastPath::Off {
        return Finding::ok(WHAT, "their bridge carries everything: the fast path is off");
    }
    if let Some(what) = bridge_netfilter::seen_by(rule) {
        return Finding::ok(WHAT, format!("their bridge carries everything, so that this is obeyed: {what}"));
    }
    let is_port = |link: &&Link| bridges.iter().any(|bridge| link.master == Some(bridge.index));
    let special = |link: &Link| match &link.bridging {
        Some(Bridging(settings)) if !settings.is_empty() => {
            Some(format!("{} {}", link.name, settings.join(", ")))
        }
        _ => None,
    };
    let mut kept: Vec<String> =
        bridges.iter().chain(links.iter().filter(is_port)).filter_map(special).collect();
    let rest = kept.len().saturating_sub(NAMED);
    kept.truncate(NAMED);
    if rest > 0 {
        kept.push(format!("and {rest} more"));
    }
    if kept.is_empty() {
        return Finding::ok(WHAT, "the fast path carries what their bridge would only forward");
    }
    Finding::ok(WHAT, format!("the bridge carries what is its own because of settings: {}", kept.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::LinkKind;

    #[test]
    fn what_is_left_to_the_bridge_is_told_with_its_reason() {
        // Where the tests run, the sysctl may be either way; a rule is told unless it is on.
        let rule = "a rule".to_owned();
        let found = finding(AskedFastPath::Auto, &[], &[], Some(&rule));
        let sysctl = bridge_netfilter::seen_by(None);
        assert!(found.detail.ends_with(sysctl.as_deref().unwrap_or("a rule")), "{found:?}");
        let off = finding(AskedFastPath::Off, &[], &[], Some(&rule));
        assert!(off.detail.ends_with("the fast path is off"), "{off:?}");
        if sysctl.is_some() {
            return;
        }
        let bridge =
            Link { bridging: Some(Bridging::default()), ..Link::example(5, "br0", LinkKind::Bridge) };
        let port = Link {
            master: Some(5),
            bridging: Some(Bridging(vec!["isolated on"])),
            ..Link::example(7, "v1", LinkKind::Veth)
        };
        let plain = finding(AskedFastPath::On, &[], std::slice::from_ref(&bridge), None);
        assert!(plain.detail.starts_with("the fast path carries"), "{plain:?}");
        let kept = finding(AskedFastPath::On, &[port], &[bridge], None);
        assert!(kept.detail.ends_with("v1 isolated on"), "{kept:?}");
    }
}

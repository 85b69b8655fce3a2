//! What `overlay status` says of frames between containers behind one bridge.
use crate::learn::view::{Bridge, SameHost};

/// How many ports are named.
const NAMED: usize = 3;

/// What carries a bridge's frames, given whether tier tc is used.
pub(super) fn line(bridge: &Bridge, is_tc_used: bool) -> String {
    let (name, SameHost { kept_by_bridge, kept_by_ports }) = (&bridge.name, &bridge.same_host);
    if !is_tc_used {
        return format!("{name} forwards all frames: tier tc is not used");
    }
    if let Some(why) = kept_by_bridge {
        return format!("{name} forwards all frames: {why}");
    }
    let mut kept: Vec<String> = kept_by_ports.iter().map(|(port, why)| format!("{port} ({why})")).collect();
    let rest = kept.len().saturating_sub(NAMED);
    kept.truncate(NAMED);
    if rest > 0 {
        kept.push(format!("{rest} more"));
    }
    let but = if kept.is_empty() { String::new() } else { format!(", but for ports {}", kept.join(", ")) };
    format!("the fast path carries what {name} would only forward{but}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_who_carries_and_why() {
        let mut bridge = Bridge {
            name: "br0".into(),
            ifindex: 5,
            gateway: None,
            mtu: 1450,
            ports: Vec::new(),
            same_host: SameHost::default(),
        };
        assert_eq!(line(&bridge, true), "the fast path carries what br0 would only forward");
        assert_eq!(line(&bridge, false), "br0 forwards all frames: tier tc is not used");
        let ports = ["v1", "v2", "v3", "v4", "v5"].map(|port| (port.to_owned(), "isolated on".to_owned()));
        bridge.same_host.kept_by_ports = ports.into();
        let but = ", but for ports v1 (isolated on), v2 (isolated on), v3 (isolated on), 2 more";
        assert!(line(&bridge, true).ends_with(but), "{}", line(&bridge, true));
        bridge.same_host.kept_by_bridge = Some("vlan_filtering 1".into());
        assert_eq!(line(&bridge, true), "br0 forwards all frames: vlan_filtering 1");
    }
}

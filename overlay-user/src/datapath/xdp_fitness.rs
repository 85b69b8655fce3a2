//! Whether XDP takes packets in at this underlay, which needs that it was asked for and that the interface is fit for it; and
//! if not, why.

use crate::{
    datapath::xdp::{XdpLink, program_name},
    host::netlink::{Link, LinkKind, Netlink, NetlinkError, generic::xdp_features},
};

/// Why this interface is not fit for XDP, or `None` if it is. `ours` is this network's own link.
pub async fn unfit(netlink: &Netlink, link: &Link, ours: &XdpLink) -> Result<Option<String>, NetlinkError> {
    let links = netlink.links().await?;
    if let Some(why) = unfit_kind(link, &links) {
        return Ok(Some(why));
    }
    let name = &link.name;
    // The kernel is asked first, because a driver that is tried may reset its queues before it refuses.
    if let Some(features) = xdp_features()?
        && !features.get(&link.index).copied().unwrap_or_default().runs()
    {
        return Ok(Some(format!("the driver of {name} has no native XDP")));
    }
    if let Some(id) = netlink.xdp_program(link.index).await?
        && ours.program(link.index) != Some(id)
    {
        let program = program_name(id).unwrap_or_else(|| "unnamed".to_owned());
        return Ok(Some(format!("{name} runs another XDP program: {program}, id {id}")));
    }
    Ok(None)
}

/// The part of the decision that does not ask the kernel.
fn unfit_kind(link: &Link, links: &[Link]) -> Option<String> {
    let name = &link.name;
    match &link.kind {
        LinkKind::Veth => {}
        LinkKind::Other(kind) if kind.is_empty() => {}
        LinkKind::Bridge => return Some(format!("{name} is a bridge: frames arrive at its ports")),
        LinkKind::Tun(_) => return Some(format!("{name} is a tun: frames arrive at another interface")),
        LinkKind::Vxlan(_) => return Some(format!("{name} is a tunnel: frames arrive at another interface")),
        LinkKind::Other(kind) => {
            return Some(format!("{name} is a {kind}: frames arrive at another interface"));
        }
    }
    let is_vlan = |other: &&Link| {
        other.kind == LinkKind::Other("vlan".to_owned())
            && other.peer == Some(link.index)
            && other.peer_netns.is_none()
    };
    // With rx-vlan-offload, the tag is removed before XDP sees the frame.
    let vlan = links.iter().find(is_vlan)?;
    Some(format!("{name} carries VLAN {}, whose frames XDP cannot always tell from its own", vlan.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: LinkKind, below: Option<u32>) -> Link {
        Link { peer: below, ..Link::example(index, name, kind) }
    }

    #[test]
    fn only_interfaces_at_which_frames_arrive_are_fit() {
        let other = |kind: &str| LinkKind::Other(kind.to_owned());
        let why = |kind| unfit_kind(&link(2, "eth0", kind, None), &[]);
        assert_eq!(why(other("")), None);
        assert_eq!(why(LinkKind::Veth), None);
        assert_eq!(why(LinkKind::Bridge).as_deref(), Some("eth0 is a bridge: frames arrive at its ports"));
        for kind in ["bond", "vlan", "macvlan", "team"] {
            let said = why(other(kind)).unwrap();
            assert!(said.starts_with(&format!("eth0 is a {kind}: ")), "{said}");
        }
        let eth0 = link(2, "eth0", other(""), None);
        let above = |below| [link(3, "eth0.7", other("vlan"), Some(below))];
        assert!(unfit_kind(&eth0, &above(2)).is_some_and(|why| why.contains("eth0.7")));
        assert_eq!(unfit_kind(&eth0, &above(4)), None);
    }
}

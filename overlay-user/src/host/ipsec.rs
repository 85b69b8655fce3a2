//! Which of the host's IPsec policies are about packets between containers of different hosts. The fast path neither looks a
//! policy up when it sends nor asks for one when it receives.
use ipnet::IpNet;
use overlay_common::header::protocol::UDP;

use super::{
    netlink::xfrm::{Action, Direction, Policy},
    site::Site,
};

/// The policies that would protect or refuse packets between containers of different hosts if all of these took the stack. What the
/// site does not know selects nothing. A policy that lets packets pass as
/// they are does neither, and does not count even where it is an exception from another that does. A policy for an xfrm interface
/// selects nothing but what is routed to that, and one for marked packets nothing of ours, since no rule of the packet filter
/// marks what the fast path carries.
pub fn matching(policies: &[Policy], site: &Site) -> Vec<Policy> {
    policies.iter().filter(|policy| touches(policy, site)).copied().collect()
}

fn touches(policy: &Policy, site: &Site) -> bool {
    let is_harmless = policy.action == Action::Allow && !policy.has_templates;
    let is_elsewhere = policy.interface != 0 || policy.mark != 0;
    !is_harmless && !is_elsewhere && (selects_inner(policy, site) || selects_outer(policy, site))
}

/// Whether the policy may select a packet from one container to another, which this host forwards into the tunnel or out of it.
fn selects_inner(policy: &Policy, site: &Site) -> bool {
    let overlaps = |prefix: IpNet| {
        site.network.is_some_and(|network| network.contains(&prefix) || prefix.contains(&network))
    };
    policy.direction != Direction::In && overlaps(policy.source) && overlaps(policy.destination)
}

/// Whether the policy may select a tunnel's packet, which this host itself sends or receives. Any other host may be a peer, now or
/// later, and the source port may be any.
fn selects_outer(policy: &Policy, site: &Site) -> bool {
    let Some(underlay) = site.address else { return false };
    let (ours, theirs) = match policy.direction {
        Direction::In => (policy.destination, policy.source),
        Direction::Out => (policy.source, policy.destination),
        Direction::Forward => return false,
    };
    ours.contains(&underlay)
        && theirs != IpNet::from(underlay)
        && matches!(policy.protocol, 0 | UDP)
        && policy.destination_ports.contains(site.port)
}

#[cfg(test)]
mod tests {
    use overlay_common::header::protocol::TCP;

    use super::*;
    use crate::host::netlink::xfrm::Ports;

    const OWN: &str = "10.99.0.1/32";
    const PEER: &str = "10.99.0.2/32";

    fn blocking(direction: Direction, source: &str, destination: &str) -> Policy {
        Policy {
            direction,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 0,
            source_ports: Ports::ALL,
            destination_ports: Ports::ALL,
            action: Action::Block,
            has_templates: false,
            mark: 0,
            interface: 0,
            is_default: false,
        }
    }

    fn is_of_ours(policy: Policy) -> bool {
        !matching(&[policy], &Site::example()).is_empty()
    }

    #[test]
    fn the_tunnels_own_packets_are_selected_by_address_protocol_and_port() {
        use Direction::{Forward, In, Out};
        for (direction, source, destination, ours) in [
            (Out, OWN, PEER, true),
            (In, PEER, OWN, true),
            (Out, "10.99.0.0/24", "0.0.0.0/0", true),
            // What others send to each other through this host is not the tunnel's, nor is what the host tells itself.
            (Forward, OWN, PEER, false),
            (Out, PEER, OWN, false),
            (In, OWN, PEER, false),
            (Out, OWN, OWN, false),
            (Out, "10.98.0.0/16", PEER, false),
            (Out, "::/0", "::/0", false),
        ] {
            let policy = blocking(direction, source, destination);
            assert_eq!(is_of_ours(policy), ours, "{policy}");
        }
        let of = |protocol, destination_ports| {
            is_of_ours(Policy { protocol, destination_ports, ..blocking(Out, OWN, PEER) })
        };
        let port = |value| Ports { value, mask: u16::MAX };
        assert!(of(UDP, Ports::ALL) && of(UDP, port(8472)) && of(UDP, Ports { value: 8448, mask: 0xffc0 }));
        assert!(!of(UDP, port(4500)) && !of(TCP, Ports::ALL) && !of(0, port(4500)));
    }

    #[test]
    fn containers_packets_are_selected_where_both_ends_may_lie_in_network() {
        use Direction::{Forward, In, Out};
        for (direction, source, destination, ours) in [
            (Out, "10.244.1.0/24", "10.244.2.0/24", true),
            (Forward, "10.244.2.7/32", "10.244.0.0/16", true),
            (Forward, "0.0.0.0/0", "10.0.0.0/8", true),
            // The host itself receives nothing that one container sends to another.
            (In, "10.244.2.0/24", "10.244.1.0/24", false),
            (Out, "10.244.1.0/24", "192.168.0.0/16", false),
            (Forward, "10.245.0.0/16", "10.244.0.0/16", false),
        ] {
            let policy = Policy { protocol: TCP, ..blocking(direction, source, destination) };
            assert_eq!(is_of_ours(policy), ours, "{policy}");
        }
    }

    #[test]
    fn what_passes_as_it_is_or_goes_elsewhere_does_not_count() {
        let policy = blocking(Direction::Out, OWN, PEER);
        assert!(!is_of_ours(Policy { action: Action::Allow, ..policy }));
        assert!(is_of_ours(Policy { action: Action::Allow, has_templates: true, ..policy }));
        assert!(!is_of_ours(Policy { interface: 42, ..policy }), "an xfrm interface's");
        assert!(!is_of_ours(Policy { mark: 42, ..policy }), "for marked packets");
    }

    #[test]
    fn what_is_not_known_yet_selects_nothing() {
        let [inner, outer] = [("10.244.1.0/24", "10.244.2.0/24"), (OWN, PEER)]
            .map(|(source, destination)| blocking(Direction::Out, source, destination));
        let found =
            |network, address| matching(&[inner, outer], &Site { network, address, ..Site::example() });
        let Site { network, address, .. } = Site::example();
        assert_eq!(found(network, address), [inner, outer]);
        assert_eq!(found(network, None), [inner]);
        assert_eq!(found(None, address), [outer]);
    }
}

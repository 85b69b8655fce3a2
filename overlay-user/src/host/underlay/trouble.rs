//! Whether the other hosts can still reach this one at the address that its lease tells them, as far as links and addresses
//! show it.
use std::net::IpAddr;

use crate::host::netlink::{Address, Link};

/// What keeps the other hosts from reaching this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In words for the operator.
    pub why: String,
    /// Whether the address is this host's no more, so that another may have to take its place.
    pub is_address_gone: bool,
}

/// Looks for trouble with the underlay.
/// `name` and `address` are what the agent chose.
pub fn trouble(name: &str, address: IpAddr, links: &[Link], addresses: &[Address]) -> Option<Trouble> {
    let link = links.iter().find(|link| link.name == name);
    if !addresses.iter().any(|one| one.address == address) {
        let has: Vec<IpAddr> = addresses
            .iter()
            .filter(|one| link.is_some_and(|link| link.index == one.link))
            .map(|one| one.address)
            .collect();
        let has = match (link, &has[..]) {
            (None, _) => format!("interface {name} is gone"),
            (Some(_), []) => format!("{name} has none"),
            (Some(_), has) => {
                format!("{name} has {}", has.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        let why =
            format!("{address}, which the other hosts send to, is no address of this host any more: {has}");
        return Some(Trouble { why, is_address_gone: true });
    }
    let why = match link {
        None => format!("interface {name} is gone"),
        Some(link) if !link.up => format!("interface {name} is down"),
        Some(link) if !link.carrier => format!("interface {name} has no carrier"),
        Some(_) => return None,
    };
    Some(Trouble { why, is_address_gone: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::LinkKind;

    #[test]
    fn what_peers_cannot_reach_is_named() {
        let link = |name: &str, up, carrier| Link { up, carrier, ..Link::example(2, name, LinkKind::Veth) };
        let address = |link, last| Address { link, address: [10, 99, 0, last].into(), prefix_len: 24 };
        let well = link("eth0", true, true);
        for (links, addresses, expected) in [
            (vec![well.clone()], vec![address(2, 1)], None),
            // The address may be another interface's: routing protocols put it on lo.
            (vec![well.clone()], vec![address(1, 1)], None),
            (vec![well.clone()], vec![address(2, 77)], Some(("eth0 has 10.99.0.77", true))),
            (vec![well.clone()], vec![address(3, 77)], Some(("eth0 has none", true))),
            (vec![], vec![], Some(("interface eth0 is gone", true))),
            (vec![link("eth9", true, true)], vec![address(2, 1)], Some(("interface eth0 is gone", false))),
            (vec![link("eth0", false, false)], vec![address(2, 1)], Some(("eth0 is down", false))),
            (vec![link("eth0", true, false)], vec![address(2, 1)], Some(("eth0 has no carrier", false))),
        ] {
            let found = trouble("eth0", [10, 99, 0, 1].into(), &links, &addresses);
            match (found, expected) {
                (None, None) => {}
                (Some(found), Some((says, is_address_gone))) => {
                    assert!(found.why.ends_with(says), "{found:?}");
                    assert_eq!(found.is_address_gone, is_address_gone, "{found:?}");
                }
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
    }
}

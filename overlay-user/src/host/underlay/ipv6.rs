//! The choice of this host's IPv6 address on the underlay: pure, so that every rule is a case of a table. It is one that stays, of
//! the interface that IPv4's choice found, since flannel's hosts have both families on one interface, too.
use std::net::IpAddr;

use super::choice::{Choice, Underlay, holds_addresses_only};
use crate::host::netlink::{Ipv6Address, Link};

/// This host's IPv6 address on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Underlay {
    /// The address that encapsulated packets come from.
    pub address: IpAddr,
    /// The address that the lease tells the other hosts. It is the same, unless a router between them translates addresses.
    pub public_ip: IpAddr,
}

/// Why there is no such address, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIpv6 {
    /// The kernel is still finding out whether the address is another host's as well (RFC 4862 section 5.4). It may be asked
    /// again.
    #[error("{0}")]
    NotYet(String),
    /// There is none.
    #[error("{0}")]
    Absent(String),
    /// What was asked for cannot be had.
    #[error("{0}")]
    Refused(String),
}

/// Chooses the address, for the underlay interface that IPv4's choice found.
pub fn pick_ipv6(
    choice: &Choice,
    underlay: &Underlay,
    links: &[Link],
    addresses: &[Ipv6Address],
) -> Result<Ipv6Underlay, NoIpv6> {
    let Some(public_ip) = choice.public_ipv6 else {
        let named = choice.names.iter().filter_map(|name| name.parse::<IpAddr>().ok());
        let address = best(underlay, addresses, &named.collect::<Vec<_>>())?;
        return Ok(Ipv6Underlay { address, public_ip: address });
    };
    let Some(held) = addresses.iter().find(|one| one.address == public_ip) else {
        // It is a router's, which translates it.
        let address = best(underlay, addresses, &[])?;
        return Ok(Ipv6Underlay { address, public_ip });
    };
    let link = links.iter().find(|link| link.index == held.link);
    let name = link.map_or("another interface", |link| &link.name);
    if held.link != underlay.ifindex && !link.is_some_and(holds_addresses_only) {
        return Err(NoIpv6::Refused(format!(
            "--public-ipv6 {public_ip} is an address of {name}, but {} is the underlay interface, and both families must be on \
             one: choose another with --iface, or name another address",
            underlay.name
        )));
    }
    if held.is_duplicate {
        return Err(NoIpv6::Refused(format!(
            "--public-ipv6 {public_ip}: another host on the link of {name} has this address, too: give one of them another"
        )));
    }
    if held.is_tentative {
        return Err(NoIpv6::NotYet(tentative(held, name)));
    }
    Ok(Ipv6Underlay { address: public_ip, public_ip })
}

/// The best address of the underlay interface: one of those that are `named` by the operator, then one without an end, then the
/// lowest, so that the choice is the same after a restart. (The kernel lists the newest first.)
fn best(underlay: &Underlay, addresses: &[Ipv6Address], named: &[IpAddr]) -> Result<IpAddr, NoIpv6> {
    let own: Vec<_> = addresses.iter().filter(|one| one.link == underlay.ifindex).collect();
    let usable = own.iter().filter(|one| unfit(one).is_none());
    let order = |one: &Ipv6Address| (!named.contains(&one.address), !one.is_permanent, one.address);
    if let Some(best) = usable.min_by_key(|one| order(one)) {
        return Ok(best.address);
    }
    let name = &underlay.name;
    let waits = |one: &&&Ipv6Address| one.is_tentative && !one.is_duplicate && is_global(one.address);
    if let Some(one) = own.iter().find(waits) {
        return Err(NoIpv6::NotYet(tentative(one, name)));
    }
    let described: Vec<_> =
        own.iter().filter_map(|one| unfit(one).map(|why| format!("{} ({why})", one.address))).collect();
    let only = if described.is_empty() { String::new() } else { format!(" but {}", described.join(", ")) };
    Err(NoIpv6::Absent(format!(
        "interface {name} has no IPv6 address that other hosts can rely on{only}: give it one (ip -6 address add), or name one with \
         --public-ipv6"
    )))
}

/// Why an address is not one to be reached at for long.
fn unfit(one: &Ipv6Address) -> Option<&'static str> {
    let reasons = [
        (!is_global(one.address), "which is its link's alone"),
        (one.is_duplicate, "which another host on the link has, too"),
        (one.is_tentative, "not confirmed yet"),
        (one.is_temporary, "temporary"),
        (one.is_deprecated, "deprecated"),
    ];
    reasons.into_iter().find(|(is_so, _)| *is_so).map(|(_, why)| why)
}

fn tentative(one: &Ipv6Address, name: &str) -> String {
    format!("the kernel has not confirmed yet that no other host has {}, an address of {name}", one.address)
}

/// Whether hosts beyond the link may have a route to an address: a global or a unique local one (RFC 4291, RFC 4193).
pub fn is_global(address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else { return false };
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some()
        // Site-local addresses are abolished (RFC 3879).
        || address.segments()[0] & 0xffc0 == 0xfec0)
}

#[cfg(test)]
#[path = "ipv6_tests.rs"]
mod tests;

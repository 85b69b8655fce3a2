//! Which interface and address the other hosts reach this one by, and whether they still do.
mod choice;
mod ipv6;
mod trouble;

use std::net::IpAddr;

use anyhow::Result;

pub(crate) use self::choice::is_link_local;
pub use self::{
    choice::{Choice, Sight, Underlay, pick, unfit},
    ipv6::{Ipv6Underlay, NoIpv6, is_global, pick_ipv6},
    trouble::{Trouble, trouble},
};
use crate::host::netlink::Netlink;

/// The underlay that was chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The interface and its address.
    pub underlay: Underlay,
    /// The addresses of the interface that could have been chosen, in the order of preference.
    usable: Vec<IpAddr>,
}

impl Chosen {
    /// The underlay. The log says if there was more than one address to choose from.
    pub fn remarked(self) -> Underlay {
        let Self { underlay, usable } = self;
        if usable.len() > 1 && usable.first() == Some(&underlay.address) {
            log::info!(
                "{} has {} addresses: taking the first, {}; --iface ADDRESS chooses another",
                underlay.name,
                usable.len(),
                underlay.address
            );
        }
        underlay
    }
}

/// Chooses the underlay interface and address by flannel's rules, with what the kernel has now.
///
/// # Errors
/// Why no interface was chosen, and what to do.
pub async fn choose(netlink: &Netlink, choice: &Choice) -> Result<Chosen> {
    let reached = match choice.can_reach {
        Some(address) => Some(netlink.route_to(address).await.map_err(|error| error.detail)),
        None => None,
    };
    let sight = Sight {
        links: netlink.links().await?,
        addresses: netlink.flagged_addresses().await?,
        ipv6: netlink.ipv6_addresses().await?,
        ways: netlink.ways().await?,
        reached,
    };
    let underlay = pick(choice, &sight)?;
    let usable = sight.usable_at(underlay.ifindex);
    Ok(Chosen { underlay, usable })
}

/// Chooses this host's IPv6 address on the underlay that was chosen.
///
/// # Errors
/// A [`NoIpv6`] says why there is none.
pub async fn choose_ipv6(netlink: &Netlink, choice: &Choice, underlay: &Underlay) -> Result<Ipv6Underlay> {
    let (links, addresses) = (netlink.links().await?, netlink.ipv6_addresses().await?);
    Ok(pick_ipv6(choice, underlay, &links, &addresses)?)
}

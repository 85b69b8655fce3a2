//! Which interface and address the other hosts reach this one by, and whether they still do.
mod choice;
mod trouble;

use anyhow::Result;

pub(crate) use self::choice::is_link_local;
pub use self::{
    choice::{Choice, Sight, Underlay, pick, unfit},
    trouble::{Trouble, trouble},
};
use crate::host::netlink::Netlink;

/// Chooses the underlay interface and address by flannel's rules, with what the kernel has now.
///
/// # Errors
/// Why no interface was chosen, and what to do.
pub async fn choose(netlink: &Netlink, choice: &Choice) -> Result<Underlay> {
    let reached = match choice.can_reach {
        Some(address) => Some(netlink.route_to(address).await.map_err(|error| error.detail)),
        None => None,
    };
    let sight = Sight {
        links: netlink.links().await?,
        addresses: netlink.flagged_addresses().await?,
        ways: netlink.ways().await?,
        reached,
    };
    pick(choice, &sight)
}

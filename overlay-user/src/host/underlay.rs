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

/// Chooses the underlay interface and address by flannel's rules, with what the kernel has now. The log says where there was more
/// than one address to choose from.
///
/// # Errors
/// Why no interface was chosen, and what to do.
pub async fn choose(netlink: &Netlink, choice: &Choice) -> Result<Underlay> {
    let sight = see(netlink, choice).await?;
    let underlay = pick(choice, &sight)?;
    let usable = sight.usable_at(underlay.ifindex);
    if usable.len() > 1 && usable.first() == Some(&underlay.address) {
        log::info!(
            "{} has {} addresses: taking the first, {}; --iface ADDRESS chooses another",
            underlay.name,
            usable.len(),
            underlay.address
        );
    }
    Ok(underlay)
}

/// The same without a word, for whoever asks again and again.
///
/// # Errors
/// As of [`choose`].
pub async fn choose_again(netlink: &Netlink, choice: &Choice) -> Result<Underlay> {
    pick(choice, &see(netlink, choice).await?)
}

async fn see(netlink: &Netlink, choice: &Choice) -> Result<Sight> {
    let reached = match choice.can_reach {
        Some(address) => Some(netlink.route_to(address).await.map_err(|error| error.detail)),
        None => None,
    };
    Ok(Sight {
        links: netlink.links().await?,
        addresses: netlink.flagged_addresses().await?,
        ways: netlink.ways().await?,
        reached,
    })
}

//! Watches whether the other hosts can reach this one at the address that its lease tells them, and says when another address
//! has to take its place. Without this, a host whose address changes stays dead for its peers while it looks well to itself.
use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use log::{info, warn};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    agent::status::Status,
    host::{
        netlink::{Event, Netlink, NetlinkError},
        underlay::{self, Choice, Trouble, Underlay, is_link_local},
    },
};

/// How long an address must be gone, and another be there, before the other takes its place. Programs that set up interfaces take
/// an address away and put it back, and one interface may be without an address while another has one for a moment.
const SETTLED: Duration = Duration::from_secs(2);
/// The time until the next look while something is wrong.
const RETRY: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Watches until another underlay is to be used, and returns that. An address among `leasable`, which hosts may lease, is never used:
/// it may be a container bridge's. What is wrong meanwhile stands in the status. This fails only if the kernel's events cannot be
/// had at all.
pub async fn watch(
    netlink: Netlink,
    choice: Choice,
    underlay: Underlay,
    leasable: RangeInclusive<IpAddr>,
    status: watch::Sender<Status>,
) -> Result<Underlay, NetlinkError> {
    let mut monitor = netlink.monitor()?;
    let may_follow = may_follow(&choice, underlay.address);
    let mut gone: Option<Instant> = None;
    let mut next: Option<(IpAddr, Instant)> = None;
    loop {
        let trouble = look(&netlink, &underlay).await;
        gone = match &trouble {
            Some(Trouble { is_address_gone: true, .. }) => gone.or_else(|| Some(Instant::now())),
            _ => None,
        };
        let mut stays = None;
        let is_settled = gone.is_some_and(|since| since.elapsed() >= SETTLED);
        if is_settled && !may_follow {
            stays = Some("--public-ip names it".to_owned());
        } else if is_settled {
            match underlay::choose_again(&netlink, &choice).await {
                // A host whose DHCP server is away gives itself such an address until it is back.
                Ok(found) if is_link_local(found.address) && !is_link_local(underlay.address) => {
                    stays = Some(format!("{} is an address of the link alone", found.address));
                }
                Ok(found) if leasable.contains(&found.address) => {
                    stays = Some(format!("{} is among the addresses that hosts may lease", found.address));
                }
                Ok(found) if found.address != underlay.address => {
                    let since = match next {
                        Some((address, since)) if address == found.address => since,
                        _ => Instant::now(),
                    };
                    if since.elapsed() >= SETTLED {
                        return Ok(found);
                    }
                    next = Some((found.address, since));
                }
                Ok(_) => {}
                Err(error) => stays = Some(error.to_string()),
            }
        }
        let error = trouble.map(|trouble| match stays {
            Some(stays) => format!("{}; no other takes its place: {stays}", trouble.why),
            None => trouble.why,
        });
        publish(&status, error);
        sleep(PAUSE).await;
        let is_well = status.borrow().underlay.error.is_none();
        loop {
            let wait = if is_well { Duration::MAX } else { RETRY };
            match timeout(wait, monitor.next()).await {
                Err(_) => break,
                Ok(Event::Lost) => {
                    monitor = netlink.monitor()?;
                    break;
                }
                Ok(event) if concerns(&event, &underlay) => break,
                Ok(_) => {}
            }
        }
    }
}

/// Whether another address may take the place of `address`. One that the operator named may not: they know of a reason. The
/// address behind a NAT's may, since the lease does not tell it.
fn may_follow(choice: &Choice, address: IpAddr) -> bool {
    choice.public_ip != Some(address)
}

/// Whether an event may be about the underlay. Events about containers, of which there are many, are not.
fn concerns(event: &Event, underlay: &Underlay) -> bool {
    match event {
        Event::Link(link) => link.index == underlay.ifindex || link.name == underlay.name,
        Event::LinkGone(link) => *link == underlay.ifindex,
        Event::Address(one) | Event::AddressGone(one) => {
            one.link == underlay.ifindex || one.address == underlay.address
        }
        _ => false,
    }
}

async fn look(netlink: &Netlink, underlay: &Underlay) -> Option<Trouble> {
    let seen = async { Ok::<_, NetlinkError>((netlink.links().await?, netlink.addresses().await?)) };
    match seen.await {
        Ok((links, addresses)) => underlay::trouble(&underlay.name, underlay.address, &links, &addresses),
        Err(error) => {
            warn!("{error}: not known whether other hosts reach this one");
            None
        }
    }
}

fn publish(status: &watch::Sender<Status>, error: Option<String>) {
    status.send_if_modified(|status| {
        if status.underlay.error == error {
            return false;
        }
        match &error {
            Some(why) => warn!("other hosts cannot reach this one: {why}"),
            None => info!("{} is well again", status.underlay.name),
        }
        status.underlay.error = error;
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_the_operator_named_is_not_replaced() {
        let choice = |public_ip: Option<[u8; 4]>| Choice {
            public_ip: public_ip.map(IpAddr::from),
            ..Choice::default()
        };
        let own = IpAddr::from([10, 99, 0, 1]);
        assert!(may_follow(&choice(None), own));
        assert!(!may_follow(&choice(Some([10, 99, 0, 1])), own));
        assert!(may_follow(&choice(Some([203, 0, 113, 9])), own), "behind a NAT");
    }
}

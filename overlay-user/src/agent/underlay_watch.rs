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
    let mut succession = Succession::of(underlay.address, leasable);
    loop {
        let trouble = look(&netlink, &underlay).await;
        let is_gone = trouble.as_ref().is_some_and(|trouble| trouble.is_address_gone);
        let mut stays = None;
        if is_gone {
            let found = if may_follow {
                let chosen = underlay::choose(&netlink, &choice).await;
                chosen.map(|chosen| chosen.underlay).map_err(|error| error.to_string())
            } else {
                Err("--public-ip names it".to_owned())
            };
            match succession.decide(found, Instant::now()) {
                Decision::Moves(next) => return Ok(next),
                Decision::Stays(why) => stays = Some(why),
                Decision::Waits => {}
            }
        } else {
            succession.address_is_there();
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

/// What is to be done about an address that is gone.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Nothing yet.
    Waits,
    /// Nothing, although the address has been gone for long, and why.
    Stays(String),
    /// Another underlay is to be used.
    Moves(Underlay),
}

/// How long the address has been gone, and which other could take its place.
#[derive(Debug)]
struct Succession {
    address: IpAddr,
    leasable: RangeInclusive<IpAddr>,
    gone: Option<Instant>,
    next: Option<(IpAddr, Instant)>,
}

impl Succession {
    fn of(address: IpAddr, leasable: RangeInclusive<IpAddr>) -> Self {
        Self { address, leasable, gone: None, next: None }
    }

    /// The address is there. If it goes later, that has nothing to do with an earlier time.
    fn address_is_there(&mut self) {
        (self.gone, self.next) = (None, None);
    }

    /// Decides about the address, which is gone. `found` is what would be chosen now, or why nothing.
    fn decide(&mut self, found: Result<Underlay, String>, now: Instant) -> Decision {
        let is_settled = |since: Instant| now.duration_since(since) >= SETTLED;
        let gone = *self.gone.get_or_insert(now);
        match found.and_then(|found| self.fit(found)) {
            // It has come back since it was looked for.
            Ok(found) if found.address == self.address => {
                self.address_is_there();
                Decision::Waits
            }
            Ok(found) => {
                let known = self.next.filter(|(address, _)| *address == found.address);
                let since = known.map_or(now, |(_, since)| since);
                self.next = Some((found.address, since));
                if is_settled(since) { Decision::Moves(found) } else { Decision::Waits }
            }
            Err(why) => {
                self.next = None;
                if is_settled(gone) { Decision::Stays(why) } else { Decision::Waits }
            }
        }
    }

    fn fit(&self, found: Underlay) -> Result<Underlay, String> {
        // A host whose DHCP server is away gives itself such an address until it is back.
        if is_link_local(found.address) && !is_link_local(self.address) {
            return Err(format!("{} is an address of the link alone", found.address));
        }
        if self.leasable.contains(&found.address) {
            return Err(format!("{} is among the addresses that hosts may lease", found.address));
        }
        Ok(found)
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

    fn ip(last: u8) -> IpAddr {
        [10, 99, 0, last].into()
    }

    fn succession() -> Succession {
        Succession::of(ip(1), [10, 244, 0, 0].into()..=[10, 244, 255, 255].into())
    }

    fn underlay(address: IpAddr) -> Underlay {
        Underlay { name: "eth0".into(), ifindex: 2, mac: None, mtu: 1500, address }
    }

    #[test]
    fn another_address_takes_the_place_when_it_has_been_there_for_two_seconds() {
        let begin = Instant::now();
        let mut succession = succession();
        let mut seen = |after: f32, found: Result<IpAddr, &str>| {
            let now = begin + Duration::from_secs_f32(after);
            succession.decide(found.map(underlay).map_err(str::to_owned), now)
        };
        // For a moment there is no address at all; then another comes, which has to be there for as long as any other.
        assert_eq!(seen(0.0, Err("eth0 has none")), Decision::Waits);
        assert_eq!(seen(1.9, Err("eth0 has none")), Decision::Waits);
        assert_eq!(seen(2.0, Err("eth0 has none")), Decision::Stays("eth0 has none".into()));
        assert_eq!(seen(3.0, Ok(ip(77))), Decision::Waits);
        assert_eq!(seen(4.0, Ok(ip(78))), Decision::Waits, "another one than before");
        assert_eq!(seen(4.5, Err("eth0 has none")), Decision::Stays("eth0 has none".into()));
        assert_eq!(seen(5.0, Ok(ip(78))), Decision::Waits);
        assert_eq!(seen(6.9, Ok(ip(78))), Decision::Waits);
        assert_eq!(seen(7.0, Ok(ip(78))), Decision::Moves(underlay(ip(78))));
    }

    #[test]
    fn what_was_there_while_the_address_was_gone_before_does_not_count() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        // It was seen to be back, or came back between two looks.
        for looked in [true, false] {
            let mut succession = succession();
            assert_eq!(succession.decide(Ok(underlay(ip(77))), begin), Decision::Waits);
            if looked {
                succession.address_is_there();
            } else {
                assert_eq!(succession.decide(Ok(underlay(ip(1))), after(1)), Decision::Waits);
            }
            assert_eq!(succession.decide(Ok(underlay(ip(77))), after(60)), Decision::Waits, "{looked}");
            assert_eq!(succession.decide(Ok(underlay(ip(77))), after(61)), Decision::Waits, "{looked}");
            let decided = succession.decide(Ok(underlay(ip(77))), after(62));
            assert_eq!(decided, Decision::Moves(underlay(ip(77))), "{looked}");
        }
    }

    #[test]
    fn some_addresses_never_take_the_place_of_another() {
        let begin = Instant::now();
        for (address, why) in [
            ([169, 254, 7, 7], "169.254.7.7 is an address of the link alone"),
            ([10, 244, 3, 1], "10.244.3.1 is among the addresses that hosts may lease"),
        ] {
            let mut succession = succession();
            let mut seen = |after| {
                let found = Ok(underlay(address.into()));
                succession.decide(found, begin + Duration::from_secs(after))
            };
            assert_eq!(seen(0), Decision::Waits);
            assert_eq!(seen(60), Decision::Stays(why.to_owned()));
        }
        // Where the link has no others, one of its own is as good as the one before.
        let mut succession = Succession::of([169, 254, 1, 1].into(), ip(0)..=ip(0));
        let next = || Ok(underlay([169, 254, 7, 7].into()));
        assert_eq!(succession.decide(next(), begin), Decision::Waits);
        assert!(matches!(succession.decide(next(), begin + SETTLED), Decision::Moves(_)));
    }

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

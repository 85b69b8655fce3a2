//! Keeps the devices that programs are attached to: overlay0 is made again when somebody deletes or alters it, and the loop is
//! told where to attach. flannel's agent does not notice that its device is gone, and its host is cut off until somebody
//! restarts it.
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use log::{info, warn};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    datapath::ebpf::MANY_OUTLYING,
    host::{
        device::{self, Device, DeviceSpec},
        netlink::{Address, Event, Link, Netlink, NetlinkError},
        underlay::{self, Underlay},
    },
    model::change::LocalChange,
    model::{entries::PortKind, mac::Mac},
};

/// The shortest time between two looks, so that a quarrel with whoever keeps deleting the device does not use up the CPU.
const PAUSE: Duration = Duration::from_millis(100);
/// The time until the next look while something is missing.
const RETRY: Duration = Duration::from_secs(1);

/// How long the loop may take to attach programs to a new device.
const PATIENCE: Duration = Duration::from_secs(10);

/// Watches over overlay0 and the underlay device until `changes` is closed. `spec` says how overlay0 must be, and `attached`
/// tells which device has overlay0's programs. `outlying` tells the leases outside the leasable range, which need routes of
/// their own. This fails only if the kernel's events cannot be had at all.
pub async fn keep(
    netlink: Netlink,
    spec: DeviceSpec,
    attached: watch::Receiver<u32>,
    mut outlying: watch::Receiver<BTreeSet<IpNet>>,
    underlay: Underlay,
    changes: mpsc::Sender<Vec<LocalChange>>,
) -> Result<(), NetlinkError> {
    let mut monitor = netlink.monitor()?;
    let device = *attached.borrow();
    let leasable = spec.prefixes.clone();
    let mut keeper = Keeper {
        netlink,
        spec,
        device,
        attached,
        changes,
        underlay: underlay.ifindex,
        name: underlay.name,
        mac: underlay.mac,
        address: underlay.address,
        complaint: None,
    };
    // The keeper looks once at the start, because a device that was made before the events were watched may be gone by now.
    let mut look = true;
    loop {
        if look {
            keeper.spec.prefixes = match &*outlying.borrow_and_update() {
                many if many.len() > MANY_OUTLYING => vec![keeper.spec.network],
                some => leasable.iter().chain(some).copied().collect(),
            };
            let found = keeper.look().await;
            if keeper.changes.send(found).await.is_err() {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        let wait = if keeper.complaint.is_some() { RETRY } else { Duration::MAX };
        let event = tokio::select! {
            event = timeout(wait, monitor.next()) => event,
            changed = outlying.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                look = true;
                continue;
            }
        };
        look = match event {
            Ok(Event::Lost) => {
                monitor = keeper.netlink.monitor()?;
                true
            }
            Ok(event) => keeper.concerns(&event),
            Err(_) => true,
        };
    }
}

struct Keeper {
    netlink: Netlink,
    spec: DeviceSpec,
    device: u32,
    attached: watch::Receiver<u32>,
    changes: mpsc::Sender<Vec<LocalChange>>,
    underlay: u32,
    name: String,
    mac: Option<Mac>,
    address: IpAddr,
    /// What is missing, in the words in which it was last logged.
    complaint: Option<String>,
}

impl Keeper {
    /// Whether something may be missing after this event. A look causes events itself, so an event that shows everything as it
    /// should be must not call for another look.
    fn concerns(&self, event: &Event) -> bool {
        let ours = |link| link == self.device || link == self.underlay;
        match event {
            Event::Link(link) if link.index == self.device => {
                !link.up
                    || link.mtu != self.spec.mtu
                    || (self.spec.kind.mac().is_some() && link.mac != self.spec.kind.mac())
            }
            // The programs hold the underlay device's MAC address, which must follow if it changes.
            Event::Link(link) if link.index == self.underlay => link.mac != self.mac,
            Event::Link(link) => link.name == self.name || link.name == self.spec.name,
            Event::LinkGone(link) => ours(*link),
            Event::Address(address) => address.address == self.address,
            Event::AddressGone(address) => ours(address.link) || address.address == self.address,
            Event::RouteGone(route) => self.spec.prefixes.contains(&route.destination),
            _ => false,
        }
    }

    /// Makes overlay0 what it must be, and returns where programs belong. For a device that has its programs already, the loop
    /// changes nothing; if a device is gone, its attempt to attach tells the loop so.
    async fn look(&mut self) -> Vec<LocalChange> {
        let mut complaint = None;
        match self.make_device().await {
            Ok(device) if device.ifindex != self.device => {
                let address =
                    device.mac.map(|mac| format!(", with its old address {mac}")).unwrap_or_default();
                info!("{} was deleted: it is made anew{address}", self.spec.name);
                self.device = device.ifindex;
            }
            Ok(_) => {}
            Err(error) => complaint = Some(format!("{error:#}")),
        }
        match self.find_underlay().await {
            Ok(found) if found != self.underlay => {
                info!("{} was made anew: its programs follow", self.name);
                self.underlay = found;
            }
            Ok(_) => {}
            Err(error) => complaint = Some(error.to_string()),
        }
        if let Some(complaint) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            warn!("{complaint}; looking again every {RETRY:?}");
        }
        self.complaint = complaint;
        vec![
            LocalChange::Attach(self.device, PortKind::Device),
            LocalChange::Attach(self.underlay, PortKind::Underlay),
        ]
    }

    /// Makes overlay0 if it is missing or not as it should be. A new device has its programs before it is up, so that no frame
    /// enters the stack unchecked.
    async fn make_device(&mut self) -> anyhow::Result<Device> {
        let prepared = device::prepare(&self.netlink, &self.spec).await?;
        if prepared.ifindex != *self.attached.borrow() {
            let attach = LocalChange::Attach(prepared.ifindex, PortKind::Device);
            self.changes.send(vec![attach]).await.context("the agent ends")?;
            let done = self.attached.wait_for(|ifindex| *ifindex == prepared.ifindex);
            let done = timeout(PATIENCE, done).await;
            done.with_context(|| format!("{} waits for its programs", self.spec.name))??;
        }
        let device = device::ensure(&self.netlink, &self.spec).await?;
        device::remove_stale_routes(&self.netlink, &self.spec, device.ifindex).await?;
        Ok(device)
    }

    async fn find_underlay(&mut self) -> anyhow::Result<u32> {
        let link = self.netlink.link_named(&self.name).await?;
        if let Some(link) = &link {
            self.mac = link.mac;
        }
        let addresses = self.netlink.addresses().await?;
        let found = usable(&self.name, self.address, link, &addresses).map_err(|why| anyhow!(why))?;
        Ok(found.index)
    }
}

/// The underlay device, if the programs can be attached to it and the agent's address is still this host's; routing protocols
/// put it on lo or on a dummy. Otherwise the reason, in the words of the status: [`underlay_watch`] says there whether another
/// address takes its place.
///
/// [`underlay_watch`]: crate::agent::underlay_watch
fn usable(name: &str, address: IpAddr, link: Option<Link>, addresses: &[Address]) -> Result<Link, String> {
    let trouble = underlay::trouble(name, address, link.as_slice(), addresses);
    match (link, trouble) {
        (Some(_), Some(trouble)) if trouble.is_address_gone => Err(trouble.why),
        // A device that is down, or without a carrier, keeps its programs.
        (Some(link), _) => underlay::unfit(&link).map_or(Ok(link), Err),
        (None, trouble) => {
            Err(trouble.map_or_else(|| format!("interface {name} is gone"), |trouble| trouble.why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::LinkKind;

    #[test]
    fn a_missing_underlay_is_told_in_the_words_of_the_status() {
        let link = || Link { up: false, carrier: false, ..Link::example(2, "eth0", LinkKind::Veth) };
        let on = |link, last| Address::alone(link, [10, 99, 0, last].into());
        let ours = IpAddr::from([10, 99, 0, 1]);
        let usable = |link, addresses: &[Address]| usable("eth0", ours, link, addresses);
        for (link, addresses) in [(None, vec![]), (None, vec![on(1, 1)]), (Some(link()), vec![on(2, 9)])] {
            let says = underlay::trouble("eth0", ours, link.as_slice(), &addresses).unwrap().why;
            assert_eq!(usable(link, &addresses).map(|link| link.index), Err(says));
        }
        // Wherever the address is, and whether or not the device is up.
        for at in [1, 2] {
            assert_eq!(usable(Some(link()), &[on(at, 1)]).map(|link| link.index), Ok(2));
        }
    }
}

//! Tells the data path which containers' veths take frames that XDP redirects. The others are TC's: to them such frames
//! would be lost, and counted as delivered.
//!
//! Two things must hold. The kernel must say so of the host's end of the pair (else it refuses the redirect); it tells of
//! changes, too. But it forgets to take that back when GRO is switched off while the container's end is down (seen on
//! 6.18). So the container's end is looked at as well, in its namespace, again whenever the link changes: going down and
//! up shows at the host's end. A test frame would prove no more than that it arrived once.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use log::{info, warn};
use nix::errno::Errno;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

use crate::{
    host::netlink::{
        Event, Link, LinkKind, Netlink, NetlinkError,
        generic::{XdpEvents, XdpFeatures, offload, switch, xdp_features},
        namespaces::{self, Namespaces},
    },
    learn::view::View,
    model::change::XdpTargetChange,
};

/// Without an event; each look then tells the data path all, whatever it was told before.
const AUDIT: Duration = Duration::from_secs(30);
/// Between two looks at least: a thousand containers that start make thousands of events.
const PAUSE: Duration = Duration::from_millis(100);
/// Before another look where the last was interrupted.
const RETRY: Duration = Duration::from_secs(1);
/// The offload that gives a veth NAPI, as ethtool's netlink family names it.
const GRO: &str = "rx-gro";

/// Watches until `changes` is closed. `adopted`: who takes frames by an earlier agent's word, which is not believed. `switch_gro` has GRO switched on at the containers' ends.
pub async fn watch(
    netlink: Netlink,
    switch_gro: bool,
    adopted: BTreeSet<u32>,
    mut view: watch::Receiver<View>,
    changes: mpsc::Sender<Vec<XdpTargetChange>>,
) -> Result<(), NetlinkError> {
    let Some(mut events) = XdpEvents::open()? else {
        info!(
            "this kernel does not say which veths take redirected frames (Linux 6.3 does): TC delivers to all of them"
        );
        // The task lives as long as the agent.
        changes.closed().await;
        return Ok(());
    };
    let mut monitor = netlink.monitor()?;
    let told = adopted.into_iter().map(|index| (index, true)).collect();
    let mut receivers = Receivers { told, ..Receivers::default() };
    let mut audit = Instant::now() + AUDIT;
    loop {
        if Instant::now() >= audit {
            receivers.told.clear();
            receivers.seen.clear();
            audit = Instant::now() + AUDIT;
        }
        let names = names(&view.borrow_and_update());
        let mut due = match netlink.links().await {
            Ok(links) => {
                let ports = links.into_iter().filter(|link| link.kind == LinkKind::Veth);
                let ports = ports.filter(|link| names.contains(&link.name));
                let news = receivers.look(ports.collect(), switch_gro).await?;
                if !news.is_empty() && changes.send(news).await.is_err() {
                    return Ok(());
                }
                audit
            }
            // Containers come and go too fast for one look at all of them.
            Err(error) if error.errno == Errno::EINTR => {
                warn!("{error}: trying again");
                Instant::now() + RETRY
            }
            Err(error) => return Err(error),
        };
        let looked = Instant::now();
        // All that comes before the next look is taken in: one look is enough for it.
        loop {
            tokio::select! {
                event = events.next() => event.map_err(|error| NetlinkError::events(&error))?,
                event = monitor.next() => match event {
                    Event::Link(Link { index, .. }) | Event::LinkGone(index) => {
                        if !receivers.doubt(index) {
                            continue;
                        }
                    }
                    Event::Lost => {
                        monitor = netlink.monitor()?;
                        audit = Instant::now();
                    }
                    _ => continue,
                },
                Ok(()) = view.changed() => {}
                () = sleep_until(due) => break,
                () = changes.closed() => return Ok(()),
            }
            due = due.min(looked + PAUSE);
        }
    }
}

/// The ports that programs are attached to, point-to-point veths among them.
fn names(view: &View) -> BTreeSet<String> {
    view.bridges.iter().flat_map(|bridge| bridge.ports.iter().chain([&bridge.name]).cloned()).collect()
}

#[derive(Debug, Default)]
struct Receivers {
    /// What was last told.
    told: BTreeMap<u32, bool>,
    /// What was seen at the other end since the link last changed.
    seen: BTreeMap<u32, bool>,
    /// Where GRO was switched on since the link last changed.
    switched: BTreeSet<u32>,
}

impl Receivers {
    /// The link changed: what is known of its other end may not hold any more. Whether it is one that is looked at; of a
    /// new one the view tells.
    fn doubt(&mut self, index: u32) -> bool {
        self.seen.remove(&index);
        self.switched.remove(&index);
        self.told.contains_key(&index)
    }

    async fn look(
        &mut self,
        ports: Vec<Link>,
        switch_gro: bool,
    ) -> Result<Vec<XdpTargetChange>, NetlinkError> {
        let mut features = xdp_features()?.unwrap_or_default();
        let mut namespaces = None;
        if switch_gro {
            let silent = ports.iter().filter(|port| !receives(&features, port.index));
            let silent: Vec<Link> = silent.filter(|port| self.switched.insert(port.index)).cloned().collect();
            if !silent.is_empty() {
                let shown = blocking(move || {
                    let shown = Namespaces::read();
                    silent.iter().for_each(|port| switch_on(&shown, port));
                    shown
                });
                namespaces = Some(shown.await?);
                features = xdp_features()?.unwrap_or_default();
            }
        }
        let saying: Vec<Link> =
            ports.iter().filter(|port| receives(&features, port.index)).cloned().collect();
        let unseen: Vec<Link> =
            saying.iter().filter(|port| !self.seen.contains_key(&port.index)).cloned().collect();
        if !unseen.is_empty() {
            self.seen.extend(
                blocking(move || {
                    let shown = namespaces.unwrap_or_else(Namespaces::read);
                    let seen = unseen.iter().map(|port| (port.index, has_napi(&shown, port)));
                    seen.collect::<BTreeMap<_, _>>()
                })
                .await?,
            );
        }
        let is_proven = |port: &Link| {
            saying.iter().any(|saying| saying.index == port.index)
                && self.seen.get(&port.index).is_some_and(|seen| *seen)
        };
        let now = ports.iter().map(|port| (port.index, is_proven(port))).collect();
        Ok(news(&mut self.told, now))
    }
}

fn receives(features: &BTreeMap<u32, XdpFeatures>, index: u32) -> bool {
    features.get(&index).is_some_and(|features| features.receives())
}

/// Entering namespaces means reading /proc, which may be long.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NetlinkError> {
    spawn_blocking(work).await.map_err(|error| NetlinkError::events(&io::Error::other(error)))
}

/// What has not been told yet. Ports that are no longer looked at are told about once more; of interfaces that are gone
/// the kernel knows itself.
fn news(told: &mut BTreeMap<u32, bool>, now: BTreeMap<u32, bool>) -> Vec<XdpTargetChange> {
    let left = told.iter().filter(|(index, receives)| **receives && !now.contains_key(index));
    let left = left.map(|(index, _)| XdpTargetChange { port: *index, takes: false });
    let changed = now.iter().filter(|(index, receives)| told.get(index) != Some(receives));
    let changed = changed.map(|(index, receives)| XdpTargetChange { port: *index, takes: *receives });
    let news = left.chain(changed).collect();
    *told = now;
    news
}

/// Whether the other end has NAPI for redirected frames: GRO on, or an XDP program. One that is not to be found has not.
fn has_napi(shown: &Namespaces, port: &Link) -> bool {
    let (Some(peer), Some(namespace)) = (port.peer, port.peer_netns) else { return false };
    let seen = shown.within(namespace, move || Ok(offload(peer, GRO)? || namespaces::runs_xdp(peer)?));
    match seen {
        Ok(seen) => seen.unwrap_or(false),
        Err(error) => {
            warn!("{} is left to TC: {error}", port.name);
            false
        }
    }
}

/// Switches GRO on at the other end. If it is on already, the host's end was not told (it came up later): off and on.
fn switch_on(shown: &Namespaces, port: &Link) {
    let (Some(peer), Some(namespace)) = (port.peer, port.peer_netns) else { return };
    let done = shown.within(namespace, move || {
        if offload(peer, GRO)? {
            switch(peer, GRO, false)?;
        }
        switch(peer, GRO, true)
    });
    match done {
        Ok(Some(())) => info!("switched GRO on in the container behind {}", port.name),
        Ok(None) => warn!("the namespace behind {} is not to be found: its GRO stays as it is", port.name),
        Err(error) => warn!("GRO in the container behind {} stays as it is: {error}", port.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once_and_ports_that_leave_are_taken_back() {
        let mut told = BTreeMap::new();
        let now = |entries: &[(u32, bool)]| entries.iter().copied().collect::<BTreeMap<_, _>>();
        assert_eq!(
            news(&mut told, now(&[(7, true), (8, false)])),
            [XdpTargetChange { port: 7, takes: true }, XdpTargetChange { port: 8, takes: false }]
        );
        assert!(news(&mut told, now(&[(7, true), (8, false)])).is_empty());
        assert_eq!(
            news(&mut told, now(&[(8, true)])),
            [XdpTargetChange { port: 7, takes: false }, XdpTargetChange { port: 8, takes: true }]
        );
    }

    #[test]
    fn a_link_that_changes_calls_for_a_look_if_it_is_looked_at() {
        let mut receivers = Receivers { told: [(7, true)].into(), ..Receivers::default() };
        receivers.seen.extend([(7, true), (8, true)]);
        receivers.switched.extend([7, 8]);
        assert_eq!((receivers.doubt(7), receivers.doubt(8)), (true, false));
        // One that comes back is looked at from the start.
        assert!(receivers.seen.is_empty() && receivers.switched.is_empty());
    }
}

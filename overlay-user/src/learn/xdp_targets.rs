//! Tells the data path which containers' veths take frames that XDP redirects. Frames to the other containers are left to
//! TC: redirected frames would be lost there, although they would be counted as delivered.
//!
//! A veth takes frames under two conditions. The first is that the kernel says so about the host's end of the pair, since it
//! refuses the redirect otherwise. It also notifies of changes. But when GRO is switched off while the container's end is
//! down, the kernel still says that the veth takes frames (seen on 6.18). So the second condition is looked up at the
//! container's end, in its namespace. That is repeated whenever the link changes, because going down and up shows at the
//! host's end, too. A test frame would only prove that one frame arrived once.
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

/// Pause between two looks without an event. After such a pause the data path is told about all ports, whatever it was
/// told before.
const AUDIT: Duration = Duration::from_secs(30);
/// Shortest pause between two looks. A thousand containers that start cause thousands of events.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause before another look if the last one was interrupted.
const RETRY: Duration = Duration::from_secs(1);
/// The offload that gives a veth NAPI, as ethtool's netlink family names it.
const GRO: &str = "rx-gro";

/// Watches until `changes` is closed. `adopted` are the targets that an earlier agent left, which are not trusted. With
/// `switch_gro`, GRO is switched on at the containers' ends.
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
        // The task runs as long as the agent.
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
            // Containers may come and go too fast for one list of all of them.
            Err(error) if error.errno == Errno::EINTR => {
                warn!("{error}: trying again");
                Instant::now() + RETRY
            }
            Err(error) => return Err(error),
        };
        let looked = Instant::now();
        // All events until the next look are taken together, because one look is enough for them.
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

/// The ports that have programs, point-to-point veths included.
fn names(view: &View) -> BTreeSet<String> {
    view.bridges.iter().flat_map(|bridge| bridge.ports.iter().chain([&bridge.name]).cloned()).collect()
}

#[derive(Debug, Default)]
struct Receivers {
    /// What the data path was last told about each port.
    told: BTreeMap<u32, bool>,
    /// What was seen at the other end of each port since its link last changed.
    seen: BTreeMap<u32, bool>,
    /// The ports at whose other end GRO was switched on since their link last changed.
    switched: BTreeSet<u32>,
}

impl Receivers {
    /// Forgets what is known about the other end of a link, because the link changed. Returns whether it is a port that is
    /// looked at. A new port is found by the learner's overview.
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

/// Looks at the other ends of ports. To enter their namespaces, /proc must be read, which may take long.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NetlinkError> {
    spawn_blocking(work).await.map_err(|error| NetlinkError::events(&io::Error::other(error)))
}

/// What the data path has not been told yet. It is told once more about ports that are no longer looked at. The kernel
/// itself removes interfaces that are gone.
fn news(told: &mut BTreeMap<u32, bool>, now: BTreeMap<u32, bool>) -> Vec<XdpTargetChange> {
    let left = told.iter().filter(|(index, receives)| **receives && !now.contains_key(index));
    let left = left.map(|(index, _)| XdpTargetChange { port: *index, takes: false });
    let changed = now.iter().filter(|(index, receives)| told.get(index) != Some(receives));
    let changed = changed.map(|(index, receives)| XdpTargetChange { port: *index, takes: *receives });
    let news = left.chain(changed).collect();
    *told = now;
    news
}

/// Whether the other end has NAPI for redirected frames, because GRO is on there or it has an XDP program. An end that is
/// not found counts as one without.
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

/// Switches GRO on at the other end. If it is on already, the kernel did not update the host's end, which came up later.
/// Then GRO is switched off and on again.
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
        // A port that comes back is looked at from the beginning.
        assert!(receivers.seen.is_empty() && receivers.switched.is_empty());
    }
}

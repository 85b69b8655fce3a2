//! The loop in a network of both families: each half of a lease changes its peer, a lease that changes its form changes nothing,
//! and the guard knows both forms.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use ipnet::IpNet;
use overlay_user::{
    agent::{
        peers::{Ipv6Scope, Scope},
        reconciler::{self, Exit, Inputs, Setup},
        status::Status,
    },
    datapath::memory::Memory,
    model::{
        backend::Backend,
        change::{Change, PeerChange},
        entries::{Peer, PeerIpv6},
        lease::{Ipv6Half, Lease, LeaseBackend},
        mac::Mac,
    },
    store::{
        Revision, Store, Written,
        acquire::LocalLease,
        local_lease::{LeaseKeeper, LeaseState},
        memory::MemoryStore,
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn net(n: u8) -> IpNet {
    format!("10.244.{n}.0/24").parse().unwrap()
}

fn ipv6_net(n: u8) -> IpNet {
    format!("fd00:244:0:{n:x}::/64").parse().unwrap()
}

fn peer(n: u8) -> Peer {
    Peer {
        public_ip: [10, 99, 0, n].into(),
        vtep_mac: Some(Mac([2, 0, 0, 0, 0, n])),
        ipv6: Some(PeerIpv6 {
            subnet: ipv6_net(n),
            public_ip: format!("fd99::{n:x}").parse().unwrap(),
            vtep_mac: Some(Mac([6, 0, 0, 0, 0, n])),
        }),
    }
}

fn ipv4(n: u8) -> Peer {
    Peer { ipv6: None, ..peer(n) }
}

/// The lease that gives this peer.
fn lease(n: u8, peer: Peer) -> Lease {
    let vxlan = |mac: Option<Mac>| LeaseBackend::Vxlan { vni: 1, vtep_mac: mac.unwrap() };
    Lease {
        subnet: net(n),
        public_ip: peer.public_ip,
        backend: vxlan(peer.vtep_mac),
        ipv6: peer.ipv6.map(|half| Ipv6Half {
            subnet: half.subnet,
            public_ip: half.public_ip,
            backend: vxlan(half.vtep_mac),
        }),
    }
}

/// A host with a lease of both families, its reconciler, and every handle on it.
struct Host {
    store: MemoryStore,
    datapath: Memory,
    status: watch::Receiver<Status>,
    shutdown: watch::Sender<bool>,
    running: JoinHandle<anyhow::Result<Exit>>,
}

impl Host {
    async fn start(others: impl IntoIterator<Item = u8>) -> Self {
        let mut store = MemoryStore::default();
        for n in others {
            let lease = lease(n, peer(n));
            store.put(&lease.key(), lease.value(), Some(DAY));
        }
        let own = lease(1, peer(1));
        let written = store.claim(&own.key(), own.value(), Some(DAY)).await.unwrap();
        let Written::At(modified) = written else { panic!("the own key is taken") };
        let scope = Scope {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet_len: 24,
            backend: Backend::DEFAULT,
            own_ip: own.public_ip,
            own_subnet: own.subnet,
            ipv6: Some(Ipv6Scope {
                network: "fd00:244::/48".parse().unwrap(),
                subnet_len: 64,
                own_ip: peer(1).ipv6.unwrap().public_ip,
                own_subnet: ipv6_net(1),
            }),
        };
        let (status_to, status) =
            watch::channel(Status::new(scope.own_ip, scope.own_subnet, scope.network, scope.backend));
        let (shutdown, asked) = watch::channel(false);
        let inputs =
            Inputs::new(mpsc::channel(1).1, mpsc::channel(1).1, mpsc::channel(1).1, asked, status_to);
        let local = LocalLease { lease: own, modified, time_to_live: Some(DAY), renewed: Instant::now() };
        let lease = LeaseKeeper::new(local, Duration::from_secs(3600));
        let setup = Setup { scope, lease, audit: reconciler::AUDIT, origin: None };
        let datapath = Memory::default();
        let running = tokio::spawn(reconciler::run(store.clone(), datapath.clone(), setup, inputs));
        let mut host = Self { store, datapath, status, shutdown, running };
        host.until("the stream to open", |status| status.store.following).await;
        host
    }

    async fn until(&mut self, what: &str, is: impl FnMut(&Status) -> bool) -> Status {
        let found = timeout(DAY, self.status.wait_for(is)).await;
        found.unwrap_or_else(|_| panic!("waited in vain for {what}")).unwrap().clone()
    }

    async fn caught_up(&mut self, revision: Revision) -> Status {
        self.until("a revision", |status| status.store.revision >= revision.0).await
    }

    async fn put(&mut self, lease: &Lease) -> Status {
        let revision = self.store.put(&lease.key(), lease.value(), Some(DAY));
        self.caught_up(revision).await
    }

    /// One key in place of another, as an agent does where IPv6 is switched on or off.
    async fn replace(&mut self, old: &Lease, new: &Lease) {
        let entries = self.store.snapshot().await.unwrap().entries;
        let modified = entries.iter().find(|entry| entry.key == old.key()).unwrap().modified;
        let written = self.store.replace(&old.key(), modified, &new.key(), new.value(), Some(DAY)).await;
        let Written::At(revision) = written.unwrap() else { panic!() };
        self.caught_up(revision).await;
    }

    /// What was done since this was last asked.
    fn applied(&self) -> Vec<Change> {
        std::mem::take(&mut self.datapath.state().applied)
    }

    async fn stop(self) {
        self.shutdown.send(true).unwrap();
        assert_eq!(self.running.await.unwrap().unwrap(), Exit::Shutdown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_in_either_half_is_one_change_of_the_peer() {
    let mut host = Host::start([2]).await;
    assert_eq!(host.applied(), [PeerChange::Put(net(2), peer(2)).into()]);
    let half = peer(2).ipv6.unwrap();
    for changed in [
        Peer { vtep_mac: Some(Mac([2, 0, 0, 0, 0, 99])), ..peer(2) },
        Peer { ipv6: Some(PeerIpv6 { vtep_mac: Some(Mac([6, 0, 0, 0, 0, 99])), ..half }), ..peer(2) },
        Peer { ipv6: Some(PeerIpv6 { public_ip: "fd99::77".parse().unwrap(), ..half }), ..peer(2) },
    ] {
        host.put(&lease(2, changed)).await;
        assert_eq!(host.applied(), [PeerChange::Put(net(2), changed).into()]);
        // A renewal writes the same value again, so there is nothing to do.
        host.put(&lease(2, changed)).await;
        assert_eq!(host.applied(), []);
    }
    host.stop().await;
}

/// As IPv6 is switched on and off host by host, each peer stays, and never goes for a moment: no IPv4 packet is lost.
#[tokio::test(start_paused = true)]
async fn a_lease_that_changes_its_form_never_removes_its_peer() {
    let mut host = Host::start([]).await;
    let (both, one) = (lease(2, peer(2)), lease(2, ipv4(2)));
    host.put(&one).await;
    assert_eq!(host.applied(), [PeerChange::Put(net(2), ipv4(2)).into()]);
    host.replace(&one, &both).await;
    assert_eq!(host.applied(), [PeerChange::Put(net(2), peer(2)).into()]);
    host.replace(&both, &one).await;
    assert_eq!(host.applied(), [PeerChange::Put(net(2), ipv4(2)).into()]);
    assert_eq!(host.status.borrow().peers.installed, 1);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_half_is_reported_and_the_peer_stays() {
    let mut host = Host::start([2]).await;
    host.applied();
    let whole = lease(2, peer(2));
    let broken = String::from_utf8(whole.value().to_vec()).unwrap().replace("BackendV6Data", "Other");
    let revision = host.store.put(&whole.key(), broken, Some(DAY));
    let status = host.caught_up(revision).await;
    assert_eq!(host.applied(), [PeerChange::Put(net(2), ipv4(2)).into()]);
    let [skipped] = &status.peers.skipped[..] else { panic!("{:?}", status.peers.skipped) };
    assert!(skipped.is_ipv6_only && skipped.why == "BackendV6Data is missing", "{skipped:?}");
    assert_eq!((status.peers.wanted, status.peers.installed), (1, 1));
    let status = host.put(&whole).await;
    assert_eq!(status.peers.skipped, []);
    assert_eq!(host.applied(), [PeerChange::Put(net(2), peer(2)).into()]);
    host.stop().await;
}

/// A removal that was held back is confirmed by the deletion of that key alone, whichever form it has.
#[tokio::test(start_paused = true)]
async fn the_guard_knows_keys_of_both_families() {
    let others = [2, 3, 4, 5, 6];
    let mut host = Host::start(others).await;
    let key = |n| lease(n, peer(n)).key();
    let revision = host.store.commit(others.map(|n| (key(n), None)));
    let status = host.caught_up(revision).await;
    assert_eq!((status.peers.installed, status.peers.held.len()), (5, 5));
    // One host comes back with a lease of IPv4 alone, and another by the key it had: neither is dead.
    host.put(&lease(2, ipv4(2))).await;
    let status = host.put(&lease(3, peer(3))).await;
    assert_eq!(status.peers.held, [4, 5, 6].map(net));
    // An operator who deletes a single key means it.
    host.store.put(&key(4), "?", Some(DAY));
    let revision = host.store.delete(&key(4));
    let status = host.caught_up(revision).await;
    assert_eq!((status.peers.installed, status.peers.held), (4, [5, 6].map(net).to_vec()));
    host.stop().await;
}

/// The own lease of both families is kept as one of IPv4 alone is.
#[tokio::test(start_paused = true)]
async fn the_local_lease_is_kept_in_its_form() {
    let mut host = Host::start([]).await;
    let own = lease(1, peer(1));
    let text = |host: &Host| {
        let mut store = host.store.clone();
        async move {
            let entries = store.snapshot().await.unwrap().entries;
            entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
        }
    };
    let held = |status: &Status| {
        let lease = &status.lease;
        let stands = lease.alteration.as_ref().is_some_and(|alteration| alteration.stands);
        lease.state == LeaseState::Held && lease.error.is_none() && !stands
    };
    // Another host has the IPv4 subnet under a key of the other form. It is left to that host until its key goes.
    let theirs = lease(1, Peer { public_ip: [10, 99, 0, 7].into(), ..ipv4(1) });
    host.store.commit([(own.key(), None), (theirs.key(), Some(theirs.value()))]);
    let status = host.until("the reason", |status| status.lease.error.is_some()).await;
    assert_eq!(status.lease.state, LeaseState::Missing);
    let why = status.lease.error.unwrap();
    let says = format!("the IPv4 subnet of lease {} is leased by a key of another form", own.key());
    assert!(why.starts_with(&says), "{why}");
    assert_eq!(text(&host).await, [(theirs.key(), theirs.value())]);
    let gone = host.store.delete(&theirs.key());
    host.until("the key", |status| status.store.revision > gone.0 && held(status)).await;

    let gone = host.store.delete(&own.key());
    host.until("the key", |status| status.store.revision > gone.0 && held(status)).await;
    assert_eq!(text(&host).await, [(own.key(), own.value())]);

    let altered = String::from_utf8(own.value().to_vec()).unwrap().replace("06:00", "0a:00");
    let revision = host.store.put(&own.key(), altered, Some(DAY));
    let status = host.until("the value", |status| status.store.revision > revision.0 && held(status)).await;
    assert_eq!(text(&host).await, [(own.key(), own.value())]);
    let alteration = status.lease.alteration.unwrap();
    assert!(alteration.what.contains(r#""VtepMAC":"0a:00:00:00:00:01""#), "{}", alteration.what);
    host.stop().await;
}

//! The reconciler with a store and a data path in memory, in paused time: what it does after an etcd event, an outage,
//! a compaction, a mass deletion, a lost lease, or tampering.
#![allow(clippy::unwrap_used, reason = "clippy knows the tests, not their helpers")]

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use overlay_user::{
    agent::{
        control::{Call, Request, Response},
        health,
        origin::Noted,
        peers::Scope,
        reconciler::{self, Exit, Inputs, Setup},
        status::{Resync, ResyncKind, Status},
    },
    datapath::memory::Memory,
    model::{
        backend::Backend,
        change::{Change, LocalChange, PeerChange, XdpTargetChange},
        entries::{Endpoint, ForeignTc, Peer, PortKind},
        lease::{Lease, LeaseBackend},
        mac::Mac,
    },
    store::{
        self, Follow as _, Lifetime, Origin, Revision, Store as _, Written,
        acquire::LocalLease,
        local_lease::{LeaseKeeper, LeaseState},
        memory::{Fault, MemoryStore},
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// A time longer than any test.
const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The lifetime of the local lease.
const LIFE: Duration = Duration::from_secs(2 * 3600);
const MARGIN: Duration = Duration::from_secs(600);
const OWN: &str = "10.244.1.0-24";

/// The third byte of a subnet's address: its number in these tests.
fn third(subnet: &IpNet) -> u8 {
    let IpAddr::V4(base) = subnet.addr() else { panic!("{subnet}") };
    base.octets()[2]
}

fn net(n: u8) -> IpNet {
    format!("10.244.{n}.0/24").parse().unwrap()
}

fn key(n: u8) -> String {
    format!("10.244.{n}.0-24")
}

fn peer(n: u8) -> Peer {
    Peer { public_ip: [10, 99, 0, n].into(), vtep_mac: Some(Mac([2, 0, 0, 0, 0, n])), ipv6: None }
}

fn lease_of(subnet: u8, peer: Peer) -> Lease {
    Lease {
        subnet: net(subnet),
        public_ip: peer.public_ip,
        backend: LeaseBackend::Vxlan { vni: 1, vtep_mac: peer.vtep_mac.unwrap() },
        ipv6: None,
    }
}

fn lease(n: u8) -> Lease {
    lease_of(n, peer(n))
}

fn held(lease: Lease, modified: Revision) -> LocalLease {
    LocalLease { lease, modified, time_to_live: Some(LIFE), renewed: Instant::now() }
}

fn endpoint(port: u32, pinned: bool) -> Endpoint {
    Endpoint {
        port,
        mac: Mac([2; 6]),
        gateway_mac: Mac([4; 6]),
        pinned,
        foreign_tc: ForeignTc::default(),
        bridge: None,
    }
}

/// A channel on which no XDP targets are announced.
fn no_targets() -> mpsc::Receiver<Vec<XdpTargetChange>> {
    mpsc::channel(1).1
}

/// A host: its reconciler, and every handle on it.
struct Host {
    store: MemoryStore,
    datapath: Memory,
    status: watch::Receiver<Status>,
    endpoints: mpsc::Sender<Vec<LocalChange>>,
    control: mpsc::Sender<Call>,
    shutdown: watch::Sender<bool>,
    running: JoinHandle<anyhow::Result<Exit>>,
}

/// The network, and the place of the host in it that holds this lease.
fn scope_of(own: &Lease) -> Scope {
    Scope {
        network: "10.244.0.0/16".parse().unwrap(),
        subnet_len: 24,
        backend: Backend::DEFAULT,
        own_ip: own.public_ip,
        own_subnet: own.subnet,
        ipv6: None,
    }
}

impl Host {
    /// Starts a host whose store has leases of these peers, and whose data path is as given.
    async fn start(peers: impl IntoIterator<Item = u8>, datapath: Memory) -> Self {
        let store = MemoryStore::default();
        for n in peers {
            store.put(&key(n), lease(n).value(), Some(DAY));
        }
        Self::join(store, datapath).await
    }

    async fn join(mut store: MemoryStore, datapath: Memory) -> Self {
        let own = lease(1);
        let Written::At(modified) = store.claim(OWN, own.value(), Some(LIFE)).await.unwrap() else {
            panic!("the own key is taken")
        };
        Self::run(store, datapath, modified, None).await
    }

    /// Ends the agent and starts another, which finds what the first one noted.
    async fn restarted(self) -> Self {
        let status = self.status.borrow().clone();
        let origin = Origin { cluster: status.store.cluster, revision: Revision(status.store.revision) };
        let noted = Noted { origin, guard: status.peers.guard.unwrap() };
        let (mut store, datapath) = (self.store.clone(), self.datapath.clone());
        assert_eq!(self.stop().await, Exit::Shutdown);
        let entries = store.snapshot().await.unwrap().entries;
        let modified = entries.iter().find(|entry| entry.key == OWN).unwrap().modified;
        Self::run(store, datapath, modified, Some(noted)).await
    }

    /// Starts a host that has its lease, last written at `modified`.
    async fn run(store: MemoryStore, datapath: Memory, modified: Revision, noted: Option<Noted>) -> Self {
        let own = lease(1);
        let scope = scope_of(&own);
        let (status, watched) =
            watch::channel(Status::new(scope.own_ip, scope.own_subnet, scope.network, scope.backend));
        let (endpoints, learned) = mpsc::channel(8);
        let (control, calls) = mpsc::channel(8);
        let (shutdown, asked) = watch::channel(false);
        let setup = Setup {
            scope,
            lease: LeaseKeeper::new(held(own, modified), MARGIN),
            audit: reconciler::AUDIT,
            origin: noted,
        };
        let inputs = Inputs::new(learned, no_targets(), calls, asked, status);
        let running = tokio::spawn(reconciler::run(store.clone(), datapath.clone(), setup, inputs));
        let mut host = Self { store, datapath, status: watched, endpoints, control, shutdown, running };
        host.until("the stream to open", |status| status.store.following).await;
        host
    }

    /// Waits until the status fulfils `is`.
    async fn until(&mut self, what: &str, is: impl FnMut(&Status) -> bool) -> Status {
        let found = timeout(DAY, self.status.wait_for(is)).await;
        let found = found.unwrap_or_else(|_| panic!("waited in vain for {what}")).unwrap();
        found.clone()
    }

    /// Waits until everything up to this revision of the store has been taken in.
    async fn caught_up(&mut self, revision: Revision) -> Status {
        self.until("a revision", |status| status.store.revision >= revision.0).await
    }

    async fn put(&mut self, n: u8, lease: &Lease) -> Status {
        let revision = self.store.put(&key(n), lease.value(), Some(DAY));
        self.caught_up(revision).await
    }

    async fn delete(&mut self, keys: impl IntoIterator<Item = u8>) -> Status {
        let revision = self.store.commit(keys.into_iter().map(|n| (key(n), None)));
        self.caught_up(revision).await
    }

    async fn ask(&self, request: Request) -> Response {
        let (answer, answered) = oneshot::channel();
        self.control.send(Call { request, answer }).await.unwrap();
        answered.await.unwrap()
    }

    /// The third bytes of the subnets whose peers are installed.
    fn installed(&self) -> Vec<u8> {
        self.datapath.state().installed.peers.keys().map(third).collect()
    }

    fn peer(&self, n: u8) -> Option<Peer> {
        self.datapath.state().installed.peers.get(&net(n)).copied()
    }

    async fn stop(self) -> Exit {
        self.shutdown.send(true).unwrap();
        timeout(Duration::from_secs(1), self.running).await.unwrap().unwrap().unwrap()
    }
}

/// A data path that already has these peers, as an agent finds it after a restart.
fn with_peers(peers: impl IntoIterator<Item = u8>) -> Memory {
    let datapath = Memory::default();
    datapath.state().installed.peers = peers.into_iter().map(|n| (net(n), peer(n))).collect();
    datapath
}

/// Ends a test, as all but one end: the reconciler is told to stop, and leaves everything as it is.
async fn stopped_without_a_trace(host: Host) {
    let datapath = host.datapath.clone();
    let before = datapath.state().installed.clone();
    assert_eq!(host.stop().await, Exit::Shutdown);
    assert_eq!(datapath.state().installed, before);
}

#[tokio::test(start_paused = true)]
async fn first_sync_adopts_what_is_right_and_alters_the_rest() {
    let datapath = with_peers([2, 9]);
    datapath.state().installed.peers.insert(net(3), Peer { vtep_mac: Some(Mac([6; 6])), ..peer(3) });
    let host = Host::start([2, 3, 4], datapath).await;
    assert_eq!(
        host.datapath.state().applied,
        [PeerChange::Put(net(3), peer(3)), PeerChange::Put(net(4), peer(4)), PeerChange::Remove(net(9))]
            .map(Change::from)
    );
    let status = host.status.borrow().clone();
    let first = status.peers.first_apply.unwrap();
    assert_eq!((first.peers, first.changes), (3, 3));
    assert_eq!((status.peers.wanted, status.peers.installed), (3, 3));
    assert_eq!(health::not_ready(&status), [""; 0]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn every_change_of_a_lease_is_one_change_of_the_data_path() {
    let mut host = Host::start([], Memory::default()).await;
    host.put(2, &lease(2)).await;
    let moved = Peer { vtep_mac: Some(Mac([2, 0, 0, 0, 0, 99])), ..peer(7) };
    host.put(2, &lease_of(2, moved)).await;
    // A renewal writes the same value again, so there is nothing to do.
    host.put(2, &lease_of(2, moved)).await;
    host.delete([2]).await;
    assert_eq!(
        host.datapath.state().applied,
        [PeerChange::Put(net(2), peer(2)), PeerChange::Put(net(2), moved), PeerChange::Remove(net(2))]
            .map(Change::from)
    );
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_goes_alone() {
    let mut host = Host::start([2], Memory::default()).await;
    host.store.put(&key(3), lease(3).value(), Some(Duration::from_secs(60)));
    host.until("the peer", |status| status.peers.installed == 2).await;
    host.until("its end", |status| status.peers.installed == 1).await;
    assert_eq!(host.installed(), [2]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn compaction_while_cut_off_ends_in_a_difference_both_ways() {
    let mut host = Host::start([2, 3, 4], Memory::default()).await;
    host.store.set_fault(Some(Fault::Unavailable));
    host.until("the outage", |status| !status.store.following).await;
    let changed = Peer { vtep_mac: Some(Mac([2, 0, 0, 0, 0, 77])), ..peer(3) };
    host.store.delete(&key(2));
    host.store.put(&key(3), lease_of(3, changed).value(), None);
    host.store.put(&key(5), lease(5).value(), None);
    host.store.compact();
    host.store.set_fault(None);
    host.until("the stream", |status| status.store.following && status.store.snapshots == 2).await;
    assert_eq!(host.installed(), [3, 4, 5]);
    assert_eq!(host.peer(3), Some(changed));
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn compaction_under_an_open_watch_and_a_cut_watch_lose_nothing() {
    let mut host = Host::start([2], Memory::default()).await;
    for (n, disturb) in [(3, MemoryStore::compact as fn(&MemoryStore)), (4, MemoryStore::cut_watches)] {
        host.store.put(&key(n), lease(n).value(), None);
        disturb(&host.store);
        host.until("the new peer", |status| status.peers.installed == usize::from(n) - 1).await;
        host.until("the stream", |status| status.store.following).await;
    }
    assert_eq!(host.installed(), [2, 3, 4]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_takes_nothing_away_and_the_status_says_since_when() {
    let mut host = Host::start([2, 3], Memory::default()).await;
    for fault in [Fault::Unavailable, Fault::Refused] {
        let snapshots = host.status.borrow().store.snapshots;
        host.store.set_fault(Some(fault));
        let status = host.until("the outage", |status| !status.store.following).await;
        assert!(status.store.error.is_some() && status.store.since > 0);
        // These two together end before the lease does.
        sleep(HOUR / 2).await;
        assert_eq!(host.installed(), [2, 3]);
        let not_ready = health::not_ready(&host.status.borrow());
        assert!(not_ready.len() == 1 && not_ready[0].starts_with("store: "), "{not_ready:?}");
        // What is learned on this host is applied meanwhile.
        let learned = vec![
            LocalChange::Attach(9, PortKind::Veth),
            LocalChange::PutEndpoint(IpAddr::from([10, 244, 1, 9]), endpoint(9, false)),
        ];
        host.endpoints.send(learned).await.unwrap();
        host.until("the endpoint", |status| status.datapath.endpoints == 1).await;
        host.store.set_fault(None);
        let back = Instant::now();
        host.until("the stream", |status| status.store.following).await;
        assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
        assert_eq!(host.status.borrow().store.snapshots, snapshots, "what was known still holds");
    }
    assert_eq!(host.datapath.state().installed.endpoints.len(), 1);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed_and_the_status_says_why_all_was_read() {
    let mut host = Host::start([2, 3], Memory::default()).await;
    let resync = |host: &Host| host.status.borrow().store.resync.clone().unwrap();
    let is = |found: Resync, kind, words: &str| {
        assert_eq!(found.kind, kind, "{found:?}");
        assert!(found.why.contains(words), "{found:?}");
    };
    is(resync(&host), ResyncKind::Listed, "the agent has started");
    // Changes that are made while the agent does not follow are heard of afterwards.
    for n in 4..8 {
        host.store.cut_watches();
        host.put(n, &lease(n)).await;
        host.until("the stream", |status| status.store.following).await;
        is(resync(&host), ResyncKind::Resumed, "the watch was cut");
    }
    host.store.set_fault(Some(Fault::Unavailable));
    host.until("the outage", |status| !status.store.following).await;
    host.store.delete(&key(7));
    host.store.put(&key(8), lease(8).value(), Some(DAY));
    host.store.set_fault(None);
    host.until("the stream", |status| status.store.following).await;
    host.until("the change", |status| status.peers.installed == 6).await;
    assert_eq!(host.installed(), [2, 3, 4, 5, 6, 8]);
    is(resync(&host), ResyncKind::Resumed, "made to fail");
    assert_eq!((host.store.asked().snapshots, host.status.borrow().store.snapshots), (1, 1));

    host.store.set_fault(Some(Fault::Unavailable));
    host.until("the outage", |status| !status.store.following).await;
    host.store.put(&key(9), lease(9).value(), Some(DAY));
    host.store.compact();
    host.store.set_fault(None);
    host.until("the peer", |status| status.peers.installed == 7).await;
    is(resync(&host), ResyncKind::Listed, "before revision");
    host.ask(Request::Resync).await;
    host.until("the reading", |status| status.store.snapshots == 3).await;
    is(resync(&host), ResyncKind::Listed, "an operator asked");
    host.store.wipe();
    host.until("the held ones", |status| status.peers.held.len() == 7).await;
    host.until("the other cluster", |status| status.store.cluster == 2 && status.store.following).await;
    assert_eq!(host.installed().len(), 7);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_with_nothing_to_do_hardly_asks_the_store() {
    let host = Host::start([], Memory::default()).await;
    let before = host.store.asked();
    sleep(DAY).await;
    let after = host.store.asked();
    // All leases are read every two to six hours, and counted every half to one and a half.
    let snapshots = after.snapshots - before.snapshots;
    assert!((4..=12).contains(&snapshots), "{snapshots} snapshots in a day");
    let tallies = after.tallies - before.tallies;
    assert!((8..=48).contains(&tallies), "{tallies} tallies in a day");
    assert_eq!(after.follows - before.follows, snapshots, "a watch ends only when all is read again");
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_watch_did_not_tell_is_found_by_counting() {
    let mut host = Host::start([2], Memory::default()).await;
    host.store.put_unheard(&key(3), lease(3).value());
    let start = Instant::now();
    host.until("the peer", |status| status.peers.installed == 2).await;
    assert!(start.elapsed() <= reconciler::AUDIT * 18 + MINUTE * 2, "{:?}", start.elapsed());
    let resync = host.status.borrow().store.resync.clone().unwrap();
    assert_eq!(resync.kind, ResyncKind::Listed);
    assert!(resync.why.starts_with("2 leases were known of 3 at revision "), "{resync:?}");
    stopped_without_a_trace(host).await;
}

/// Has the host find, when it resumes its watch, that the store is not what it knew. Returns how long it waits from then on
/// until it reads all leases.
async fn pause_after_a_doubt(host: &mut Host) -> Duration {
    let snapshots = host.status.borrow().store.snapshots;
    host.store.set_fault(Some(Fault::Unavailable));
    host.until("the outage", |status| !status.store.following).await;
    host.store.delete(OWN);
    let tallies = host.store.asked().tallies;
    host.store.set_fault(None);
    while host.store.asked().tallies == tallies {
        sleep(Duration::from_millis(1)).await;
    }
    let start = Instant::now();
    let status = host.until("all being read again", |status| status.store.snapshots > snapshots).await;
    let pause = start.elapsed();
    let resync = status.store.resync.unwrap();
    assert!(resync.why.contains("of this host is gone"), "{resync:?}");
    host.until("the own lease", |status| status.lease.state == LeaseState::Held && status.store.following)
        .await;
    pause
}

#[tokio::test(start_paused = true)]
async fn what_all_hosts_may_doubt_at_once_is_read_after_a_pause_that_grows_with_their_number() {
    let mut few = Host::start([2, 3], Memory::default()).await;
    for _ in 0..8 {
        let pause = pause_after_a_doubt(&mut few).await;
        assert!(pause < Duration::from_millis(30), "{pause:?}");
    }
    stopped_without_a_trace(few).await;

    let mut many = Host::start(2..252, Memory::default()).await;
    let mut pauses = Vec::new();
    for _ in 0..16 {
        pauses.push(pause_after_a_doubt(&mut many).await);
    }
    let longest = pauses.iter().max().unwrap();
    assert!((Duration::from_millis(100)..Duration::from_millis(800)).contains(longest), "{pauses:?}");
    // What an operator asks for is done at once.
    for _ in 0..8 {
        let (start, snapshots) = (Instant::now(), many.status.borrow().store.snapshots);
        many.ask(Request::Resync).await;
        many.until("the reading", |status| status.store.snapshots > snapshots).await;
        assert!(start.elapsed() < Duration::from_millis(5), "{:?}", start.elapsed());
        many.until("the stream", |status| status.store.following).await;
    }
    stopped_without_a_trace(many).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_of_the_store_that_lags_behind_contradicts_nothing() {
    let mut host = Host::start([2], Memory::default()).await;
    host.store.lag(host.store.clone().snapshot().await.unwrap());
    host.put(3, &lease(3)).await;
    let snapshots = host.status.borrow().store.snapshots;
    host.until("all being read again", |status| status.store.snapshots > snapshots + 1).await;
    assert_eq!(host.installed(), [2, 3]);
    assert!(host.status.borrow().peers.held.is_empty());
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn leases_that_end_one_by_one_within_minutes_do_not_take_most_peers_away() {
    let mut host = Host::start(2..32, Memory::default()).await;
    for n in 2..26 {
        host.delete([n]).await;
        sleep(Duration::from_secs(10)).await;
    }
    let held = host.until("held ones", |status| status.peers.held.len() == 9).await.peers.held;
    assert_eq!((held[0], host.installed().len()), (net(17), 15));
    // One that is back is no longer held, and the operator lets the others go.
    host.put(17, &lease(17)).await;
    host.until("one less", |status| status.peers.held.len() == 8).await;
    assert!(matches!(host.ask(Request::AcceptDeletions).await, Response::Done(_)));
    assert_eq!(host.installed(), [17, 26, 27, 28, 29, 30, 31]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_lets_no_removal_through_that_was_held_back() {
    let mut host = Host::start(2..32, Memory::default()).await;
    for n in 2..22 {
        host.delete([n]).await;
    }
    host.until("held ones", |status| status.peers.held.len() == 5).await;
    for n in 22..24 {
        host = host.restarted().await;
        assert_eq!(host.status.borrow().peers.held.len(), usize::from(n) - 17, "those from before");
        // What was let through before still counts.
        host.delete([n]).await;
        host.until("one more", |status| status.peers.held.len() == usize::from(n) - 16).await;
        assert_eq!(host.installed().len(), 15);
    }
    // A peer that is back is not held after the next restart.
    host.store.put(&key(17), lease(17).value(), Some(DAY));
    let host = host.restarted().await;
    assert_eq!(host.status.borrow().peers.held.len(), 6);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn mass_deletion_in_one_revision_is_held_until_accepted() {
    let mut host = Host::start(2..12, Memory::default()).await;
    let status = host.delete(2..8).await;
    assert_eq!(host.installed().len(), 10);
    assert_eq!(status.peers.wanted, 4);
    let status = host.until("the held ones", |status| status.peers.held.len() == 6).await;
    assert_eq!(status.peers.held[0], net(2));
    // One peer comes back and is deleted again by itself. That deletion is believed.
    host.put(2, &lease(2)).await;
    host.until("one less", |status| status.peers.held.len() == 5).await;
    host.delete([2]).await;
    assert_eq!(host.peer(2), None);
    // The audit holds the others back as before.
    sleep(reconciler::AUDIT * 2).await;
    assert_eq!(host.installed().len(), 9);
    let Response::Done(said) = host.ask(Request::AcceptDeletions).await else { panic!("refused") };
    assert_eq!(said, "5 removals accepted");
    assert_eq!(host.installed(), [8, 9, 10, 11]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn mass_deletion_found_at_a_start_is_held_and_single_deletions_still_apply() {
    let mut host = Host::start([2, 3], with_peers(2..12)).await;
    let held = host.status.borrow().peers.held.len();
    assert_eq!((held, host.installed().len()), (8, 10));
    host.delete([3]).await;
    assert_eq!(host.peer(3), None);
    assert_eq!(host.installed().len(), 9);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_all_may_go() {
    let mut host = Host::start(2..8, Memory::default()).await;
    for n in 2..8 {
        host.delete([n]).await;
    }
    assert!(host.installed().is_empty());
    assert!(host.status.borrow().peers.held.is_empty());
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn another_cluster_removes_nobody_and_gets_our_lease() {
    let mut host = Host::start([2, 3], Memory::default()).await;
    host.store.wipe();
    host.store.cut_watches();
    host.until("the held ones", |status| status.peers.held.len() == 2).await;
    host.until("the own lease", |status| status.lease.state == LeaseState::Held && status.store.following)
        .await;
    assert_eq!(host.installed(), [2, 3]);
    let own = host.store.snapshot().await.unwrap().entries;
    assert_eq!((own[0].key.as_str(), &own[0].value), (OWN, &lease(1).value()));
    // A peer that claims its lease in the new cluster is no longer held.
    host.put(2, &lease(2)).await;
    host.until("one less", |status| status.peers.held == [net(3)]).await;
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn bad_leases_are_named_and_the_others_applied() {
    let mut host = Host::start([2], Memory::default()).await;
    host.store.put(&key(3), "{", None);
    host.store.put("nonsense", "{}", None);
    let revision = host.store.put(&key(4), lease(4).value(), None);
    let status = host.caught_up(revision).await;
    let status = if status.peers.skipped.len() == 2 {
        status
    } else {
        host.until("two skipped", |status| status.peers.skipped.len() == 2).await
    };
    let named: Vec<&str> = status.peers.skipped.iter().map(|skipped| skipped.key.as_str()).collect();
    assert_eq!(named, [key(3).as_str(), "nonsense"]);
    host.until("both peers", |status| status.peers.installed == 2).await;
    assert_eq!(host.installed(), [2, 4]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn the_own_key_deleted_from_outside_is_claimed_again_at_once() {
    let mut host = Host::start([2], Memory::default()).await;
    let deleted = host.store.delete(OWN);
    let start = Instant::now();
    host.until("the claim", |status| {
        status.lease.state == LeaseState::Held && status.store.revision > deleted.0
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(2));
    let entries = host.store.snapshot().await.unwrap().entries;
    assert!(entries.iter().any(|entry| entry.key == OWN && entry.value == lease(1).value()));
    assert_eq!(host.installed(), [2]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn the_own_key_in_other_hands_is_reported_and_taken_back_when_free() {
    let mut host = Host::start([2], Memory::default()).await;
    host.put(1, &lease_of(1, peer(9))).await;
    let lost = LeaseState::Lost { to: "10.99.0.9".to_owned() };
    let status = host.until("the loss", |status| status.lease.state == lost).await;
    assert_eq!(health::not_ready(&status), ["lease: 10.244.1.0-24 is held by 10.99.0.9"]);
    assert_eq!(host.installed(), [2], "the thief of the own subnet is no peer for it");
    // The margin passes and audits pass, but the other host's key is not touched.
    sleep(LIFE * 2).await;
    let entries = host.store.snapshot().await.unwrap().entries;
    assert!(entries.iter().any(|entry| entry.key == OWN && entry.value == lease_of(1, peer(9)).value()));
    host.delete([1]).await;
    host.until("the lease", |status| status.lease.state == LeaseState::Held).await;
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_by_its_margin_also_after_an_outage() {
    let mut host = Host::start([2], Memory::default()).await;
    let revision = host.store.snapshot().await.unwrap().revision;
    let remaining = |host: &Host| host.store.remaining(OWN).unwrap();
    // A renewal comes up to a tenth of the margin early.
    let earliest = MARGIN + MARGIN / 10;
    sleep(remaining(&host) - earliest - MINUTE).await;
    assert!(remaining(&host) <= earliest + MINUTE, "not yet");
    sleep(earliest - MARGIN + MINUTE * 2).await;
    assert!(remaining(&host) > LIFE - earliest, "{:?}", remaining(&host));
    // The store is down when the next renewal is due, and back before the lease ends.
    sleep(remaining(&host) - earliest - MINUTE).await;
    host.store.set_fault(Some(Fault::Unavailable));
    sleep(earliest - MARGIN + MINUTE + MARGIN / 2).await;
    assert!(remaining(&host) <= MARGIN / 2);
    host.store.set_fault(None);
    sleep(MINUTE).await;
    assert!(remaining(&host) > LIFE - MINUTE * 2, "{:?}", remaining(&host));
    // This goes on, the key is there all the time, and no other host hears of it.
    sleep(LIFE * 3).await;
    assert!(remaining(&host) >= MARGIN);
    assert_eq!(host.store.snapshot().await.unwrap().revision, revision);
    let entries = host.store.snapshot().await.unwrap().entries;
    assert!(entries.iter().any(|entry| entry.key == OWN && entry.value == lease(1).value()));
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn the_audit_repairs_drift_but_not_what_it_did_not_decide_on() {
    let mut host = Host::start([2, 3], Memory::default()).await;
    let address = IpAddr::from([10, 244, 1, 5]);
    let learned =
        vec![LocalChange::Attach(7, PortKind::Veth), LocalChange::PutEndpoint(address, endpoint(7, false))];
    host.endpoints.send(learned).await.unwrap();
    host.until("the endpoint", |status| status.datapath.endpoints == 1).await;
    let stranger = IpAddr::from([10, 244, 1, 6]);
    {
        let mut state = host.datapath.state();
        state.installed.peers.remove(&net(2));
        state.installed.peers.insert(net(3), peer(8));
        state.installed.peers.insert(net(4), peer(4));
        state.installed.endpoints.clear();
        state.installed.ports.clear();
        state.installed.ports.insert(8, PortKind::Bridge);
        state.installed.endpoints.insert(stranger, endpoint(8, false));
    }
    let status = host.until("the audit", |status| status.datapath.repaired > 0).await;
    assert_eq!(status.datapath.repaired, 7);
    assert_eq!((host.installed(), host.peer(3)), (vec![2, 3], Some(peer(3))));
    let installed = host.datapath.state().installed.clone();
    assert_eq!(installed.endpoints.get(&address), Some(&endpoint(7, false)));
    assert_eq!(installed.endpoints.get(&stranger), Some(&endpoint(8, false)));
    assert_eq!(installed.ports.len(), 2);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_table_is_reported_the_rest_applied_and_room_is_used() {
    let datapath = Memory::default();
    datapath.state().capacity = Some(2);
    let mut host = Host::start([2, 3, 4], datapath).await;
    let status = host.status.borrow().clone();
    assert_eq!((status.peers.wanted, status.peers.installed, status.peers.failed.len()), (3, 2, 1));
    assert!(status.peers.failed[0].why.contains("--max-peers"), "{:?}", status.peers.failed);
    // An entry that exists can be changed without more space, and a removal makes space.
    let moved = Peer { vtep_mac: Some(Mac([2, 0, 0, 0, 0, 42])), ..peer(2) };
    host.put(2, &lease_of(2, moved)).await;
    assert_eq!(host.peer(2), Some(moved));
    host.delete([3]).await;
    assert_eq!(host.installed(), [2, 4]);
    host.until("no failure", |status| status.peers.failed.is_empty()).await;
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_data_path_is_not_ready_and_recovers() {
    let mut host = Host::start([2], Memory::default()).await;
    host.datapath.state().failing = Some("made to fail".to_owned());
    assert!(matches!(host.ask(Request::Resync).await, Response::Done(_)));
    let status = host.until("the failure", |status| !status.datapath.attached).await;
    assert_eq!(health::not_ready(&status), ["data path: read the maps: made to fail"]);
    host.store.put(&key(3), lease(3).value(), None);
    host.datapath.state().failing = None;
    host.until("the recovery", |status| status.datapath.attached && status.peers.installed == 2).await;
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_while_the_data_path_fails() {
    let mut host = Host::start([2], Memory::default()).await;
    host.datapath.state().failing = Some("made to fail".to_owned());
    host.until("the failure", |status| !status.datapath.attached).await;
    let start = host.store.snapshot().await.unwrap().revision;
    let mut follow = host.store.follow(start).await.unwrap();
    sleep(LIFE * 3).await;
    let entries = host.store.snapshot().await.unwrap().entries;
    assert!(entries.iter().any(|entry| entry.key == OWN && entry.value == lease(1).value()));
    // The lease is renewed, of which no other host hears, rather than lost and claimed again.
    host.store.put(&key(3), lease(3).value(), Some(DAY));
    match &follow.next().await.unwrap().changes[..] {
        [store::LeaseChange::Put(entry)] if entry.key == key(3) => {}
        other => panic!("{other:?}"),
    }
    host.datapath.state().failing = None;
    host.until("the recovery", |status| status.datapath.attached && status.peers.installed == 2).await;
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn another_cluster_is_news_also_after_a_failure_of_the_data_path() {
    let mut host = Host::start([2, 3], Memory::default()).await;
    let before = host.status.borrow().store.cluster;
    host.datapath.state().failing = Some("made to fail".to_owned());
    host.store.wipe();
    host.store.cut_watches();
    host.until("the failure", |status| !status.datapath.attached).await;
    assert_eq!(host.status.borrow().store.cluster, before, "an agent that starts now must hear of it, too");
    host.datapath.state().failing = None;
    host.until("the held ones", |status| status.peers.held.len() == 2).await;
    assert_eq!(host.installed(), [2, 3]);
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn a_reservation_of_the_own_subnet_stays_one() {
    let mut host = Host::start([2], Memory::default()).await;
    for value in [lease(1).value(), r#"{"PublicIP":"10.99.0.1"}"#.into()] {
        host.store.put(OWN, value, None);
        sleep(DAY).await;
        let entries = host.store.snapshot().await.unwrap().entries;
        let own = entries.iter().find(|entry| entry.key == OWN).unwrap();
        assert_eq!((own.lifetime, &own.value), (Lifetime::Reserved, &lease(1).value()));
        assert_eq!(host.status.borrow().lease.expires, None);
    }
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn what_learning_decides_is_done_and_ends_with_the_link() {
    let mut host = Host::start([], Memory::default()).await;
    let address = IpAddr::from([10, 244, 1, 5]);
    for (change, wanted) in [
        (LocalChange::Attach(7, PortKind::Veth), None),
        (LocalChange::PutEndpoint(address, endpoint(7, true)), Some(endpoint(7, true))),
        (LocalChange::Attach(9, PortKind::Veth), Some(endpoint(7, true))),
        (LocalChange::PutEndpoint(address, endpoint(9, false)), Some(endpoint(9, false))),
        (LocalChange::RemoveEndpoint(address), None),
        (LocalChange::PutEndpoint(address, endpoint(9, false)), Some(endpoint(9, false))),
    ] {
        host.endpoints.send(vec![change]).await.unwrap();
        sleep(MINUTE).await;
        assert_eq!(host.datapath.state().installed.endpoints.get(&address), wanted.as_ref(), "{change:?}");
    }
    let Response::Endpoints(lines) = host.ask(Request::Endpoints).await else { panic!() };
    assert_eq!(lines.iter().map(|line| line.endpoint).collect::<Vec<_>>(), [endpoint(9, false)]);
    host.endpoints.send(vec![LocalChange::Detach(9)]).await.unwrap();
    host.until("the link's end", |status| status.datapath.ports == 1 && status.datapath.endpoints == 0).await;
    // Learning cannot change peers: its messages have no form for that.
    assert!(host.installed().is_empty());
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn failed_endpoint_changes_are_tried_again_without_the_store() {
    let mut host = Host::start([], Memory::default()).await;
    host.store.set_fault(Some(Fault::Unavailable));
    host.datapath.state().failing = Some("made to fail".to_owned());
    host.endpoints.send(vec![LocalChange::Attach(7, PortKind::Veth)]).await.unwrap();
    host.until("the failure", |status| status.datapath.waiting == 1).await;
    host.datapath.state().failing = None;
    host.until("the repair", |status| status.datapath.waiting == 0 && status.datapath.ports == 1).await;
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn peers_are_listed_with_their_revision() {
    let mut host = Host::start([2], with_peers(2..12)).await;
    let revision = host.store.put(&key(2), lease(2).value(), None);
    host.caught_up(revision).await;
    let Response::Peers(lines) = host.ask(Request::Peers).await else { panic!() };
    assert_eq!(lines.len(), 10);
    assert_eq!((lines[0].subnet, lines[0].revision), (net(2), Some(revision.0)));
    assert!(lines[0].installed && !lines[0].held);
    assert!(lines[1..].iter().all(|line| line.held && line.revision.is_none()));
    stopped_without_a_trace(host).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_left_to_ask_for_the_end_ends_it_too() {
    let Host { running, shutdown, datapath, .. } = Host::start([2], Memory::default()).await;
    drop(shutdown);
    assert_eq!(running.await.unwrap().unwrap(), Exit::Abandoned);
    assert_eq!(datapath.state().installed.peers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_data_path_that_cannot_be_read_at_the_start_is_an_error() {
    let datapath = Memory::default();
    datapath.state().failing = Some("made to fail".to_owned());
    let own = lease(1);
    let scope = scope_of(&own);
    let status =
        watch::Sender::new(Status::new(scope.own_ip, scope.own_subnet, scope.network, scope.backend));
    let inputs =
        Inputs::new(mpsc::channel(1).1, no_targets(), mpsc::channel(1).1, watch::channel(false).1, status);
    let setup = Setup {
        scope,
        lease: LeaseKeeper::new(held(own, Revision(1)), MARGIN),
        audit: reconciler::AUDIT,
        origin: None,
    };
    let error =
        format!("{:#}", reconciler::run(MemoryStore::default(), datapath, setup, inputs).await.unwrap_err());
    assert_eq!(error, "read back what the data path has in force: read the maps: made to fail");
}

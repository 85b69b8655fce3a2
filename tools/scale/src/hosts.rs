//! Control loops of many hosts: the agent's own store client, acquisition, reconciler, guard and lease, with a data path in
//! memory.
use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use ipnet::IpNet;
use overlay_user::{
    agent::{
        peers::Scope,
        reconciler::{self, Inputs, Setup},
        status::Status,
    },
    datapath::memory::Memory,
    model::{
        backend::Backend,
        change::{Change, PeerChange},
        network::NetworkConfig,
        pause,
    },
    store::{
        Store as _,
        acquire::{self, LeaseRequest, TIME_TO_LIVE},
        etcd::{EtcdOptions, EtcdStore},
        local_lease::LeaseKeeper,
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

/// The prefix of all keys.
pub(crate) const PREFIX: &str = "/coreos.com/network";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often it is looked whether hosts are as they should be: what is said of their times is late by this at most.
const LOOK: Duration = Duration::from_millis(10);
/// The limit of the pauses between tries at the start.
const PAUSE: Duration = Duration::from_secs(1);
/// Default of `--subnet-lease-renew-margin`.
pub(crate) const MARGIN: Duration = Duration::from_secs(3600);

/// One host's loop, and the channels that keep it running.
#[derive(Debug)]
pub(crate) struct Host {
    /// The key of its lease below `<prefix>/subnets/`.
    pub(crate) key: String,
    /// The subnet of its lease.
    pub(crate) subnet: IpNet,
    /// Whether its way to etcd can be closed.
    pub(crate) takes_door: bool,
    /// The first of etcd's members in its options.
    pub(crate) member: usize,
    status: watch::Receiver<Status>,
    datapath: Memory,
    /// The peers that were removed.
    removed: RefCell<Vec<IpNet>>,
    shutdown: watch::Sender<bool>,
    running: JoinHandle<Result<reconciler::Exit>>,
}

/// The client of a host whose etcd has these addresses.
pub(crate) fn client(endpoints: Vec<String>) -> Result<EtcdStore> {
    EtcdStore::new(&EtcdOptions { endpoints, prefix: PREFIX.to_owned(), ..EtcdOptions::default() })
}

impl Host {
    /// Starts a host as the agent's binary does, with the address of this number, and returns when it has a lease.
    pub(crate) async fn start(number: u32, endpoints: Vec<String>) -> Result<Self> {
        let mut store = client(endpoints)?;
        let config = loop {
            // Of thousands that connect at once, some wait longer than a request may take.
            match store.config().await {
                Ok(text) => break NetworkConfig::parse(&text.context("no config")?)?,
                Err(_) => tokio::time::sleep(pause::drawn(PAUSE, 0, PAUSE)).await,
            }
        };
        let public_ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + number).into();
        let request = LeaseRequest {
            public_ip,
            former_ip: None,
            backend: Backend::DEFAULT,
            vtep_mac: None,
            preferred: None,
            ipv6: None,
            time_to_live: TIME_TO_LIVE,
        };
        let lease = loop {
            match acquire::acquire(&mut store, &config, &request).await {
                Ok(lease) => break lease,
                // As the agent does at its start, it waits for a time that it draws.
                Err(error) if error.to_string().contains("does not answer") => {
                    tokio::time::sleep(pause::drawn(PAUSE, 0, PAUSE)).await;
                }
                Err(error) => return Err(error),
            }
        };
        let (network, own_subnet) = (config.plan.network, lease.lease.subnet);
        let scope = Scope {
            network,
            subnet_len: config.plan.subnet_len,
            backend: Backend::DEFAULT,
            own_ip: public_ip,
            own_subnet,
            ipv6: None,
        };
        let (status_to, status) =
            watch::channel(Status::new(public_ip, own_subnet, network, Backend::DEFAULT));
        let (shutdown, asked) = watch::channel(false);
        let inputs =
            Inputs::new(mpsc::channel(1).1, mpsc::channel(1).1, mpsc::channel(1).1, asked, status_to);
        let lease = LeaseKeeper::new(lease, MARGIN);
        let key = lease.key().to_owned();
        let setup = Setup { scope, lease, audit: reconciler::AUDIT, origin: None };
        let datapath = Memory::default();
        let running = tokio::spawn(reconciler::run(store, datapath.clone(), setup, inputs));
        Ok(Self {
            key,
            subnet: own_subnet,
            takes_door: false,
            member: 0,
            status,
            datapath,
            removed: RefCell::default(),
            shutdown,
            running,
        })
    }

    /// Ends the loop. The lease stays.
    pub(crate) async fn stop(self) {
        let _ = self.shutdown.send(true);
        // Nobody waits for a host that has ended by an error: it has failed to agree before that.
        let _ = self.running.await;
    }

    /// Whether it follows the store, and has all of these leases but its own as its peers and no other ones, with none held back.
    pub(crate) fn agrees(&self, leases: &BTreeSet<IpNet>) -> bool {
        {
            // The numbers are compared first, as that takes no time.
            let Status { store, peers, .. } = &*self.status.borrow();
            if !store.following || peers.installed + 1 != leases.len() || !peers.held.is_empty() {
                return false;
            }
        }
        let others = leases.iter().filter(|subnet| **subnet != self.subnet);
        self.datapath.state().installed.peers.keys().eq(others)
    }

    /// Whether it is that lease's holder, or has it as a peer.
    pub(crate) fn knows(&self, lease: IpNet) -> bool {
        lease == self.subnet || self.datapath.state().installed.peers.contains_key(&lease)
    }

    /// Whether it follows the store.
    pub(crate) fn follows(&self) -> bool {
        self.status.borrow().store.following
    }

    /// Notes the peers that were removed since the last look, and forgets what was done.
    fn look(&self) {
        let applied = std::mem::take(&mut self.datapath.state().applied);
        let removal = |change: &Change| match change {
            Change::Peer(PeerChange::Remove(subnet)) => Some(*subnet),
            _ => None,
        };
        self.removed.borrow_mut().extend(applied.iter().filter_map(removal));
    }

    /// Which peers were removed since this was last asked.
    fn removed(&self) -> Vec<IpNet> {
        self.look();
        self.removed.take()
    }
}

/// Starts hosts with these numbers, all at once.
pub(crate) async fn start(
    numbers: impl Iterator<Item = u32>,
    endpoints: impl Fn(u32) -> Vec<String>,
) -> Result<Vec<Host>> {
    let tasks = numbers.map(|number| tokio::spawn(Host::start(number, endpoints(number))));
    let all = try_join_all(tasks.collect::<Vec<_>>());
    timeout(PATIENCE, all).await.context("not every host has a lease in time")??.into_iter().collect()
}

/// Ends hosts, all at once.
pub(crate) async fn stop(hosts: Vec<Host>) {
    join_all(hosts.into_iter().map(Host::stop)).await;
}

/// Waits until all of these hosts are as they should be. Returns when each was, counted from `start`, in order of time.
pub(crate) async fn until<'a>(
    hosts: impl Iterator<Item = &'a Host>,
    start: Instant,
    what: &str,
    is: impl Fn(&Host) -> bool,
) -> Result<Vec<Duration>> {
    let mut open: Vec<&Host> = hosts.collect();
    let (count, mut told) = (open.len(), Duration::from_secs(5));
    let mut times = Vec::with_capacity(count);
    loop {
        open.retain(|host| {
            host.look();
            !is(host)
        });
        let took = start.elapsed();
        times.resize(count - open.len(), took);
        if open.is_empty() {
            return Ok(times);
        }
        ensure!(
            took < PATIENCE,
            "{what}: after {} s, {} of {count} hosts are not there",
            took.as_secs(),
            open.len()
        );
        if took > told {
            eprintln!("    {what}: {} of {count} hosts after {} s", count - open.len(), took.as_secs());
            told = took + Duration::from_secs(5);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many peers these hosts together have removed since this was last asked, but for one whose lease has ended.
pub(crate) fn lost<'a>(hosts: impl IntoIterator<Item = &'a Host>, ended: Option<IpNet>) -> usize {
    hosts.into_iter().flat_map(Host::removed).filter(|subnet| Some(*subnet) != ended).count()
}

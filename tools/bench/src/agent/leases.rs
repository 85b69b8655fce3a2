//! The leases of hosts that do not exist, written to etcd as real hosts would write them.
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, PutOptions, Txn, TxnOp};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    map::{Peers, poll},
    peer::Stranger,
};
use overlay_lab::Namespace;

/// flannel's time to live of a lease, in seconds.
const TIME_TO_LIVE: i64 = 24 * 60 * 60;
/// Writes in one transaction. etcd allows 128 by default (`--max-txn-ops`).
const BATCH: usize = 100;
/// How many requests are under way at once.
const PARALLEL: usize = 64;
/// The pause between two single changes, in which agent and etcd come to rest.
const REST: Duration = Duration::from_millis(2);
/// At a steady rate, changes are sent once in this time, all that are due together.
const TICK: Duration = Duration::from_millis(5);

/// An etcd, and the namespace that it is reached from.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    /// The namespace that etcd is reached from.
    pub(super) namespace: Namespace,
    /// The address of etcd.
    pub(super) url: String,
}

/// The times from etcd's answer to the map entry, for each kind of change.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// For a lease that is new.
    pub(super) comes: Vec<Duration>,
    /// For a lease whose addresses change.
    pub(super) moves: Vec<Duration>,
    /// For a lease that is deleted.
    pub(super) leaves: Vec<Duration>,
    /// For all kinds, from the request to etcd.
    pub(super) asked: Vec<Duration>,
}

impl Leases {
    /// Writes the leases of the first `count` strangers. Each has an etcd lease of its own, as hosts' leases do.
    pub(super) fn write(&self, count: u32) -> Result<()> {
        let write = async move |client: Client| {
            let grants = (0..count).map(|_| {
                let mut client = client.clone();
                async move { Ok(client.lease_grant(TIME_TO_LIVE, None).await?.id()) }
            });
            let granted = all(grants).await.context("grant etcd leases")?;
            let puts: Vec<_> = (0..count)
                .map(Stranger::new)
                .zip(granted)
                .map(|(one, lease)| {
                    TxnOp::put(one.key(), one.value(), Some(PutOptions::new().with_lease(lease)))
                })
                .collect();
            let transactions = puts.chunks(BATCH).map(|puts| {
                let (mut client, transaction) = (client.clone(), Txn::new().and_then(puts));
                async move { Ok(client.txn(transaction).await.map(drop)?) }
            });
            all(transactions).await.context("write leases").map(drop)
        };
        self.run(write)
    }

    /// Makes `changes` changes, one after the other, besides the leases of the first `peers` strangers: one more host
    /// comes, moves, and leaves. Measures the time from etcd's answer until the map, which is read without a pause,
    /// shows the change.
    pub(super) fn one_by_one(&self, pins: PathBuf, peers: u32, changes: u32) -> Result<Latencies> {
        self.run(async move |mut client: Client| {
            let map = Peers::open(&pins)?;
            let mut latencies = Latencies::default();
            for number in 0..changes.div_ceil(3) {
                let came = Stranger::new(peers + number % 100);
                let moved = Stranger { moves: 1, ..came };

                let asked = Instant::now();
                client.put(came.key(), came.value(), None).await?;
                latencies.comes.push(seen("a new lease", came, || map.hold(came))?);
                latencies.asked.push(asked.elapsed());
                tokio::time::sleep(REST).await;

                let asked = Instant::now();
                client.put(moved.key(), moved.value(), None).await?;
                latencies.moves.push(seen("an altered lease", moved, || map.hold(moved))?);
                latencies.asked.push(asked.elapsed());
                tokio::time::sleep(REST).await;

                let asked = Instant::now();
                client.delete(moved.key(), None).await?;
                latencies.leaves.push(seen("a deleted lease", moved, || map.lack(moved))?);
                latencies.asked.push(asked.elapsed());
                tokio::time::sleep(REST).await;
            }
            Ok(latencies)
        })
    }

    /// Makes `rate` changes a second for `duration`, in which the first `peers` strangers move there and back by turns.
    /// Returns how many were made, and how long after etcd's last answer the maps showed all of them.
    pub(super) fn steadily(
        &self,
        pins: PathBuf,
        peers: u32,
        rate: u32,
        duration: Duration,
    ) -> Result<(u64, Duration)> {
        self.run(async move |client: Client| {
            let map = Peers::open(&pins)?;
            let mut last = vec![0_u8; peers as usize];
            let (started, mut made) = (Instant::now(), 0);
            let mut under_way = JoinSet::new();
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while started.elapsed() < duration {
                ticks.tick().await;
                let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                while made < due {
                    // A key has at most one change under way, so the change sent last is also the one made last.
                    let index = (made % u64::from(peers)) as u32;
                    last[index as usize] ^= 1;
                    let moved = Stranger { index, moves: last[index as usize] };
                    let mut client = client.clone();
                    under_way
                        .spawn(async move { client.put(moved.key(), moved.value(), None).await.map(drop) });
                    made += 1;
                }
                while let Some(done) = under_way.try_join_next() {
                    done??;
                }
                let waiting = under_way.len();
                ensure!(
                    waiting < (peers as usize).min(rate as usize),
                    "etcd does not take {rate} changes a second: {waiting} wait for its answer"
                );
            }
            while let Some(done) = under_way.join_next().await {
                done??;
            }
            let answered = Instant::now();
            let mut shown = answered;
            for (index, &moves) in last.iter().enumerate() {
                let moved = Stranger { index: index as u32, moves };
                if !map.hold(moved) {
                    shown = poll(&moved.key(), Duration::ZERO, || Ok(map.hold(moved)))?;
                }
            }
            Ok((made, shown - answered))
        })
    }

    /// Runs `work` in the namespace, with a client.
    fn run<T, W, F>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let url = self.url.clone();
        self.namespace.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client =
                    Client::connect([&url], None).await.with_context(|| format!("connect to {url}"))?;
                work(client).await
            })
        })
    }
}

/// How long it takes from now until the map shows a change.
fn seen(what: &str, of: Stranger, shown: impl Fn() -> bool) -> Result<Duration> {
    let answered = Instant::now();
    Ok(poll(&format!("{what} in the map: {}", of.key()), Duration::ZERO, || Ok(shown()))? - answered)
}

/// Carries out all requests, several at once, and returns their answers in the order of the requests.
async fn all<T: Send + 'static>(
    requests: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
) -> Result<Vec<T>> {
    let mut answers = Vec::new();
    let mut under_way = JoinSet::new();
    for (number, request) in requests.enumerate() {
        if under_way.len() == PARALLEL {
            answers.extend(under_way.join_next().await.transpose()?);
        }
        under_way.spawn(async move { (number, request.await) });
    }
    while let Some(answer) = under_way.join_next().await {
        answers.push(answer?);
    }
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

//! The other side of etcd: the strangers' leases, written as they would write them.
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
/// Writes in one transaction; etcd allows 128 (`--max-txn-ops`).
const BATCH: usize = 100;
/// Requests under way at once.
const PARALLEL: usize = 64;
/// Between two single changes: each is to find agent and etcd at rest.
const REST: Duration = Duration::from_millis(2);
/// Changes at a steady rate are sent so many times a second, all that are due at once.
const TICK: Duration = Duration::from_millis(5);

/// An etcd, from the namespace that reaches it.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    /// Where it is reached from.
    pub(super) namespace: Namespace,
    /// Its address.
    pub(super) url: String,
}

/// From etcd's answer to the map entry, of each kind of change.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// A lease that was not there.
    pub(super) comes: Vec<Duration>,
    /// A lease with other addresses in it.
    pub(super) moves: Vec<Duration>,
    /// A lease that is deleted.
    pub(super) leaves: Vec<Duration>,
    /// Of all kinds, from asking etcd.
    pub(super) asked: Vec<Duration>,
}

impl Leases {
    /// Writes the first `count` strangers' leases, each on an etcd lease of its own, as hosts have them.
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

    /// One change after the other, `changes` in all, beside the first `peers` strangers: one more host comes, moves, and
    /// leaves. The time of each from etcd's answer until the map, asked without a pause, shows it.
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

    /// `rate` changes a second for `duration`, spread over the first `peers` strangers, each of which moves there and back.
    /// Returns how many were made, and how long after the last of etcd's answers the maps showed all.
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
                    // One key has one change under way at most: so the last one sent is the last one made.
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

/// How long from now until the map shows a change.
fn seen(what: &str, of: Stranger, shown: impl Fn() -> bool) -> Result<Duration> {
    let answered = Instant::now();
    Ok(poll(&format!("{what} in the map: {}", of.key()), Duration::ZERO, || Ok(shown()))? - answered)
}

/// Carries out all requests, some at once; their answers in the requests' order.
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

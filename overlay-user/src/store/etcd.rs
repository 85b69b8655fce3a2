//! etcd as the store, over its v3 API.
mod connection;
mod entries;
mod errors;
pub mod silence;
mod watch;

use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, Error, GetOptions, GetResponse, KeyValue, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use self::{
    connection::Connection,
    entries::{end_of, entry},
    errors::unavailable,
    watch::Start,
};
pub use self::{connection::EtcdOptions, watch::EtcdFollow};
use super::{Origin, Revision, Snapshot, Store, StoreError, Tally, Written, prefix};
use crate::model::lease;

/// Keys in one page of a snapshot.
const PAGE: i64 = 500;

/// The network's keys in etcd.
#[derive(Clone)]
pub struct EtcdStore {
    name: String,
    /// What stands in front of each key.
    folder: String,
    connection: Connection,
    /// How many leases there were when they were last read or counted.
    leases: usize,
}

impl EtcdStore {
    /// Checks the options and the files they name; asks nothing of the network yet.
    pub fn new(options: &EtcdOptions) -> anyhow::Result<Self> {
        ensure!(!options.endpoints.is_empty(), "no etcd endpoint: name one with --etcd-endpoints");
        let below = prefix::clean(&options.prefix);
        let folder = prefix::folder(&options.prefix);
        let name = format!("etcd at {} below {below}", options.endpoints.join(","));
        let connection = Connection::new(name.clone(), format!("{folder}config"), options.clone())?;
        Ok(Self { name, folder, connection, leases: 0 })
    }

    fn config_key(&self) -> String {
        format!("{}config", self.folder)
    }

    /// The prefix of all leases, with its last slash. (flannel leaves the slash out, and so reads `<prefix>/subnetsX` too.)
    fn subnets(&self) -> String {
        format!("{}subnets/", self.folder)
    }

    /// Reads all keys in pages. Without `serializable`, no earlier answer of etcd was of a later revision.
    async fn pages(&mut self, serializable: bool) -> Result<Snapshot, StoreError> {
        // Without this limit the client refuses answers above 4 MiB, which a page of a few very large values exceeds.
        let mut client = self.connection.client().await?.kv_client().max_decoding_message_size(usize::MAX);
        let subnets = self.subnets();
        let end = end_of(&subnets);
        let mut start = subnets.clone().into_bytes();
        let mut snapshot = Snapshot::default();
        loop {
            // Revision 0 means the newest. The first page decides which that is, and the other pages are read at the same
            // revision.
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(snapshot.revision.0);
            let options = if serializable { options.with_serializable() } else { options };
            let page = self.connection.ask(client.get(start, Some(options))).await?;
            if let Some(header) = page.header().filter(|_| snapshot.revision == Revision(0)) {
                snapshot.revision = Revision(header.revision());
                snapshot.cluster = header.cluster_id();
            }
            for kv in page.kvs() {
                snapshot.entries.push(entry(kv, &subnets));
            }
            match page.kvs().last() {
                Some(last) if page.more() => start = [last.key(), b"\0"].concat(),
                _ => break,
            }
        }
        self.leases = snapshot.entries.len();
        Ok(snapshot)
    }

    /// Makes an etcd lease for one key alone, as flannel does. Returns 0, which is no lease, for a key without an end.
    async fn grant(&mut self, time_to_live: Option<Duration>) -> Result<i64, StoreError> {
        let Some(time_to_live) = time_to_live else {
            return Ok(0);
        };
        let mut client = self.connection.client().await?.lease_client();
        Ok(self.connection.ask(client.grant(seconds(time_to_live), None)).await?.id())
    }

    /// Has an etcd lease live on if it was granted for so many seconds. Returns whether it was, and still lives.
    async fn keep_alive(&mut self, lease: i64, granted: i64) -> Result<bool, StoreError> {
        let mut client = self.connection.client().await?.lease_client();
        if self.connection.ask(client.time_to_live(lease, None)).await?.granted_ttl() != granted {
            return Ok(false);
        }
        // The stream of signs of life is closed after the first one, which is all that a lease of a day needs.
        let once = async {
            match client.keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.connection.ask(once).await
    }

    /// Ends an etcd lease that no key uses any more. If that fails the lease ends by itself, with its time to live.
    async fn revoke_unused(&mut self, lease: i64) {
        if lease == 0 {
            return;
        }
        let revoke = async {
            let mut client = self.connection.client().await?.lease_client();
            let keys = LeaseTimeToLiveOptions::new().with_keys();
            let answer = self.connection.ask(client.time_to_live(lease, Some(keys))).await?;
            // An operator may have put other keys on the same lease. And if the answer to a claim was lost, the claim may
            // have been made, and its key uses the lease.
            if answer.ttl() > 0 && answer.keys().is_empty() {
                self.connection.ask(client.revoke(lease)).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = revoke.await {
            log::debug!("revoke unused lease {lease:x}: {error}");
        }
    }

    /// Puts a key on a fresh etcd lease if the guards hold, and deletes another one before, if one is named. The etcd lease that
    /// no key uses afterwards is revoked.
    async fn guarded_put(
        &mut self,
        key: String,
        instead_of: Option<String>,
        guards: Vec<Compare>,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let lease = self.grant(time_to_live).await?;
        let options = PutOptions::new().with_lease(lease).with_prev_key();
        let delete = instead_of.map(|old| TxnOp::delete(old, Some(DeleteOptions::new().with_prev_key())));
        let mut writes = Vec::from_iter(delete);
        writes.push(TxnOp::put(key, value, Some(options)));
        let result = self.guarded(guards, writes).await;
        let unused = match result {
            Ok((Written::At(_), old)) => old,
            Ok((Written::Lost, _)) | Err(_) => lease,
        };
        self.revoke_unused(unused).await;
        result.map(|(written, _)| written)
    }

    /// Writes if the guards hold. Also returns the etcd lease that the first key was on before, or 0.
    async fn guarded(
        &mut self,
        guards: Vec<Compare>,
        writes: Vec<TxnOp>,
    ) -> Result<(Written, i64), StoreError> {
        let mut client = self.connection.client().await?;
        let txn = Txn::new().when(guards).and_then(writes);
        let answer = self.connection.ask(client.txn(txn)).await?;
        if !answer.succeeded() {
            return Ok((Written::Lost, 0));
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        Ok((Written::At(Revision(revision)), old_lease(&answer)))
    }
}

impl Store for EtcdStore {
    type Follow = EtcdFollow;

    fn name(&self) -> String {
        self.name.clone()
    }

    async fn config(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut client = self.connection.client().await?;
        let answer = self.connection.ask(client.get(self.config_key(), None)).await?;
        Ok(answer.kvs().first().map(|kv| Bytes::copy_from_slice(kv.value())))
    }

    async fn set_config(&mut self, value: Bytes) -> Result<(), StoreError> {
        let mut client = self.connection.client().await?;
        self.connection.ask(client.put(self.config_key(), value, None)).await?;
        Ok(())
    }

    async fn origin(&mut self) -> Result<Origin, StoreError> {
        let mut client = self.connection.client().await?;
        // Every answer carries cluster and revision in its header. This request asks for as little else as can be.
        let quietly = GetOptions::new().with_keys_only();
        let answer = self.connection.ask(client.get(self.config_key(), Some(quietly))).await?;
        let header = answer.header().ok_or_else(|| unavailable(&self.name, "an answer without a header"))?;
        Ok(Origin { cluster: header.cluster_id(), revision: Revision(header.revision()) })
    }

    async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        self.pages(false).await
    }

    async fn cheap_snapshot(&mut self) -> Result<Snapshot, StoreError> {
        self.pages(true).await
    }

    async fn tally(&mut self, keys: &[&str]) -> Result<Tally, StoreError> {
        let subnets = self.subnets();
        let all = GetOptions::new().with_range(end_of(&subnets)).with_count_only();
        let mut reads: Vec<_> = keys.iter().map(|key| TxnOp::get(format!("{subnets}{key}"), None)).collect();
        reads.push(TxnOp::get(subnets.clone(), Some(all)));
        let mut client = self.connection.client().await?;
        let answer = self.connection.ask(client.txn(Txn::new().and_then(reads))).await?;
        let header = answer.header().ok_or_else(|| unavailable(&self.name, "an answer without a header"))?;
        let origin = Origin { cluster: header.cluster_id(), revision: Revision(header.revision()) };
        let answers = answer.op_responses();
        let reads = answers.iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(read) => Some(read),
            _ => None,
        });
        let count = reads.clone().next_back().map_or(0, GetResponse::count);
        let entries =
            reads.take(keys.len()).map(|read| read.kvs().first().map(|kv| entry(kv, &subnets))).collect();
        self.leases = usize::try_from(count).unwrap_or_default();
        Ok(Tally { origin, count: self.leases, entries })
    }

    async fn follow(&mut self, revision: Revision) -> Result<EtcdFollow, StoreError> {
        let client = self.connection.client().await?;
        let (name, subnets) = (self.name.clone(), self.subnets());
        let start = Start { name, subnets, revision, leases: self.leases };
        let (follow, created) = self.connection.ask(EtcdFollow::open(client, start)).await?;
        follow.confirm(created)
    }

    async fn claim(
        &mut self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let guards =
            vec![none_in(self.subnets() + lease::ipv4_part(key), end_of_alike(&self.subnets(), key))];
        self.guarded_put(self.subnets() + key, None, guards, value, time_to_live).await
    }

    async fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let key = self.subnets() + key;
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, modified.0);
        self.guarded_put(key, None, vec![unchanged], value, time_to_live).await
    }

    async fn replace(
        &mut self,
        old: &str,
        modified: Revision,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let subnets = self.subnets();
        let (part, end) = (subnets.clone() + lease::ipv4_part(key), end_of_alike(&subnets, key));
        let (old, key) = (subnets.clone() + old, subnets + key);
        let mut guards = vec![Compare::mod_revision(old.clone(), CompareOp::Equal, modified.0)];
        if (part.as_bytes()..end.as_slice()).contains(&old.as_bytes()) {
            // All keys of this IPv4 subnet but the old one: those before it, and those behind it.
            if part != old {
                guards.push(none_in(part, old.clone().into_bytes()));
            }
            guards.push(none_in(old.clone() + "\0", end));
        } else {
            guards.push(none_in(part, end));
        }
        self.guarded_put(key, Some(old), guards, value, time_to_live).await
    }

    async fn prolong(
        &mut self,
        key: &str,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let mut client = self.connection.client().await?;
        let read = self.connection.ask(client.get(self.subnets() + key, None)).await?;
        let on = read.kvs().first().filter(|kv| kv.mod_revision() == modified.0).map(KeyValue::lease);
        let kept = match (on, time_to_live) {
            (Some(0), None) => true,
            (Some(0), _) | (Some(_), None) | (None, _) => false,
            (Some(lease), Some(time_to_live)) => self.keep_alive(lease, seconds(time_to_live)).await?,
        };
        Ok(if kept { Written::At(modified) } else { Written::Lost })
    }

    async fn release(&mut self, key: &str, modified: Revision) -> Result<Written, StoreError> {
        let key = self.subnets() + key;
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, modified.0);
        let delete = TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key()));
        let (written, old) = self.guarded(vec![unchanged], vec![delete]).await?;
        self.revoke_unused(old).await;
        Ok(written)
    }
}

/// The end of the range of all keys with the same IPv4 subnet: `'` comes right behind `&`, by which the IPv6 subnet follows.
fn end_of_alike(subnets: &str, key: &str) -> Vec<u8> {
    format!("{subnets}{}'", lease::ipv4_part(key)).into_bytes()
}

/// Holds if there is no key in a range.
fn none_in(start: String, end: Vec<u8>) -> Compare {
    Compare::version(start, CompareOp::Equal, 0).with_range(end)
}

/// Whole seconds, which etcd counts in: more rather than less, and never none.
fn seconds(time: Duration) -> i64 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(seconds.max(1)).unwrap_or(i64::MAX)
}

fn old_lease(answer: &TxnResponse) -> i64 {
    match answer.op_responses().first() {
        Some(TxnOpResponse::Put(put)) => put.prev_key().map_or(0, KeyValue::lease),
        Some(TxnOpResponse::Delete(delete)) => delete.prev_kvs().first().map_or(0, KeyValue::lease),
        _ => 0,
    }
}

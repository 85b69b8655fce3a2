//! etcd as the store, over its v3 API.
use std::{
    collections::VecDeque,
    error::Error as _,
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, Event, EventType,
    GetOptions, Identity, KeyValue, LeaseTimeToLiveOptions, PutOptions, TlsOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse, WatchOptions, WatchResponse, WatchStream,
};

use super::{
    Batch, Follow, LeaseChange, LeaseEntry, Lifetime, Origin, Revision, Snapshot, Store, StoreError, Written,
    prefix,
};

/// How long one request may take, connecting and logging in included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent for this long is asked for a sign of life. etcd allows one such question in 5 s.
const SILENCE: Duration = Duration::from_secs(10);
/// Keys in one page of a snapshot.
const PAGE: i64 = 500;

/// Where etcd is, and how to log in: flannel's `--etcd-*` options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs of the members: `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    /// The prefix of all keys: `/coreos.com/network`. Without a slash in front, the keys have none either.
    pub prefix: String,
    /// PEM file of the authorities that may sign etcd's certificate. Without one, the system's authorities may.
    pub cafile: Option<PathBuf>,
    /// PEM file of the certificate that this host shows to etcd.
    pub certfile: Option<PathBuf>,
    /// PEM file of that certificate's key.
    pub keyfile: Option<PathBuf>,
    /// User to log in as.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

/// The network's keys in etcd. It connects at the first request, and again after a request that failed.
#[derive(Clone)]
pub struct EtcdStore {
    name: String,
    /// What stands in front of each key.
    folder: String,
    /// The endpoint that answered last comes first.
    options: EtcdOptions,
    client: Option<Client>,
}

impl EtcdStore {
    /// Checks the options and the files they name; asks nothing of the network yet.
    pub fn new(options: &EtcdOptions) -> anyhow::Result<Self> {
        ensure!(!options.endpoints.is_empty(), "no etcd endpoint: name one with --etcd-endpoints");
        tls(options)?;
        let below = prefix::clean(&options.prefix);
        Ok(Self {
            name: format!("etcd at {} below {below}", options.endpoints.join(",")),
            folder: prefix::folder(&options.prefix),
            options: options.clone(),
            client: None,
        })
    }

    fn config_key(&self) -> String {
        format!("{}config", self.folder)
    }

    /// The prefix of all leases, with its last slash. (flannel leaves the slash out, and so reads `<prefix>/subnetsX` too.)
    fn subnets(&self) -> String {
        format!("{}subnets/", self.folder)
    }

    async fn client(&mut self) -> Result<Client, StoreError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        Ok(self.client.insert(client).clone())
    }

    /// Connects to the first endpoint that answers, beginning with the one that answered last time. If the client were given
    /// all of them it would send requests to dead ones, too, and flannel's default names one that is dead nearly everywhere.
    /// An endpoint that refuses may be the only one (a member with a wrong certificate), so its refusal is only returned if no
    /// endpoint answers.
    async fn connect(&mut self) -> Result<Client, StoreError> {
        // The files are read for each connection, because certificates are renewed while agents run.
        let connect =
            connect_options(&self.options).map_err(|error| unavailable(&self.name, format!("{error:#}")))?;
        let (mut failures, mut refusal) = (Vec::new(), None);
        for _ in 0..self.options.endpoints.len() {
            match within(&self.name, self.try_endpoint(connect.clone())).await {
                Ok(client) => return Ok(client),
                Err(StoreError::Unavailable { detail, .. }) => failures.push(detail),
                Err(refused) => refusal = refusal.or(Some(refused)),
            }
            self.options.endpoints.rotate_left(1);
        }
        failures.dedup();
        Err(refusal.unwrap_or_else(|| unavailable(&self.name, failures.join("; "))))
    }

    async fn try_endpoint(&self, connect: ConnectOptions) -> Result<Client, Error> {
        let mut client = Client::connect(&self.options.endpoints[..1], Some(connect)).await?;
        // Connecting does not talk to the endpoint yet. This request does, for a key that every agent may read.
        let quietly = GetOptions::new().with_keys_only();
        client.get(self.config_key(), Some(quietly)).await?;
        Ok(client)
    }

    /// Makes one request. If it fails the connection is given up: the next request looks for an endpoint that answers, and
    /// logs in again.
    async fn ask<T>(&mut self, request: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        let answer = within(&self.name, request).await;
        if answer.is_err() {
            self.client = None;
        }
        answer
    }

    /// Makes an etcd lease for one key alone, as flannel does. Returns 0, which is no lease, for a key without an end.
    async fn grant(&mut self, time_to_live: Option<Duration>) -> Result<i64, StoreError> {
        let Some(time_to_live) = time_to_live else {
            return Ok(0);
        };
        let seconds = time_to_live.as_secs() + u64::from(time_to_live.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let mut client = self.client().await?.lease_client();
        Ok(self.ask(client.grant(seconds, None)).await?.id())
    }

    /// Ends an etcd lease that no key uses any more. If that fails the lease ends by itself, with its time to live.
    async fn revoke_unused(&mut self, lease: i64) {
        if lease == 0 {
            return;
        }
        let revoke = async {
            let mut client = self.client().await?.lease_client();
            let keys = LeaseTimeToLiveOptions::new().with_keys();
            let answer = self.ask(client.time_to_live(lease, Some(keys))).await?;
            // An operator may have put other keys on the same lease. And if the answer to a claim was lost, the claim may
            // have been made, and its key uses the lease.
            if answer.ttl() > 0 && answer.keys().is_empty() {
                self.ask(client.revoke(lease)).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = revoke.await {
            log::debug!("revoke unused lease {lease:x}: {error}");
        }
    }

    /// Puts a key on a fresh etcd lease if the guard holds. The etcd lease that no key uses afterwards is revoked.
    async fn guarded_put(
        &mut self,
        key: String,
        guard: Compare,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let lease = self.grant(time_to_live).await?;
        let options = PutOptions::new().with_lease(lease).with_prev_key();
        let put = TxnOp::put(key, value, Some(options));
        let result = self.guarded(guard, put).await;
        let unused = match result {
            Ok((Written::At(_), old)) => old,
            Ok((Written::Lost, _)) | Err(_) => lease,
        };
        self.revoke_unused(unused).await;
        result.map(|(written, _)| written)
    }

    /// Writes if the guard holds. Also returns the etcd lease that the key was on before, or 0.
    async fn guarded(&mut self, guard: Compare, write: TxnOp) -> Result<(Written, i64), StoreError> {
        let mut client = self.client().await?;
        let txn = Txn::new().when([guard]).and_then([write]);
        let answer = self.ask(client.txn(txn)).await?;
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
        let mut client = self.client().await?;
        let answer = self.ask(client.get(self.config_key(), None)).await?;
        Ok(answer.kvs().first().map(|kv| Bytes::copy_from_slice(kv.value())))
    }

    async fn set_config(&mut self, value: Bytes) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        self.ask(client.put(self.config_key(), value, None)).await?;
        Ok(())
    }

    async fn origin(&mut self) -> Result<Origin, StoreError> {
        let mut client = self.client().await?;
        // Every answer carries cluster and revision in its header. This request asks for as little else as can be.
        let quietly = GetOptions::new().with_keys_only();
        let answer = self.ask(client.get(self.config_key(), Some(quietly))).await?;
        let header = answer.header().ok_or_else(|| unavailable(&self.name, "an answer without a header"))?;
        Ok(Origin { cluster: header.cluster_id(), revision: Revision(header.revision()) })
    }

    async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        // Without this limit the client refuses answers above 4 MiB, which a page of a few very large values exceeds.
        let mut client = self.client().await?.kv_client().max_decoding_message_size(usize::MAX);
        let subnets = self.subnets();
        let end = end_of(&subnets);
        let mut start = subnets.clone().into_bytes();
        let mut snapshot = Snapshot::default();
        loop {
            // Revision 0 means the newest. The first page decides which that is, and the other pages are read at the same
            // revision.
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(snapshot.revision.0);
            let page = self.ask(client.get(start, Some(options))).await?;
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
        Ok(snapshot)
    }

    async fn follow(&mut self, revision: Revision) -> Result<EtcdFollow, StoreError> {
        let client = self.client().await?;
        let subnets = self.subnets();
        // Unless asked to, etcd never splits the changes of one revision over several answers. It is not asked to, so an
        // answer must be allowed to hold a revision that deletes very many keys.
        let mut watch = client.watch_client().max_decoding_message_size(usize::MAX);
        let options = WatchOptions::new()
            .with_range(end_of(&subnets))
            .with_start_revision(revision.0 + 1)
            .with_progress_notify();
        let name = self.name.clone();
        let open = async {
            let mut stream = watch.watch(subnets.clone(), Some(options)).await?;
            let created = stream.message().await?;
            Ok((stream, created))
        };
        let (stream, created) = self.ask(open).await?;
        let created = created.ok_or_else(|| ended(&name))?;
        check(&created, &name)?;
        // A store whose newest revision is older than the one we know was wiped or restored. Its watch would stay silent
        // until its revisions have caught up.
        let newest = Revision(created.header().map_or(0, |header| header.revision()));
        if newest < revision {
            return Err(StoreError::Behind { store: name, oldest: newest });
        }
        Ok(EtcdFollow { name, subnets, stream, ready: VecDeque::new(), _connection: client })
    }

    async fn claim(
        &mut self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let key = self.subnets() + key;
        let absent = Compare::version(key.clone(), CompareOp::Equal, 0);
        self.guarded_put(key, absent, value, time_to_live).await
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
        self.guarded_put(key, unchanged, value, time_to_live).await
    }

    async fn release(&mut self, key: &str, modified: Revision) -> Result<Written, StoreError> {
        let key = self.subnets() + key;
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, modified.0);
        let delete = TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key()));
        let (written, old) = self.guarded(unchanged, delete).await?;
        self.revoke_unused(old).await;
        Ok(written)
    }
}

/// A watch of etcd.
pub struct EtcdFollow {
    name: String,
    subnets: String,
    stream: WatchStream,
    /// Batches that were read and not handed out yet, since one answer may hold several revisions.
    ready: VecDeque<Batch>,
    /// The connection is kept because the stream ends with the last handle of its connection.
    _connection: Client,
}

impl Follow for EtcdFollow {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let answer = self.stream.message().await;
            let answer =
                answer.map_err(|error| classify(&self.name, &error))?.ok_or_else(|| ended(&self.name))?;
            check(&answer, &self.name)?;
            self.ready = batches(&answer, &self.subnets);
        }
    }
}

/// The events of one answer, by revision. An answer without events is a progress notification, which says that every
/// change up to its revision has been sent.
fn batches(answer: &WatchResponse, subnets: &str) -> VecDeque<Batch> {
    let mut batches: VecDeque<Batch> = VecDeque::new();
    for (event, kv) in answer.events().iter().filter_map(|event| event.kv().map(|kv| (event, kv))) {
        let revision = Revision(kv.mod_revision());
        if batches.back().is_none_or(|batch| batch.revision != revision) {
            batches.push_back(Batch { revision, changes: Vec::new() });
        }
        if let Some(batch) = batches.back_mut() {
            batch.changes.push(change(event, kv, subnets));
        }
    }
    if let Some(header) = answer.header().filter(|_| batches.is_empty()) {
        let revision = Revision(header.revision());
        batches.push_back(Batch { revision, changes: Vec::new() });
    }
    batches
}

fn change(event: &Event, kv: &KeyValue, subnets: &str) -> LeaseChange {
    let entry = entry(kv, subnets);
    match event.event_type() {
        EventType::Put => LeaseChange::Put(entry),
        EventType::Delete => LeaseChange::Delete { key: entry.key },
    }
}

fn entry(kv: &KeyValue, subnets: &str) -> LeaseEntry {
    let key = String::from_utf8_lossy(kv.key());
    LeaseEntry {
        key: key.strip_prefix(subnets).unwrap_or(&key).to_owned(),
        value: Bytes::copy_from_slice(kv.value()),
        modified: Revision(kv.mod_revision()),
        // A key that is on no etcd lease has no end.
        lifetime: if kv.lease() == 0 { Lifetime::Reserved } else { Lifetime::Limited },
    }
}

/// The first key, in etcd's order, that does not start with `prefix` any more. `prefix` ends with a slash.
fn end_of(prefix: &str) -> String {
    // In ASCII `0` comes right after `/`.
    format!("{}0", prefix.trim_end_matches('/'))
}

fn old_lease(answer: &TxnResponse) -> i64 {
    match answer.op_responses().first() {
        Some(TxnOpResponse::Put(put)) => put.prev_key().map_or(0, KeyValue::lease),
        Some(TxnOpResponse::Delete(delete)) => delete.prev_kvs().first().map_or(0, KeyValue::lease),
        _ => 0,
    }
}

/// Fails if an answer says that the watch has ended.
fn check(answer: &WatchResponse, name: &str) -> Result<(), StoreError> {
    if answer.compact_revision() > 0 {
        return Err(StoreError::Behind {
            store: name.to_owned(),
            oldest: Revision(answer.compact_revision()),
        });
    }
    if !answer.canceled() {
        return Ok(());
    }
    let detail = format!("the watch was cancelled: {}", answer.cancel_reason());
    if answer.cancel_reason().contains("permission denied") {
        return Err(refused(name, &detail));
    }
    Err(unavailable(name, detail))
}

async fn within<T>(name: &str, request: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| classify(name, &error)),
        Err(_) => Err(unavailable(name, format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

fn classify(name: &str, error: &Error) -> StoreError {
    let detail = text(error);
    // The status codes of gRPC (grpc.io, "Status codes and their use in gRPC") that etcd answers with when it was reached
    // and refuses the request.
    const INVALID_ARGUMENT: i32 = 3;
    const PERMISSION_DENIED: i32 = 7;
    const FAILED_PRECONDITION: i32 = 9;
    const UNAUTHENTICATED: i32 = 16;
    // What etcd answers to writes from the moment on at which its database is full (the alarm NOSPACE).
    if detail.contains("database space exceeded") {
        return StoreError::Full {
            store: name.to_owned(),
            detail: format!(
                "{detail}: compact its history and defragment it (`etcdctl compact REVISION`, `etcdctl defrag`), or raise \
                 --quota-backend-bytes, then `etcdctl alarm disarm`"
            ),
        };
    }
    let code = match error {
        Error::GRpcStatus(status) => i32::from(status.code()),
        _ => 0,
    };
    // Users or roles were altered since our token was made. The next connection gets a new token.
    let stale_token = detail.contains("revision of auth store is old");
    let refusal =
        matches!(code, INVALID_ARGUMENT | PERMISSION_DENIED | FAILED_PRECONDITION | UNAUTHENTICATED);
    if (refusal && !stale_token) || detail.to_ascii_lowercase().contains("certificate") {
        return refused(name, &detail);
    }
    // With TLS 1.3 the server refuses our certificate only after the handshake. What is seen of it here is the end of the
    // connection, or the alert if that arrives first.
    let ends = ["broken pipe", "connection reset", "connection closed"];
    if name.contains("https://") && ends.iter().any(|end| detail.contains(end)) {
        return unavailable(
            name,
            format!("{detail}: if this stays, check --etcd-certfile and --etcd-keyfile"),
        );
    }
    unavailable(name, detail)
}

fn refused(name: &str, detail: &str) -> StoreError {
    let has = |word| detail.to_ascii_lowercase().contains(word);
    let remedy = if has("certificate") {
        "check --etcd-cafile, --etcd-certfile and --etcd-keyfile"
    } else if has("permission denied") {
        "grant the user's role readwrite on the prefix (etcdctl role grant-permission --prefix=true)"
    } else if has("user name is empty") {
        "etcd wants a login: give --etcd-username and --etcd-password"
    } else if has("authentication is not enabled") {
        "etcd wants no login: leave out --etcd-username and --etcd-password"
    } else if has("auth") {
        "check --etcd-username and --etcd-password"
    } else {
        "check the --etcd-* flags"
    };
    StoreError::Refused { store: name.to_owned(), detail: format!("{detail}: {remedy}") }
}

fn unavailable(name: &str, detail: impl Into<String>) -> StoreError {
    StoreError::Unavailable { store: name.to_owned(), detail: detail.into() }
}

fn ended(name: &str) -> StoreError {
    unavailable(name, "it closed the watch")
}

/// The message and its causes, without the words that the client puts around them.
fn text(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), other.source()),
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn connect_options(options: &EtcdOptions) -> anyhow::Result<ConnectOptions> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(TIMEOUT)
        .with_keep_alive(SILENCE, TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(username) = &options.username {
        connect = connect.with_user(username, options.password.as_deref().unwrap_or_default());
    }
    if let Some(tls) = tls(options)? {
        connect = connect.with_tls(tls);
    }
    Ok(connect)
}

/// How to speak TLS, if the endpoints are `https://`.
fn tls(options: &EtcdOptions) -> anyhow::Result<Option<TlsOptions>> {
    let files = options.cafile.is_some() || options.certfile.is_some() || options.keyfile.is_some();
    let plain = options.endpoints.iter().find(|endpoint| !endpoint.starts_with("https://"));
    if !files && plain.is_some() {
        let secure = options.endpoints.iter().find(|endpoint| endpoint.starts_with("https://"));
        ensure!(secure.is_none(), "etcd endpoints with and without https: use one kind");
        return Ok(None);
    }
    if let Some(plain) = plain {
        anyhow::bail!("certificates are given, but etcd endpoint {plain} is not https://: write https://");
    }
    let mut tls = match &options.cafile {
        Some(path) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(path, "--etcd-cafile")?)),
        None => TlsOptions::new().with_native_roots(),
    };
    match (&options.certfile, &options.keyfile) {
        (Some(cert), Some(key)) => {
            let (cert, key) = (read(cert, "--etcd-certfile")?, read(key, "--etcd-keyfile")?);
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        (None, None) => {}
        _ => anyhow::bail!("--etcd-certfile and --etcd-keyfile belong together: give both"),
    }
    Ok(Some(tls))
}

fn read(path: &Path, flag: &str) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {flag} {}", path.display()))
}

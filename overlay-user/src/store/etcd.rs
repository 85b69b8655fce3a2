//! etcd as the store, over its v3 API. The only file that knows the client.
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
};

/// How long one request may take, connecting and logging in included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent this long is asked for a sign of life; etcd allows one such question in 5 s.
const SILENCE: Duration = Duration::from_secs(10);
/// Keys in one page of a snapshot.
const PAGE: i64 = 500;

/// Where etcd is and who we are to it: flannel's `--etcd-*` flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port` each.
    pub endpoints: Vec<String>,
    /// Everything lives below it: `/coreos.com/network`.
    pub prefix: String,
    /// PEM file of the authorities that sign etcd's certificate; the system's when there is none.
    pub cafile: Option<PathBuf>,
    /// PEM file of our own certificate.
    pub certfile: Option<PathBuf>,
    /// PEM file of its key.
    pub keyfile: Option<PathBuf>,
    /// User to log in as.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

/// The network's keys in etcd. Connects at the first request, and again after one that failed.
#[derive(Clone)]
pub struct EtcdStore {
    name: String,
    prefix: String,
    /// The endpoint that answered last comes first.
    options: EtcdOptions,
    client: Option<Client>,
}

impl EtcdStore {
    /// Checks the options and the files they name; asks nothing of the network yet.
    pub fn new(options: &EtcdOptions) -> anyhow::Result<Self> {
        ensure!(!options.endpoints.is_empty(), "no etcd endpoint: name one with --etcd-endpoints");
        tls(options)?;
        let prefix = format!("/{}", options.prefix.trim_matches('/'));
        Ok(Self {
            name: format!("etcd at {} below {prefix}", options.endpoints.join(",")),
            prefix,
            options: options.clone(),
            client: None,
        })
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// With its last slash: flannel reads `<prefix>/subnetsX` too, which nobody means.
    fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    async fn client(&mut self) -> Result<Client, StoreError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        Ok(self.client.insert(client).clone())
    }

    /// The first endpoint that answers, the one that answered last time first. Given all of them, the client would
    /// spread requests over dead ones too, and flannel's default names one that is dead nearly everywhere. One that
    /// refuses may be alone in that (a member with a wrong certificate): it has the last word only if none answers.
    async fn connect(&mut self) -> Result<Client, StoreError> {
        // Every time: certificates are renewed while agents run.
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
        // Connecting itself asks nothing; this asks what every agent may read.
        let quietly = GetOptions::new().with_keys_only();
        client.get(self.config_key(), Some(quietly)).await?;
        Ok(client)
    }

    /// One request. A failed one takes its connection with it: the next request looks for an endpoint that answers,
    /// and logs in again.
    async fn ask<T>(&mut self, request: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        let answer = within(&self.name, request).await;
        if answer.is_err() {
            self.client = None;
        }
        answer
    }

    /// An etcd lease of its own for one key, as flannel makes; 0 for a key without end.
    async fn grant(&mut self, time_to_live: Option<Duration>) -> Result<i64, StoreError> {
        let Some(time_to_live) = time_to_live else {
            return Ok(0);
        };
        let seconds = time_to_live.as_secs() + u64::from(time_to_live.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let mut client = self.client().await?.lease_client();
        Ok(self.ask(client.grant(seconds, None)).await?.id())
    }

    /// Ends an etcd lease that no key uses any more. What cannot be ended now ends by itself with its time to live.
    async fn revoke_unused(&mut self, lease: i64) {
        if lease == 0 {
            return;
        }
        let revoke = async {
            let mut client = self.client().await?.lease_client();
            let keys = LeaseTimeToLiveOptions::new().with_keys();
            let answer = self.ask(client.time_to_live(lease, Some(keys))).await?;
            // An operator may have hung other keys on the same lease; and a claim whose answer was lost was made.
            if answer.ttl() > 0 && answer.keys().is_empty() {
                self.ask(client.revoke(lease)).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = revoke.await {
            log::debug!("revoke unused lease {lease:x}: {error}");
        }
    }

    /// A put behind a guard, on a fresh etcd lease; whatever lease is left without a key is revoked.
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

    /// A write behind a guard; answers with the etcd lease that the key hung on before, 0 if on none.
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
        // Every answer says so; this one holds nothing else.
        let quietly = GetOptions::new().with_keys_only();
        let answer = self.ask(client.get(self.config_key(), Some(quietly))).await?;
        let header = answer.header().ok_or_else(|| unavailable(&self.name, "an answer without a header"))?;
        Ok(Origin { cluster: header.cluster_id(), revision: Revision(header.revision()) })
    }

    async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        // A page of a few values as large as etcd takes them is more than the client would read unasked.
        let mut client = self.client().await?.kv_client().max_decoding_message_size(usize::MAX);
        let subnets = self.subnets();
        let end = end_of(&subnets);
        let mut start = subnets.clone().into_bytes();
        let mut snapshot = Snapshot::default();
        loop {
            // Revision 0 is the newest: the first page decides, the others are read as they were then.
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
        // etcd splits its answers between revisions, never within one, unless asked to; so it is not asked to, and
        // a revision that deletes very many keys must fit.
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
        // A store that is younger than what we know was wiped or restored; it would stay silent until it caught up.
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
    /// Read, not yet handed out: one answer may hold several revisions.
    ready: VecDeque<Batch>,
    /// The stream ends when the last handle of its connection goes.
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

/// The events of one answer by revision. An answer without events is a progress notification: every change up to its
/// revision has been sent.
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
        // A key without an etcd lease has no end.
        lifetime: if kv.lease() == 0 { Lifetime::Reserved } else { Lifetime::Limited },
    }
}

/// The first key that no longer starts with `prefix`, which ends with a slash.
fn end_of(prefix: &str) -> String {
    // `0` follows `/` in ASCII.
    format!("{}0", prefix.trim_end_matches('/'))
}

fn old_lease(answer: &TxnResponse) -> i64 {
    match answer.op_responses().first() {
        Some(TxnOpResponse::Put(put)) => put.prev_key().map_or(0, KeyValue::lease),
        Some(TxnOpResponse::Delete(delete)) => delete.prev_kvs().first().map_or(0, KeyValue::lease),
        _ => 0,
    }
}

/// Whether the watch still runs.
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
    // gRPC's status codes (grpc.io, "Status codes and their use in gRPC"): what etcd answers when it is reached
    // and does not want us.
    const INVALID_ARGUMENT: i32 = 3;
    const PERMISSION_DENIED: i32 = 7;
    const FAILED_PRECONDITION: i32 = 9;
    const UNAUTHENTICATED: i32 = 16;
    let code = match error {
        Error::GRpcStatus(status) => i32::from(status.code()),
        _ => 0,
    };
    // Users or roles were altered under our token; the next connection gets a new one.
    let stale_token = detail.contains("revision of auth store is old");
    let refusal =
        matches!(code, INVALID_ARGUMENT | PERMISSION_DENIED | FAILED_PRECONDITION | UNAUTHENTICATED);
    if (refusal && !stale_token) || detail.to_ascii_lowercase().contains("certificate") {
        return refused(name, &detail);
    }
    // TLS 1.3 refuses our certificate after the handshake: what we see is the connection's end, or the alert if it
    // comes first.
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

/// The message and its causes, without the client's own wording around them.
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

/// TLS as the options say, if any endpoint wants it.
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

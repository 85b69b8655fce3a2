//! How etcd is reached: options, TLS, which endpoint answers, and how long a request may take.
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use etcd_client::{Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions};

use super::errors::{classify, unavailable};
use crate::store::StoreError;

/// How long one request may take, connecting and logging in included. After a request that took longer the next one may take
/// twice as long: an etcd that thousands of hosts ask at once answers late, and asking it again makes that worse.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a request may take.
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that is silent for this long is asked for a sign of life. etcd allows one such question in 5 s.
const SILENCE: Duration = Duration::from_secs(10);

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

/// A connection that is made at the first request, and again after a request that failed.
#[derive(Clone)]
pub(super) struct Connection {
    /// The store's name, for messages.
    name: String,
    /// A key that every agent may read.
    probe: String,
    /// The endpoint that answered last comes first.
    options: EtcdOptions,
    client: Option<Client>,
    timeout: Duration,
}

impl Connection {
    pub(super) fn new(name: String, probe: String, options: EtcdOptions) -> anyhow::Result<Self> {
        tls(&options)?;
        Ok(Self { name, probe, options, client: None, timeout: TIMEOUT })
    }

    pub(super) async fn client(&mut self) -> Result<Client, StoreError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        Ok(self.client.insert(client).clone())
    }

    /// Makes one request. If it fails the connection is given up: the next request looks for an endpoint that answers, and
    /// logs in again.
    pub(super) async fn ask<T>(
        &mut self,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        // The client's futures are large, and every function that they pass through would hold them twice.
        let answer = self.within(Box::pin(request)).await;
        if answer.is_err() {
            self.client = None;
        }
        answer
    }

    /// Waits for an answer, but not for ever.
    async fn within<T>(&mut self, request: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(answer) => {
                self.timeout = TIMEOUT;
                answer.map_err(|error| classify(&self.name, &error))
            }
            Err(_) => {
                let waited = self.timeout;
                self.timeout = (waited * 2).min(LONGEST);
                Err(unavailable(&self.name, format!("no answer within {} s", waited.as_secs())))
            }
        }
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
            let tried = try_endpoint(self.options.endpoints[0].clone(), self.probe.clone(), connect.clone());
            match self.within(Box::pin(tried)).await {
                Ok(client) => return Ok(client),
                Err(StoreError::Unavailable { detail, .. }) => failures.push(detail),
                Err(refused) => refusal = refusal.or(Some(refused)),
            }
            self.options.endpoints.rotate_left(1);
        }
        failures.dedup();
        Err(refusal.unwrap_or_else(|| unavailable(&self.name, failures.join("; "))))
    }
}

async fn try_endpoint(endpoint: String, probe: String, connect: ConnectOptions) -> Result<Client, Error> {
    let mut client = Client::connect([endpoint], Some(connect)).await?;
    // Connecting does not talk to the endpoint yet. This request does.
    let quietly = GetOptions::new().with_keys_only();
    client.get(probe, Some(quietly)).await?;
    Ok(client)
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

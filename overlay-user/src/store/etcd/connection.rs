//! How etcd is reached: options, TLS, which endpoint answers, and how long a request may take.
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use etcd_client::{Certificate, Channel, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions};
use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::Endpoint;

use super::{
    errors::{classify, unavailable},
    silence,
};
use crate::store::StoreError;

/// How long one request may take, connecting and logging in included. After a request that took longer the next one may take
/// twice as long: an etcd that thousands of hosts ask at once answers late, and asking it again makes that worse.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a request may take.
const LONGEST: Duration = Duration::from_secs(30);

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
        let tls = tls(&self.options).map_err(|error| unavailable(&self.name, format!("{error:#}")))?;
        let login = login(&self.options);
        let (mut failures, mut refusal) = (Vec::new(), None);
        for _ in 0..self.options.endpoints.len() {
            let url = self.options.endpoints[0].clone();
            let tried = try_endpoint(url, tls.clone(), login.clone(), self.probe.clone());
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

async fn try_endpoint(
    url: String,
    tls: Option<TlsOptions>,
    login: ConnectOptions,
    probe: String,
) -> Result<Client, Error> {
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(url)?;
    let endpoint = match tls {
        Some(tls) => endpoint.tls_config(tls)?,
        None => endpoint,
    };
    let channel = Channel::Tonic(endpoint.connect_with_connector_lazy(connector()));
    let mut client = Client::from_channel(channel, Some(login)).await?;
    // Without a login, nothing was said to the endpoint so far. Only a member that is in touch with its cluster answers this.
    client.get(probe, Some(GetOptions::new().with_keys_only())).await?;
    Ok(client)
}

/// Makes TCP connections. tonic speaks TLS on them. The client can make them by itself, but would leave it to the kernel for how long
/// a peer that does not answer is asked, and Linux does that for more than ten minutes.
fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // It may be https, too.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(TIMEOUT));
    connector.set_keepalive(Some(silence::QUIET));
    connector.set_keepalive_interval(Some(silence::PROBE));
    connector.set_keepalive_retries(Some(silence::PROBES));
    connector.set_tcp_user_timeout(Some(silence::UNACKNOWLEDGED));
    connector
}

/// Asks for what a member can say by itself, and says to anybody. (A read would need a login, and etcd forgets a login after five
/// silent minutes. Logging in costs it far more than any request: it compares a password by bcrypt.)
pub(super) async fn sign_of_life(mut client: Client) -> Result<(), Error> {
    // gRPC's status codes for a request that is refused to this client, is not known (to a proxy of etcd), or needs a login.
    const REFUSALS: [i32; 3] = [7, 12, 16];
    match client.status().await {
        Err(Error::GRpcStatus(status)) if REFUSALS.contains(&i32::from(status.code())) => Ok(()),
        answer => answer.map(drop),
    }
}

fn login(options: &EtcdOptions) -> ConnectOptions {
    let connect = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
    match &options.username {
        Some(username) => connect.with_user(username, options.password.as_deref().unwrap_or_default()),
        None => connect,
    }
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

#[cfg(test)]
mod tests {
    use nix::sys::socket::{
        getsockopt,
        sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout},
    };
    use tokio::net::TcpListener;
    use tonic::codegen::Service as _;

    use super::*;

    #[tokio::test]
    async fn the_kernel_ends_a_connection_that_is_silent_and_one_whose_data_nobody_acknowledges() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: hyper::Uri = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let socket = connector().call(url).await.unwrap().into_inner();
        assert!(socket.nodelay().unwrap() && getsockopt(&socket, KeepAlive).unwrap());
        let probes = [
            getsockopt(&socket, TcpKeepIdle).unwrap(),
            getsockopt(&socket, TcpKeepInterval).unwrap(),
            getsockopt(&socket, TcpKeepCount).unwrap(),
        ];
        // It counts milliseconds.
        assert_eq!((probes, getsockopt(&socket, TcpUserTimeout).unwrap()), ([10, 1, 5], 15_000));
    }
}

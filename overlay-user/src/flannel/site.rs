//! What is known of a host and its network before anything is moved there.
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    daemon,
    discover::{Expected, Sight, device_name},
    rules::Rules,
    switch,
};
use crate::{
    agent::options::Options,
    datapath::state::Paths,
    host::{
        netlink::Netlink,
        underlay::{self, Underlay},
    },
    model::{
        backend::Backend,
        lease::{self, Lease},
        network::NetworkConfig,
    },
    store::{Snapshot, Store},
};

/// What is known before anything is done.
pub struct Site<S> {
    pub(super) store: S,
    pub(super) netlink: Netlink,
    pub(super) paths: Paths,
    pub(super) underlay: Underlay,
    pub(super) public_ip: IpAddr,
    pub(super) network: NetworkConfig,
    pub(super) backend: Backend,
    pub(super) snapshot: Snapshot,
}

impl<S: Store> Site<S> {
    /// Looks at the host, and asks the store.
    pub async fn look(mut store: S, options: &Options) -> Result<Self> {
        let netlink = Netlink::open()?;
        let underlay = underlay::choose(&netlink, &options.underlay).await?.remarked();
        let public_ip = options.underlay.public_ip(&underlay);
        let text =
            store.config().await?.with_context(|| format!("{} has no network config", store.name()))?;
        let network = NetworkConfig::parse(&text).with_context(|| format!("read from {}", store.name()))?;
        let backend = Backend::of(&network)?;
        if matches!(backend, Backend::Udp { .. }) {
            bail!(
                "flannel's udp backend leaves nothing to adopt: its device goes with flanneld. End flanneld, and start \
                 `overlay agent`, which finds the lease"
            );
        }
        let snapshot = store.snapshot().await?;
        let paths = options.paths.clone();
        Ok(Self { store, netlink, paths, underlay, public_ip, network, backend, snapshot })
    }

    /// What flannel's entries must fit.
    pub fn expected(&self) -> Expected {
        Expected {
            network: self.network.plan.network,
            backend: self.backend,
            underlay: self.underlay.clone(),
            public_ip: self.public_ip,
            leases: leases(&self.snapshot),
        }
    }

    /// Looks for what there is of flannel on this host.
    pub async fn sight(&self, options: &Options) -> Result<Sight> {
        let subnet_env = std::fs::read_to_string(&options.subnet_file).ok();
        let rules = Rules::find().await.context("look for flannel's rules")?;
        Ok(Sight::look(&self.netlink, self.device_name().as_deref(), rules, subnet_env).await?)
    }

    /// flannel's device, if it is there and cannot carry anything, because ours is up.
    pub async fn leftover(&self, sight: &Sight, ours: &str) -> Result<Option<String>> {
        let ours = self.netlink.link_named(ours).await?;
        if !ours.is_some_and(|link| link.up && switch::is_ours(&link)) {
            return Ok(None);
        }
        let named = |name: &String| sight.tunnels.iter().any(|(_, tunnel)| tunnel.name == *name);
        Ok(self.device_name().filter(named))
    }

    /// flannel's device, if its backend has one.
    pub(super) fn device_name(&self) -> Option<String> {
        self.backend.vni().map(device_name)
    }

    /// Fails if `device` is a name that our device cannot have.
    pub(super) async fn refuse_foreign(&self, device: &str) -> Result<()> {
        switch::refuse_foreign(&self.netlink, device, self.device_name().as_deref()).await
    }
}

/// Looks for a flanneld that runs here, and says what to do about it. This is asked once more after the store has answered,
/// because the answer may take any length of time.
pub fn obstacle() -> Result<Option<String>> {
    let daemons = daemon::running().context("look for flanneld among the processes")?;
    Ok(daemons.first().map(|pid| {
        format!(
            "flanneld runs here (pid {pid}) and would put back what is removed: end it first (`systemctl disable --now \
             flanneld`, or whatever starts it); traffic goes on without it"
        )
    }))
}

/// Ignores SIGTERM, SIGINT and SIGHUP from now on, because a move must not stop half way. SIGHUP comes when a terminal goes
/// away, perhaps together with the very network that is moved.
pub fn ignore_signals() -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // The handler stays in place when this value is dropped.
        drop(signal(kind).context("listen for signals")?);
    }
    Ok(())
}

/// The entries of the snapshot that are valid leases, with their keys.
pub(super) fn leases(snapshot: &Snapshot) -> Vec<(String, Lease)> {
    let decode = |key: &str, value| lease::decode(key, value).ok().map(|lease| (key.to_owned(), lease));
    snapshot.entries.iter().filter_map(|entry| decode(&entry.key, &entry.value)).collect()
}

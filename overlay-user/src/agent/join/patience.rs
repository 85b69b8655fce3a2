//! Waiting for what a host needs of the store before it can join: the network's config, and a lease.
use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use log::{info, warn};
use tokio::time::sleep;

use crate::{
    model::{network::NetworkConfig, pause},
    store::{
        Origin, Store, StoreError,
        acquire::{self, LeaseRequest, LocalLease},
    },
};

/// The limits of the first and of the longest pause between two tries to reach the store at the start. A pause is any time up to
/// its limit, so that hosts which were started together do not ask together.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Reads the network's config. This waits for a store that does not answer, and for a config that nobody has written yet, since
/// both happen on a cluster that is starting. An error that waiting cannot cure ends the agent.
/// Where the store has no config, that of `file` counts on this host (`--net-config-path`).
pub(super) async fn config(store: &mut impl Store, file: Option<&Path>) -> Result<NetworkConfig> {
    let mut failures = 0;
    loop {
        let pause = pause::drawn(PAUSE.0, failures, PAUSE.1);
        match store.config().await {
            Ok(Some(text)) => {
                return NetworkConfig::parse(&text).with_context(|| format!("read from {}", store.name()));
            }
            Ok(None) => match file {
                Some(file) => {
                    info!("{} has no network config: {} counts on this host", store.name(), file.display());
                    return config_file(file);
                }
                None => warn!(
                    "{} has no network config: write one with `overlay config set`; looking again in {pause:?}",
                    store.name()
                ),
            },
            Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
            Err(error) => warn!("{error}; trying again in {pause:?}"),
        }
        sleep(pause).await;
        failures += 1;
    }
}

fn config_file(path: &Path) -> Result<NetworkConfig> {
    let text = std::fs::read(path)
        .with_context(|| format!("read the network's config {} (--net-config-path)", path.display()))?;
    NetworkConfig::parse(&text).with_context(|| format!("read from {}", path.display()))
}

/// Acquires this host's lease, and reads which cluster and revision it came from.
pub(super) async fn lease(
    store: &mut impl Store,
    private: Option<&Path>,
    network: &NetworkConfig,
    request: &LeaseRequest,
) -> Result<(LocalLease, Origin)> {
    let mut failures = 0;
    loop {
        let pause = pause::drawn(PAUSE.0, failures, PAUSE.1);
        let acquired = async {
            if let Some(folder) = private {
                acquire::refuse_other_hosts(store, request)
                    .await
                    .with_context(|| format!("use {} as this host's store", folder.display()))?;
            }
            let local_lease = acquire::acquire(store, network, request).await?;
            anyhow::Ok((local_lease, store.origin().await?))
        };
        match acquired.await {
            Err(error) if is_passing(&error) => warn!("{error:#}; trying again in {pause:?}"),
            other => return other.context("acquire a lease"),
        }
        sleep(pause).await;
        failures += 1;
    }
}

/// Returns when a host could join: the store answers, and has the network's config unless `file` has it.
pub(in crate::agent) async fn answers(store: &mut impl Store, file: Option<&Path>) {
    loop {
        let missing = match store.config().await {
            Ok(Some(_)) => return,
            Ok(None) if file.is_some() => return,
            Ok(None) => format!("{} has no network config", store.name()),
            Err(error) => error.to_string(),
        };
        warn!("{missing}: this host keeps what it has, and joins with its new address when that is mended");
        sleep(pause::drawn(PAUSE.1, 0, PAUSE.1)).await;
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(StoreError::Unavailable { .. } | StoreError::Full { .. }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_answer_will_pass_and_one_that_refuses_will_not() {
        let (store, detail) = ("etcd".to_owned(), "gone".to_owned());
        let away = || StoreError::Unavailable { store: store.clone(), detail: detail.clone() };
        let refuses = StoreError::Refused { store: store.clone(), detail: detail.clone() };
        assert!(is_passing(&away().into()));
        assert!(is_passing(&anyhow::Error::from(away()).context("use a folder")));
        assert!(!is_passing(&refuses.into()));
        assert!(!is_passing(&anyhow::anyhow!("no free subnet")));
    }
}

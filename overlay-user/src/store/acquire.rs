//! How a host gets its subnet and keeps it: by flannel's rules (docs/etcd.md), except that a lost race is tried again and a
//! reservation stays a reservation.
mod attempt;
mod draw;
mod request;

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

pub use self::request::{Ipv6Request, LeaseRequest, LocalLease, TIME_TO_LIVE};
use self::{
    attempt::{Attempt, decoded},
    draw::draw_of,
};
use crate::{
    model::{lease, network::NetworkConfig, pause},
    store::{Store, StoreError, Written},
};

/// How often a race for a subnet is tried. With every lost race some other host got a subnet, so if this many are lost in a
/// row something else is wrong.
const ATTEMPTS: u32 = 32;
/// The limits of the first and of the longest pause after a lost race.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));

/// Why a lease was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// It is no longer this host's.
    #[error("lease {key} is lost: {}", match holder {
        Some(holder) => format!("host {holder} holds it now"),
        None => "it was deleted or has expired".to_owned(),
    })]
    Lost {
        /// The key.
        key: String,
        /// Which host the key names now, if any. It is this host's own address if another host uses the same address, or if
        /// somebody altered our value.
        holder: Option<IpAddr>,
    },
    /// The store failed. The lease is this host's until it expires.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gets a subnet for this host: its own lease, which is found by its public IP, or else the subnet it had before, or else one
/// of the first free ones.
///
/// # Errors
/// A [`StoreError`] if the store failed. Otherwise the error says why there is no subnet for this host, and what to do.
pub async fn acquire(
    store: &mut impl Store,
    config: &NetworkConfig,
    request: &LeaseRequest,
) -> Result<LocalLease> {
    let mut drawn = None;
    for attempt in 0..ATTEMPTS {
        let attempted = Attempt { config, request, among: draw_of(attempt), drawn: &mut drawn };
        if let Some(held) = attempted.acquire(store).await? {
            return Ok(held);
        }
        tokio::time::sleep(pause::drawn(PAUSE.0, attempt, PAUSE.1)).await;
    }
    bail!(
        "lost {ATTEMPTS} races for a subnet in a row: does something write below {} all the time?",
        store.name()
    )
}

/// Fails if another host has a lease in this store. This is for stores that are meant for one host alone.
pub async fn refuse_other_hosts(store: &mut impl Store, request: &LeaseRequest) -> Result<()> {
    let snapshot = store.snapshot().await?;
    let leases = decoded(&snapshot);
    match leases.into_iter().find(|(_, lease)| !request.is_own(lease)) {
        None => Ok(()),
        Some((entry, lease)) => bail!(
            "{} holds lease {} of another host, {}: declare the folder shared if hosts share it, or delete the lease if it is \
             this host's from before",
            store.name(),
            entry.key,
            lease.public_ip
        ),
    }
}

/// Renews the lease, with a fresh time to live. The key is not written, so that other hosts hear nothing of it, unless it is on
/// another term than this host's. After [`RenewError::Store`] it may be tried again. A key that an operator has made a
/// reservation meanwhile stays one.
pub async fn renew(store: &mut impl Store, held: &mut LocalLease) -> Result<(), RenewError> {
    let asked = Instant::now();
    match store.prolong(&held.lease.key(), held.modified, held.time_to_live).await? {
        Written::At(_) => {
            held.renewed = asked;
            Ok(())
        }
        Written::Lost => rewrite(store, held).await,
    }
}

/// Writes the lease again, with a fresh time to live.
pub async fn rewrite(store: &mut impl Store, held: &mut LocalLease) -> Result<(), RenewError> {
    let (key, value) = (held.lease.key(), held.lease.value());
    let mut modified = held.modified;
    // There is a second try because an earlier renewal may have been made though its answer was lost.
    for _ in 0..2 {
        let renewed = Instant::now();
        let written = store.renew(&key, value.clone(), modified, held.time_to_live).await?;
        if let Written::At(revision) = written {
            held.modified = revision;
            held.renewed = renewed;
            return Ok(());
        }
        match store.tally(&[&key]).await?.entries.pop().flatten() {
            Some(entry) if entry.value == value => {
                modified = entry.modified;
                held.heed(entry.lifetime);
            }
            Some(entry) => {
                let holder = lease::decode(&key, &entry.value).ok().map(|lease| lease.public_ip);
                return Err(RenewError::Lost { key, holder });
            }
            None => return Err(RenewError::Lost { key, holder: None }),
        }
    }
    let holder = Some(held.lease.public_ip);
    Err(RenewError::Lost { key, holder })
}

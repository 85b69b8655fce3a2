//! How a host gets its subnet and keeps it: by flannel's rules (docs/etcd.md), except that a lost race is tried again and a
//! reservation stays a reservation.
mod draw;

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, bail};
use ipnet::IpNet;
use tokio::time::Instant;

use self::draw::{Taken, draw, draw_of};
use crate::{
    model::{
        backend::Backend,
        lease::{self, Lease, LeaseBackend},
        mac::Mac,
        network::NetworkConfig,
        pause,
    },
    store::{LeaseEntry, Lifetime, Revision, Snapshot, Store, StoreError, Written},
};

/// How long a lease lives unless it is renewed. flannel's leases live as long.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a race for a subnet is tried. With every lost race some other host got a subnet, so if this many are lost in a
/// row something else is wrong.
const ATTEMPTS: u32 = 32;
/// The limits of the first and of the longest pause after a lost race.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));

/// Who asks for a subnet.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// The host's address on the underlay, which is also its identity.
    pub public_ip: IpAddr,
    /// The address that the host had before, if it has changed. Then the lease of `preferred` is this host's, with either address,
    /// and no other: whoever had the new address before may have left one.
    pub former_ip: Option<IpAddr>,
    /// How packets travel to this host, which the lease says.
    pub backend: Backend,
    /// MAC address for a new lease whose backend has one. With `None`, a random one is made. A lease that is reused keeps its
    /// own.
    pub vtep_mac: Option<Mac>,
    /// The subnet of an earlier run, from this host's record or subnet.env.
    pub preferred: Option<IpNet>,
    /// How long the lease lives unless renewed.
    pub time_to_live: Duration,
}

impl LeaseRequest {
    /// Whether a lease is this host's.
    fn is_own(&self, lease: &Lease) -> bool {
        match self.former_ip {
            None => lease.public_ip == self.public_ip,
            Some(former) => {
                self.preferred == Some(lease.subnet) && [self.public_ip, former].contains(&lease.public_ip)
            }
        }
    }
}

/// The lease that this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLease {
    /// Key and value as they stand in the store.
    pub lease: Lease,
    /// The revision at which the lease was last written.
    pub modified: Revision,
    /// How long the lease lives from `renewed` on; `None` for a reservation.
    pub time_to_live: Option<Duration>,
    /// When the last write was asked for. The store began to count the lifetime at this moment or later.
    pub renewed: Instant,
}

impl LocalLease {
    /// When the lease must be renewed so that `margin` is left of its lifetime. A margin of more than half of the lifetime
    /// counts as half. A reservation is written again as often as a lease that lives [`TIME_TO_LIVE`].
    pub fn renew_at(&self, margin: Duration) -> Instant {
        let time_to_live = self.time_to_live.unwrap_or(TIME_TO_LIVE);
        self.renewed + (time_to_live - self.left(margin))
    }

    /// A moment up to a tenth of the margin before that, so that hosts which started together do not renew together. It is
    /// drawn from the margin that counts, so that a long one spreads the hosts, too.
    pub fn draw_renewal(&self, margin: Duration) -> Instant {
        self.renew_at(margin) - self.left(margin).mul_f64(rand::random::<f64>() / 10.0)
    }

    /// How much of the lifetime is left at the renewal.
    fn left(&self, margin: Duration) -> Duration {
        margin.min(self.time_to_live.unwrap_or(TIME_TO_LIVE) / 2)
    }

    /// Takes in what the store says of the key's lifetime. If an operator made it a reservation, this host gives it no end
    /// again. Returns whether that is news.
    pub fn heed(&mut self, lifetime: Lifetime) -> bool {
        lifetime == Lifetime::Reserved && self.time_to_live.take().is_some()
    }

    /// When others may take the subnet; `None` for a reservation, which nobody else may take.
    pub fn ends_at(&self) -> Option<Instant> {
        self.time_to_live.map(|time_to_live| self.renewed + time_to_live)
    }
}

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
    for attempt in 0..ATTEMPTS {
        if let Some(held) = try_acquire(store, config, request, draw_of(attempt)).await? {
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

/// One try to get a subnet, which is drawn among the first `among` free ones. `None` means that another host was faster.
async fn try_acquire(
    store: &mut impl Store,
    config: &NetworkConfig,
    request: &LeaseRequest,
    among: usize,
) -> Result<Option<LocalLease>> {
    let snapshot = store.snapshot().await?;
    let leases = decoded(&snapshot);
    let (own, others): (Vec<_>, Vec<_>) = leases.iter().partition(|(_, lease)| request.is_own(lease));
    let (fit, misfit): (Vec<_>, Vec<_>) = own
        .into_iter()
        .partition(|(entry, lease)| config.plan.fits(lease.subnet) && entry.key == lease.key());
    if let [(first, _), (second, _), ..] = fit[..] {
        bail!(
            "public IP {} has two leases, {} and {}: if another host uses this address, give one of them another --public-ip; \
             delete the wrong lease",
            request.public_ip,
            first.key,
            second.key
        );
    }
    for (entry, _) in others.iter().filter(|(_, other)| other.public_ip == request.public_ip) {
        log::warn!(
            "{} names {}, which is this host's address now: it is a lease of another host, or of one that had the address before; \
             delete it if that host is gone",
            entry.key,
            request.public_ip
        );
    }
    for (entry, lease) in &misfit {
        release_misfit(store, config, entry, lease).await?;
    }
    if let Some((entry, lease)) = fit.first() {
        if let Some((other, covers)) = others.iter().find(|(_, other)| overlap(other.subnet, lease.subnet)) {
            bail!(
                "our lease {} and {} of host {} are for the same addresses: delete the wrong one",
                entry.key,
                other.key,
                covers.public_ip
            );
        }
        return Ok(reuse(store, request, entry, lease).await?);
    }
    // A subnet is taken even if the value of its key cannot be read. The ones that were given back just now are free.
    let given_back = |entry: &LeaseEntry| misfit.iter().any(|(misfit, _)| misfit.key == entry.key);
    let keys = snapshot.entries.iter().filter(|entry| !given_back(entry));
    let taken = Taken::new(keys.filter_map(|entry| lease::subnet_of(&entry.key).ok()));
    let preferred = request.preferred.filter(|&subnet| config.plan.fits(subnet) && taken.is_free(subnet));
    let subnet = match preferred {
        Some(subnet) => subnet,
        None => draw(config, &taken, among)?,
    };
    Ok(claim(store, request, subnet).await?)
}

/// The entries that are leases. Entries that cannot be read are not this host's; the reconciler reports them.
fn decoded(snapshot: &Snapshot) -> Vec<(&LeaseEntry, Lease)> {
    let decode = |entry: &LeaseEntry| lease::decode(&entry.key, &entry.value).ok();
    let entries = snapshot.entries.iter();
    entries.filter_map(|entry| Some((entry, decode(entry)?))).collect()
}

/// Gives back a lease of this host that it cannot use: one from before the config was altered, or one with an IPv6 subnet,
/// which this agent would not serve.
async fn release_misfit(
    store: &mut impl Store,
    config: &NetworkConfig,
    entry: &LeaseEntry,
    lease: &Lease,
) -> Result<()> {
    if entry.lifetime == Lifetime::Reserved {
        bail!(
            "reservation {} for {} is none of the network config's /{} subnets from {} to {}: alter or delete the reservation, \
             or alter Network, SubnetLen, SubnetMin or SubnetMax",
            entry.key,
            lease.public_ip,
            config.plan.subnet_len,
            config.plan.subnet_min,
            config.plan.subnet_max
        );
    }
    log::info!("give back our lease {}, which does not fit the network config", entry.key);
    store.release(&entry.key, entry.modified).await?;
    Ok(())
}

/// Takes this host's earlier lease again, with its MAC address, because peers that have not heard of the restart go on
/// using that.
async fn reuse(
    store: &mut impl Store,
    request: &LeaseRequest,
    entry: &LeaseEntry,
    lease: &Lease,
) -> Result<Option<LocalLease>, StoreError> {
    let vtep_mac = match lease.backend {
        LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
        LeaseBackend::Other(_) => request.vtep_mac,
    };
    let lease = new_lease(request, lease.subnet, vtep_mac);
    let time_to_live = match entry.lifetime {
        Lifetime::Reserved => None,
        Lifetime::Limited => Some(request.time_to_live),
    };
    let renewed = Instant::now();
    let written = store.renew(&entry.key, lease.value(), entry.modified, time_to_live).await?;
    Ok(held(written, lease, time_to_live, renewed))
}

async fn claim(
    store: &mut impl Store,
    request: &LeaseRequest,
    subnet: IpNet,
) -> Result<Option<LocalLease>, StoreError> {
    let lease = new_lease(request, subnet, request.vtep_mac);
    let time_to_live = Some(request.time_to_live);
    let renewed = Instant::now();
    let written = store.claim(&lease.key(), lease.value(), time_to_live).await?;
    Ok(held(written, lease, time_to_live, renewed))
}

fn new_lease(request: &LeaseRequest, subnet: IpNet, vtep_mac: Option<Mac>) -> Lease {
    let backend = request.backend.published(|| vtep_mac.unwrap_or_else(Mac::random));
    Lease { subnet, public_ip: request.public_ip, backend }
}

fn held(
    written: Written,
    lease: Lease,
    time_to_live: Option<Duration>,
    renewed: Instant,
) -> Option<LocalLease> {
    match written {
        Written::At(modified) => Some(LocalLease { lease, modified, time_to_live, renewed }),
        Written::Lost => None,
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

//! One try to get a subnet of each family that the network has: which lease this host keeps, which it gives back, and what it
//! claims.
use std::{net::IpAddr, time::Duration};

use anyhow::{Result, bail};
use ipnet::IpNet;
use tokio::time::Instant;

use super::{
    draw::{Taken, draw},
    request::{Ipv6Request, LeaseRequest, LocalLease},
};
use crate::{
    model::{
        lease::{self, Ipv6Half, Lease, LeaseBackend},
        mac::Mac,
        network::{AddressPlan, NetworkConfig},
    },
    store::{LeaseEntry, Lifetime, Snapshot, Store, Written},
};

/// One try, in which a subnet is drawn among the first `among` free ones.
pub(super) struct Attempt<'a> {
    pub(super) config: &'a NetworkConfig,
    pub(super) request: &'a LeaseRequest,
    pub(super) among: usize,
    /// The IPv6 subnet that an earlier try has drawn and written. No container can have an address of it yet.
    pub(super) drawn: &'a mut Option<IpNet>,
}

/// All leases, told apart by whose they are.
struct Leases<'a> {
    own: Vec<(&'a LeaseEntry, Lease)>,
    others: Vec<(&'a LeaseEntry, Lease)>,
}

/// An IPv6 subnet for this host, and whether it was drawn just now.
#[derive(Clone, Copy)]
struct Chosen {
    subnet: IpNet,
    public_ip: IpAddr,
    is_new: bool,
}

impl Attempt<'_> {
    /// Tries. `None` means that another host was faster.
    pub(super) async fn acquire(mut self, store: &mut impl Store) -> Result<Option<LocalLease>> {
        let snapshot = store.snapshot().await?;
        let leases = self.told_apart(&snapshot);
        let (fit, misfit): (Vec<_>, Vec<_>) =
            leases.own.iter().partition(|(entry, lease)| self.fits(entry, lease));
        let public_ip = self.request.public_ip;
        if let [(first, _), (second, _), ..] = fit[..] {
            bail!(
                "public IP {public_ip} has two leases, {} and {}: if another host uses this address, give one of them another \
                 --public-ip; delete the wrong lease",
                first.key,
                second.key
            );
        }
        for (entry, _) in leases.others.iter().filter(|(_, other)| other.public_ip == public_ip) {
            log::warn!(
                "{} names {public_ip}, which is this host's address now: it is a lease of another host, or of one that had the \
                 address before; delete it if that host is gone",
                entry.key
            );
        }
        for (entry, lease) in &misfit {
            release_misfit(store, &self.config.plan, entry, lease).await?;
        }
        if let Some((entry, lease)) = fit.first() {
            return self.keep(store, entry, lease, &leases, &snapshot).await;
        }
        // A subnet is taken even if the value of its key cannot be read. The ones that were given back just now are free.
        let given_back = |entry: &LeaseEntry| misfit.iter().any(|(misfit, _)| misfit.key == entry.key);
        let taken = taken(snapshot.entries.iter().filter(|entry| !given_back(entry)));
        let plan = &self.config.plan;
        let subnet = match self.request.preferred.filter(|&subnet| plan.fits(subnet) && taken.is_free(subnet))
        {
            Some(subnet) => subnet,
            None => draw(plan, &taken, self.among)?,
        };
        let former = misfit.iter().find_map(|(entry, _)| lease::subnets_of(&entry.key).ok()?.ipv6);
        let ipv6 = match self.wanted() {
            None => None,
            Some((plan, wanted)) => Some(self.choose_ipv6(plan, wanted, former, &taken)?),
        };
        let lease = self.lease(subnet, ipv6, self.request.vtep_mac);
        let time_to_live = Some(self.request.time_to_live);
        let renewed = Instant::now();
        let written = store.claim(&lease.key(), lease.value(), time_to_live).await?;
        self.settle(store, held(written, lease, time_to_live, renewed), ipv6).await
    }

    fn told_apart<'s>(&self, snapshot: &'s Snapshot) -> Leases<'s> {
        let (own, others) = decoded(snapshot).into_iter().partition(|(_, lease)| self.request.is_own(lease));
        Leases { own, others }
    }

    /// Whether this host can keep the IPv4 subnet of its own lease. Whether its key has an IPv6 subnet makes no difference: IPv6
    /// may be switched on and off in a network whose containers live on.
    fn fits(&self, entry: &LeaseEntry, lease: &Lease) -> bool {
        self.config.plan.fits(lease.subnet) && lease::ipv4_part(&entry.key) == lease::key_of(lease.subnet)
    }

    /// The IPv6 subnets there are for a host that can use one. A flanneld that knows no IPv6 ends over any in a key, so there is
    /// none in a network that does not say `EnableIPv6`; and one of both families ends over a key with an IPv6 subnet whose
    /// value has no IPv6 address, so there is none for a host without.
    fn wanted(&self) -> Option<(&AddressPlan, Ipv6Request)> {
        self.config.ipv6.as_ref().zip(self.request.ipv6)
    }

    /// Keeps the IPv4 subnet of this host's earlier lease, with the same MAC address, because peers that have not heard of the
    /// restart go on using that; and its IPv6 subnet if it has one that fits. A key of another form takes the old one's place in
    /// one step.
    async fn keep(
        &mut self,
        store: &mut impl Store,
        entry: &LeaseEntry,
        lease: &Lease,
        leases: &Leases<'_>,
        snapshot: &Snapshot,
    ) -> Result<Option<LocalLease>> {
        if let Some((other, covers)) =
            leases.others.iter().find(|(_, other)| overlap(other.subnet, lease.subnet))
        {
            bail!(twice(entry, other, covers));
        }
        let time_to_live = match entry.lifetime {
            Lifetime::Reserved => None,
            Lifetime::Limited => Some(self.request.time_to_live),
        };
        let ipv6 = self.keep_ipv6(entry, leases, snapshot)?;
        let vtep_mac = match lease.backend {
            LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
            LeaseBackend::Other(_) => self.request.vtep_mac,
        };
        let lease = self.lease(lease.subnet, ipv6, vtep_mac);
        let (key, value) = (lease.key(), lease.value());
        let renewed = Instant::now();
        let written = if key == entry.key {
            store.renew(&key, value, entry.modified, time_to_live).await?
        } else {
            log::info!("our lease {} becomes {key}: the IPv4 subnet stays", entry.key);
            store.replace(&entry.key, entry.modified, &key, value, time_to_live).await?
        };
        self.settle(store, held(written, lease, time_to_live, renewed), ipv6).await
    }

    /// The IPv6 subnet beside an IPv4 subnet that this host keeps.
    fn keep_ipv6(
        &mut self,
        entry: &LeaseEntry,
        leases: &Leases<'_>,
        snapshot: &Snapshot,
    ) -> Result<Option<Chosen>> {
        let is_reserved = entry.lifetime == Lifetime::Reserved;
        let present = lease::subnets_of(&entry.key).ok().and_then(|subnets| subnets.ipv6);
        let Some((plan, wanted)) = self.wanted() else {
            if present.is_some() && is_reserved && self.config.ipv6.is_some() {
                bail!(
                    "reservation {} has an IPv6 subnet, but this host has no IPv6 address on the underlay: give it one, or name \
                     one with --public-ipv6, or write the reservation without the IPv6 subnet",
                    entry.key
                );
            }
            return Ok(None);
        };
        if let Some(subnet) = present.filter(|&subnet| plan.fits(subnet)) {
            let Some((other, covers)) =
                leases.others.iter().find(|(other, _)| ipv6_of(other).is_some_and(|it| overlap(it, subnet)))
            else {
                return Ok(Some(Chosen { subnet, public_ip: wanted.public_ip, is_new: false }));
            };
            // Containers of this host have addresses of its earlier subnet, but of none that it got just now.
            if wanted.preferred == Some(subnet) && *self.drawn != Some(subnet) {
                bail!(twice(entry, other, covers));
            }
        } else if let Some(subnet) = present.filter(|_| is_reserved) {
            bail!(
                "reservation {} has an IPv6 subnet, {subnet}, which is none of the network config's /{} subnets from {} to {}: \
                 alter or delete the reservation, or alter IPv6Network, IPv6SubnetLen, IPv6SubnetMin or IPv6SubnetMax",
                entry.key,
                plan.subnet_len,
                plan.subnet_min,
                plan.subnet_max
            );
        }
        let taken = taken(snapshot.entries.iter().filter(|other| other.key != entry.key));
        self.choose_ipv6(plan, wanted, None, &taken).map(Some)
    }

    /// A free IPv6 subnet: the one of an earlier run or the `former` one if it can be had, or else one that is drawn
    /// independently of the IPv4 subnet.
    fn choose_ipv6(
        &self,
        plan: &AddressPlan,
        wanted: Ipv6Request,
        former: Option<IpNet>,
        taken: &Taken,
    ) -> Result<Chosen> {
        let earlier = [wanted.preferred, former].into_iter().flatten();
        let mut earlier = earlier.filter(|&it| plan.fits(it) && taken.is_free(it) && Some(it) != *self.drawn);
        let subnet = match earlier.next() {
            Some(subnet) => subnet,
            None => draw(plan, taken, self.among)?,
        };
        Ok(Chosen { subnet, public_ip: wanted.public_ip, is_new: true })
    }

    /// Looks whether another host has claimed the same IPv6 subnet at the same moment. Keys begin with the IPv4 subnet, so that
    /// no guard in the store keeps two hosts from this. Whoever sees the other gives way, and draws again at the next try.
    async fn settle(
        &mut self,
        store: &mut impl Store,
        held: Option<LocalLease>,
        ipv6: Option<Chosen>,
    ) -> Result<Option<LocalLease>> {
        let (Some(held), Some(Chosen { subnet, is_new: true, .. })) = (&held, ipv6) else {
            return Ok(held);
        };
        let key = held.lease.key();
        let snapshot = store.snapshot().await?;
        let mut others = snapshot.entries.iter().filter(|other| other.key != key);
        match others.find(|other| ipv6_of(other).is_some_and(|it| overlap(it, subnet))) {
            None => Ok(Some(held.clone())),
            Some(other) => {
                log::info!("{} has {subnet}, too, since this moment: drawing another IPv6 subnet", other.key);
                *self.drawn = Some(subnet);
                Ok(None)
            }
        }
    }

    /// This host's lease. overlay0 serves both families, so both halves have its MAC address.
    fn lease(&self, subnet: IpNet, ipv6: Option<Chosen>, vtep_mac: Option<Mac>) -> Lease {
        let backend = self.request.backend.published(|| vtep_mac.unwrap_or_else(Mac::random));
        let half =
            |Chosen { subnet, public_ip, .. }| Ipv6Half { subnet, public_ip, backend: backend.clone() };
        Lease { subnet, public_ip: self.request.public_ip, ipv6: ipv6.map(half), backend }
    }
}

/// The addresses of both families that are in use, as keys say.
fn taken<'a>(entries: impl Iterator<Item = &'a LeaseEntry>) -> Taken {
    let subnets = entries.filter_map(|entry| lease::subnets_of(&entry.key).ok());
    Taken::new(subnets.flat_map(|it| std::iter::once(it.subnet).chain(it.ipv6)))
}

/// The IPv6 subnet that a key names.
fn ipv6_of(entry: &LeaseEntry) -> Option<IpNet> {
    lease::subnets_of(&entry.key).ok()?.ipv6
}

/// What is said of another host's lease of this host's addresses.
fn twice(own: &LeaseEntry, other: &LeaseEntry, covers: &Lease) -> String {
    let (own, other, host) = (&own.key, &other.key, covers.public_ip);
    format!("our lease {own} and {other} of host {host} are for the same addresses: delete the wrong one")
}

/// Gives back a lease of this host that it cannot use: one from before the config was altered.
async fn release_misfit(
    store: &mut impl Store,
    plan: &AddressPlan,
    entry: &LeaseEntry,
    lease: &Lease,
) -> Result<()> {
    if entry.lifetime == Lifetime::Reserved {
        bail!(
            "reservation {} for {} is none of the network config's /{} subnets from {} to {}: alter or delete the reservation, \
             or alter Network, SubnetLen, SubnetMin or SubnetMax",
            entry.key,
            lease.public_ip,
            plan.subnet_len,
            plan.subnet_min,
            plan.subnet_max
        );
    }
    log::info!("give back our lease {}, which does not fit the network config", entry.key);
    store.release(&entry.key, entry.modified).await?;
    Ok(())
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

/// The entries that are leases. Entries that cannot be read are not this host's; the reconciler reports them.
pub(super) fn decoded(snapshot: &Snapshot) -> Vec<(&LeaseEntry, Lease)> {
    let decode = |entry: &LeaseEntry| lease::decode(&entry.key, &entry.value).ok();
    let entries = snapshot.entries.iter();
    entries.filter_map(|entry| Some((entry, decode(entry)?))).collect()
}

//! Who asks for a lease, and what a host has that got one.
use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use tokio::time::Instant;

use crate::{
    model::{backend::Backend, lease::Lease, mac::Mac},
    store::{Lifetime, Revision},
};

/// How long a lease lives unless it is renewed. flannel's leases live as long.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// What IPv6 needs; `None` for a host that has no IPv6 address on the underlay. It counts in a network of both families
    /// alone.
    pub ipv6: Option<Ipv6Request>,
    /// How long the lease lives unless renewed.
    pub time_to_live: Duration,
}

/// What a host asks of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Request {
    /// The host's IPv6 address on the underlay.
    pub public_ip: IpAddr,
    /// The IPv6 subnet of an earlier run.
    pub preferred: Option<IpNet>,
}

impl LeaseRequest {
    /// Whether a lease is this host's.
    pub(super) fn is_own(&self, lease: &Lease) -> bool {
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

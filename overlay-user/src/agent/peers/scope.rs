//! Which leases concern this host, and which peer each of them names.
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::model::{
    backend::Backend,
    entries::{Peer, PeerIpv6},
    lease::{BadLease, Lease},
};

/// A lease whose prefix is much shorter than SubnetLen would expand into more entries than any table holds. This is the largest
/// accepted difference between the two prefix lengths, in bits.
const MAX_EXPANSION_BITS: u8 = 8;

/// What this host is, and which leases concern it.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The whole overlay.
    pub network: IpNet,
    /// Prefix length of every entry in the data path's peer table.
    pub subnet_len: u8,
    /// How packets travel between hosts. A lease that says otherwise belongs to another overlay.
    pub backend: Backend,
    /// This host's address on the underlay.
    pub own_ip: IpAddr,
    /// This host's subnet, which is never a peer's, whatever a lease says.
    pub own_subnet: IpNet,
    /// The same of IPv6, on a host that has an IPv6 subnet. Without one, nothing of IPv6 is taken from leases.
    pub ipv6: Option<Ipv6Scope>,
}

/// What this host is in IPv6.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Scope {
    /// The whole overlay's addresses of IPv6.
    pub network: IpNet,
    /// Prefix length of every host's IPv6 subnet.
    pub subnet_len: u8,
    /// This host's IPv6 address on the underlay.
    pub own_ip: IpAddr,
    /// This host's IPv6 subnet.
    pub own_subnet: IpNet,
}

impl Scope {
    /// Whether this lease is the host's own.
    pub fn is_own(&self, lease: &Lease) -> bool {
        lease.subnet == self.own_subnet && lease.public_ip == self.own_ip
    }

    /// The peer that another host's lease names, and the subnets for which the table needs an entry.
    pub(super) fn peers_of(&self, lease: &Lease) -> Result<(Peer, Vec<IpNet>)> {
        if lease.subnet == self.own_subnet {
            bail!("{} claims the subnet of this host", lease.public_ip);
        }
        if lease.public_ip == self.own_ip {
            bail!(
                "{} is this host's own public IP: an older lease of its own, or a second host with the same address",
                self.own_ip
            );
        }
        let vtep_mac = self.backend.peer_mac(&lease.backend)?;
        let length = lease.subnet.prefix_len();
        if !self.network.contains(&lease.subnet) {
            bail!("{} is not inside {}", lease.subnet, self.network);
        }
        if length > self.subnet_len || length + MAX_EXPANSION_BITS < self.subnet_len {
            bail!("{} is a /{length} in a network of /{} subnets", lease.subnet, self.subnet_len);
        }
        let parts = lease.subnet.subnets(self.subnet_len)?;
        let parts = parts.filter(|part| *part != self.own_subnet).collect();
        Ok((Peer { public_ip: lease.public_ip, vtep_mac, ipv6: None }, parts))
    }

    /// The IPv6 half of the peer that another host's lease names, if it has one that means something to this host. `bad` is what
    /// was wrong with it as it was read.
    pub(super) fn half_of(&self, lease: &Lease, bad: Option<BadLease>) -> Result<Option<PeerIpv6>> {
        let Some(scope) = &self.ipv6 else { return Ok(None) };
        if let Some(bad) = bad {
            bail!(bad.problem);
        }
        let Some(half) = &lease.ipv6 else { return Ok(None) };
        let (subnet, length) = (half.subnet, half.subnet.prefix_len());
        if subnet == scope.own_subnet {
            bail!("{} claims {}, the IPv6 subnet of this host", lease.public_ip, scope.own_subnet);
        }
        if half.public_ip == scope.own_ip {
            bail!("{} is this host's own IPv6 address", scope.own_ip);
        }
        if !scope.network.contains(&subnet) {
            bail!("{subnet} is not inside {}", scope.network);
        }
        // Unlike a subnet of IPv4, one of IPv6 is never cut into several entries: it may stand for too many.
        if length != scope.subnet_len {
            bail!("{subnet} is a /{length} in a network of /{} subnets", scope.subnet_len);
        }
        let vtep_mac = self.backend.peer_mac(&half.backend)?;
        Ok(Some(PeerIpv6 { subnet, public_ip: half.public_ip, vtep_mac }))
    }
}

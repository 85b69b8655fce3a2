//! What a host that has joined has of IPv6, for whatever depends on it.
use ipnet::IpNet;

use super::Joined;
use crate::agent::{peers::Ipv6Scope, status::Ipv6Status};

impl Joined {
    /// The network's addresses of IPv6 and this host's subnet of them, if it has one.
    pub(crate) fn ipv6_subnet(&self) -> Option<(IpNet, IpNet)> {
        let half = self.local_lease.lease.ipv6.as_ref()?;
        Some((self.network.ipv6?.network, half.subnet))
    }

    /// What is taken from leases of IPv6.
    pub(crate) fn ipv6_scope(&self) -> Option<Ipv6Scope> {
        let half = self.local_lease.lease.ipv6.as_ref()?;
        let plan = self.network.ipv6?;
        Some(Ipv6Scope {
            network: plan.network,
            subnet_len: plan.subnet_len,
            own_ip: half.public_ip,
            own_subnet: half.subnet,
        })
    }

    /// What the status says of IPv6.
    pub(crate) fn ipv6_status(&self) -> Option<Ipv6Status> {
        let half = self.local_lease.lease.ipv6.as_ref();
        Some(Ipv6Status {
            network: self.network.ipv6?.network,
            subnet: half.map(|half| half.subnet),
            public_ip: half.map(|half| half.public_ip),
            why: self.no_ipv6.clone(),
        })
    }
}

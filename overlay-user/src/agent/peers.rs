//! Which peers the store's leases ask for, and what must change to have exactly those. This module is pure: it calls neither
//! kernel nor store.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    model::change::PeerChange,
    model::{
        backend::Backend,
        entries::Peer,
        lease::{self, Lease},
    },
    store::{self, LeaseEntry, Revision},
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
}

/// A key in the store that gives no peer, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skipped {
    /// The key below `<prefix>/subnets/`.
    pub key: String,
    /// What is wrong with it, in words for the operator.
    pub why: String,
}

/// One lease's claim to a subnet. If there are several, the one that was written last wins, because its host is the one that is
/// alive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LeaseClaim {
    modified: Revision,
    key: Arc<str>,
}

/// The peers that the leases ask for, kept up to date change by change.
#[derive(Debug)]
pub struct PeerTable {
    scope: Scope,
    /// Every claim to every subnet, in the order in which they were written, with the peer that each names. The last one holds.
    /// A subnet nearly always has a single claim, for which a map within the map would take half a KiB.
    claims: BTreeMap<IpNet, Vec<(LeaseClaim, Peer)>>,
    /// The subnets that each accepted key claims, so that the claims can be withdrawn when the key changes or goes.
    keys: BTreeMap<Arc<str>, Box<[IpNet]>>,
    /// Keys that give no peer.
    refused: BTreeMap<String, String>,
    /// Subnets with more than one claim.
    contested: BTreeSet<IpNet>,
}

impl PeerTable {
    /// An empty table.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            claims: BTreeMap::new(),
            keys: BTreeMap::new(),
            refused: BTreeMap::new(),
            contested: BTreeSet::new(),
        }
    }

    /// Starts anew with all leases at one revision.
    pub fn snapshot(&mut self, snapshot: &store::Snapshot) {
        *self = Self::new(self.scope.clone());
        for entry in &snapshot.entries {
            self.put(entry);
        }
    }

    /// Takes in the changes of one revision. Returns the subnets whose peer may be another one now.
    pub fn change(&mut self, batch: &store::Batch) -> BTreeSet<IpNet> {
        let mut touched = BTreeSet::new();
        for change in &batch.changes {
            match change {
                store::LeaseChange::Put(entry) => {
                    touched.extend(self.remove(&entry.key));
                    touched.extend(self.put(entry));
                }
                store::LeaseChange::Delete { key } => touched.extend(self.remove(key)),
            }
        }
        touched
    }

    /// The peer that holds a subnet.
    pub fn get(&self, subnet: &IpNet) -> Option<&Peer> {
        self.claims.get(subnet)?.last().map(|(_, peer)| peer)
    }

    /// Every peer by its subnet, with the revision that gave it.
    pub fn wanted(&self) -> impl Iterator<Item = (IpNet, Peer, Revision)> {
        self.claims.iter().filter_map(|(&subnet, claims)| {
            claims.last().map(|(claim, peer)| (subnet, *peer, claim.modified))
        })
    }

    /// How many subnets have a peer.
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// Whether no lease gives a peer.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Keys that give no peer, or not for every subnet that they claim, and the reason for each.
    pub fn skipped(&self) -> Vec<Skipped> {
        let refused = self.refused.iter().map(|(key, why)| Skipped { key: key.clone(), why: why.clone() });
        let lost = self.contested.iter().flat_map(|subnet| {
            let claims = &self.claims[subnet];
            let winner = claims.last().map_or("", |(claim, _)| &claim.key);
            claims.iter().rev().skip(1).map(move |(claim, _)| Skipped {
                key: claim.key.to_string(),
                why: format!("{subnet} is leased twice; {winner} was written later and holds it"),
            })
        });
        refused.chain(lost).collect()
    }

    fn put(&mut self, entry: &LeaseEntry) -> Vec<IpNet> {
        let lease = match lease::decode(&entry.key, &entry.value) {
            Ok(lease) if self.scope.is_own(&lease) => return Vec::new(),
            Ok(lease) => self.scope.peers_of(&lease).map_err(|why| why.to_string()),
            Err(bad) => Err(bad.problem),
        };
        match lease {
            Ok((peer, subnets)) => {
                let claim = LeaseClaim { modified: entry.modified, key: entry.key.as_str().into() };
                for &subnet in &subnets {
                    let claims = self.claims.entry(subnet).or_insert_with(|| Vec::with_capacity(1));
                    let place = claims.partition_point(|(other, _)| *other < claim);
                    claims.insert(place, (claim.clone(), peer));
                    if claims.len() > 1 {
                        self.contested.insert(subnet);
                    }
                }
                self.keys.insert(claim.key, subnets.as_slice().into());
                subnets
            }
            Err(why) => {
                self.refused.insert(entry.key.clone(), why);
                Vec::new()
            }
        }
    }

    fn remove(&mut self, key: &str) -> Vec<IpNet> {
        self.refused.remove(key);
        let Some(subnets) = self.keys.remove(key) else {
            return Vec::new();
        };
        for subnet in &subnets {
            if let Some(claims) = self.claims.get_mut(subnet) {
                claims.retain(|(claim, _)| &*claim.key != key);
                if claims.len() < 2 {
                    self.contested.remove(subnet);
                }
                if claims.is_empty() {
                    self.claims.remove(subnet);
                }
            }
        }
        subnets.into_vec()
    }
}

impl Scope {
    /// Whether this lease is the host's own.
    pub fn is_own(&self, lease: &Lease) -> bool {
        lease.subnet == self.own_subnet && lease.public_ip == self.own_ip
    }

    /// The peer that another host's lease names, and the subnets for which the table needs an entry.
    fn peers_of(&self, lease: &Lease) -> Result<(Peer, Vec<IpNet>)> {
        if lease.subnet == self.own_subnet {
            bail!("{} claims the subnet of this host", lease.public_ip);
        }
        if lease.public_ip == self.own_ip {
            bail!(
                "{} is this host's own public IP: an older lease of its own, or a second host with the same address",
                self.own_ip
            );
        }
        let vtep_mac = self.backend.peer_mac(lease)?;
        let length = lease.subnet.prefix_len();
        if !self.network.contains(&lease.subnet) {
            bail!("{} is not inside {}", lease.subnet, self.network);
        }
        if length > self.subnet_len || length + MAX_EXPANSION_BITS < self.subnet_len {
            bail!("{} is a /{length} in a network of /{} subnets", lease.subnet, self.subnet_len);
        }
        let parts = lease.subnet.subnets(self.subnet_len)?;
        let parts = parts.filter(|part| *part != self.own_subnet).collect();
        Ok((Peer { public_ip: lease.public_ip, vtep_mac }, parts))
    }
}

/// The change that makes one subnet's entry right, if it is not.
pub fn change_of(subnet: IpNet, wanted: Option<&Peer>, installed: Option<&Peer>) -> Option<PeerChange> {
    match (wanted, installed) {
        (Some(wanted), Some(installed)) if wanted == installed => None,
        (Some(wanted), _) => Some(PeerChange::Put(subnet, *wanted)),
        (None, Some(_)) => Some(PeerChange::Remove(subnet)),
        (None, None) => None,
    }
}

/// The changes that turn `installed` into `wanted`, in both directions: additions and alterations come first, then removals.
pub fn diff(wanted: &PeerTable, installed: &BTreeMap<IpNet, Peer>) -> Vec<PeerChange> {
    let puts = wanted
        .wanted()
        .filter_map(|(subnet, peer, _)| change_of(subnet, Some(&peer), installed.get(&subnet)));
    let removals = installed
        .iter()
        .filter_map(|(&subnet, peer)| change_of(subnet, wanted.get(&subnet), Some(peer)))
        .filter(|change| matches!(change, PeerChange::Remove(_)));
    puts.chain(removals).collect()
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;

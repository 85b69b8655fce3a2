//! Which peers the store's leases ask for, and what must change to have exactly those. Pure: no store, no kernel.
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

/// A lease much shorter than SubnetLen would expand into more entries than any table holds; this many at most.
const MAX_EXPANSION_BITS: u8 = 8;

/// What this host is, and which leases concern it.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The whole overlay.
    pub network: IpNet,
    /// Prefix length of every entry in the data path's peer table.
    pub subnet_len: u8,
    /// How packets travel; leases that say otherwise are another overlay's.
    pub backend: Backend,
    /// This host's address on the underlay.
    pub own_ip: IpAddr,
    /// This host's subnet: never a peer's, whatever a lease says.
    pub own_subnet: IpNet,
}

/// A key that gives no peer, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skipped {
    /// The key below `<prefix>/subnets/`.
    pub key: String,
    /// What is wrong with it, in words for the operator.
    pub why: String,
}

/// One lease's claim to a subnet. The last written one wins: it is the host that is alive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LeaseClaim {
    modified: Revision,
    key: Arc<str>,
}

/// The peers that the leases ask for, kept up to date change by change.
#[derive(Debug)]
pub struct PeerTable {
    scope: Scope,
    /// Every claim to every subnet in order, with the peer it names; the last of each holds. There is one nearly always:
    /// a map in the map would take half a KiB for it.
    claims: BTreeMap<IpNet, Vec<(LeaseClaim, Peer)>>,
    /// What each accepted key claims, to take it back when the key changes or goes.
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

    /// Starts anew from all leases at one revision.
    pub fn snapshot(&mut self, snapshot: &store::Snapshot) {
        *self = Self::new(self.scope.clone());
        for entry in &snapshot.entries {
            self.put(entry);
        }
    }

    /// Takes in the changes of one revision; returns the subnets whose peer may be another one now.
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

    /// No lease gives a peer.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Keys that give no peer or not the one they ask for, and why.
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

    /// The peer that a lease of another host names, and the table entries it needs.
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

/// What makes one subnet's entry right, if it is not.
pub fn change_of(subnet: IpNet, wanted: Option<&Peer>, installed: Option<&Peer>) -> Option<PeerChange> {
    match (wanted, installed) {
        (Some(wanted), Some(installed)) if wanted == installed => None,
        (Some(wanted), _) => Some(PeerChange::Put(subnet, *wanted)),
        (None, Some(_)) => Some(PeerChange::Remove(subnet)),
        (None, None) => None,
    }
}

/// What turns `installed` into `wanted`, both ways: additions and alterations first, then removals.
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

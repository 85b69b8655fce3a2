//! Which peers the store's leases ask for, and what must change to have exactly those. This module is pure: it calls neither
//! kernel nor store.
mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::scope::{Ipv6Scope, Scope};
use crate::{
    model::change::PeerChange,
    model::{
        entries::{Peer, PeerIpv6},
        lease,
    },
    store::{self, LeaseEntry, Revision},
};

/// A key in the store that gives no peer, or none of IPv6, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skipped {
    /// The key below `<prefix>/subnets/`.
    pub key: String,
    /// What is wrong with it, in words for the operator.
    pub why: String,
    /// Whether it gives a peer of IPv4 all the same.
    #[serde(default)]
    pub is_ipv6_only: bool,
}

impl Skipped {
    /// A phrase of what the key does not give.
    pub fn lacks(&self) -> &'static str {
        if self.is_ipv6_only { "gives no peer of IPv6, only one of IPv4" } else { "gives no peer" }
    }
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
    /// Every claim to every IPv6 subnet, in the same order. A peer has its IPv6 half only as long as its claim to that is the
    /// last one.
    ipv6: BTreeMap<IpNet, Vec<LeaseClaim>>,
    /// The subnets of both families that each accepted key claims, so that the claims can be withdrawn when the key changes or
    /// goes.
    keys: BTreeMap<Arc<str>, Box<[IpNet]>>,
    /// Keys that give no peer.
    refused: BTreeMap<String, String>,
    /// Keys that give a peer without its IPv6 half.
    halved: BTreeMap<String, String>,
    /// Subnets of both families with more than one claim.
    contested: BTreeSet<IpNet>,
}

impl PeerTable {
    /// An empty table.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            claims: BTreeMap::new(),
            ipv6: BTreeMap::new(),
            keys: BTreeMap::new(),
            refused: BTreeMap::new(),
            halved: BTreeMap::new(),
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
    pub fn get(&self, subnet: &IpNet) -> Option<Peer> {
        self.claims.get(subnet)?.last().map(|claim| self.held(claim))
    }

    /// Every peer by its subnet, with the revision that gave it.
    pub fn wanted(&self) -> impl Iterator<Item = (IpNet, Peer, Revision)> {
        self.claims.iter().filter_map(|(&subnet, claims)| {
            claims.last().map(|claim| (subnet, self.held(claim), claim.0.modified))
        })
    }

    /// The peer that a lease names, with its IPv6 half only if no later lease claims that.
    fn held(&self, (claim, peer): &(LeaseClaim, Peer)) -> Peer {
        let last = |half: &PeerIpv6| self.ipv6.get(&half.subnet)?.last();
        Peer { ipv6: peer.ipv6.filter(|half| last(half) == Some(claim)), ..*peer }
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
        let told = |(key, why): (&String, &String), is_ipv6_only| Skipped {
            key: key.clone(),
            why: why.clone(),
            is_ipv6_only,
        };
        let refused = self.refused.iter().map(|refused| told(refused, false));
        let halved = self.halved.iter().map(|halved| told(halved, true));
        let lost = self.contested.iter().flat_map(|&subnet| {
            let claims: Vec<&LeaseClaim> = match subnet {
                IpNet::V4(_) => self.claims[&subnet].iter().map(|(claim, _)| claim).collect(),
                IpNet::V6(_) => self.ipv6[&subnet].iter().collect(),
            };
            let winner = claims.last().map_or("", |claim| &claim.key);
            let lost = |claim: &LeaseClaim| Skipped {
                key: claim.key.to_string(),
                why: format!("{subnet} is leased twice; {winner} was written later and holds it"),
                is_ipv6_only: subnet.addr().is_ipv6(),
            };
            claims.iter().rev().skip(1).map(|claim| lost(claim)).collect::<Vec<_>>()
        });
        refused.chain(halved).chain(lost).collect()
    }

    /// Returns the subnets of IPv4 whose peer may be another one now.
    fn put(&mut self, entry: &LeaseEntry) -> Vec<IpNet> {
        let (lease, bad_half) = match lease::decode_halves(&entry.key, &entry.value) {
            Ok((lease, _)) if self.scope.is_own(&lease) => return Vec::new(),
            Ok(read) => read,
            Err(bad) => {
                self.refused.insert(entry.key.clone(), bad.problem);
                return Vec::new();
            }
        };
        let (mut peer, subnets) = match self.scope.peers_of(&lease) {
            Ok(found) => found,
            Err(why) => {
                self.refused.insert(entry.key.clone(), why.to_string());
                return Vec::new();
            }
        };
        match self.scope.half_of(&lease, bad_half) {
            Ok(half) => peer.ipv6 = half,
            Err(why) => drop(self.halved.insert(entry.key.clone(), why.to_string())),
        }
        let claim = LeaseClaim { modified: entry.modified, key: entry.key.as_str().into() };
        let mut touched = subnets.clone();
        let mut claimed = subnets;
        // A lease that is cut into several entries has one IPv6 half, which the first of them gets.
        let mut half = peer.ipv6;
        for &subnet in &touched {
            let claims = self.claims.entry(subnet).or_insert_with(|| Vec::with_capacity(1));
            let place = claims.partition_point(|(other, _)| *other < claim);
            claims.insert(place, (claim.clone(), Peer { ipv6: half.take(), ..peer }));
            if claims.len() > 1 {
                self.contested.insert(subnet);
            }
        }
        if let Some(half) = peer.ipv6 {
            let claims = self.ipv6.entry(half.subnet).or_insert_with(|| Vec::with_capacity(1));
            let place = claims.partition_point(|other| *other < claim);
            claims.insert(place, claim.clone());
            if claims.len() > 1 {
                self.contested.insert(half.subnet);
            }
            claimed.push(half.subnet);
            touched.extend(self.claimants(&half.subnet));
        }
        self.keys.insert(claim.key, claimed.into());
        touched
    }

    /// The subnets of IPv4 of all leases that claim an IPv6 subnet.
    fn claimants(&self, ipv6: &IpNet) -> Vec<IpNet> {
        let claims = self.ipv6.get(ipv6).into_iter().flatten();
        let claimed = claims.filter_map(|claim| self.keys.get(&claim.key)).flatten();
        claimed.copied().filter(|subnet| subnet.addr().is_ipv4()).collect()
    }

    /// Returns the subnets of IPv4 whose peer may be another one now.
    fn remove(&mut self, key: &str) -> Vec<IpNet> {
        self.refused.remove(key);
        self.halved.remove(key);
        let Some(subnets) = self.keys.remove(key) else {
            return Vec::new();
        };
        let mut touched = Vec::with_capacity(subnets.len());
        for &subnet in &subnets {
            let left = match subnet {
                IpNet::V4(_) => {
                    touched.push(subnet);
                    let Some(claims) = self.claims.get_mut(&subnet) else { continue };
                    claims.retain(|(claim, _)| &*claim.key != key);
                    claims.len()
                }
                IpNet::V6(_) => {
                    let Some(claims) = self.ipv6.get_mut(&subnet) else { continue };
                    claims.retain(|claim| &*claim.key != key);
                    claims.len()
                }
            };
            if left < 2 {
                self.contested.remove(&subnet);
            }
            if left == 0 {
                self.claims.remove(&subnet);
                self.ipv6.remove(&subnet);
            }
            if subnet.addr().is_ipv6() {
                touched.extend(self.claimants(&subnet));
            }
        }
        touched
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
        .filter_map(|(&subnet, peer)| change_of(subnet, wanted.get(&subnet).as_ref(), Some(peer)))
        .filter(|change| matches!(change, PeerChange::Remove(_)));
    puts.chain(removals).collect()
}

#[cfg(test)]
#[path = "peers_ipv6_tests.rs"]
mod ipv6_tests;
#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;

//! Which free subnet a host takes that has none. This module is pure: it asks no store.
use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use rand::seq::IteratorRandom as _;

use crate::model::network::NetworkConfig;

/// Out of how many of the first free subnets one is drawn: at first, and after each race that was lost in a row. The last holds
/// for all further draws. Few hosts that start together seldom draw the same of 100, and the network stays dense; of thousands
/// that start together nearly all would draw the same ones again and again.
const DRAWS: [usize; 3] = [100, 1000, usize::MAX];

/// Among how many free subnets one is drawn when this many races have been lost.
pub(super) fn draw_of(lost: u32) -> usize {
    DRAWS[usize::try_from(lost).unwrap_or(usize::MAX).min(DRAWS.len() - 1)]
}

/// Draws one of the first free subnets, `among` of them at most.
pub(super) fn draw(config: &NetworkConfig, taken: &Taken, among: usize) -> Result<IpNet> {
    let free = config.plan.candidates().filter(|&subnet| taken.is_free(subnet)).take(among);
    // Drawn in passing: a network may have millions of subnets, which are not gathered for this.
    free.choose(&mut rand::rng()).with_context(|| {
        format!(
            "no free subnet in {}: all {} subnets from {} to {} are leased; delete leases of hosts that are gone, or widen \
             Network, SubnetMin or SubnetMax",
            config.plan.network,
            config.plan.candidates().count(),
            config.plan.subnet_min,
            config.plan.subnet_max
        )
    })
}

/// The address ranges that are in use, from first address to last. No two of them overlap.
pub(super) struct Taken(BTreeMap<IpAddr, IpAddr>);

impl Taken {
    pub(super) fn new(subnets: impl Iterator<Item = IpNet>) -> Self {
        let apart = IpNet::aggregate(&subnets.collect());
        let range = |subnet: IpNet| (subnet.network(), subnet.broadcast());
        Self(apart.into_iter().map(range).collect())
    }

    pub(super) fn is_free(&self, subnet: IpNet) -> bool {
        let before = self.0.range(..=subnet.broadcast()).next_back();
        before.is_none_or(|(_, &last)| last < subnet.network())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lost_race_widens_the_draw() {
        let config = NetworkConfig::parse(br#"{"Network":"10.0.0.0/8","SubnetLen":20}"#).unwrap();
        let candidates: Vec<IpNet> = config.plan.candidates().collect();
        assert!(candidates.len() > 4000);
        // Every second subnet is taken.
        let taken = Taken::new(candidates.iter().copied().step_by(2));
        for (lost, among) in [(0, 100), (1, 1000), (2, candidates.len() / 2), (31, candidates.len() / 2)] {
            let drawn = (0..2000).map(|_| draw(&config, &taken, draw_of(lost)).unwrap());
            let places = drawn.map(|subnet| candidates.binary_search(&subnet).unwrap());
            let (mut least, mut most) = (usize::MAX, 0);
            for place in places {
                assert_eq!(place % 2, 1, "{place} is taken");
                (least, most) = (least.min(place / 2), most.max(place / 2));
            }
            assert!(most < among, "{lost} lost: {most}");
            // 2000 draws that all miss the outer quarters are less likely than 10^-249.
            assert!(least < among / 4 && most >= among - among / 4, "{lost} lost: {least} to {most}");
        }
    }
}

//! Which free subnet a host takes that has none. This module is pure: it asks no store.
use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use rand::seq::IteratorRandom as _;

use crate::model::{
    addr::{after, size},
    network::AddressPlan,
};

/// Out of how many of the first free subnets one is drawn: at first, and after each race that was lost in a row. The last holds
/// for all further draws. Few hosts that start together seldom draw the same of 100, and the network stays dense; of thousands
/// that start together nearly all would draw the same ones again and again.
///
/// The last is more than any network has hosts, and few enough to count: a network of IPv6 may have 2^64 free subnets.
const DRAWS: [usize; 3] = [100, 1000, 1 << 20];

/// Among how many free subnets one is drawn when this many races have been lost.
pub(super) fn draw_of(lost: u32) -> usize {
    DRAWS[usize::try_from(lost).unwrap_or(usize::MAX).min(DRAWS.len() - 1)]
}

/// Draws one of the first free subnets of a plan, `among` of them at most.
pub(super) fn draw(plan: &AddressPlan, taken: &Taken, among: usize) -> Result<IpNet> {
    // Drawn in passing: a network may have millions of subnets, which are not gathered for this.
    let drawn = free(plan, taken).take(among).choose(&mut rand::rng());
    drawn.with_context(|| {
        let wider = match plan.network {
            IpNet::V4(_) => "Network, SubnetMin or SubnetMax",
            IpNet::V6(_) => "IPv6Network, IPv6SubnetMin or IPv6SubnetMax",
        };
        format!(
            "no free subnet in {}: all {} subnets from {} to {} are leased; delete leases of hosts that are gone, or widen {wider}",
            plan.network,
            plan.count(),
            plan.subnet_min,
            plan.subnet_max
        )
    })
}

/// The free subnets of a plan, in order. A range that is taken is passed over in one step, because a single lease of a short
/// prefix may cover more subnets of IPv6 than can be counted.
fn free(plan: &AddressPlan, taken: &Taken) -> impl Iterator<Item = IpNet> {
    let (count, size) = (plan.count(), size(plan.subnet_min, plan.subnet_len));
    let mut place = 0;
    std::iter::from_fn(move || {
        while place < count {
            let subnet = IpNet::new_assert(after(plan.subnet_min, place * size), plan.subnet_len);
            match taken.last_within(subnet) {
                Some(last) => place = plan.place_behind(last),
                None => {
                    place += 1;
                    return Some(subnet);
                }
            }
        }
        None
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
        self.last_within(subnet).is_none()
    }

    /// The end of the last range that has addresses of this subnet.
    fn last_within(&self, subnet: IpNet) -> Option<IpAddr> {
        let (_, &last) = self.0.range(..=subnet.broadcast()).next_back()?;
        (last >= subnet.network()).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::NetworkConfig;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// One lease covers 2^63 subnets, and as many are free: neither are counted one by one.
    #[test]
    fn a_network_of_ipv6_is_drawn_from_at_once() {
        let text = br#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/60","IPv6SubnetLen":124,"Backend":{"Type":"vxlan"}}"#;
        let plan = NetworkConfig::parse_both_families(text).unwrap().ipv6.unwrap();
        assert_eq!(plan.count(), (1 << 64) - 1);
        let taken = Taken::new([net("fd00::/61"), net("10.0.0.0/9"), net("fd00:0:0:8::/124")].into_iter());
        for _ in 0..100 {
            let drawn = draw(&plan, &taken, 100).unwrap();
            let first_hundred: IpNet = net("fd00:0:0:8::/117");
            assert!(first_hundred.contains(&drawn) && drawn != net("fd00:0:0:8::/124"), "{drawn}");
            assert!(plan.fits(drawn));
        }
        assert!(plan.fits(draw(&plan, &taken, 5000).unwrap()));
        let why = draw(&plan, &Taken::new([net("fc00::/7")].into_iter()), 100).unwrap_err().to_string();
        assert!(why.starts_with("no free subnet in fd00::/60: all 18446744073709551615 subnets"), "{why}");
    }

    #[test]
    fn each_lost_race_widens_the_draw() {
        let config = NetworkConfig::parse(br#"{"Network":"10.0.0.0/8","SubnetLen":20}"#).unwrap();
        let candidates: Vec<IpNet> = config.plan.candidates().collect();
        assert!(candidates.len() > 4000);
        // Every second subnet is taken.
        let taken = Taken::new(candidates.iter().copied().step_by(2));
        for (lost, among) in [(0, 100), (1, 1000), (2, candidates.len() / 2), (31, candidates.len() / 2)] {
            let drawn = (0..2000).map(|_| draw(&config.plan, &taken, draw_of(lost)).unwrap());
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

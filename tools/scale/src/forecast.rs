//! What was measured says for numbers of hosts that were not: lines through what grows with the number of hosts, a mean of what does
//! not, and what hosts ask so seldom that it is reckoned from the cost of one request.
use overlay_user::{
    agent::reconciler,
    store::{acquire::TIME_TO_LIVE, etcd::silence},
};

use crate::{
    hosts::MARGIN,
    requests,
    results::{Forecast, Outcome, Results},
    scenarios::{CHANGE, COLD, IDLE, RESTART},
};

/// The quantities that grow with the number of hosts or with its square, beside an etcd of one member. How long hosts wait after
/// an outage is none of them: it grows between two limits.
pub(crate) fn all(results: &Results) -> Vec<Forecast> {
    type Quantity = fn(&Outcome) -> Option<f64>;
    let quantities: [(&str, &str, bool, &str, Quantity); 7] = [
        ("etcd's memory while nothing happens", "MiB", false, IDLE, |of| Some(of.cost.etcd_mib)),
        ("one lease until 99 of 100 hosts have it", "s", false, CHANGE, |of| Some(of.times?.p99)),
        ("etcd's CPU for one lease", "s", false, CHANGE, |of| {
            // Each host hears of each of them once.
            Some(of.cost.etcd_cpu_s * of.hosts as f64 / of.cost.events).filter(|cpu| cpu.is_finite())
        }),
        ("etcd's CPU for a restart", "s", false, RESTART, |of| Some(of.cost.etcd_cpu_s)),
        ("requests for a restart, of all hosts together", "", false, RESTART, |of| Some(of.cost.requests)),
        ("etcd's CPU for a cold start of all", "s", true, COLD, |of| Some(of.cost.etcd_cpu_s)),
        ("events for a cold start of all", "", true, COLD, |of| Some(of.cost.events)),
    ];
    let forecast = |(name, unit, squared, scenario, of): (&str, &str, bool, &str, Quantity)| {
        let points = results.of(1, scenario).filter_map(|outcome| Some((outcome.hosts as f64, of(outcome)?)));
        Forecast::of(name, unit, squared, points.collect())
    };
    quantities.into_iter().filter_map(forecast).collect()
}

/// The part of a core that etcd took in a measured time, in per cent.
pub(crate) fn idle_percent(outcome: &Outcome) -> f64 {
    100.0 * outcome.cost.etcd_cpu_s / outcome.cost.seconds
}

/// The mean of [`idle_percent`] beside one member, with so many hosts that one more does not have etcd asked for more signs of life.
pub(crate) fn idle_mean(results: &Results) -> Option<f64> {
    let many = results.of(1, IDLE).filter(|outcome| silence::limit(outcome.hosts) > silence::limit(0));
    let found: Vec<_> = many.map(idle_percent).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

/// How many signs of life so many hosts ask for in a second, all together, while nothing happens.
pub(crate) fn signs_of_life(hosts: usize) -> f64 {
    hosts as f64 / silence::mean(hosts).as_secs_f64()
}

/// The part of a core that etcd needs for what hosts ask by themselves, but so seldom that a run hardly sees it, in per cent.
/// None if it is not known what one request costs.
pub(crate) fn seldom_percent(results: &Results, hosts: f64) -> Option<f64> {
    let cost = |name| results.requests.iter().find(|request| request.name == name);
    let (count, all, renewal) = (cost(requests::COUNT)?, cost(requests::ALL)?, cost(requests::RENEWAL)?);
    let (counting, reading) = reconciler::rhythm(reconciler::AUDIT, hosts as usize);
    let renewing = TIME_TO_LIVE - MARGIN;
    let reading_cpu_s = all.cpu_s / all.leases as f64 * hosts;
    let each = count.cpu_s / counting.as_secs_f64()
        + reading_cpu_s / reading.as_secs_f64()
        + renewal.cpu_s / renewing.as_secs_f64();
    Some(100.0 * hosts * each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Request;

    #[test]
    fn signs_of_life_grow_rarer_as_hosts_grow_more() {
        for (hosts, a_second) in [(75, 10.0), (1000, 16.67), (100_000, 16.67)] {
            assert!((signs_of_life(hosts) - a_second).abs() < 0.01);
        }
    }

    #[test]
    fn what_is_asked_seldom_is_reckoned_by_how_seldom() {
        let request = |name: &str, cpu_s| Request { name: name.to_owned(), cpu_s, leases: 1000 };
        let mut results = Results::default();
        assert_eq!(seldom_percent(&results, 1000.0), None);
        results.requests = vec![
            request(requests::COUNT, 3600e-6),
            request(requests::ALL, 0.0),
            request(requests::RENEWAL, 0.0),
        ];
        // A microsecond in each second for each host.
        assert!((seldom_percent(&results, 1000.0).unwrap() - 0.1).abs() < 1e-9);
        // 4.5 us for each lease.
        results.requests = vec![
            request(requests::COUNT, 0.0),
            request(requests::ALL, 4500e-6),
            request(requests::RENEWAL, 0.0),
        ];
        for hosts in [10_000.0, 100_000.0] {
            assert!((seldom_percent(&results, hosts).unwrap() - 0.25).abs() < 1e-6);
        }
    }
}

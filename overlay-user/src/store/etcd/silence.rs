//! How long etcd may be silent: until the kernel asks whether its machine is still there, and until a watch asks etcd itself for
//! a sign of life.
use std::time::Duration;

/// A connection on which nothing arrives for this long is probed by the kernel (TCP keepalive, RFC 9293, section 3.8.4), and the
/// kernel of etcd's machine answers. That costs etcd nothing, so all hosts can do it, on a network of any size.
pub(super) const QUIET: Duration = Duration::from_secs(10);
/// The time between two probes.
pub(super) const PROBE: Duration = Duration::from_secs(1);
/// After this many probes in a row without an answer the connection has ended.
pub(super) const PROBES: u32 = 5;
/// The kernel sends no probes while something that was sent is not acknowledged: it sends that again instead, by default for a
/// quarter of an hour. A connection on which nothing is acknowledged for this long has ended (TCP_USER_TIMEOUT, tcp(7)). The same
/// time then counts for probes, too, so it is theirs.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// A watch that is silent for longer asks etcd for a sign of life, on a network of few hosts. It finds an etcd that hangs on a
/// machine that lives.
const LEAST: Duration = Duration::from_secs(10);
/// By how much each host lengthens that silence. Every host asks, and an answer costs an etcd that has nothing else to do some 0.75 ms
/// of a CPU (docs/scale.md), since it has to wake for it. With this, all hosts together ask about 17 times a second at most, however
/// many they are.
const PER_HOST: Duration = Duration::from_millis(80);
/// How long a sign of life may take: never less, and not more than the second.
const ANSWER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// How long a watch may be silent on a network of so many hosts.
pub fn limit(hosts: usize) -> Duration {
    PER_HOST.saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX)).max(LEAST)
}

/// After which silence a watch asks on average, see [`drawn`].
pub fn mean(hosts: usize) -> Duration {
    limit(hosts) / 4 * 3
}

/// After which silence a watch asks, this time. Every host hears of a change in the same moment, so each draws its own time from
/// the second half of the limit: otherwise all of them would ask in the same moment, too.
pub(super) fn drawn(hosts: usize) -> Duration {
    limit(hosts).mul_f64(1.0 - rand::random::<f64>() / 2.0)
}

/// How long etcd may take to answer that. Whoever asks seldom can wait longer, and an etcd that many hosts ask may be late.
pub(super) fn answer(hosts: usize) -> Duration {
    (limit(hosts) / 10).clamp(ANSWER.0, ANSWER.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_hosts_find_an_etcd_that_hangs_within_15_s_and_very_many_ask_no_more_often_together() {
        let second = Duration::from_secs(1);
        for (hosts, longest, patience) in
            [(0, 10, 5), (125, 10, 5), (1000, 80, 8), (10_000, 800, 30), (100_000, 8000, 30)]
        {
            assert_eq!(limit(hosts), longest * second, "{hosts} hosts");
            assert_eq!(answer(hosts), patience * second, "{hosts} hosts");
            let silences: Vec<_> = (0..1000).map(|_| drawn(hosts)).collect();
            assert!(
                silences.iter().all(|time| (limit(hosts) / 2..=limit(hosts)).contains(time)),
                "{silences:?}"
            );
            // Not in step: no tenth of the time has more than a quarter of the hosts.
            let tenth = |time: &Duration| (time.as_secs_f64() / limit(hosts).as_secs_f64() * 20.0) as usize;
            for part in 10..20 {
                assert!(silences.iter().filter(|time| tenth(time) == part).count() < 250, "{silences:?}");
            }
            let found = silences.iter().map(Duration::as_secs_f64).sum::<f64>() / 1000.0;
            assert!((found / mean(hosts).as_secs_f64() - 1.0).abs() < 0.05, "{found} s on average");
            let together = hosts as f64 / found;
            assert!(together < 18.0, "{hosts} hosts ask {together} times a second");
        }
        assert!(limit(usize::MAX) > limit(100_000));
    }

    #[test]
    fn a_machine_that_is_gone_is_noticed_within_15_s_and_within_30_if_something_was_sent_to_it() {
        assert_eq!(QUIET + PROBE * PROBES, Duration::from_secs(15));
        // What is sent in the last moment before that ends the probing, and has its own time.
        assert_eq!(UNACKNOWLEDGED, QUIET + PROBE * PROBES);
    }
}

//! When the loop looks at what, and how long it rests after a failure. What thousands of hosts do is spread over time, so that
//! they do not do it in step after all of them lost the store at once. This module is pure: it calls neither kernel nor store.
use std::time::Duration;

use tokio::time::Instant;

use crate::model::pause;

/// How many audits of the maps there are for one look at the store's count of keys.
const TALLY: u32 = 12;
/// How many audits of the maps there are for one reading of all leases, on a network of few hosts.
const LISTING: u32 = 48;
/// Reading all leases costs the store a time that grows with the number of hosts, and every host does it. The pause between two
/// readings of one host grows with the square of that number, so that all hosts together take the same share of the store's
/// time: with 2.5 to 3.7 us for each key, as measured with etcd 3.4 (docs/scale.md), some 0.2 % of a CPU.
const LISTING_PER_HOST_SQUARED: Duration = Duration::from_micros(1800);

/// The limit of the first pause after a failure: never less, and not more than the second.
const FIRST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// By how much each host adds to the limit of the first pause.
const FIRST_PER_HOST: Duration = Duration::from_micros(300);
/// The limit of the longest pause: never less, and not more than the second.
const LONGEST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// By how much each host adds to the limit of the longest pause.
const LONGEST_PER_HOST: Duration = Duration::from_millis(3);

/// When the regular looks are due.
#[derive(Debug)]
pub(super) struct Schedule {
    every: Duration,
    /// When the maps are read back and compared with the leases that are known.
    pub(super) maps: Instant,
    /// When the store is asked how many keys it has.
    pub(super) tally: Instant,
    /// When all leases are read again.
    pub(super) listing: Instant,
}

impl Schedule {
    /// Begins now. `every` is the time between two audits of the maps.
    pub(super) fn new(every: Duration, hosts: usize) -> Self {
        let now = Instant::now();
        let mut schedule = Self { every, maps: now, tally: now, listing: now };
        schedule.listed(hosts);
        schedule
    }

    /// The maps have been audited.
    pub(super) fn audited(&mut self) {
        self.maps = Instant::now() + self.every;
    }

    /// The store has said how many keys it has.
    pub(super) fn tallied(&mut self) {
        self.tally = Instant::now() + jittered(rhythm(self.every, 0).0);
    }

    /// All leases of so many hosts have been read, and the maps compared with them.
    pub(super) fn listed(&mut self, hosts: usize) {
        self.audited();
        self.tallied();
        self.listing = Instant::now() + jittered(rhythm(self.every, hosts).1);
    }
}

/// The mean times between two counts of the store's keys, and between two readings of all leases, of each of so many hosts that
/// audit their maps every so often.
pub fn rhythm(every: Duration, hosts: usize) -> (Duration, Duration) {
    let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
    let least = LISTING_PER_HOST_SQUARED.saturating_mul(hosts).saturating_mul(hosts);
    (every.saturating_mul(TALLY), every.saturating_mul(LISTING).max(least))
}

/// A time between half of the given one and one and a half of it.
fn jittered(time: Duration) -> Duration {
    // A time of years is not made longer, because a clock cannot hold it.
    time.min(Duration::from_secs(1 << 32)).mul_f64(0.5 + rand::random::<f64>())
}

/// The pauses between tries, which grow with each failure in a row.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    failures: u32,
}

impl Pauses {
    /// The next pause, on a network of so many hosts: any time up to a limit, which doubles with each failure.
    pub(super) fn next(&mut self, hosts: usize) -> Duration {
        let pause = pause::drawn(first(hosts), self.failures, longest(hosts));
        self.failures += 1;
        pause
    }

    /// A pause before something that costs the store much, on a network of so many hosts.
    pub(super) fn long(hosts: usize) -> Duration {
        grown(Duration::ZERO, LONGEST_PER_HOST, hosts).min(LONGEST.1).mul_f64(rand::random())
    }

    /// The last try was a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Why all leases are to be read, and from when on.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    pub(super) why: String,
    pub(super) due: Instant,
}

impl Unread {
    /// They are read at once, because only this host has reason to, or has waited already.
    pub(super) fn at_once(why: impl Into<String>) -> Self {
        Self { why: why.into(), due: Instant::now() }
    }

    /// They are read after a pause, because all of so many hosts may have the same reason.
    pub(super) fn rested(why: String, hosts: usize) -> Self {
        Self { why, due: Instant::now() + Pauses::long(hosts) }
    }
}

/// The limit of the first pause on a network of so many hosts.
fn first(hosts: usize) -> Duration {
    grown(FIRST.0, FIRST_PER_HOST, hosts).min(FIRST.1)
}

/// The longest limit of a pause on a network of so many hosts. What went well for longer than that was a success.
pub fn longest(hosts: usize) -> Duration {
    grown(LONGEST.0, LONGEST_PER_HOST, hosts).min(LONGEST.1)
}

fn grown(least: Duration, per_host: Duration, hosts: usize) -> Duration {
    per_host.saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX)).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::reconciler::AUDIT;

    const MILLI: Duration = Duration::from_millis(1);

    /// Whether these times are spread over all of the range: 1000 times leave none of its eighths out.
    fn spread(times: impl Fn() -> Duration, from: Duration, to: Duration) {
        let mut eighths = [0; 8];
        for _ in 0..1000 {
            let time = times();
            assert!((from..=to).contains(&time), "{time:?}");
            let place = (time - from).as_secs_f64() / (to - from).as_secs_f64();
            eighths[((place * 8.0) as usize).min(7)] += 1;
        }
        assert!(eighths.iter().all(|&count| count > 0), "{eighths:?}");
    }

    fn limit_of(failures: u32, hosts: usize) -> Duration {
        pause::limit(first(hosts), failures, longest(hosts))
    }

    #[test]
    fn pauses_double_up_to_a_limit_by_the_size_of_the_cluster_and_are_drawn_from_zero_on() {
        for (hosts, limits) in [
            (1, [100, 200, 400, 800, 1600, 3200, 5000, 5000]),
            (1000, [300, 600, 1200, 2400, 4800, 5000, 5000, 5000]),
            (10_000, [3000, 6000, 12_000, 24_000, 30_000, 30_000, 30_000, 30_000]),
            (1_000_000, [5000, 10_000, 20_000, 30_000, 30_000, 30_000, 30_000, 30_000]),
        ] {
            let mut pauses = Pauses::default();
            for limit in limits {
                let failures = pauses.failures;
                assert_eq!(limit_of(failures, hosts), limit * MILLI, "{hosts} hosts");
                spread(|| Pauses { failures }.next(hosts), Duration::ZERO, limit * MILLI);
                pauses.next(hosts);
            }
            pauses.reset();
            assert_eq!(limit_of(pauses.failures, hosts), limits[0] * MILLI);
        }
        for (hosts, limit) in [(3, 9), (250, 750), (10_000, 30_000), (1_000_000, 30_000)] {
            spread(|| Pauses::long(hosts), Duration::ZERO, limit * MILLI);
        }
    }

    #[test]
    fn what_many_hosts_have_reason_to_read_they_read_at_different_times() {
        let now = Instant::now();
        let pause = |hosts| Unread::rested(String::new(), hosts).due.saturating_duration_since(now);
        assert!(pause(0) < 5000 * MILLI && pause(3) < 5000 * MILLI);
        // The test itself takes some of the time.
        spread(|| pause(10_000).min(30_000 * MILLI), Duration::ZERO, 30_000 * MILLI);
    }

    #[test]
    fn the_store_is_asked_seldom_and_never_by_all_hosts_at_once() {
        let now = Instant::now();
        let of = |hosts, due: fn(&Schedule) -> Instant| {
            move || due(&Schedule::new(AUDIT, hosts)).saturating_duration_since(now)
        };
        let hour = Duration::from_secs(3600);
        // The test itself takes some of the time.
        let slack = Duration::from_secs(60);
        spread(of(3, |schedule| schedule.tally), hour / 2, hour * 3 / 2 + slack);
        spread(of(3, |schedule| schedule.listing), hour * 2, hour * 6 + slack);
        // 10,000 hosts read 10,000 leases of 3.6 us in 50 hours each: a fifth of a hundredth of the time.
        let (_, period) = rhythm(AUDIT, 10_000);
        assert_eq!(period, hour * 50);
        spread(of(10_000, |schedule| schedule.listing), period / 2, period * 3 / 2 + slack);
        assert!(rhythm(Duration::from_secs(u64::MAX), usize::MAX).1 > hour);
        assert!(jittered(Duration::from_secs(u64::MAX)) > hour);
    }
}

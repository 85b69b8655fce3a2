//! What a round shows: what became of the packets, and of the faults.
use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::fault::Fault;
use crate::numbered::NumberedReport;

/// What became of the packets of one direction, in one round or in all rounds together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// Packets sent.
    pub sent: u64,
    /// How many fewer that is than were asked for, because the machine sent too slowly.
    pub missed: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Packets that never arrived, but for those below.
    pub lost: u64,
    /// Packets that never arrived because a fault itself cut their path when they were sent.
    pub cut: u64,
    /// Packets that arrived again after their number had arrived already.
    pub duplicated: u64,
    /// Packets per second as they were sent. In a sum it is the rate of the slowest round.
    pub rate: u64,
    /// The longest time without any packet, in milliseconds, while no fault cut the path.
    pub longest_gap_ms: u128,
}

/// A time in which something was not whole because of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Harm {
    /// What was not.
    pub what: &'static str,
    /// How long, in milliseconds.
    pub lasted_ms: u128,
    /// How long it may last, in milliseconds.
    pub limit_ms: u128,
    /// Whether this itself cut the path between the hosts. Only then are losses excused.
    pub cuts_path: bool,
    /// Packets that were lost because the path was cut when they were sent, from the first host to the second, and back.
    pub lost: [u64; 2],
}

/// A fault, as it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Struck {
    /// Which.
    pub fault: Fault,
    /// What was done, and to whom.
    pub what: String,
    /// Whether the kernel's stack carried the packets when it was struck, rather than the fast path.
    pub on_stack: bool,
    /// How long it took until the agents had put everything right, in milliseconds.
    pub mended_ms: u128,
    /// What was not whole meanwhile, and for how long.
    pub harms: Vec<Harm>,
}

/// What the same fault harmed in several places and rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How often.
    pub times: usize,
    /// For how long at most, in milliseconds.
    pub longest_ms: u128,
    /// How long it may last, in milliseconds.
    pub limit_ms: u128,
    /// How often this itself cut the path between the hosts.
    pub cuts: usize,
    /// Packets that were lost in both directions because of that.
    pub lost: u64,
}

/// The figures of one round, or of all rounds together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Round {
    /// From the first host to the second, and back.
    pub directions: [Direction; 2],
    /// Packets that the hosts' programs dropped or answered meanwhile, by their counters, which outlive every agent.
    pub dropped: u64,
    /// Frames that this machine's CPUs threw away meanwhile because their queues were full, whoever sent them.
    pub machine_overflows: u64,
    /// The faults, in order.
    pub faults: Vec<Struck>,
}

impl Direction {
    /// `least` is how many packets were asked for.
    pub(super) fn new(report: NumberedReport, cut: u64, least: u64) -> Self {
        Self {
            sent: report.sent,
            missed: least.saturating_sub(report.sent),
            delivered: report.received,
            lost: report.lost,
            cut,
            duplicated: report.duplicated,
            rate: report.rate,
            longest_gap_ms: report.longest_gap.as_millis(),
        }
    }
}

impl Round {
    /// Adds the figures of another round.
    pub fn add(&mut self, other: &Self) {
        for (sum, one) in self.directions.iter_mut().zip(&other.directions) {
            *sum = Direction {
                sent: sum.sent + one.sent,
                missed: sum.missed + one.missed,
                delivered: sum.delivered + one.delivered,
                lost: sum.lost + one.lost,
                cut: sum.cut + one.cut,
                duplicated: sum.duplicated + one.duplicated,
                rate: if sum.rate == 0 { one.rate } else { sum.rate.min(one.rate) },
                longest_gap_ms: sum.longest_gap_ms.max(one.longest_gap_ms),
            };
        }
        self.dropped += other.dropped;
        self.machine_overflows += other.machine_overflows;
        self.faults.extend(other.faults.iter().cloned());
    }

    /// Packets lost in both directions, but for those whose path a fault had cut.
    pub fn lost(&self) -> u64 {
        self.directions.iter().map(|direction| direction.lost).sum()
    }

    /// Packets lost in both directions while a fault cut their path.
    pub fn cut(&self) -> u64 {
        self.directions.iter().map(|direction| direction.cut).sum()
    }

    /// Packets sent in both directions.
    pub fn sent(&self) -> u64 {
        self.directions.iter().map(|direction| direction.sent).sum()
    }

    /// By how many packets both directions fell short of what was asked for.
    pub fn missed(&self) -> u64 {
        self.directions.iter().map(|direction| direction.missed).sum()
    }

    /// What was harmed in all, by the fault's name and what was not whole.
    pub fn sums(&self) -> BTreeMap<(String, &'static str), Sum> {
        let mut sums: BTreeMap<_, Sum> = BTreeMap::new();
        for (fault, harm) in self.faults.iter().flat_map(|one| one.harms.iter().map(|harm| (one.fault, harm)))
        {
            let sum = sums.entry((format!("{fault:?}"), harm.what)).or_default();
            sum.times += 1;
            sum.longest_ms = sum.longest_ms.max(harm.lasted_ms);
            sum.limit_ms = harm.limit_ms;
            sum.cuts += usize::from(harm.cuts_path);
            sum.lost += harm.lost.iter().sum::<u64>();
        }
        sums
    }

    /// The faults whose harm lasted longer than `patience` times its limit, each in a few words.
    pub fn too_slow(&self, patience: u32) -> Vec<String> {
        let limit = |harm: &Harm| harm.limit_ms * u128::from(patience);
        let harms = self.faults.iter().flat_map(|struck| struck.harms.iter().map(move |harm| (struck, harm)));
        let late = harms.filter(|(_, harm)| harm.lasted_ms > limit(harm));
        late.map(|(Struck { fault, what, .. }, harm)| {
            format!(
                "{fault:?} ({what}): {} for {:?}, and {:?} are allowed",
                harm.what,
                milliseconds(harm.lasted_ms),
                milliseconds(limit(harm))
            )
        })
        .collect()
    }
}

fn milliseconds(number: u128) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struck(lasted_ms: u128) -> Round {
        let harm =
            Harm { what: "overlay0 was not there", lasted_ms, limit_ms: 5000, cuts_path: true, lost: [9, 9] };
        let fault = Struck {
            fault: Fault::TunnelDeleted,
            what: "h1: ip link delete overlay0".into(),
            on_stack: true,
            mended_ms: lasted_ms,
            harms: vec![harm],
        };
        Round { faults: vec![fault], ..Round::default() }
    }

    #[test]
    fn a_fault_that_is_mended_too_slowly_is_named_with_its_time() {
        let mut total = struck(5000);
        assert!(total.too_slow(1).is_empty());
        total.add(&struck(50_000));
        assert_eq!(
            total.too_slow(1),
            [
                "TunnelDeleted (h1: ip link delete overlay0): overlay0 was not there for 50s, and 5s are allowed"
            ]
        );
        assert!(total.too_slow(10).is_empty());
    }

    #[test]
    fn the_same_harms_are_added_up_by_their_name() {
        let mut total = struck(300);
        total.add(&struck(700));
        let mut on_fast_path = struck(500);
        let harm = &mut on_fast_path.faults[0].harms[0];
        (harm.cuts_path, harm.lost) = (false, [0; 2]);
        total.add(&on_fast_path);
        let sum = Sum { times: 3, longest_ms: 700, limit_ms: 5000, cuts: 2, lost: 36 };
        let name = ("TunnelDeleted".to_owned(), "overlay0 was not there");
        assert_eq!(total.sums().into_iter().collect::<Vec<_>>(), [(name, sum)]);
    }

    #[test]
    fn what_a_round_fell_short_by_is_not_made_up_for_by_another() {
        let of = |sent| {
            Direction::new(NumberedReport { sent, received: sent, ..NumberedReport::default() }, 0, 100)
        };
        let mut total = Round::default();
        for sent in [70, 900] {
            total.add(&Round { directions: [of(sent), of(100)], ..Round::default() });
        }
        assert_eq!((total.sent(), total.missed()), (1170, 30));
    }
}

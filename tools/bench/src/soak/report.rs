//! What a soak has shown: what was lost, what happened, and how each measure went.
use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Result, bail};
use overlay_lab::NumberedReport;
use serde::Serialize;

use super::{
    fit::{Fit, SPANS, Trend},
    life::{Events, RESTLESS},
    sample::{AGENT, Sample},
    talk::Connections,
};

/// The first part of a run does not count: pools, caches and tables fill then. Connection tracking alone keeps a closed
/// connection for two minutes.
const WARM_UP_SHARE: u32 = 6;
/// A line over less than this says nothing: a table whose entries live for two minutes, and a heap that fills, still grow.
const LEAST_FITTED: Duration = Duration::from_secs(15 * 60);

/// The numbered packets of all streams.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Packets {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// How many of the lost ones are excused: in the same segment, this machine's queues overflowed as often.
    pub(super) excused: u64,
    pub(super) duplicated: u64,
    /// The longest time in which a receiver saw none.
    pub(super) longest_gap_ms: u128,
    /// Frames that this machine's CPUs threw away meanwhile because their queues were full, whoever sent them.
    pub(super) machine_overflows: u64,
}

impl Packets {
    /// Adds the streams of a segment, in which the machine's queues overflowed so often. An overflow excuses a loss of its own segment
    /// alone: over hours, others fill the queues often enough to excuse anything.
    pub(super) fn add(&mut self, reports: &[NumberedReport], overflows: u64) {
        let mut lost = 0;
        for report in reports {
            self.sent += report.sent;
            lost += report.lost;
            self.duplicated += report.duplicated;
            self.longest_gap_ms = self.longest_gap_ms.max(report.longest_gap.as_millis());
        }
        self.lost += lost;
        self.excused += lost.min(overflows);
        self.machine_overflows += overflows;
    }
}

impl fmt::Display for Packets {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, excused, duplicated, longest_gap_ms, .. } = self;
        write!(
            to,
            "{sent} packets sent, {lost} lost ({excused} of them excused), {duplicated} duplicated, longest gap {longest_gap_ms} ms"
        )
    }
}

/// How far samples may be apart in a run of this length, so that each span of the fitted part has one.
pub(super) fn longest_interval(whole: Duration) -> Duration {
    (whole - whole / WARM_UP_SHARE) / SPANS as u32
}

/// How one measure of one host went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) host: String,
    pub(super) measure: &'static str,
    /// Whether its growth counts: a process that is started anew now and then begins small each time.
    pub(super) counts: bool,
    /// None if there are too few samples.
    pub(super) fit: Option<Fit>,
    /// Seconds and values, the first part included.
    pub(super) samples: Vec<(f64, f64)>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) minutes: f64,
    /// The samples before this do not count.
    pub(super) warm_up_minutes: f64,
    /// Whether the run was long enough for a line to say anything.
    pub(super) long_enough: bool,
    pub(super) packets: Packets,
    pub(super) connections: Connections,
    pub(super) events: Events,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(
        seed: u64,
        whole: Duration,
        packets: Packets,
        connections: Connections,
        events: Events,
        samples: &[Sample],
    ) -> Self {
        let warm_up = whole / WARM_UP_SHARE;
        let mut series: BTreeMap<(&'static str, &str), Vec<(f64, f64)>> = BTreeMap::new();
        for sample in samples {
            for (measure, value) in &sample.values {
                series.entry((measure, &sample.host)).or_default().push((sample.seconds, *value));
            }
        }
        let restless = format!("h{}", RESTLESS + 1);
        let rows = series.into_iter().map(|((measure, host), samples)| {
            let late = samples.iter().filter(|(seconds, _)| *seconds >= warm_up.as_secs_f64());
            let hours: Vec<_> = late.map(|(seconds, value)| (seconds / 3600.0, *value)).collect();
            Row {
                host: host.to_owned(),
                measure,
                counts: host != restless || !measure.starts_with(AGENT),
                fit: Fit::of(&hours),
                samples,
            }
        });
        Self {
            seed,
            minutes: whole.as_secs_f64() / 60.0,
            warm_up_minutes: warm_up.as_secs_f64() / 60.0,
            long_enough: whole - warm_up >= LEAST_FITTED,
            packets,
            connections,
            events,
            rows: rows.collect(),
        }
    }

    /// Fails if packets were lost that this machine's queues do not account for, a connection failed, or something grows or cannot be
    /// told from what grows.
    pub(super) fn verdict(&self) -> Result<()> {
        let mut wrong = Vec::new();
        let Packets { sent, lost, excused, .. } = self.packets;
        if lost > excused {
            wrong.push(format!("{lost} of {sent} packets were lost, of which {excused} are excused"));
        }
        if self.connections.failed > 0 {
            wrong.push(format!("{} connections failed", self.connections.failed));
        }
        for row in self.rows.iter().filter(|row| self.long_enough && row.counts) {
            let Row { measure, host, .. } = row;
            match &row.fit {
                None => wrong.push(format!("{measure} of {host} has too few samples")),
                Some(fit) => match fit.trend {
                    Trend::Grows | Trend::GrowsLate => {
                        wrong.push(format!("{measure} of {host} {}", word(fit)));
                    }
                    Trend::Unclear => wrong.push(format!(
                        "{measure} of {host}: {}, it may have risen by {:.0} at a mean of {:.0}",
                        word(fit),
                        fit.hidden,
                        fit.mean
                    )),
                    Trend::Flat | Trend::Settled | Trend::Falls => {}
                },
            }
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join("; "));
        }
        Ok(())
    }

    fn trend(&self, row: &Row, fit: &Fit) -> String {
        let word = word(fit);
        if !self.long_enough {
            "too short a run to tell".to_owned()
        } else if row.counts {
            word
        } else {
            format!("({word}: it is started anew now and then)")
        }
    }
}

fn word(fit: &Fit) -> String {
    match fit.trend {
        Trend::Flat => "flat".to_owned(),
        Trend::Unclear => "cannot tell".to_owned(),
        Trend::Settled => "settled".to_owned(),
        Trend::Falls => "falls".to_owned(),
        Trend::Grows => format!("grows by {:.2} per hour", fit.slope_per_hour),
        Trend::GrowsLate if fit.end_rise > 0.0 => format!("grew by {:.2} at the end", fit.end_rise),
        Trend::GrowsLate => "fell, and then grew".to_owned(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, minutes, warm_up_minutes, packets, connections, events, .. } = self;
        writeln!(
            to,
            "{minutes} minutes, seed {seed}; a line is fitted to what came after the first {warm_up_minutes:.1}"
        )?;
        writeln!(to, "{packets}")?;
        if packets.machine_overflows > 0 {
            let overflows = packets.machine_overflows;
            writeln!(to, "this machine's queues overflowed {overflows} times, whoever filled them")?;
        }
        writeln!(to, "{connections}")?;
        connections.errors.iter().try_for_each(|error| writeln!(to, "  {error}"))?;
        let Events { containers_came, containers_went, peers_came, peers_went, .. } = events;
        writeln!(
            to,
            "{containers_came} containers came and {containers_went} went, {peers_came} peers came and {peers_went} went; the \
             third host: agent killed {} times, ended {}, lease gone {}, network taken off {}",
            events.agent_killed, events.agent_ended, events.host_left, events.host_down
        )?;
        writeln!(to, "| measure | host | mean | least to most | per hour, 99.9 % | |")?;
        writeln!(to, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let Row { host, measure, .. } = row;
            match &row.fit {
                Some(fit) => writeln!(
                    to,
                    "| {measure} | {host} | {:.1} | {:.0} to {:.0} | {:+.2} ± {:.2} | {} |",
                    fit.mean,
                    fit.least,
                    fit.most,
                    fit.slope_per_hour,
                    fit.uncertainty,
                    self.trend(row, fit)
                )?,
                None => writeln!(to, "| {measure} | {host} | | | | too few samples |")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(minutes: u64, slope: f64, lost: u64) -> Report {
        let whole = Duration::from_secs(minutes * 60);
        let sample = |second: u64| Sample {
            seconds: second as f64,
            host: "h1".into(),
            values: [("agent: descriptors", 20.0 + slope * second as f64)].into(),
        };
        let samples: Vec<_> =
            (0..minutes * 60).step_by(if minutes < 10 { 1 } else { 10 }).map(sample).collect();
        let mut packets = Packets::default();
        packets.add(&[NumberedReport { sent: 100, lost, ..NumberedReport::default() }], 3);
        Report::new(1, whole, packets, Connections::default(), Events::default(), &samples)
    }

    #[test]
    fn what_grows_fails_a_run_that_is_long_enough() {
        report(90, 0.0, 0).verdict().unwrap();
        let said = report(90, 0.01, 0).verdict().unwrap_err().to_string();
        assert_eq!(said, "agent: descriptors of h1 grows by 36.00 per hour");
        report(2, 0.01, 0).verdict().unwrap();
        assert!(report(2, 0.01, 0).to_string().contains("+36.00 ± 0.00 | too short a run to tell"));
    }

    #[test]
    fn packets_are_lost_if_the_machines_queues_do_not_account_for_them() {
        report(90, 0.0, 3).verdict().unwrap();
        let said = report(90, 0.0, 4).verdict().unwrap_err().to_string();
        assert_eq!(said, "4 of 100 packets were lost, of which 3 are excused");
    }

    #[test]
    fn an_overflow_excuses_no_loss_of_another_segment() {
        let segment = |lost| [NumberedReport { sent: 50, lost, ..NumberedReport::default() }; 2];
        let mut packets = Packets::default();
        for (lost, overflows) in [(0, 900), (2, 3), (1, 0), (0, 5)] {
            packets.add(&segment(lost), overflows);
        }
        let Packets { sent, lost, excused, machine_overflows, .. } = packets;
        assert_eq!((sent, lost, excused, machine_overflows), (400, 6, 3, 908));
        assert!(packets.to_string().starts_with("400 packets sent, 6 lost (3 of them excused)"));
    }

    #[test]
    fn what_differs_too_much_to_tell_fails_too() {
        let whole = Duration::from_secs(5400);
        let mut random = overlay_lab::random::Random::new(1);
        let mut value = 0.0;
        let mut sample = |second: u64| {
            value = if second.is_multiple_of(300) { 1000.0 * random.share() } else { value };
            Sample { seconds: second as f64, host: "h1".into(), values: [("map peers", value)].into() }
        };
        let samples: Vec<_> = (0..5400).step_by(10).map(&mut sample).collect();
        let report =
            Report::new(1, whole, Packets::default(), Connections::default(), Events::default(), &samples);
        let said = report.verdict().unwrap_err().to_string();
        assert!(said.starts_with("map peers of h1: cannot tell, it may have risen by "), "{said}");
    }

    #[test]
    fn each_span_has_a_sample() {
        assert_eq!(longest_interval(Duration::from_secs(60 * 96)), Duration::from_secs(300));
    }

    #[test]
    fn the_agent_that_is_started_anew_may_grow_and_its_kernel_may_not() {
        let whole = Duration::from_secs(5400);
        let sample = |second: u64| Sample {
            seconds: second as f64,
            host: "h3".into(),
            values: [("agent: threads", second as f64), ("BPF programs", second as f64)].into(),
        };
        let samples: Vec<_> = (0..5400).step_by(10).map(sample).collect();
        let report =
            Report::new(1, whole, Packets::default(), Connections::default(), Events::default(), &samples);
        let said = report.verdict().unwrap_err().to_string();
        assert_eq!(said, "BPF programs of h3 grows by 3600.00 per hour");
    }
}

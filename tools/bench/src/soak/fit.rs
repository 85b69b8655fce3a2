//! Whether a measure grows: a line through its samples, how sure its slope is, whether its end stands out, and what follows.
use overlay_lab::line::Line;
use serde::Serialize;

/// The samples are taken together in so many spans of equal length, and the line goes through the spans' means. Samples that
/// follow upon each other depend on each other (a closed connection is tracked for two minutes), means over minutes hardly do,
/// and only for independent points does the formula of the slope's uncertainty hold.
pub(super) const SPANS: usize = 16;

/// Student's t for a two-sided interval of 99.9 % and as many degrees of freedom as [`SPANS`] points leave beside a line. With
/// some fifty measures at once, intervals of 95 % would find something that grows in nearly every run.
const T_ALL: f64 = 4.140;
/// The same for half of the points.
const T_HALF: f64 = 5.959;
/// So many spans at the end are compared with the first half. A rise that begins there bends the line so much that the slope's
/// uncertainty covers it.
const END: usize = 3;
/// Student's t for the difference between the means of those and of the first half.
const T_END: f64 = 4.781;
/// A rise at the end counts if it is more than this share of the mean. An allocator's arena that is taken late is less, and what
/// goes on growing shows in the slope of a longer run.
const END_SHARE: f64 = 0.02;
/// A measure is flat only if the slope's uncertainty, over the whole time, is less than this share of the mean. Otherwise it might have
/// doubled. What is drawn to come and go, such as containers, takes half of this in a run of 90 minutes.
const HIDDEN_SHARE: f64 = 1.0;
/// Less than this of anything is no growth: entries, programs and descriptors come as wholes.
const LEAST: f64 = 0.5;

/// A line through a measure's samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Fit {
    /// How many samples there are.
    pub(super) samples: usize,
    /// Their mean.
    pub(super) mean: f64,
    /// The smallest of them.
    pub(super) least: f64,
    /// The largest of them.
    pub(super) most: f64,
    /// By how much the line rises in an hour.
    pub(super) slope_per_hour: f64,
    /// The true slope is within this distance of the fitted one, with a probability of 99.9 %.
    pub(super) uncertainty: f64,
    /// By how much it may have risen from the first sample to the last, as far as the uncertainty goes.
    pub(super) hidden: f64,
    /// By how much the last spans are above the first half.
    pub(super) end_rise: f64,
    /// What follows.
    pub(super) trend: Trend,
}

/// What the slope and the end say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Trend {
    /// The slope may be zero, and cannot be large.
    Flat,
    /// The slope may be zero, and may be large as well: the samples differ too much.
    Unclear,
    /// It rose, but in the second half its slope may be zero and is below that of the whole: an allocator's arena that was
    /// taken once, say.
    Settled,
    /// It rises.
    Grows,
    /// It rises at the end, or fell and then rises.
    GrowsLate,
    /// It falls.
    Falls,
}

impl Fit {
    /// Fits a line to samples in the order of their times, which are in hours. There is none if a span is without samples.
    pub(super) fn of(samples: &[(f64, f64)]) -> Option<Self> {
        let spans = spans(samples)?;
        let hours = samples.last()?.0 - samples.first()?.0;
        let Line { slope, error, .. } = Line::through(&spans)?;
        let Line { slope: late_slope, error: late_error, .. } = Line::through(&spans[SPANS / 2..])?;
        let (uncertainty, late) = (T_ALL * error?, T_HALF * late_error?);
        let mean = mean(samples.iter().map(|(_, value)| *value));
        // Sums of floating-point numbers are not exact.
        let nothing = mean.abs() * 1e-9;
        let (end_rise, end_error) = end(&spans);
        let end_stands_out = end_rise - T_END * end_error > (END_SHARE * mean.abs()).max(LEAST);
        let hidden = uncertainty * hours;
        let trend = if slope + uncertainty < -nothing {
            // What falls at first may have begun to rise.
            if late_slope - late > nothing { Trend::GrowsLate } else { Trend::Falls }
        } else if slope - uncertainty > nothing {
            let has_settled = late_slope - late <= nothing && late_slope + late < slope;
            if has_settled { Trend::Settled } else { Trend::Grows }
        } else if end_stands_out {
            Trend::GrowsLate
        } else if hidden > (HIDDEN_SHARE * mean.abs()).max(LEAST) {
            Trend::Unclear
        } else {
            Trend::Flat
        };
        let values = || samples.iter().map(|(_, value)| *value);
        Some(Self {
            samples: samples.len(),
            mean,
            least: values().fold(f64::INFINITY, f64::min),
            most: values().fold(f64::NEG_INFINITY, f64::max),
            slope_per_hour: slope,
            uncertainty,
            hidden,
            end_rise,
            trend,
        })
    }
}

/// The mean time and value of each span.
fn spans(samples: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    let ((first, _), (last, _)) = (samples.first()?, samples.last()?);
    let length = (last - first) / SPANS as f64;
    let mut within: Vec<Vec<(f64, f64)>> = vec![Vec::new(); SPANS];
    for (time, value) in samples {
        // The last sample is at the end of the last span.
        let index = (((time - first) / length) as usize).min(SPANS - 1);
        within[index].push((*time, *value));
    }
    let point = |samples: Vec<(f64, f64)>| {
        let times = mean(samples.iter().map(|(time, _)| *time));
        (!samples.is_empty()).then(|| (times, mean(samples.iter().map(|(_, value)| *value))))
    };
    within.into_iter().map(point).collect()
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count();
    values.sum::<f64>() / count as f64
}

/// By how much the mean of the last spans is above that of the first half, and the standard error of that difference.
fn end(spans: &[(f64, f64)]) -> (f64, f64) {
    let parts = [&spans[..SPANS / 2], &spans[SPANS - END..]];
    let [first, last] = parts.map(|part| mean(part.iter().map(|(_, value)| *value)));
    let off: f64 = parts
        .into_iter()
        .zip([first, last])
        .flat_map(|(part, mean)| part.iter().map(move |(_, value)| (value - mean).powi(2)))
        .sum();
    let [count, last_count] = parts.map(|part| part.len() as f64);
    let variance = off / (count + last_count - 2.0);
    (last - first, (variance * (1.0 / count + 1.0 / last_count)).sqrt())
}

#[cfg(test)]
mod tests {
    use overlay_lab::random::Random;

    use super::*;

    /// 90 minutes of samples, ten seconds apart.
    fn series(value: impl FnMut(f64) -> f64) -> Vec<(f64, f64)> {
        let times = (0..540).map(|number| f64::from(number) / 360.0);
        let mut value = value;
        times.map(|time| (time, value(time))).collect()
    }

    /// What connections that are tracked for minutes do: each sample is mostly the one before.
    fn wandering(random: &mut Random) -> impl FnMut() -> f64 {
        let mut now = 0.0;
        move || {
            now = 0.9 * now + random.share() - 0.5;
            now
        }
    }

    #[test]
    fn a_known_slope_is_found_within_its_uncertainty() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let mut noise = wandering(&mut random);
            let fit = Fit::of(&series(|time| 1000.0 + 7.0 * time + noise())).unwrap();
            assert!((fit.slope_per_hour - 7.0).abs() < fit.uncertainty, "{seed}: {fit:?}");
            assert!(fit.uncertainty < 5.0, "{seed}: {fit:?}");
            assert_eq!(fit.trend, Trend::Grows, "{seed}: {fit:?}");
        }
    }

    #[test]
    fn what_only_wanders_is_flat() {
        let trends = (0..300).map(|seed| {
            let mut random = Random::new(seed);
            let mut noise = wandering(&mut random);
            Fit::of(&series(|_| 1000.0 + 50.0 * noise())).unwrap().trend
        });
        let others = trends.filter(|trend| !matches!(trend, Trend::Flat | Trend::Falls)).count();
        assert!(others <= 2, "{others} of 300");
    }

    #[test]
    fn what_wanders_too_far_is_not_called_flat() {
        let mut random = Random::new(3);
        let mut noise = wandering(&mut random);
        let fit = Fit::of(&series(|_| 1000.0 + 2000.0 * noise())).unwrap();
        assert_eq!(fit.trend, Trend::Unclear, "{fit:?}");
        assert!(fit.hidden > fit.mean, "{fit:?}");
    }

    /// The number of the span that a time of [`series`] is in, with its fraction.
    fn span(time: f64) -> f64 {
        time / (539.0 / 360.0) * SPANS as f64
    }

    #[test]
    fn what_grows_late_is_not_called_flat() {
        let trend = |value: fn(f64) -> f64| Fit::of(&series(|time| value(span(time)))).unwrap().trend;
        assert_eq!(trend(|span| if span < 13.0 { 100.0 } else { 200.0 }), Trend::GrowsLate);
        assert_eq!(trend(|span| 100.0 + 25.0 * (span - 12.0).max(0.0)), Trend::GrowsLate);
        assert_eq!(trend(|span| 6.0 + f64::from(span >= 13.0)), Trend::GrowsLate);
        // A line cannot be drawn through this, and so it says that it cannot tell.
        assert_eq!(trend(|span| 100.0 + 2_f64.powf(span.floor())), Trend::Unclear);
        assert_eq!(
            trend(|span| if span < 8.0 { 200.0 - 20.0 * span } else { 5.0 * (span - 8.0) }),
            Trend::GrowsLate
        );
    }

    #[test]
    fn a_late_arena_and_what_is_there_for_a_moment_are_no_growth() {
        let trend = |value: fn(f64) -> f64| Fit::of(&series(|time| value(span(time)))).unwrap().trend;
        assert_eq!(trend(|span| if span < 13.0 { 15_000.0 } else { 15_132.0 }), Trend::Flat);
        assert_eq!(trend(|span| f64::from((14.0..14.1).contains(&span))), Trend::Flat);
    }

    #[test]
    fn what_never_changes_is_flat_without_any_uncertainty() {
        let fit = Fit::of(&series(|_| 18.3)).unwrap();
        assert_eq!(fit.trend, Trend::Flat);
        assert!(fit.slope_per_hour.abs() < 1e-9 && fit.uncertainty < 1e-9, "{fit:?}");
        assert_eq!((fit.samples, fit.least, fit.most), (540, 18.3, 18.3));
    }

    #[test]
    fn one_early_step_has_settled_and_steps_that_go_on_grow() {
        let step = Fit::of(&series(|time| if time < 0.6 { 15_000.0 } else { 15_132.0 })).unwrap();
        assert_eq!(step.trend, Trend::Settled, "{step:?}");
        let steps = Fit::of(&series(|time| 15_000.0 + 132.0 * (time * 4.0).floor())).unwrap();
        assert_eq!(steps.trend, Trend::Grows, "{steps:?}");
        let falls = Fit::of(&series(|time| 15_000.0 - 100.0 * time)).unwrap();
        assert_eq!(falls.trend, Trend::Falls, "{falls:?}");
    }

    #[test]
    fn a_span_without_samples_gives_no_line() {
        assert_eq!(Fit::of(&[]), None);
        assert_eq!(Fit::of(&[(0.0, 1.0), (1.0, 2.0)]), None);
        let mut gap = series(|time| time);
        gap.retain(|(time, _)| !(0.5..0.7).contains(time));
        assert_eq!(Fit::of(&gap), None);
    }
}

//! Two runs side by side: what changed beyond the noise of both.
use super::results::{Measured, Results, Samples};

/// One quantity of one case that changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// Name of the quantity, such as `veth, TCP request/response, 8 flows, p50`.
    pub(super) measure: String,
    /// Name of the case.
    pub(super) case: String,
    /// Ratios to the basis, of the former run and of this one.
    pub(super) ratios: [f64; 2],
    /// Whether the change is for the better.
    pub(super) better: bool,
    /// What may be due to the machine alone, as a share: the greater noise of the two runs.
    pub(super) noise: f64,
}

/// The changes of ratios to the basis. Absolute figures are not compared, because another machine, or this one under
/// another load, has others. A ratio counts as changed only if no round of one run lies among those of the other and
/// the medians differ by more than the noise.
pub(super) fn changes(old: &Results, new: &Results) -> Vec<Change> {
    let pairs = new.measures.iter().filter_map(|new| Some((find(old, new)?, new)));
    let cases = pairs.flat_map(|(old, new)| new.cases.iter().map(move |case| (old, new, case)));
    cases.filter_map(|(old, new, case)| change(old, new, case)).collect()
}

/// A figure without a basis, from both runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Absolute {
    /// Name of the figure, such as `agent, 10000 peers, resident memory at rest`.
    pub(super) measure: String,
    /// Unit of the figures.
    pub(super) unit: String,
    /// Medians of the former run and of this one.
    pub(super) medians: [f64; 2],
}

/// All figures without a basis that both runs have. None is left out, because there is no second measurement that would
/// tell the noise.
pub(super) fn absolutes(old: &Results, new: &Results) -> Vec<Absolute> {
    let pairs = new.measures.iter().filter_map(|new| Some((find(old, new)?, new)));
    let pairs = pairs.filter(|(old, new)| new.is_absolute() && old.unit == new.unit);
    let cases = pairs.flat_map(|(old, new)| new.cases.iter().map(move |case| (old, new, case)));
    let both = cases.filter_map(|(old, new, case)| {
        let medians = [old.case(&case.case)?.summary?.median, case.summary?.median];
        let measure = format!("{}, {}", new.underlay, new.name);
        Some(Absolute { measure, unit: new.unit.clone(), medians })
    });
    both.collect()
}

fn find<'a>(old: &'a Results, new: &Measured) -> Option<&'a Measured> {
    old.measures.iter().find(|old| old.underlay == new.underlay && old.name == new.name)
}

fn change(old: &Measured, new: &Measured, case: &Samples) -> Option<Change> {
    if new.is_basis(&case.case) {
        return None;
    }
    let (before, after) = (old.case(&case.case)?.ratio?, case.ratio?);
    let noise = old.noise()?.max(new.noise()?);
    let relative = after.median / before.median - 1.0;
    (relative.abs() > noise && !before.overlaps(&after)).then(|| Change {
        measure: format!("{}, {}", new.underlay, new.name),
        case: case.case.clone(),
        ratios: [before.median, after.median],
        better: (relative > 0.0) == new.more_is_better,
        noise,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::results::{BASIS, TWIN};

    fn run(more_is_better: bool, ours: [f64; 3], twin: [f64; 3]) -> Results {
        let mut results = Results::default();
        let measured = results.measured("veth", "packets", "1/s", more_is_better);
        for (case, samples) in [(BASIS, [100.0; 3]), (TWIN, twin), ("ours", ours)] {
            samples.into_iter().for_each(|sample| measured.add(case, Ok(sample)));
        }
        measured.conclude();
        results
    }

    const QUIET: [f64; 3] = [99.0, 100.0, 101.0];

    #[test]
    fn only_what_exceeds_the_noise_is_a_change() {
        let old = run(true, [109.0, 110.0, 111.0], QUIET);
        assert_eq!(changes(&old, &run(true, [110.0, 111.0, 112.0], QUIET)), []);
        let found = changes(&old, &run(true, [119.0, 120.0, 121.0], QUIET));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].case.as_str(), found[0].better), ("ours", true));
        assert_eq!(found[0].ratios, [1.1, 1.2]);
        // The same ratios are no change on a machine whose noise is greater.
        assert_eq!(changes(&old, &run(true, [119.0, 120.0, 121.0], [70.0, 100.0, 130.0])), []);
        // Nor are the same medians if the samples are scattered.
        assert_eq!(changes(&old, &run(true, [90.0, 120.0, 140.0], QUIET)), []);
    }

    #[test]
    fn of_latencies_less_is_better() {
        let old = run(false, [109.0, 110.0, 111.0], QUIET);
        assert!(changes(&old, &run(false, [89.0, 90.0, 91.0], QUIET))[0].better);
        assert!(!changes(&old, &run(false, [129.0, 130.0, 131.0], QUIET))[0].better);
    }

    #[test]
    fn absolute_figures_are_beside_each_other_not_among_the_changes() {
        let run = |sample: Result<f64, String>| {
            let mut results = run(true, [110.0; 3], QUIET);
            let measured = results.measured("agent, 10 peers", "resident memory", "MiB", false);
            measured.basis.clear();
            measured.add("agent", sample);
            measured.conclude();
            results
        };
        let (old, new) = (run(Ok(20.0)), run(Ok(30.0)));
        assert_eq!(changes(&old, &new), []);
        let measure = "agent, 10 peers, resident memory".to_owned();
        let found = Absolute { measure, unit: "MiB".to_owned(), medians: [20.0, 30.0] };
        assert_eq!(absolutes(&old, &new), [found]);
        assert_eq!(absolutes(&old, &run(Err("it ended".into()))), []);
        assert_eq!(absolutes(&Results::default(), &new), []);
    }

    #[test]
    fn what_one_run_lacks_is_no_change() {
        let old = run(true, [109.0, 110.0, 111.0], QUIET);
        assert_eq!(changes(&old, &Results::default()), []);
        assert_eq!(changes(&Results::default(), &old), []);
    }
}

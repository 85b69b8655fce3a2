//! What was measured, as the JSON file has it: the samples of each case, round by round, by measure and underlay.
use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::statistics::Summary;

/// Version of the file format.
pub(super) const FORM: u32 = 1;

/// The results of a whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    /// The value of [`FORM`] when the file was written.
    pub(super) form: u32,
    /// The machine: release of the kernel, number of CPUs.
    pub(super) machine: String,
    /// How many rounds were asked for.
    pub(super) rounds: u32,
    /// Whether samples were short and points few, for a quick look rather than for a record.
    pub(super) quick: bool,
    /// The measures in the order in which they were taken.
    pub(super) measures: Vec<Measured>,
}

/// One quantity, for every case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// `veth` or `wire-like`, or `agent, 10000 peers` for figures that depend on neither.
    pub(super) underlay: String,
    /// Name of the quantity, such as `TCP request/response, 8 flows, p50`.
    pub(super) name: String,
    /// Unit of the samples.
    pub(super) unit: String,
    /// Whether more is better.
    pub(super) more_is_better: bool,
    /// The case that ratios are taken to. Its twin's ratio shows the machine's noise. It is empty if the figures are
    /// absolute.
    pub(super) basis: String,
    /// The cases in the order of the table's columns.
    pub(super) cases: Vec<Samples>,
}

/// One quantity of one case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Samples {
    /// The case's name.
    pub(super) case: String,
    /// One sample for each round.
    pub(super) samples: Vec<f64>,
    /// Errors. If there is any, the case has no figure.
    pub(super) errors: Vec<String>,
    /// The summary of the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) summary: Option<Summary>,
    /// The summary of the ratios to the basis, round by round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<Summary>,
    /// The summary of the ratios to the floor, round by round, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to_floor: Option<Summary>,
}

/// The case that ratios are taken to, except for numbers of peers.
pub(super) const BASIS: &str = "bare route";
/// The twin of the basis.
pub(super) const TWIN: &str = "bare route again";

/// The case that shows what is possible.
pub(super) const FLOOR: &str = "floor";

/// Name of a case's twin.
pub(super) fn twin(case: &str) -> String {
    format!("{case} again")
}

impl Measured {
    /// The samples of a case, if it has any.
    pub(super) fn case(&self, name: &str) -> Option<&Samples> {
        self.cases.iter().find(|case| case.case == name)
    }

    /// Adds a sample, or the error that came in its place.
    pub(super) fn add(&mut self, case: &str, sample: Result<f64, String>) {
        let at = self.cases.iter().position(|known| known.case == case).unwrap_or_else(|| {
            self.cases.push(Samples { case: case.to_owned(), ..Samples::default() });
            self.cases.len() - 1
        });
        match sample {
            Ok(sample) => self.cases[at].samples.push(sample),
            Err(error) => self.cases[at].errors.push(error),
        }
    }

    /// Computes medians and ratios. A case with an error gets neither.
    pub(super) fn conclude(&mut self) {
        let samples = |name: &str| {
            self.case(name).filter(|case| case.errors.is_empty()).map(|case| case.samples.clone())
        };
        let (basis, floor) = (samples(&self.basis), samples(FLOOR));
        for case in self.cases.iter_mut().filter(|case| case.errors.is_empty()) {
            let to = |other: &Option<Vec<f64>>| Summary::of_ratios(&case.samples, other.as_ref()?);
            (case.ratio, case.to_floor) = (to(&basis), to(&floor));
            case.summary = Summary::of(&case.samples);
        }
    }

    /// How far the basis differs from itself when it is measured a second time.
    pub(super) fn noise(&self) -> Option<f64> {
        Some(self.case(&twin(&self.basis))?.ratio?.distance_from_one())
    }

    /// Whether the figures are absolute, without ratios and noise.
    pub(super) fn is_absolute(&self) -> bool {
        self.basis.is_empty()
    }

    /// Whether a case is only there to be compared with.
    pub(super) fn is_basis(&self, case: &str) -> bool {
        case == self.basis || case == twin(&self.basis)
    }
}

impl Results {
    /// The measure of this name, which is added if it does not exist.
    pub(super) fn measured(
        &mut self,
        underlay: &str,
        name: &str,
        unit: &str,
        more_is_better: bool,
    ) -> &mut Measured {
        let same = |measured: &Measured| measured.underlay == underlay && measured.name == name;
        let at = self.measures.iter().position(same).unwrap_or_else(|| {
            self.measures.push(Measured {
                underlay: underlay.to_owned(),
                name: name.to_owned(),
                unit: unit.to_owned(),
                more_is_better,
                basis: BASIS.to_owned(),
                cases: Vec::new(),
            });
            self.measures.len() - 1
        });
        &mut self.measures[at]
    }

    /// All errors, each once.
    pub(super) fn errors(&self) -> Vec<String> {
        let mut errors: Vec<String> = Vec::new();
        for measured in &self.measures {
            for case in &measured.cases {
                for error in &case.errors {
                    let line = format!("{}, {}, {}: {error}", measured.underlay, measured.name, case.case);
                    if !errors.contains(&line) {
                        errors.push(line);
                    }
                }
            }
        }
        errors
    }

    /// Reads a file that an earlier run wrote.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let results: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no file of results of `cargo xtask bench`", path.display()))?;
        anyhow::ensure!(results.form == FORM, "{}: form {}, not {FORM}", path.display(), results.form);
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_route_has_its_twin() {
        assert_eq!(twin(BASIS), TWIN);
    }

    #[test]
    fn a_case_with_an_error_has_no_figure() {
        let mut results = Results::default();
        let measured = results.measured("veth", "packets", "1/s", true);
        let all =
            [(BASIS, [10.0, 20.0]), (TWIN, [11.0, 19.0]), ("ours", [20.0, 40.0]), (FLOOR, [25.0, 50.0])];
        for (case, samples) in all {
            samples.into_iter().for_each(|sample| measured.add(case, Ok(sample)));
        }
        measured.add("broken", Ok(10.0));
        measured.add("broken", Err("5 of 10 arrived".into()));
        measured.conclude();
        let ours = measured.case("ours").unwrap();
        assert_eq!([ours.ratio, ours.to_floor].map(|ratio| ratio.unwrap().median), [2.0, 0.8]);
        assert_eq!(measured.case("broken").unwrap().summary, None);
        assert_eq!(measured.case("broken").unwrap().ratio, None);
        // The ratios 1.1 and 0.95 have the quartiles 0.9875 and 1.0625.
        assert!((measured.noise().unwrap() - 0.0625).abs() < 1e-9);
        assert_eq!(results.errors(), ["veth, packets, broken: 5 of 10 arrived"]);
    }

    #[test]
    fn a_broken_basis_gives_no_ratios() {
        let mut results = Results::default();
        let measured = results.measured("veth", "packets", "1/s", true);
        measured.add(BASIS, Err("lost".into()));
        measured.add("ours", Ok(1.0));
        measured.conclude();
        let ours = measured.case("ours").unwrap();
        assert_eq!((ours.summary.map(|summary| summary.median), ours.ratio), (Some(1.0), None));
    }
}

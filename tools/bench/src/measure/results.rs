//! What was measured, as it stands in the JSON file: samples of each case, round by round, by measure and underlay.
use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::statistics::Summary;

/// Version of the file's form.
pub(super) const FORM: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    /// [`FORM`].
    pub(super) form: u32,
    /// Of the machine: kernel's release, number of CPUs.
    pub(super) machine: String,
    /// Rounds that were asked for.
    pub(super) rounds: u32,
    /// Short samples, few points: for a look, not for the record.
    pub(super) quick: bool,
    /// In the order they were taken.
    pub(super) measures: Vec<Measured>,
}

/// One quantity, of every case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// `veth` or `wire-like`; `agent, 10000 peers` for what depends on neither.
    pub(super) underlay: String,
    /// `TCP request/response, 8 flows, p50`.
    pub(super) name: String,
    /// Of the samples.
    pub(super) unit: String,
    /// Whether more is better.
    pub(super) more_is_better: bool,
    /// The case that ratios are taken to. Its twin's ratio is the machine's noise. Empty where there is none: the figures
    /// are absolute.
    pub(super) basis: String,
    /// In the order of the table.
    pub(super) cases: Vec<Samples>,
}

/// One quantity of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Samples {
    /// The case's name.
    pub(super) case: String,
    /// One each round.
    pub(super) samples: Vec<f64>,
    /// What went wrong: where there is any, there is no figure.
    pub(super) errors: Vec<String>,
    /// Of the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) summary: Option<Summary>,
    /// Of the ratios to the basis, round by round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<Summary>,
}

/// What ratios are taken to, but for numbers of peers.
pub(super) const BASIS: &str = "bare route";
/// Its twin.
pub(super) const TWIN: &str = "bare route again";

/// Name of a case's twin.
pub(super) fn twin(case: &str) -> String {
    format!("{case} again")
}

impl Measured {
    /// The samples of a case, if it has any.
    pub(super) fn case(&self, name: &str) -> Option<&Samples> {
        self.cases.iter().find(|case| case.case == name)
    }

    /// Takes in a sample, or what went wrong in its stead.
    pub(super) fn add(&mut self, case: &str, sample: Result<f64, String>) {
        let at = self.cases.iter().position(|known| known.case == case).unwrap_or_else(|| {
            let case = case.to_owned();
            self.cases.push(Samples { case, samples: vec![], errors: vec![], summary: None, ratio: None });
            self.cases.len() - 1
        });
        match sample {
            Ok(sample) => self.cases[at].samples.push(sample),
            Err(error) => self.cases[at].errors.push(error),
        }
    }

    /// Works out medians and ratios. A case with an error gets neither.
    pub(super) fn conclude(&mut self) {
        let basis =
            self.case(&self.basis).filter(|case| case.errors.is_empty()).map(|case| case.samples.clone());
        for case in self.cases.iter_mut().filter(|case| case.errors.is_empty()) {
            case.summary = Summary::of(&case.samples);
            case.ratio = basis.as_ref().and_then(|basis| Summary::of_ratios(&case.samples, basis));
        }
    }

    /// How far the same thing measured twice lies apart.
    pub(super) fn noise(&self) -> Option<f64> {
        Some(self.case(&twin(&self.basis))?.ratio?.distance_from_one())
    }

    /// Whether its figures stand for themselves, without ratios and noise.
    pub(super) fn is_absolute(&self) -> bool {
        self.basis.is_empty()
    }

    /// Whether a case is there to be compared with.
    pub(super) fn is_basis(&self, case: &str) -> bool {
        case == self.basis || case == twin(&self.basis)
    }
}

impl Results {
    /// The quantity of this name, made if it is not there.
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

    /// All that went wrong, each once.
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
        for (case, samples) in [(BASIS, [10.0, 20.0]), (TWIN, [11.0, 19.0]), ("ours", [20.0, 40.0])] {
            samples.into_iter().for_each(|sample| measured.add(case, Ok(sample)));
        }
        measured.add("broken", Ok(10.0));
        measured.add("broken", Err("5 of 10 arrived".into()));
        measured.conclude();
        assert_eq!(measured.case("ours").unwrap().ratio.unwrap().median, 2.0);
        assert_eq!(measured.case("broken").unwrap().summary, None);
        assert_eq!(measured.case("broken").unwrap().ratio, None);
        // 1.1 and 0.95: quartiles 0.9875 and 1.0625.
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

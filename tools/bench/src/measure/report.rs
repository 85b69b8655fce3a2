//! The results as Markdown tables. Ratios come first, because they can be compared with another machine's.
use std::fmt::Write as _;

use super::{
    compare::{Absolute, Change},
    network::Case,
    results::{Measured, Results, Samples},
    statistics::Summary,
};

/// The whole report.
pub(super) fn markdown(results: &Results) -> String {
    let mut text = format!(
        "# `cargo xtask bench`{}\n\n{}, {} rounds. Each cell: ratio (median of the rounds' \
         ratios, quartiles), then the median itself. Noise: how far the quartiles of the twin's ratio, of the same \
         case measured twice, lie from 1.\n",
        if results.quick { " --quick" } else { "" },
        results.machine,
        results.rounds
    );
    let mut underlays: Vec<&str> =
        results.measures.iter().map(|measured| measured.underlay.as_str()).collect();
    underlays.dedup();
    for underlay in underlays {
        let measures: Vec<_> =
            results.measures.iter().filter(|measured| measured.underlay == underlay).collect();
        for same in measures.chunk_by(|one, next| one.basis == next.basis) {
            if same.iter().all(|measured| measured.is_absolute()) {
                list(&mut text, underlay, same);
            } else {
                table(&mut text, underlay, same);
            }
        }
        distances(&mut text, underlay, &measures);
    }
    let errors = results.errors();
    if !errors.is_empty() {
        text.push_str("\nErrors, in place of figures:\n");
        errors.iter().for_each(|error| {
            let _ = writeln!(text, "- {}", error.replace('\n', " "));
        });
    }
    text
}

/// All cases, in the order of the measure that has most of them, because not every case has every measure.
fn columns<'a>(measures: &[&'a Measured]) -> Vec<&'a str> {
    let fullest = measures.iter().max_by_key(|measured| measured.cases.len());
    let mut columns: Vec<&str> = Vec::new();
    for case in fullest.into_iter().chain(measures).flat_map(|measured| &measured.cases) {
        if !columns.contains(&case.case.as_str()) {
            columns.push(&case.case);
        }
    }
    columns
}

/// A table of measures whose ratios are to the same case.
fn table(text: &mut String, underlay: &str, measures: &[&Measured]) {
    let columns = columns(measures);
    let basis = measures.first().map_or("", |measured| &measured.basis);
    let _ = writeln!(text, "\n## {underlay}, ratios to {basis}\n");
    let _ = writeln!(text, "| measure | {} | noise |", columns.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---|".repeat(columns.len()));
    for measured in measures {
        let cells: Vec<_> =
            columns.iter().map(|case| measured.case(case).map_or(String::new(), cell)).collect();
        let _ = writeln!(text, "| {} | {} | {} |", heading(measured), cells.join(" | "), noise(measured));
    }
}

/// How far our cases are from the floor, in all measures that it has.
fn distances(text: &mut String, underlay: &str, measures: &[&Measured]) {
    let is_shown = |case: &Samples| case.to_floor.is_some() && Case::is_called_ours(&case.case);
    let shown = |measured: &&&Measured| measured.cases.iter().any(is_shown);
    let measures: Vec<_> = measures.iter().filter(shown).copied().collect();
    if measures.is_empty() {
        return;
    }
    let columns: Vec<_> = columns(&measures).into_iter().filter(|case| Case::is_called_ours(case)).collect();
    let _ = writeln!(text, "\n## {underlay}, ours to the floor\n");
    let _ = writeln!(text, "| measure | {} | noise |", columns.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---|".repeat(columns.len()));
    for measured in measures {
        let cell = |case: &&str| measured.case(case)?.to_floor.map(ratio);
        let cells: Vec<_> = columns.iter().map(|case| cell(case).unwrap_or_default()).collect();
        let _ = writeln!(text, "| {} | {} | {} |", heading(measured), cells.join(" | "), noise(measured));
    }
}

fn noise(measured: &Measured) -> String {
    measured.noise().map_or("-".to_owned(), |noise| format!("±{:.1} %", noise * 100.0))
}

fn ratio(Summary { lower_quartile, median, upper_quartile, .. }: Summary) -> String {
    format!("**{median:.2}** ({lower_quartile:.2}-{upper_quartile:.2})")
}

fn heading(Measured { name, unit, more_is_better, .. }: &Measured) -> String {
    format!("{name}, {unit} ({} is better)", if *more_is_better { "more" } else { "less" })
}

/// A list of measures without ratios.
fn list(text: &mut String, section: &str, measures: &[&Measured]) {
    let _ = writeln!(text, "\n## {section}\n\nAbsolute figures of this machine.\n");
    text.push_str("| figure | median | samples |\n|---|---|---|\n");
    for measured in measures {
        for case in &measured.cases {
            let _ = writeln!(text, "| {} | {} | {} |", heading(measured), cell(case), case.samples.len());
        }
    }
}

fn cell(samples: &Samples) -> String {
    let median = samples.summary.map(|Summary { median, .. }| short(median));
    match (median, samples.ratio) {
        _ if !samples.errors.is_empty() => "error".to_owned(),
        (Some(median), Some(to_basis)) => format!("{} {median}", ratio(to_basis)),
        (Some(median), None) => median,
        (None, _) => String::new(),
    }
}

/// The number with three significant digits, or with all digits before the point.
fn short(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// What changed since another run. `chance` is the probability that a ratio which has not changed is in the list.
pub(super) fn comparison(changes: &[Change], name: &str, chance: f64) -> String {
    if changes.is_empty() {
        return format!("\nNothing changed beyond the noise since {name}.\n");
    }
    let mut text = format!(
        "\nRatios that changed beyond the noise since {name} (of so few rounds, up to {:.1} % of those that did not \
         change are here by chance):\n\n",
        chance * 100.0
    );
    text.push_str("| measure | case | before | now | change | noise |\n|---|---|---|---|---|---|\n");
    for Change { measure, case, ratios: [before, now], better, noise } in changes {
        let sign = if *better { "better" } else { "WORSE" };
        let _ = writeln!(
            text,
            "| {measure} | {case} | {before:.3} | {now:.3} | {:+.1} % {sign} | ±{:.1} % |",
            (now / before - 1.0) * 100.0,
            noise * 100.0
        );
    }
    text
}

/// The figures without ratios beside those of another run.
pub(super) fn absolutes(figures: &[Absolute], name: &str) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\nAll absolute figures beside those of {name}. They are of one agent per run, so nothing says how much of a \
         difference is noise; between different machines they say nothing.\n\n"
    );
    text.push_str("| figure | unit | before | now | change |\n|---|---|---|---|---|\n");
    for Absolute { measure, unit, medians: [before, now] } in figures {
        // An agent at rest may use no CPU time at all.
        let change =
            if *before > 0.0 { format!("{:+.1} %", (now / before - 1.0) * 100.0) } else { "-".to_owned() };
        let _ = writeln!(text, "| {measure} | {unit} | {} | {} | {change} |", short(*before), short(*now));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::results::{BASIS, FLOOR, TWIN};

    #[test]
    fn a_table_has_a_cell_for_each_case() {
        let mut results = Results { machine: "Linux 6.18, 2 CPUs".into(), rounds: 1, ..Results::default() };
        let packets = results.measured("veth", "packets", "10^3/s", true);
        for (case, sample) in [(BASIS, 100.0), (TWIN, 98.0), ("vxlan", 123.4)] {
            packets.add(case, Ok(sample));
        }
        packets.add("relay", Err("3 of 4 arrived".into()));
        packets.conclude();
        let runs = results.measured("veth", "one run of overlay_encap", "ns", false);
        runs.add("vxlan", Ok(99.94));
        runs.conclude();
        let text = markdown(&results);
        assert!(
            text.contains("| measure | bare route | bare route again | vxlan | relay | noise |"),
            "{text}"
        );
        assert!(text.contains(" | **1.23** (1.23-1.23) 123 | error | ±2.0 % |"), "{text}");
        assert!(text.contains("ns (less is better) |  |  | 99.9 |  | - |"), "{text}");
        assert!(text.contains("- veth, packets, relay: 3 of 4 arrived"), "{text}");
    }

    #[test]
    fn ours_are_beside_the_floor_where_that_was_measured() {
        let mut results = Results::default();
        let packets = results.measured("veth", "packets", "10^3/s", true);
        for (case, sample) in [(BASIS, 100.0), (TWIN, 98.0), (FLOOR, 250.0), ("vxlan", 200.0)] {
            packets.add(case, Ok(sample));
        }
        packets.conclude();
        let streams = results.measured("veth", "streams", "Mbit/s", true);
        streams.add("vxlan", Ok(1.0));
        streams.conclude();
        let text = markdown(&results);
        let (_, table) = text.split_once("## veth, ours to the floor\n\n").unwrap();
        assert!(table.starts_with("| measure | vxlan | noise |\n"), "{text}");
        assert!(table.contains("| **0.80** (0.80-0.80) | ±2.0 % |"), "{text}");
        assert!(!table.contains("streams"), "{text}");
    }

    #[test]
    fn figures_without_a_basis_are_a_list() {
        let mut results = Results::default();
        let starts = results.measured("agent, 10 peers", "cold start", "ms", false);
        starts.basis.clear();
        [300.0, 200.0, 250.0].into_iter().for_each(|sample| starts.add("agent", Ok(sample)));
        starts.conclude();
        let memory = results.measured("agent, 10 peers", "resident memory", "MiB", false);
        memory.basis.clear();
        memory.add("agent", Err("it ended".into()));
        memory.conclude();
        let text = markdown(&results);
        assert!(text.contains("\n## agent, 10 peers\n"), "{text}");
        assert!(text.contains("| cold start, ms (less is better) | 250 | 3 |"), "{text}");
        assert!(text.contains("| resident memory, MiB (less is better) | error | 0 |"), "{text}");
        assert!(!text.contains("ratios to"), "{text}");
    }

    #[test]
    fn absolute_figures_stand_beside_each_other() {
        let figure = |medians| Absolute { measure: "agent, p99".into(), unit: "ms".into(), medians };
        let text = absolutes(&[figure([2.0, 2.5]), figure([0.0, 0.1])], "old.json");
        assert!(text.contains("| agent, p99 | ms | 2.00 | 2.50 | +25.0 % |"), "{text}");
        assert!(text.contains("| agent, p99 | ms | 0.00 | 0.10 | - |"), "{text}");
        assert_eq!(absolutes(&[], "old.json"), "");
    }

    #[test]
    fn a_change_says_its_direction() {
        let change = Change {
            measure: "veth, p50".into(),
            case: "vxlan".into(),
            ratios: [1.0, 1.1],
            better: false,
            noise: 0.02,
        };
        let text = comparison(&[change], "old.json", 0.1);
        assert!(text.contains("| veth, p50 | vxlan | 1.000 | 1.100 | +10.0 % WORSE | ±2.0 % |"), "{text}");
        assert!(comparison(&[], "old.json", 0.1).contains("Nothing changed"));
    }
}

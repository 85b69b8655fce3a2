//! docs/kernels.md: what the runs have shown, by kernel. It is written from reports, and read again to compare a later
//! run with it.
use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    kernels::{KERNELS, Kernel},
    report::Report,
};
use overlay_project::project;

/// The section about the runs themselves. It changes with every new package and test, so it is not compared.
const RUNS: &str = "The runs";
const NOT_RUN: &str = "not run";
const HEAD: &str = "# Kernels

This is what the tests saw on Debian's kernels, in VMs. `cargo xtask test --rung vm --kernels all --write-docs` writes this file;
it is not edited by hand. `cargo xtask test` fails when a kernel it runs on shows anything else. A section that is named by
options shows what two hosts, with two containers each, did when their agents had these options
(`tools/host-tests/tests/kernels/`).
";

/// The document: what was seen, by section and by what was looked at, and then by kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table(BTreeMap<(String, String), BTreeMap<String, String>>);

/// Path of the document.
pub(crate) fn path() -> PathBuf {
    project::root().join("docs/kernels.md")
}

impl Table {
    /// The committed document, or an empty one if there is none.
    pub(crate) fn load() -> Result<Self> {
        if !path().exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path()).context("read docs/kernels.md")?;
        Self::parse(&text).context("docs/kernels.md")
    }

    /// Writes the document.
    pub(crate) fn store(&self) -> Result<()> {
        fs::write(path(), self.render()).context("write docs/kernels.md")
    }

    /// Replaces what is known of this kernel by what a run has shown.
    pub(crate) fn put(&mut self, kernel: &str, report: &Report) {
        for cells in self.0.values_mut() {
            cells.remove(kernel);
        }
        let package = ("Debian's package".to_owned(), report.package.clone());
        let counts = report
            .passed
            .iter()
            .map(|(file, count)| (format!("tests passed in `{file}`"), count.to_string()));
        let runs = std::iter::once(package).chain(counts).map(|(what, how)| ((RUNS.to_owned(), what), how));
        let facts =
            report.facts.iter().map(|fact| ((fact.section.clone(), fact.what.clone()), fact.how.clone()));
        for (row, how) in runs.chain(facts) {
            self.0.entry(row).or_default().insert(kernel.to_owned(), how);
        }
        self.0.retain(|_, cells| !cells.is_empty());
    }

    /// How a run differs from what the document says about this kernel, with a line for each difference.
    pub(crate) fn differences(&self, kernel: &str, report: &Report) -> Vec<String> {
        let mut new = Self::default();
        new.put(kernel, report);
        let rows = self.0.keys().chain(new.0.keys()).filter(|(section, _)| section != RUNS);
        let rows: std::collections::BTreeSet<_> = rows.collect();
        let cell = |table: &Self, row| -> Option<String> { table.0.get(row)?.get(kernel).cloned() };
        let differing = rows.into_iter().filter_map(|row| {
            let (said, seen) = (cell(self, row), cell(&new, row));
            let word = |how: Option<String>| how.unwrap_or_else(|| NOT_RUN.to_owned());
            let (section, what) = row;
            (said != seen)
                .then(|| format!("{section}: {what}: documented `{}`, seen `{}`", word(said), word(seen)))
        });
        differing.collect()
    }

    fn render(&self) -> String {
        let mut text = HEAD.to_owned();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            cells.fold("|".to_owned(), |line, cell| format!("{line} {cell} |")) + "\n"
        };
        let mut open = "";
        // What is about the kernel itself comes before what was done on it.
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|((section, _), _)| section.starts_with("--"));
        for ((section, what), cells) in rows {
            if open != section {
                open = section;
                text += &format!("\n## {section}\n\n");
                text += &line(&mut std::iter::once("").chain(KERNELS.iter().map(|kernel| kernel.version)));
                text += &format!("|{}\n", "---|".repeat(KERNELS.len() + 1));
            }
            let how = |kernel: &Kernel| cells.get(kernel.version).map_or(NOT_RUN, String::as_str);
            text += &line(&mut std::iter::once(what.as_str()).chain(KERNELS.iter().map(how)));
        }
        text
    }

    fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        let (mut section, mut kernels): (_, Vec<&str>) = ("", Vec::new());
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                section = title;
                continue;
            }
            let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else { continue };
            let mut cells = row.split(" | ").map(str::trim);
            let what = cells.next().unwrap_or_default();
            let cells: Vec<_> = cells.collect();
            if what.is_empty() {
                kernels = cells;
                continue;
            }
            ensure!(cells.len() == kernels.len(), "a row with {} cells: {line}", cells.len());
            for (kernel, how) in kernels.iter().zip(cells).filter(|(_, how)| *how != NOT_RUN) {
                let key = (section.to_owned(), what.to_owned());
                table.0.entry(key).or_default().insert((*kernel).to_owned(), how.to_owned());
            }
        }
        Ok(table)
    }
}

/// Compares runs with the document, or writes them into it.
pub(crate) fn compare_or_write(reports: &[(&str, Report)], write: bool) -> Result<()> {
    let mut table = Table::load()?;
    if write {
        for (kernel, report) in reports {
            table.put(kernel, report);
        }
        return table.store();
    }
    let differences: Vec<_> = reports
        .iter()
        .flat_map(|(kernel, report)| {
            let lines = table.differences(kernel, report);
            lines.into_iter().map(move |line| format!("Linux {kernel}: {line}"))
        })
        .collect();
    if !differences.is_empty() {
        bail!(
            "docs/kernels.md is not what was seen (`cargo xtask test --rung vm --kernels all --write-docs` writes it):\n{}",
            differences.join("\n")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::report::Fact;

    fn report(how: &str) -> Report {
        let fact = |what: &str, how: &str| Fact {
            section: "--ingress tc".into(),
            what: what.into(),
            how: how.into(),
        };
        Report {
            package: "6.1.192-2".into(),
            passed: BTreeMap::from([("kernel".to_owned(), 32)]),
            facts: vec![fact("ping", how), fact("transfer", "8 MB")],
        }
    }

    #[test]
    fn what_was_written_is_read_again_and_only_facts_are_compared() {
        let mut table = Table::default();
        table.put("6.1", &report("yes"));
        table.put("7.2", &report("slow"));
        let text = table.render();
        assert!(text.contains("\n## --ingress tc\n\n|  | 6.1 | 6.12 | 7.2 |\n|---|---|---|---|\n| ping | yes | not run | slow |\n"), "{text}");
        let mut read = Table::parse(&text).unwrap();
        assert_eq!(read, table);
        assert_eq!(read.differences("6.1", &report("yes")), [""; 0]);
        assert_eq!(
            read.differences("6.1", &report("no")),
            ["--ingress tc: ping: documented `yes`, seen `no`"]
        );
        assert_eq!(read.differences("6.12", &report("no")).len(), 2);
        let newer = Report { package: "6.1.193-1".into(), facts: Vec::new(), ..report("") };
        assert_eq!(read.differences("6.1", &newer).len(), 2);
        read.put("6.1", &report("no"));
        assert_eq!(read.differences("6.1", &report("no")), [""; 0]);
    }

    #[test]
    fn the_committed_document_is_what_was_written_and_has_no_gaps() {
        let text = fs::read_to_string(path()).unwrap();
        let table = Table::parse(&text).unwrap();
        assert_eq!(table.render(), text, "edited by hand, or the form has changed: write it anew");
        let missing =
            |cells: &BTreeMap<_, _>| KERNELS.iter().any(|kernel| !cells.contains_key(kernel.version));
        let gaps: Vec<_> = table.0.iter().filter(|(_, cells)| missing(cells)).map(|(row, _)| row).collect();
        assert!(gaps.is_empty(), "not run on every kernel: {gaps:?}");
    }
}

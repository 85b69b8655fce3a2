//! What a run in a VM has shown, read from what it printed.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use super::files::name;

/// Something that was seen, such as `fact: --ingress tc / ping = both ways`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    /// The section that it belongs to, such as the agent's options.
    pub(crate) section: String,
    /// What was looked at.
    pub(crate) what: String,
    /// What it was like.
    pub(crate) how: String,
}

/// A run in which every test passed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Version of the kernel's Debian package, such as `6.1.192-2`.
    pub(crate) package: String,
    /// How many tests passed, by the test file's name.
    pub(crate) passed: BTreeMap<String, usize>,
    /// The facts in the order in which they were printed.
    pub(crate) facts: Vec<Fact>,
}

impl Report {
    /// Reads a run's output. It fails unless every one of `tests` passed and the init came to its end.
    pub(super) fn parse(lines: &[String], nonce: &str, tests: &[&Path]) -> Result<Self> {
        let own: Vec<_> =
            lines.iter().filter_map(|line| line.strip_prefix(nonce)?.strip_prefix(' ')).collect();
        ensure!(!own.is_empty(), "the machine did not come up");
        for test in tests {
            let path = test.display().to_string();
            let result =
                own.iter().find_map(|line| line.strip_prefix("ended ")?.strip_suffix(&path)).map(str::trim);
            match result {
                Some("0") => {}
                Some(code) => bail!("{} failed with exit code {code}", file(test)),
                None => bail!("{} did not come to an end", file(test)),
            }
        }
        ensure!(own.last() == Some(&"end"), "the machine did not come to its end");
        // `#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)`
        let package = own[0].split_whitespace().skip_while(|word| *word != "Debian").nth(1);
        let results = lines.iter().filter_map(|line| line.strip_prefix("test result: ok. "));
        let counts = results.filter_map(|rest| rest.split(' ').next()?.parse().ok());
        let passed: BTreeMap<_, usize> = tests.iter().map(|test| file(test)).zip(counts).collect();
        ensure!(passed.len() == tests.len(), "not every test program counted its tests");
        for (test, passed) in &passed {
            ensure!(*passed > 0, "{test} ran no test");
        }
        Ok(Self {
            package: package.with_context(|| format!("no Debian kernel: {}", own[0]))?.to_owned(),
            passed,
            facts: lines.iter().filter_map(|line| fact(line)).collect(),
        })
    }
}

fn fact(line: &str) -> Option<Fact> {
    let (key, how) = line.strip_prefix("fact: ")?.split_once(" = ")?;
    let (section, what) = key.rsplit_once(" / ")?;
    Some(Fact { section: section.to_owned(), what: what.to_owned(), how: how.to_owned() })
}

/// Name of a test program: `kernel` for `.../kernel-f459857db4e08272`, where cargo appended a hash.
fn file(test: &Path) -> String {
    let name = name(test);
    name.rsplit_once('-').map_or(name, |(file, _)| file).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "n7 kernel #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)\n\
        test result: ok. 32 passed; 0 failed; 0 ignored\nn7 ended 0 /t/kernel-1a\n\
        fact: --ingress tc / ping = both ways\ntest result: ok. 1 passed; 0 failed\nn7 ended 0 /t/kernels-2b\nn7 end";

    fn parse(text: &str) -> Result<Report> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        Report::parse(&lines, "n7", &[Path::new("/t/kernel-1a"), Path::new("/t/kernels-2b")])
    }

    #[test]
    fn a_whole_run_is_read() {
        let report = parse(GOOD).unwrap();
        assert_eq!(report.package, "6.1.192-2");
        assert_eq!(report.passed, BTreeMap::from([("kernel".to_owned(), 32), ("kernels".to_owned(), 1)]));
        let fact = Fact { section: "--ingress tc".into(), what: "ping".into(), how: "both ways".into() };
        assert_eq!(report.facts, [fact]);
    }

    #[test]
    fn anything_less_is_a_failure() {
        let lines: Vec<_> = GOOD.lines().collect();
        for shorter in 0..lines.len() {
            assert!(parse(&lines[..shorter].join("\n")).is_err(), "{shorter} lines");
        }
        for (good, bad) in [
            ("n7 ended 0 /t/kernel-1a", "n7 ended 101 /t/kernel-1a"),
            ("n7 ended 0 /t/kernels-2b", "ended 0 /t/kernels-2b"),
            ("n7 end", "n8 end"),
            ("ok. 32 passed", "ok. 0 passed"),
            ("test result: ok. 1", "test result: FAILED. 1"),
        ] {
            assert!(GOOD.contains(good));
            assert!(parse(&GOOD.replace(good, bad)).is_err(), "{bad}");
        }
    }
}

//! Tests that keep the documents true to the code: packet-flow.md's reasons, hooks and steps, ARCHITECTURE.md's lists of files,
//! and the tests that threat-model.md, docker.md and flannel.md name.
extern crate std;
mod commands;
mod names;
mod text;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{Hook, Reason, Verdict};

const DOCUMENT: &str = include_str!("../../docs/packet-flow.md");
const ENCAP: &str = include_str!("../../overlay-ebpf/src/encap.rs");
const DECAP: &str = include_str!("../../overlay-ebpf/src/decap.rs");

/// Cells of the rows of a table whose first cell is a number.
fn numbered_rows() -> impl Iterator<Item = Vec<&'static str>> {
    DOCUMENT.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        cells[0].parse::<u32>().is_ok().then_some(cells)
    })
}

#[test]
fn every_reason_stands_in_the_table_with_number_and_verdict_in_order() {
    let listed: Vec<_> = numbered_rows().filter(|cells| cells.len() > 4).collect();
    let listed: Vec<_> = listed.iter().map(|cells| (cells[0], cells[1], cells[2])).collect();
    let names: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| {
            let verdict = match reason.verdict() {
                Verdict::Carried => "carried",
                Verdict::Stack => "stack",
                Verdict::Drop => "drop",
                Verdict::Answered => "answered",
                Verdict::Event => "event",
            };
            ((*reason as u32).to_string(), std::format!("`{}`", reason.as_str()), verdict)
        })
        .collect();
    let known: Vec<_> =
        names.iter().map(|(number, name, verdict)| (number.as_str(), name.as_str(), *verdict)).collect();
    assert_eq!(listed, known);
}

#[test]
fn every_hook_is_named() {
    for hook in Hook::ALL {
        let name = std::format!("`{}`", hook.as_str());
        assert!(DOCUMENT.contains(&name), "{name} is not in docs/packet-flow.md");
    }
}

/// `Out 1` of comments such as `// Out 1. What is not ...`, or of headings such as `### Out 1: parse`.
fn steps(text: &str, mark: &str, end: char) -> BTreeSet<String> {
    let step = |line: &str| {
        let (step, _) = line.trim_start().strip_prefix(mark)?.split_once(end)?;
        let (way, number) = step.split_once(' ')?;
        (matches!(way, "Out" | "In") && number.parse::<u32>().is_ok()).then(|| step.to_string())
    };
    text.lines().filter_map(step).collect()
}

#[test]
fn the_steps_of_the_code_are_the_documents_headings() {
    let mut code = steps(ENCAP, "// ", '.');
    code.extend(steps(DECAP, "// ", '.'));
    assert_eq!(code.len(), 13);
    assert_eq!(steps(DOCUMENT, "### ", ':'), code);
}

const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");

/// Every Rust file below a folder of the workspace, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut open = Vec::from([Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)]);
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

#[test]
fn files_with_unsafe_are_listed() {
    let (_, listed) = ARCHITECTURE.split_once("**unsafe**").unwrap();
    let marks = ["unsafe {", "unsafe impl", "unsafe fn", "#[unsafe("];
    let folders = ["overlay-common/src", "overlay-ebpf/src", "overlay-user", "tools", "xtask"];
    let mut count = 0;
    for (path, text) in folders.into_iter().flat_map(sources) {
        let lines = text.lines().map(str::trim_start);
        let mut code = lines.filter(|line| !line.starts_with("//") && !line.starts_with("let marks"));
        if code.any(|line| marks.iter().any(|mark| line.contains(mark))) {
            let (name, place) = (path.file_name().unwrap().to_str().unwrap(), path.display().to_string());
            // By its name, or by its path in the folder of sources where two have the same.
            let (_, inside) = place.rsplit_once("/src/").unwrap_or(("", name));
            let is_listed = [name, inside].iter().any(|name| listed.contains(&std::format!("`{name}`")));
            assert!(is_listed, "{place} is not listed");
            count += 1;
        }
    }
    assert_eq!(count, listed.matches(".rs`").count(), "a file is listed that has none");
}

/// Names in backticks that are long enough to be a test's: words of lower case joined by at least two underscores.
fn named_tests(text: &str) -> BTreeSet<&str> {
    let name = |word: &&str| {
        word.matches('_').count() > 1
            && word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    text.split('`').skip(1).step_by(2).filter(name).collect()
}

#[test]
fn tests_that_documents_rest_on_exist() {
    let folders = ["overlay-common/src", "overlay-user", "tools", "xtask"];
    let all: String = folders.into_iter().flat_map(sources).map(|(_, text)| text).collect();
    let named = named_tests(include_str!("../../docs/threat-model.md"));
    assert!(named.len() > 20);
    let docker = named_tests(include_str!("../../docs/docker.md"));
    assert_eq!(docker.len(), 7);
    let firewalls = named_tests(include_str!("../../docs/firewalls.md"));
    assert!(firewalls.len() > 7);
    for test in named.union(&docker).chain(&firewalls) {
        assert!(all.contains(&std::format!("fn {test}(")), "there is no test {test}");
    }
}

#[test]
fn the_loop_knows_neither_etcd_nor_ebpf() {
    let apart = |knows: &str, of: &[&str]| {
        for (path, text) in sources("overlay-user/src") {
            let place = path.display().to_string();
            if !of.iter().any(|of| place.contains(of)) {
                assert!(!text.contains(knows), "{place} knows {knows}");
            }
        }
    };
    apart("aya::", &["/datapath/"]);
    apart("etcd_client::", &["/store/etcd.rs", "/store/etcd/"]);
    apart("rtnetlink::", &["/netlink.rs", "/netlink/"]);
}

const FLANNEL: &str = include_str!("../../docs/flannel.md");

/// Every row has its test, and the test names its row; or the row says that there is none yet.
#[test]
fn the_rows_about_flannel_name_tests_that_exist() {
    let rows: Vec<Vec<_>> = FLANNEL
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .map(|line| line.split(" | ").collect())
        .filter(|cells: &Vec<&str>| cells.len() == 3)
        .collect();
    let numbered = |cells: &&Vec<&str>| cells[0].starts_with(['I', 'D']);
    let mut expected: Vec<_> = (1..=12).map(|number| std::format!("I{number}")).collect();
    expected.extend((1..=11).map(|number| std::format!("D{number}")));
    let listed: Vec<_> = rows.iter().filter(numbered).map(|cells| cells[0].to_string()).collect();
    assert_eq!(listed, expected);
    // The other rows are a mode's own.
    let of_mode = |cells: &&Vec<&str>| numbered(cells) || matches!(cells[0], "udp" | "host-gw");
    let mut named = 0;
    for cells in rows.iter().filter(of_mode) {
        let (row, place) = (cells[0], cells[2]);
        let quoted: Vec<_> = place.split('`').skip(1).step_by(2).collect();
        let [file, test] = quoted[..] else {
            assert!(quoted.is_empty() && place.starts_with("not yet"), "{row}: {place}");
            continue;
        };
        let folders = ["tools/host-tests/tests", "overlay-user/tests"];
        let places =
            folders.map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder).join(file));
        let path =
            places.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{row}: no file {file}"));
        let text = fs::read_to_string(path).unwrap();
        let written = std::format!("#[test]\nfn {test}()");
        assert!(text.contains(&written), "{row}: {file} has no test {test}");
        let mark = row.to_lowercase();
        // D10 is no defect that a single test of ours could be named after.
        assert!(
            row == "D10" || !numbered(&cells) || test.split('_').any(|word| word == mark),
            "{row}: {test} is not named after it"
        );
        named += usize::from(numbered(&cells));
    }
    assert_eq!(named, 23);
    // And none is forgotten in the document.
    for (path, text) in sources("tools/host-tests/tests/flannel") {
        for test in text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            assert!(FLANNEL.contains(&std::format!("`{test}`")), "{}: {test} has no row", path.display());
        }
    }
}

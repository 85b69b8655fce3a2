//! Keeps docs/packet-flow.md true to the code: every reason, hook and step in the one must be in the other.
extern crate std;
use std::{
    collections::BTreeSet,
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

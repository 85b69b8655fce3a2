//! The documents as text: which there are, their prose and their code.
extern crate std;
use std::{
    fs,
    path::{Path, PathBuf},
    string::String,
    vec,
    vec::Vec,
};

/// Where the repository begins.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every file of the repository, as a path from its root. Folders that builds make are left out.
pub(super) fn files() -> Vec<PathBuf> {
    let root = root();
    let (mut open, mut found) = (vec![root.clone()], Vec::new());
    while let Some(path) = open.pop() {
        if !path.is_dir() {
            found.push(path.strip_prefix(&root).unwrap().to_path_buf());
        } else if !path.ends_with("target") && !path.ends_with(".git") {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// Every document, with its text.
pub(super) fn documents() -> Vec<(PathBuf, String)> {
    let is_document = |path: &PathBuf| path.extension().is_some_and(|end| end == "md");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    };
    files().into_iter().filter(is_document).map(read).collect()
}

/// The lines of a document that are prose, or, with `code`, those that are code: fenced, or indented behind an empty line.
pub(super) fn lines(text: &str, code: bool) -> Vec<&str> {
    let (mut fenced, mut may_indent, mut chosen) = (false, true, Vec::new());
    for line in text.lines() {
        let fence = line.starts_with("```");
        fenced ^= fence;
        let indented = may_indent && line.starts_with("    ");
        may_indent = line.is_empty() || indented;
        if !fence && (fenced || indented) == code {
            chosen.push(line);
        }
    }
    chosen
}

/// What stands in backticks in a text without code blocks.
pub(super) fn quoted(text: &str) -> Vec<String> {
    let prose = lines(text, false).join("\n");
    prose
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|word| word.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

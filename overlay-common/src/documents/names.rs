//! What documents name must exist: links, files, the code behind the glossary's words.
extern crate std;
use std::{
    collections::BTreeSet,
    format, fs,
    path::Path,
    string::{String, ToString},
    vec::Vec,
};

use super::{
    sources,
    text::{documents, files, lines, quoted, root},
};

/// The anchor that a heading gets: letters, digits, hyphens and underscores in lower case, hyphens for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = lines(text, false).into_iter().filter(|line| line.starts_with('#'));
    let mut found = BTreeSet::new();
    for heading in headings.map(|line| anchor(line.trim_start_matches('#'))) {
        let twin = (1..).map(|number| format!("{heading}-{number}"));
        let name = core::iter::once(heading.clone()).chain(twin).find(|name| !found.contains(name));
        found.extend(name);
    }
    found
}

/// Targets of `[text](target)`.
fn targets(text: &str) -> Vec<String> {
    let prose = lines(text, false).join("\n");
    let target = |rest: &str| rest.split_once(')').map(|(target, _)| target.to_string());
    prose.split("](").skip(1).filter_map(target).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut count = 0;
    for (path, text) in documents() {
        for target in targets(&text).iter().filter(|target| !target.contains("://")) {
            let (file, anchor) =
                target.split_once('#').map_or((target.as_str(), None), |(f, a)| (f, Some(a)));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let place = root().join(&to);
            assert!(place.exists(), "{}: {target} leads to no file", path.display());
            if let Some(anchor) = anchor {
                let there = anchors(&fs::read_to_string(&place).unwrap());
                assert!(there.contains(anchor), "{}: {target} leads to no heading", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 50, "only {count} links were found");
}

/// Whether a word in backticks is meant to be a file or a folder of the repository.
fn is_path(word: &str) -> bool {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    is_plain
        && (word.ends_with(".rs") || word.ends_with(".sh") || (word.ends_with('/') && !word.starts_with('/')))
}

#[test]
fn files_named_by_architecture_contributing_and_glossary_exist() {
    let mut places = BTreeSet::new();
    for file in files() {
        places.extend(file.ancestors().skip(1).map(|folder| format!("/{}/", folder.display())));
        places.insert(format!("/{}", file.display()));
    }
    for name in ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/glossary.md"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let named: BTreeSet<_> = quoted(&text).into_iter().filter(|word| is_path(word)).collect();
        assert!(named.len() > 10, "{name} names only {} files", named.len());
        for word in named {
            let end = format!("/{word}");
            assert!(places.iter().any(|place| place.ends_with(&end)), "{name}: there is no {word}");
        }
    }
}

/// A reader must find every file of the agent's wings, of the programs and of what they share: by its path, or by its name in
/// the table of its wing.
#[test]
fn architecture_names_every_file_of_the_agent_and_the_programs() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let named: BTreeSet<_> = quoted(&text).into_iter().collect();
    for file in files() {
        let (path, name) = (file.display().to_string(), file.file_name().unwrap().to_str().unwrap());
        let folder = file.parent().unwrap().display().to_string();
        let depth = path.matches('/').count();
        let is_wing = folder.starts_with("overlay-user/src/") && depth == 3;
        let is_flat = (folder.starts_with("overlay-ebpf/src") || folder.starts_with("overlay-common/src"))
            && depth == 2;
        if !path.ends_with(".rs") || !(is_wing || is_flat) || name == "mod.rs" || name.ends_with("_tests.rs")
        {
            continue;
        }
        let head = format!("| in `{folder}/` | |");
        let table = text.lines().skip_while(|line| *line != head).take_while(|line| line.starts_with('|'));
        let is_in_its_table = table.skip(1).any(|row| row.contains(&format!("`{name}`")));
        let here = is_in_its_table || is_flat && named.contains(name);
        assert!(here || named.contains(&path), "ARCHITECTURE.md does not name {path}");
    }
}

#[test]
fn the_packets_journey_passes_every_file_of_the_programs() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, journey) = text.split_once("### A packet").unwrap();
    let (journey, _) = journey.split_once("###").unwrap();
    for path in files().iter().map(|file| file.display().to_string()) {
        let apart =
            ["lib.rs", "bench.rs", "floor.rs"].iter().any(|name| path.ends_with(&format!("src/{name}")));
        if path.starts_with("overlay-ebpf/src/") && !apart {
            assert!(
                journey.contains(&format!("`{path}`")),
                "ARCHITECTURE.md: the packet's journey lacks {path}"
            );
        }
    }
}

/// Everything in a text that may be a name.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

/// The third column of the glossary's tables names code: types, functions, maps, constants.
#[test]
fn names_behind_the_glossarys_words_exist_in_the_code() {
    let folders = ["overlay-common/src", "overlay-ebpf/src", "overlay-user/src", "xtask/src", "tools"];
    let code: String = folders.into_iter().flat_map(sources).map(|(_, text)| text).collect();
    let known = words(&code);
    let glossary = fs::read_to_string(root().join("docs/glossary.md")).unwrap();
    let (tables, _) = glossary.split_once("## Words that are not used").unwrap();
    let mut count = 0;
    for row in tables.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<_> = row.split(" | ").collect();
        let [_, _, place] = cells[..] else { continue };
        for word in quoted(place).iter().filter(|word| !is_path(word)) {
            for part in word.split("::") {
                assert!(known.contains(part), "docs/glossary.md: there is no {word} in the code");
                count += 1;
            }
        }
        // "`Name` in `file`": there, not just anywhere.
        for (before, after) in place.match_indices("` in `").map(|(at, _)| place.split_at(at)) {
            let (name, file) = (before.rsplit(['`', ':']).next().unwrap(), after.split('`').nth(2).unwrap());
            let text =
                fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(words(&text).contains(name), "docs/glossary.md: {file} has no {name}");
        }
    }
    assert!(count > 30, "only {count} names were found");
}

/// Stems of words that the glossary replaces and that have no other use in a document. What was measured or released
/// before keeps its words.
#[test]
fn documents_use_the_glossarys_words() {
    let stems = ["judge", "unwrap", "noted connection", "way of attaching", "plain packet", " toll "];
    let history = ["CHANGELOG.md", "docs/glossary.md", "docs/performance/results.md"].map(Path::new);
    for (path, text) in documents().into_iter().filter(|(path, _)| !history.contains(&path.as_path())) {
        let text = text.to_lowercase();
        for stem in stems {
            assert!(!text.contains(stem), "{}: {stem:?} is not used, see docs/glossary.md", path.display());
        }
    }
}

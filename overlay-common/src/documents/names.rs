//! What documents name must be there: links, files, commands and their options, the code behind the glossary's words.
extern crate std;
use std::{
    collections::BTreeSet,
    format, fs,
    path::{Path, PathBuf},
    string::{String, ToString},
    vec,
    vec::Vec,
};

use super::sources;

/// Where the repository begins.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every file of the repository, as a path from its root. Folders that builds make are left out.
fn files() -> Vec<PathBuf> {
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
fn documents() -> Vec<(PathBuf, String)> {
    let is_document = |path: &PathBuf| path.extension().is_some_and(|end| end == "md");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    };
    files().into_iter().filter(is_document).map(read).collect()
}

/// The lines of a document that are prose, or, with `code`, those that are code (fenced, or indented by four spaces).
fn lines(text: &str, code: bool) -> Vec<&str> {
    let mut fenced = false;
    let mut chosen = Vec::new();
    for line in text.lines() {
        let fence = line.starts_with("```");
        fenced ^= fence;
        let is_code = fenced || line.starts_with("    ");
        if !fence && is_code == code {
            chosen.push(line);
        }
    }
    chosen
}

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

/// What stands in backticks in a text without code blocks.
fn quoted(text: &str) -> Vec<String> {
    let prose = lines(text, false).join("\n");
    prose
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|word| word.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
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

/// `NextHop` as a command line has it: `next-hop`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(c.to_lowercase());
    }
    kebab.replace('_', "-")
}

/// The variants of `enum Command` in a file: what may follow the program's name.
fn subcommands(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let (_, rest) = text.split_once("enum Command {").unwrap();
    let (body, _) = rest.split_once("\n}").unwrap();
    let name = |line: &str| {
        let name = line.trim().split(['(', ',', ' ', '{']).next()?;
        name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| kebab(name))
    };
    body.lines().filter(|line| !line.trim().starts_with("//")).filter_map(name).collect()
}

/// Long options, by the fields that clap makes them of.
fn options(folders: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::from(["help".to_string(), "version".to_string()]);
    for (_, text) in folders.iter().flat_map(|folder| sources(folder)) {
        for argument in text.split("#[arg(").skip(1) {
            let Some((attribute, rest)) = argument.split_once(")]\n") else { continue };
            if attribute.contains("long") {
                let field =
                    rest.lines().find(|line| line.contains(':') && !line.trim().starts_with(['#', '/']));
                let name = field
                    .and_then(|line| line.split(':').next())
                    .and_then(|line| line.split(' ').next_back());
                found.extend(name.map(kebab));
                let given = attribute.split("alias = \"").skip(1).chain(attribute.split("long = \"").skip(1));
                found.extend(given.filter_map(|rest| rest.split('"').next()).map(ToString::to_string));
            }
        }
    }
    found
}

/// Every call of a program in the documents: in code blocks, and in backticks.
fn calls(program: &str) -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    for (path, text) in documents() {
        let code = lines(&text, true).into_iter().map(ToString::to_string);
        for line in code.chain(quoted(&text)) {
            let line = line.split(" #").next().unwrap_or_default();
            for (at, _) in line.match_indices(program) {
                let before = line[..at].trim_end();
                let begins = before.is_empty() || before.ends_with(['$', '#', ';', '&', '"', '/']);
                let words = line[at + program.len()..].split(['&', ';', '|', '`']).next().unwrap_or_default();
                if begins && words.starts_with(' ') {
                    found.push((path.clone(), words.split_whitespace().map(ToString::to_string).collect()));
                }
            }
        }
    }
    found
}

#[test]
fn commands_in_documents_exist() {
    let ours = options(&["overlay-user/src/cli"]);
    let tools = options(&["xtask", "tools"]);
    for (program, file, options, least) in [
        ("overlay", "overlay-user/src/cli/options.rs", ours, 20),
        ("cargo xtask", "xtask/src/main.rs", tools, 20),
    ] {
        let (commands, calls) = (subcommands(file), calls(program));
        assert!(calls.len() > least, "only {} calls of {program} were found", calls.len());
        for (path, words) in calls {
            let path = path.display();
            let Some(command) =
                words.first().filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
            else {
                continue;
            };
            assert!(commands.contains(command), "{path}: there is no `{program} {command}`");
            for option in
                words.iter().take_while(|word| *word != "--").filter_map(|word| word.strip_prefix("--"))
            {
                let name = option.split(['=', ',', '.', ')', ']']).next().unwrap_or_default();
                assert!(options.contains(name), "{path}: `{program} {command}` has no --{name}");
            }
        }
    }
}

#[test]
fn the_readme_is_short_and_begins_with_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() < 150);
    for command in ["cargo xtask demo", "cargo xtask test"] {
        assert!(lines(&readme, true).iter().any(|line| line.trim().starts_with(command)), "{command}");
    }
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

//! Commands that documents show must exist, with their options. The options are read from the sources, so that nothing needs to
//! be built.
extern crate std;
use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    string::{String, ToString},
    vec::Vec,
};

use super::{
    sources,
    text::{documents, lines, quoted, root},
};

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

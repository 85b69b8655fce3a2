//! Unit tests of the project's structure, read from its files: no circle of modules, few entries in the agent's crate, a thin
//! xtask, no leftovers of a merge, no messages with gaps.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use overlay_project::project::root;

use self::modules::{Crate, Imports};

mod modules;
mod tokens;

/// The names of what is in a folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The folders of our packages.
fn packages() -> Vec<PathBuf> {
    let mut packages = [entries(root()), entries(&root().join("tools"))].concat();
    packages.retain(|path| path.join("Cargo.toml").exists());
    assert!(packages.len() > 4, "{packages:?}");
    packages
}

/// The files that the crates of a package begin with: library, program, and each file of tests.
fn crates(package: &Path) -> Vec<PathBuf> {
    let tests = package.join("tests");
    let mut crates = if tests.exists() { entries(&tests) } else { Vec::new() };
    crates.extend(["src/lib.rs", "src/main.rs"].map(|file| package.join(file)));
    crates.retain(|path| path.is_file());
    crates
}

/// A path as it is in the repository.
fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Files that import from one another; each list is one circle.
fn circles(imports: &Imports) -> Vec<Vec<PathBuf>> {
    let reached = |from: &PathBuf| {
        let (mut open, mut seen) = (vec![from], BTreeSet::new());
        while let Some(file) = open.pop() {
            for next in imports.get(file).into_iter().flatten() {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let mut found: Vec<Vec<PathBuf>> = Vec::new();
    for file in imports.keys() {
        let there = reached(file);
        if there.contains(file) && !found.iter().any(|circle| circle.contains(file)) {
            let back = |other: &&&PathBuf| reached(other).contains(file);
            found.push(there.iter().filter(back).map(|&path| path.clone()).collect());
        }
    }
    found
}

/// In words: each file, and those of the circle that it imports from.
fn shown(circle: &[PathBuf], imports: &Imports) -> String {
    let line = |file: &PathBuf| {
        let from = imports[file].iter().filter(|other| circle.contains(other)).map(|path| name(path));
        format!("  {} imports from {}", name(file), from.collect::<Vec<_>>().join(", "))
    };
    circle.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// No two files of a crate import from each other, nor do more of them in a circle.
///
/// A file imports from another if it names an item of that one by a path, in a `use` or anywhere else. An item belongs to the
/// file that defines it, not to those that re-export it (`pub use`). Declaring a module (`mod child;`) and re-exporting its items
/// are no imports, but a parent that uses an item of a child imports from it. Modules for tests alone (`#[cfg(test)]`) may import
/// what they like.
#[test]
fn no_modules_import_each_other() {
    let mut found = Vec::new();
    for package in packages() {
        for start in crates(&package) {
            let imports = Crate::read(&start).imports();
            found.extend(circles(&imports).iter().map(|circle| shown(circle, &imports)));
        }
    }
    assert!(found.is_empty(), "circles of modules:\n{}", found.join("\n\n"));
}

/// A crate of three files in which every kind of path is used.
#[test]
fn circles_are_found_whatever_the_paths_look_like() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let circle = |texts: [&str; 3]| {
        for (file, text) in ["lib.rs", "one.rs", "one/two.rs"].into_iter().zip(texts) {
            write(file, text);
        }
        let found = circles(&Crate::read(&folder.path().join("lib.rs")).imports());
        let names = |circle: &Vec<PathBuf>| {
            let stems = circle.iter().map(|path| path.file_stem().unwrap().to_str().unwrap());
            stems.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
        };
        found.iter().map(names).collect::<Vec<_>>().join(", ")
    };
    // No file uses another, or only in one direction.
    assert_eq!(circle(["mod one;", "mod two;", ""]), "");
    assert_eq!(
        circle([
            "mod one; pub use one::two::A;",
            "pub(crate) mod two; pub use self::two::A;",
            "pub struct A;"
        ]),
        ""
    );
    assert_eq!(circle(["mod one; struct B;", "mod two;", "use crate::B;"]), "");
    assert_eq!(circle(["mod one; struct B; fn f() { one::g() }", "mod two; fn g() {}", "use crate::B;"]), "");
    // A circle of two files, by every kind of path.
    let parent = "mod two; struct B; ";
    for uses in
        ["use two::A;", "use self::two::{A as C};", "fn f() { two::g() }", "fn f() -> crate::one::two::A {}"]
    {
        let parent = format!("{parent}{uses}");
        for back in [
            "use super::B;",
            "use crate::{one::{B}};",
            "use super::*;",
            "use crate::one as o; fn g() { o::f() }",
        ] {
            assert_eq!(circle(["mod one;", &parent, back]), "one two", "{parent} {back}");
        }
        // Inside an inline module, `super` is another module.
        assert_eq!(circle(["mod one;", &parent, "mod inner { use super::super::B; }"]), "one two");
        assert_eq!(circle(["mod one;", &parent, "struct C; mod inner { use super::C; }"]), "");
        assert_eq!(circle(["mod one;", &parent, "#[cfg(test)] mod tests { use crate::one::B; }"]), "");
        assert_eq!(circle(["mod one;", &parent, "// use super::B;\nconst A: &str = \"super::B\";"]), "");
    }
    // Circles in which a file uses what another one re-exports, and a circle of three.
    let all = [
        "mod one; pub use one::two::A; struct C;",
        "mod two; use crate::A; struct B;",
        "use crate::one::B; pub struct A;",
    ];
    assert_eq!(circle(all), "one two");
    let all = [
        "mod one; fn f() { one::f() } struct C;",
        "pub(crate) mod two; fn f() { two::f() }",
        "use crate::C; fn f() {}",
    ];
    assert_eq!(circle(all), "lib one two");
}

#[test]
fn the_agents_crate_has_few_entries() {
    let entries = entries(&root().join("overlay-user/src"));
    assert!(entries.len() <= 10, "{entries:?}");
}

/// xtask is built before anything is set up. So it must need no installed packages, and few crates.
#[test]
fn xtask_is_thin() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut packages: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let quoted =
            |line: &'static str, text| -> Option<&str> { str::strip_prefix(text, line)?.strip_suffix('"') };
        if let Some(name) = package.lines().find_map(|text| quoted("name = \"", text)) {
            // `"nix",` or, of several versions, `"nix 0.31.3",`.
            let needs =
                package.lines().filter_map(|line| line.trim().strip_prefix('"')?.split(['"', ' ']).next());
            packages.entry(name).or_default().extend(needs);
        }
    }
    let (mut open, mut seen) = (vec!["xtask"], BTreeSet::new());
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            open.extend(&packages[name]);
        }
    }
    assert!(seen.contains("anyhow") && seen.len() < 100, "{seen:?}");
    for heavy in ["aya", "etcd-client", "prost-build", "tokio", "plotters", "overlay-user", "overlay-lab"] {
        assert!(packages.contains_key(heavy), "{heavy} is not in Cargo.lock");
        assert!(!seen.contains(heavy), "xtask needs {heavy}");
    }
}

#[test]
fn no_merge_has_left_its_marks() {
    let [ours, between, theirs] = ['<', '=', '>'].map(|mark| mark.to_string().repeat(7));
    let is_mark = |line: &&str| *line == between || line.starts_with(&ours) || line.starts_with(&theirs);
    let (mut open, mut count) = (entries(root()), 0);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            // What is built, and what git keeps, is not text of ours.
            if !path.ends_with("target") && !path.ends_with(".git") && !path.is_symlink() {
                open.extend(entries(&path));
            }
        } else if let Ok(text) = fs::read_to_string(&path) {
            let mark = text.lines().find(is_mark);
            assert!(mark.is_none(), "{}: a merge is not finished: {mark:?}", name(&path));
            count += 1;
        }
    }
    assert!(count > 300, "only {count} texts were found");
}

/// The first line of this text that has a gap of three spaces or more inside of a message, which is what remains of a line break
/// whose backslash was lost. rustfmt leaves no gaps in code. Tests, and texts of several lines, may have tables.
fn gap(text: &str) -> Option<&str> {
    let code = text.split("#[cfg(test)]").next()?;
    let has_gap = |line: &&str| {
        let line = line.trim();
        let before = line.split_once("   ").map(|(before, _)| before);
        !line.starts_with("//") && before.is_some_and(|before| before.contains('"') && !before.ends_with('"'))
    };
    code.lines().find(has_gap)
}

#[test]
fn no_message_has_gaps() {
    let (mut open, mut count) = (vec![root().join("overlay-user/src"), root().join("overlay-common/src")], 0);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(entries(&path));
        } else if !path.ends_with("tests.rs") && !name(&path).ends_with("_tests.rs") {
            let found = gap(&fs::read_to_string(&path).unwrap()).map(str::to_owned);
            assert!(found.is_none(), "{}: a gap in {found:?}", name(&path));
            count += 1;
        }
    }
    assert!(count > 150, "only {count} files were found");
    let lost = "bail!(\n    \"it is gone (a          container)\"\n)";
    assert!(gap(lost).is_some());
    assert!(gap(&format!("#[cfg(test)]\n{lost}")).is_none());
    assert!(gap("    // a   table\n    \"   indented\"\n    \"a table:\n    one   two\"").is_none());
}

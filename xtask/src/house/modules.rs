//! The modules of a crate, the paths in them, and from which file to which these lead.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::tokens::{Token, tokens};

/// Names from the crate's root to a module, or on to an item of it.
type Place = Vec<String>;

/// One crate, read from its root file.
#[derive(Debug, Default)]
pub(super) struct Crate {
    modules: BTreeMap<Place, Module>,
}

#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    /// What a `use` brings in: the name here, and where it leads.
    imports: BTreeMap<String, Place>,
    /// Paths to items of other modules, as written here.
    paths: BTreeSet<Place>,
}

/// From a file to the files that it imports something from.
pub(super) type Imports = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

impl Crate {
    pub(super) fn read(root: &Path) -> Self {
        let mut read = Self::default();
        let folder = root.parent().unwrap_or(Path::new("."));
        read.file(root, folder, Place::new());
        read
    }

    /// Reads the file of a module; the files of its children are in `folder`.
    fn file(&mut self, file: &Path, folder: &Path, place: Place) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.modules.entry(place.clone()).or_default().file = file.to_owned();
        let beside = file.parent().unwrap_or(folder);
        self.module(&tokens(&text), file, [folder, beside], &place);
    }

    /// The files of its children are in the first folder, or, if an attribute names them, begin in the second.
    fn module(&mut self, tokens: &[Token], file: &Path, folders: [&Path; 2], place: &Place) {
        let [folder, beside] = folders;
        // Modules first: paths may begin with them.
        let mut rest = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let Some(declared) = Declared::at(&tokens[at..]) else {
                rest.push(tokens[at].clone());
                at += 1;
                continue;
            };
            at += declared.length;
            if declared.is_test {
                continue;
            }
            let child = [place.clone(), vec![declared.name.clone()]].concat();
            if let Some(body) = declared.body {
                self.modules.entry(child.clone()).or_default().file = file.to_owned();
                let folder = folder.join(&declared.name);
                self.module(body, file, [&folder, &folder], &child);
            } else {
                let (file, folder) = match &declared.path {
                    Some(path) => {
                        let file = beside.join(path);
                        (file.clone(), file.with_extension(""))
                    }
                    None => child_file(folder, &declared.name),
                };
                self.file(&file, &folder, child);
            }
        }
        self.paths(&rest, place);
    }

    fn paths(&mut self, tokens: &[Token], place: &Place) {
        let mut at = 0;
        while at < tokens.len() {
            if tokens[at].word() == Some("use") {
                let end =
                    tokens[at..].iter().position(|token| token.is(';')).map_or(tokens.len(), |end| at + end);
                // `pub use` and `pub(crate) use` re-export what is below. That uses nothing here.
                let offers = at > 0 && (tokens[at - 1].word() == Some("pub") || tokens[at - 1].is(')'));
                let mut leaves = Vec::new();
                tree(&tokens[at + 1..end], &[], &mut leaves);
                for (path, name) in leaves {
                    self.import(place, &path, &name, offers);
                }
                at = end;
            } else if tokens[at].word().is_some() && (at == 0 || tokens[at - 1] != Token::Into) {
                let mut path = Place::new();
                while let Some(word) = tokens.get(at).and_then(Token::word) {
                    path.push(word.to_owned());
                    if tokens.get(at + 1) != Some(&Token::Into) {
                        break;
                    }
                    at += 2;
                }
                if path.len() > 1 {
                    self.modules.entry(place.clone()).or_default().paths.insert(path);
                }
            }
            at += 1;
        }
    }

    fn import(&mut self, place: &Place, path: &[String], name: &str, offers: bool) {
        let Some(target) = self.absolute(place, path) else { return };
        let below = target.starts_with(place) && target.len() > place.len();
        let module = self.modules.entry(place.clone()).or_default();
        if !(offers && below) {
            module.paths.insert(path.to_vec());
        }
        if name != "*" {
            module.imports.insert(name.to_owned(), target);
        }
    }

    /// From the root, if the path leads into this crate by its first word: `crate`, `self`, `super`, a child, or what is
    /// imported here.
    fn absolute(&self, place: &Place, path: &[String]) -> Option<Place> {
        let first = path.first()?.as_str();
        let (mut from, mut rest) = match first {
            "crate" => (Place::new(), &path[1..]),
            "self" => (place.clone(), &path[1..]),
            "super" => (place.clone(), path),
            _ => {
                let child = [place.clone(), vec![first.to_owned()]].concat();
                if self.modules.contains_key(&child) {
                    (place.clone(), path)
                } else {
                    (self.modules.get(place)?.imports.get(first)?.clone(), &path[1..])
                }
            }
        };
        while rest.first().is_some_and(|word| word == "super") {
            from.pop()?;
            rest = &rest[1..];
        }
        Some([&from, rest].concat())
    }

    /// The module that defines the item at `place`, which other modules may re-export; none if `place` is itself a module.
    fn owner(&self, place: &[String], patience: u32) -> Option<&Module> {
        let known = (0..=place.len()).rev().find(|length| self.modules.contains_key(&place[..*length]))?;
        let module = &self.modules[&place[..known]];
        let (item, rest) = place[known..].split_first()?;
        match module.imports.get(item).filter(|_| patience > 0) {
            Some(target) if target.as_slice() != &place[..=known] => {
                let target = [target.as_slice(), rest].concat();
                self.owner(&target, patience - 1)
            }
            _ => Some(module),
        }
    }

    /// Which file imports from which. Naming a module is no import; using an item through it is.
    pub(super) fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (place, module) in &self.modules {
            for path in &module.paths {
                let target = self.absolute(place, path).and_then(|target| self.owner(&target, 8));
                if let Some(target) = target.filter(|target| target.file != module.file) {
                    imports.entry(module.file.clone()).or_default().insert(target.file.clone());
                }
            }
        }
        imports
    }
}

/// `mod name;` or `mod name { ... }`, with its attributes.
struct Declared<'a> {
    name: String,
    path: Option<String>,
    is_test: bool,
    body: Option<&'a [Token]>,
    length: usize,
}

impl<'a> Declared<'a> {
    fn at(tokens: &'a [Token]) -> Option<Self> {
        let (mut at, mut path, mut is_test) = (0, None, false);
        while tokens.get(at)?.is('#') && tokens.get(at + 1)?.is('[') {
            let end = at + 1 + closing(&tokens[at + 1..])?;
            let words: Vec<_> = tokens[at..end].iter().filter_map(Token::word).collect();
            is_test |= words == ["cfg", "test"];
            if words == ["path"] {
                path = tokens[at..end].iter().find_map(|token| match token {
                    Token::Text(text) => Some(text.clone()),
                    _ => None,
                });
            }
            at = end + 1;
        }
        if tokens.get(at)?.word() == Some("pub") {
            at += 1;
            if tokens.get(at)?.is('(') {
                at += closing(&tokens[at..])? + 1;
            }
        }
        if tokens.get(at)?.word() != Some("mod") {
            return None;
        }
        let name = tokens.get(at + 1)?.word()?.to_owned();
        let open = at + 2;
        if tokens.get(open)?.is(';') {
            return Some(Self { name, path, is_test, body: None, length: open + 1 });
        }
        let close = open + closing(tokens.get(open..).filter(|rest| rest[0].is('{'))?)?;
        Some(Self { name, path, is_test, body: Some(&tokens[open + 1..close]), length: close + 1 })
    }
}

/// Where the bracket closes that `tokens` begin with.
fn closing(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0;
    tokens.iter().position(|token| {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

/// The file of a child module, and the folder of that one's children.
fn child_file(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (plain, below) = (folder.join(format!("{name}.rs")), folder.join(name));
    if plain.exists() { (plain, below) } else { (below.join("mod.rs"), below) }
}

/// The leaves of what stands behind `use`: paths, and the names that they get.
fn tree(tokens: &[Token], before: &[String], leaves: &mut Vec<(Place, String)>) {
    let (mut at, mut path) = (0, before.to_vec());
    while let Some(token) = tokens.get(at) {
        if token.is('{') {
            let Some(end) = closing(&tokens[at..]) else { return };
            let inside = &tokens[at + 1..at + end];
            let (mut depth, mut from) = (0, 0);
            for (index, token) in inside.iter().enumerate() {
                match token {
                    Token::Mark('{') => depth += 1,
                    Token::Mark('}') => depth -= 1,
                    Token::Mark(',') if depth == 0 => {
                        tree(&inside[from..index], &path, leaves);
                        from = index + 1;
                    }
                    _ => {}
                }
            }
            tree(&inside[from..], &path, leaves);
            return;
        }
        match token {
            Token::Word(word) if word == "as" => break,
            Token::Word(word) if word == "self" && !before.is_empty() => {}
            Token::Word(word) => path.push(word.clone()),
            Token::Mark('*') => path.push("*".to_owned()),
            _ => {}
        }
        at += 1;
    }
    let renamed = tokens.get(at + 1).and_then(Token::word).filter(|_| at < tokens.len());
    if let Some(name) =
        renamed.map(str::to_owned).or_else(|| path.last().cloned()).filter(|_| !tokens.is_empty())
    {
        leaves.push((path, name));
    }
}

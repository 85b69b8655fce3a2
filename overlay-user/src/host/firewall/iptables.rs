//! iptables in both its variants. A packet must pass the chains of both, so rules are looked for in both.
//!
//! The commands `-save` and `-restore` are used, because no library works with both variants.
use std::{borrow::Cow, fs, io::ErrorKind, iter};

use crate::host::command::{self, Failed};

/// The older variant, with tables of its own in the kernel.
pub const LEGACY: &str = "iptables-legacy";
/// Both variants. Plain `iptables` is one of them.
const VARIANTS: [&str; 2] = ["iptables-nft", LEGACY];
/// The name on hosts where the variants have no names of their own.
const PLAIN: [&str; 1] = ["iptables"];
/// The file that lists the tables of the older variant that are in use in the calling thread's network namespace. Only
/// root may read it. To ask for a table that is not in use would load its kernel module.
const IN_USE: &str = "/proc/thread-self/net/ip_tables_names";

/// The variants that are installed, as the names that `-save` and `-restore` are appended to.
pub fn variants() -> Vec<&'static str> {
    let installed = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|name| command::find(&format!("{name}-save")).is_some()).collect()
    };
    let variants = installed(&VARIANTS);
    if variants.is_empty() { installed(&PLAIN) } else { variants }
}

/// Whether any table of the older variant is in use.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn is_legacy_in_use() -> Result<bool, Failed> {
    match fs::read_to_string(IN_USE) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failed::Other(format!("{IN_USE}: {error}"))),
    }
}

/// Lists all tables that are in use. To name a table would create it. The list is empty on a kernel without this
/// variant.
///
/// # Errors
/// When the tables cannot be listed.
pub async fn save(variant: &str) -> Result<String, Failed> {
    if variant == LEGACY && !is_legacy_in_use()? {
        return Ok(String::new());
    }
    match command::run(&format!("{variant}-save"), &[], "").await {
        Err(Failed::Unsupported(said)) => {
            log::debug!("{said}");
            Ok(String::new())
        }
        saved => saved,
    }
}

/// Carries out a script: each of its tables whole or not at all. What the script does not name stays as it is.
///
/// # Errors
/// What the command said.
pub async fn restore(variant: &str, script: &str) -> Result<(), Failed> {
    command::run(&format!("{variant}-restore"), &["--noflush", "--wait", "5"], script).await.map(drop)
}

/// The lines that a `-save` command printed. A line break inside of quotes, as a comment may have it, ends no line.
pub fn lines(saved: &str) -> impl Iterator<Item = &str> {
    let mut rest = saved;
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = if rest.starts_with("-A ") {
            let mut words = Words::of(rest);
            words.by_ref().for_each(drop);
            rest.len() - words.rest.len()
        } else {
            rest.find('\n').unwrap_or(rest.len())
        };
        let (line, after) = rest.split_at(end);
        rest = after.strip_prefix('\n').unwrap_or(after);
        Some(line)
    })
}

/// A word of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// What it says, without quotes.
    pub text: Cow<'a, str>,
    /// Whether it stood in quotes, so that it is no option, whatever it looks like.
    pub is_quoted: bool,
    /// Whether its quotes were never closed.
    pub is_open: bool,
}

/// What an option is followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Name,
    Comment,
}

/// The words of a rule, as iptables writes them: what it quotes begins and ends with `"`, in which a backslash precedes each `"`,
/// `'` and `\` of the text, and all else stands as it is (`xtables_save_string`). A comment of letters, digits, `-` and `_` alone is
/// not quoted, even if it looks like an option. Names of chains, interfaces and sets are never quoted, even if there is a quote in
/// them.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    rest: &'a str,
    /// What the word that comes is, if it is no option, whatever it looks like.
    expected: Option<Value>,
}

impl<'a> Words<'a> {
    /// The words of a rule. They end at the rule's end, or with the line.
    pub const fn of(rule: &'a str) -> Self {
        Self { rest: rule, expected: None }
    }

    fn quoted(&mut self, quoted: &'a str) -> Word<'a> {
        let mut text = Cow::Borrowed("");
        let mut begin = 0;
        let mut bytes = quoted.bytes().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.rest = &quoted[at + 1..];
                    text += &quoted[begin..at];
                    return Word { text, is_quoted: true, is_open: false };
                }
                b'\\' => {
                    text += &quoted[begin..at];
                    begin = at + 1;
                    bytes.next();
                }
                _ => {}
            }
        }
        self.rest = "";
        text += &quoted[begin..];
        Word { text, is_quoted: true, is_open: true }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let rest = self.rest.trim_start_matches(' ');
        self.rest = rest;
        if rest.is_empty() || rest.starts_with('\n') {
            return None;
        }
        let value = self.expected.take();
        if let Some(quoted) = rest.strip_prefix('"').filter(|_| value != Some(Value::Name)) {
            return Some(self.quoted(quoted));
        }
        let (text, rest) = rest.split_at(rest.find([' ', '\n']).unwrap_or(rest.len()));
        self.rest = rest;
        self.expected = match text {
            _ if value.is_some() => None,
            "-A" | "-j" | "-g" | "-i" | "-o" | "--match-set" => Some(Value::Name),
            "--comment" => Some(Value::Comment),
            _ => None,
        };
        Some(Word { text: Cow::Borrowed(text), is_quoted: false, is_open: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rule: &str) -> Vec<Cow<'_, str>> {
        Words::of(rule).map(|word| word.text).collect()
    }

    #[test]
    fn quotes_keep_words_and_lines_together() {
        let saved = "*filter\n:a\"b - [0:0]\n-A a\"b -m comment --comment \"one\ntwo \\\"x\\\" \\\\ \\'y\" -j a\"b\n-A FORWARD -j ACCEPT\nCOMMIT\n";
        let lines: Vec<&str> = lines(saved).collect();
        assert_eq!((lines.len(), lines[4]), (5, "COMMIT"), "{lines:?}");
        assert_eq!(
            texts(lines[2]),
            ["-A", "a\"b", "-m", "comment", "--comment", "one\ntwo \"x\" \\ 'y", "-j", "a\"b"]
        );
        assert_eq!(texts("-i \"x -j ACCEPT"), ["-i", "\"x", "-j", "ACCEPT"], "the name of an interface");
        assert_eq!(texts("--comment -j -j \"x"), ["--comment", "-j", "-j", "\"x"], "a comment, and a chain");
        let quoted: Vec<bool> = Words::of("--comment \"-j\" -j").map(|word| word.is_quoted).collect();
        assert_eq!(quoted, [false, true, false]);
        assert!(Words::of("--comment \"open -j DROP").any(|word| word.is_open));
    }
}

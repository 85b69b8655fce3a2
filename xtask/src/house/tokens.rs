//! Rust source as words and marks: enough of its grammar to find paths in it. A parser for all of Rust (syn) would do more, but
//! xtask is built before anything is set up, and hence from few crates.

/// One word, `::`, a string's text after a quotation mark, or a single other character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Text(String),
    /// `::`.
    Into,
    Mark(char),
}

impl Token {
    pub(super) fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }

    pub(super) fn is(&self, mark: char) -> bool {
        *self == Self::Mark(mark)
    }
}

/// The tokens of `source`, without white space, comments, numbers' parts and lifetimes.
pub(super) fn tokens(source: &str) -> Vec<Token> {
    let source: Vec<char> = source.chars().collect();
    let mut reader = Reader { source: &source, at: 0 };
    let mut found = Vec::new();
    while let Some(next) = reader.peek(0) {
        match next {
            '/' if reader.peek(1) == Some('/') => reader.skip_until("\n"),
            '/' if reader.peek(1) == Some('*') => reader.skip_comment(),
            '"' => found.push(Token::Text(reader.string())),
            '\'' => reader.skip_quoted(),
            ':' if reader.peek(1) == Some(':') => {
                reader.at += 2;
                found.push(Token::Into);
            }
            _ if next.is_alphanumeric() || next == '_' => {
                let word = reader.word();
                match reader.raw_string(&word) {
                    Some(text) => found.push(Token::Text(text)),
                    None => found.push(Token::Word(word)),
                }
            }
            _ => {
                reader.at += 1;
                if !next.is_whitespace() {
                    found.push(Token::Mark(next));
                }
            }
        }
    }
    found
}

struct Reader<'a> {
    source: &'a [char],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.source.get(self.at + ahead).copied()
    }

    fn begins(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, mark)| self.peek(ahead) == Some(mark))
    }

    /// To the character after `end`.
    fn skip_until(&mut self, end: &str) {
        while self.at < self.source.len() && !self.begins(end) {
            self.at += 1;
        }
        self.at += end.len();
    }

    /// Comments of this kind may stand in one another.
    fn skip_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.source.len() {
            if self.begins("/*") {
                depth += 1;
                self.at += 2;
            } else if self.begins("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return;
                }
            } else {
                self.at += 1;
            }
        }
    }

    fn string(&mut self) -> String {
        let start = self.at + 1;
        self.at = start;
        while let Some(next) = self.peek(0).filter(|next| *next != '"') {
            self.at += if next == '\\' { 2 } else { 1 };
        }
        let text = self.source[start..self.at.min(self.source.len())].iter().collect();
        self.at += 1;
        text
    }

    /// A character, or the mark of a lifetime or label, whose name is then a word like any other.
    fn skip_quoted(&mut self) {
        self.at += 1;
        if self.peek(0) == Some('\\') {
            self.at += 2;
            self.skip_until("'");
        } else if self.peek(1) == Some('\'') {
            self.at += 2;
        }
    }

    fn word(&mut self) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(|next| next.is_alphanumeric() || next == '_') {
            self.at += 1;
        }
        self.source[start..self.at].iter().collect()
    }

    /// The string that begins here, if `word` was its prefix: `r"..."`, `r#"..."#`, `b"..."`, `c"..."`.
    fn raw_string(&mut self, word: &str) -> Option<String> {
        if matches!(word, "b" | "c") && self.peek(0) == Some('"') {
            return Some(self.string());
        }
        if !matches!(word, "r" | "br" | "cr") {
            return None;
        }
        let hashes: String = self.source[self.at..].iter().take_while(|next| **next == '#').collect();
        if self.peek(hashes.len()) != Some('"') {
            return None;
        }
        let start = self.at + hashes.len() + 1;
        self.at = start;
        let end = format!("\"{hashes}");
        self.skip_until(&end);
        Some(self.source[start..self.at - end.len()].iter().collect())
    }
}

#[test]
fn comments_strings_and_characters_hide_what_is_in_them() {
    let source = "// crate::a\n/* crate::b /* */ crate::c */ let d: &'e str = \"crate::f \\\" g\"; r#\"h \" i\"#; '\\'' 'j' b\"k\" x::y";
    let words: Vec<_> =
        tokens(source).into_iter().filter_map(|token| token.word().map(str::to_owned)).collect();
    assert_eq!(words, ["let", "d", "e", "str", "x", "y"]);
    assert!(tokens(source).contains(&Token::Text("h \" i".to_owned())));
}

//! What a row of the tables is: a set of rules, and how much of the fast path they leave under `--fast-path auto`.

/// How packets between containers travel on a host with these rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The fast path carries everything: no rule could refuse, alter or delay a packet between containers.
    On,
    /// The stack decides on each connection, and the fast path carries what it has accepted.
    Established,
    /// The stack carries everything.
    Off,
}

impl Path {
    /// Its name in the agent's status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Established => "established",
            Self::Off => "off",
        }
    }
}

/// A set of rules. A script that begins with `table` or `add` is for `nft`, and any other is for a shell. Both know the
/// containers that talk as `$a` and `$b`, their hosts as `$h1` and `$h2`, and the gateways as `$g1` and `$g2`. A container's
/// interface on its host is `va`. Routing policies have the preference 1000, and routes for them are in table 100.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is about, in a few words.
    pub name: &'static str,
    /// Rules of the first host that are there already when the older conversations begin.
    pub before: &'static str,
    /// Rules of the first host, on which `a` is.
    pub first: &'static str,
    /// Rules of the second host, on which `b` is.
    pub second: &'static str,
    /// The path that remains on the first host.
    pub path: Path,
    /// Whether these rules change what the containers see. A row that should, and does not, would compare nothing.
    pub is_seen: bool,
    /// Whether conversations that began before these rules are looked at too. While the fast path is on, connection tracking does
    /// not know them, so they are new to rules that ask it (docs/firewalls.md, "Where `auto` differs").
    pub older: bool,
    /// Whether nobody tells the agent that there are new rules. Of rules of iptables' older variant the kernel sends no news, so that
    /// the agent finds them when it looks the next time, seconds later.
    pub untold: bool,
    /// A command that succeeds on the first host once the agent has added what it adds to such rules.
    pub ready: &'static str,
}

/// Rules of the first host that change what the containers see.
pub const fn row(name: &'static str, path: Path, first: &'static str) -> Row {
    Row { name, before: "", first, second: "", path, is_seen: true, older: true, untold: false, ready: "" }
}

/// Rules of the first host that ask connection tracking, so that only conversations that begin under them are looked at.
pub const fn tracked(name: &'static str, path: Path, first: &'static str) -> Row {
    Row { older: false, ..row(name, path, first) }
}

/// Rules of the first host that change nothing of what the containers see.
pub const fn unseen(name: &'static str, path: Path, first: &'static str) -> Row {
    Row { is_seen: false, ..row(name, path, first) }
}

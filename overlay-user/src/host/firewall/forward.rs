//! Accepting the overlay's packets where iptables' FORWARD chain drops what no rule accepts, as it does under Docker.
//!
//! A packet must pass every base chain: if a table of ours accepted it, the policy of another chain could still drop it.
//! So our rule has to be in that very chain. It is at the chain's end, where it replaces the policy and nothing else:
//! all other rules of the chain, those in DOCKER-USER among them, decide before it. Many firewalls close the chain by a last
//! rule that refuses everything, in place of the policy or beside it. Behind such a rule ours would never be reached, so there
//! it stands right before that rule. A rule that refuses everything and has others behind it, or that somebody put in front of
//! ours, closes nothing: it is meant to stop everything, and it is obeyed. If neither the policy nor a closing rule refuses, no
//! rule is added. If a chain of another nftables table drops, nothing can be done from outside, and `overlay check` names it.
//!
//! Each of the two variants of iptables has such a chain, and a host may use both. The rules are written into those
//! chains that refuse what no rule accepts.
use std::fmt::Write as _;

use anyhow::{Result, bail};
use ipnet::IpNet;

use super::{
    iptables::{self, Word, Words, lines, restore, save},
    status::Looked,
};
use crate::host::command::Failed;

/// The rules of one network.
#[derive(Debug)]
pub struct Forward {
    tag: String,
    network: IpNet,
}

impl Forward {
    /// The rules of the network with this name.
    pub fn new(name: &str, network: IpNet) -> Self {
        Self { tag: tag(name), network: network.trunc() }
    }

    /// Looks whether the rules are needed and present, and writes them if they are needed and absent. The rules of one
    /// variant are written all at once, and a failure of one variant does not affect the other.
    pub async fn look(&self) -> Result<Looked> {
        let mut looked = Looked::Absent;
        let mut failures = Vec::new();
        for variant in iptables::variants() {
            match self.look_at(variant).await {
                Ok(found) => looked = looked.max(found),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() { Ok(looked) } else { bail!(failures.join("; ")) }
    }

    async fn look_at(&self, variant: &str) -> Result<Looked, Failed> {
        let found = Found::read(&save(variant).await?, &self.tag);
        if !found.drops && found.closing.is_none() {
            return Ok(Looked::Unneeded);
        }
        let wanted = self.rules();
        if found.ours == wanted {
            return Ok(Looked::Kept);
        }
        restore(variant, &script(&found.ours, &wanted, found.closing)).await?;
        Ok(Looked::Written)
    }

    /// The rules as `iptables-save` shows them.
    fn rules(&self) -> Vec<String> {
        let Self { tag, network } = self;
        ["-s", "-d"].map(|end| format!("FORWARD {end} {network} -m comment --comment {tag} -j ACCEPT")).into()
    }
}

/// Removes the rules of the network with this name, if there are any. There are none of a variant that is not
/// installed.
///
/// # Errors
/// When the rules exist and could not be removed, or it is not known whether they exist.
pub async fn remove(name: &str) -> Result<()> {
    let mut failures = Vec::new();
    for variant in iptables::variants() {
        if let Err(error) = remove_from(variant, &tag(name)).await {
            failures.push(error.to_string());
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!(failures.join("; ")) }
}

async fn remove_from(variant: &str, tag: &str) -> Result<(), Failed> {
    let found = Found::read(&save(variant).await?, tag);
    if found.ours.is_empty() { Ok(()) } else { restore(variant, &script(&found.ours, &[], None)).await }
}

/// The comment that marks our rules.
fn tag(name: &str) -> String {
    format!("overlay-forward:{name}")
}

/// The filter table's FORWARD chain, as `iptables-save` shows it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// The chain's policy.
    drops: bool,
    /// The place among the rules that are not ours, counted from 1, of the last one, if that refuses every packet and none
    /// before it does.
    closing: Option<usize>,
    /// Our rules, without `-A`, in their order.
    ours: Vec<String>,
}

/// Whether a rule, without its chain, refuses every packet: `-j REJECT --reject-with icmp-host-prohibited`.
fn refuses_all(rule: &str) -> bool {
    let words: Vec<Word<'_>> = Words::of(rule).collect();
    let texts: Vec<&str> = words.iter().map(|word| &*word.text).collect();
    let target = match &texts[..] {
        ["-m", "comment", "--comment", _, target @ ..] | target => target,
    };
    matches!(target, ["-j", "DROP" | "REJECT", ..])
}

impl Found {
    fn read(saved: &str, tag: &str) -> Self {
        let mut found = Self { drops: false, closing: None, ours: Vec::new() };
        let (mut filter, mut others, mut refusing) = (false, 0, None);
        for line in lines(saved) {
            if let Some(table) = line.strip_prefix('*') {
                filter = table == "filter";
            } else if filter && line.starts_with(":FORWARD ") {
                found.drops = line.starts_with(":FORWARD DROP");
            } else if let Some(rest) = line.strip_prefix("-A FORWARD ").filter(|_| filter) {
                // The nftables variant quotes the comment always, and the older variant only if needed.
                let mut words = Words::of(rest).skip_while(|word| word.text != "--comment");
                if words.nth(1).is_some_and(|comment| comment.text == tag) {
                    found.ours.push(format!("FORWARD {}", rest.replace('"', "")));
                    continue;
                }
                others += 1;
                if refusing.is_none() && refuses_all(rest) {
                    refusing = Some(others);
                }
            }
        }
        found.closing = refusing.filter(|place| *place == others);
        found
    }
}

/// A script for `iptables-restore --noflush`, which carries it out whole or not at all: our present rules go, and the wanted ones
/// come at the chain's end, or before the rule that closes it.
fn script(present: &[String], wanted: &[String], closing: Option<usize>) -> String {
    let mut script = String::from("*filter\n");
    // Writing to a string cannot fail.
    for rule in present {
        let _ = writeln!(script, "-D {rule}");
    }
    for (at, rule) in wanted.iter().enumerate() {
        let _ = match (closing, rule.strip_prefix("FORWARD ")) {
            (Some(closing), Some(rule)) => writeln!(script, "-I FORWARD {} {rule}", closing + at),
            _ => writeln!(script, "-A {rule}"),
        };
    }
    script + "COMMIT\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n\
        *filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [7:420]\n-A FORWARD -j DOCKER-USER\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n";

    #[test]
    fn rules_are_found_by_their_comment_whole_and_in_the_right_table() {
        let forward = Forward::new("red", "10.244.0.0/16".parse().unwrap());
        let wanted = forward.rules();
        let read = |more: &str| Found::read(&format!("{DOCKER}{more}COMMIT\n"), &forward.tag);
        let empty = Found { drops: true, closing: None, ours: vec![] };
        assert_eq!(read(""), empty);
        let quoted = wanted
            .iter()
            .map(|rule| format!("-A {}\n", rule.replace(&forward.tag, "\"overlay-forward:red\"")));
        assert_eq!(read(&quoted.collect::<String>()).ours, wanted);
        let other = wanted[0].replace("red", "redder");
        assert_eq!(read(&format!("-A {other}\n")).ours, Vec::<String>::new());
        assert_eq!(read(&format!("COMMIT\n*raw\n-A {}\n", wanted[0])).ours, Vec::<String>::new());
        assert!(!Found::read("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", "x").drops);
    }

    #[test]
    fn a_network_that_changed_replaces_its_rules_in_one_go() {
        let old = Forward::new("red", "10.1.0.0/16".parse().unwrap()).rules();
        let new = Forward::new("red", "10.244.0.0/16".parse().unwrap()).rules();
        let rule = |action, end, net| {
            format!("{action} FORWARD {end} {net} -m comment --comment overlay-forward:red -j ACCEPT\n")
        };
        let expected = ["*filter\n".to_owned()]
            .into_iter()
            .chain(["-s", "-d"].map(|end| rule("-D", end, "10.1.0.0/16")))
            .chain(["-s", "-d"].map(|end| rule("-A", end, "10.244.0.0/16")))
            .chain(["COMMIT\n".to_owned()]);
        assert_eq!(script(&old, &new, None), expected.collect::<String>());
    }

    #[test]
    fn rules_stand_before_the_one_that_closes_the_chain() {
        let forward = Forward::new("red", "10.244.0.0/16".parse().unwrap());
        let wanted = forward.rules();
        let ours: String = wanted.iter().map(|rule| format!("-A {rule}\n")).collect();
        let head = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -p tcp -j DROP\n";
        let closing = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        let read = |rules: &str| Found::read(&format!("{head}{rules}COMMIT\n"), &forward.tag);
        assert_eq!((read("").closing, read(closing).closing), (None, Some(3)));
        for rules in [format!("{closing}{ours}"), format!("{ours}{closing}")] {
            let found = read(&rules);
            assert_eq!((found.ours, found.closing), (wanted.clone(), Some(3)));
        }
        // Somebody stops everything, for now.
        assert_eq!(read(&format!("{closing}-A FORWARD -i eth1 -j ACCEPT\n")).closing, None);
        let script = script(&wanted, &wanted, Some(3));
        let inserted: Vec<_> = script.lines().filter(|line| line.starts_with("-I")).collect();
        assert!(inserted[0].starts_with("-I FORWARD 3 -s 10.244.0.0/16 "), "{script}");
        assert!(inserted[1].starts_with("-I FORWARD 4 -d 10.244.0.0/16 "), "{script}");
        for (rule, is_closing) in [
            ("-j DROP", true),
            ("-m comment --comment \"the end\" -j REJECT --reject-with tcp-reset", true),
            ("-j ACCEPT", false),
            ("-i eth0 -j DROP", false),
            ("-m comment --comment x -m limit --limit 1/sec -j DROP", false),
        ] {
            assert_eq!(refuses_all(rule), is_closing, "{rule}");
        }
    }
}

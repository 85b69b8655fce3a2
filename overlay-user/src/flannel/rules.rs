//! flannel's rules in the packet filter, as flannel's pkg/trafficmngr makes them: its chains of iptables, in either variant,
//! and its tables of nftables.
//!
//! iptables' rules are found in the text of `iptables-save`, and taken away and put back by `iptables-restore`, as in
//! [`crate::host::firewall::forward`]; a table of nftables is kept as the text that `nft` lists, which `nft -f` reads again.
use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::host::{
    command::run,
    firewall::{
        iptables::{self, lines, save},
        nft::nft_has_table,
    },
};

/// All of flannel's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The rules of iptables.
    pub iptables: Vec<IptablesRules>,
    /// The tables of nftables.
    pub nftables: Vec<NftTable>,
}

/// flannel's chains in one variant of iptables. A host may have both variants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IptablesRules {
    /// The command's name, to which `-save` and `-restore` are appended: `iptables-nft`, `iptables-legacy`, or plain
    /// `iptables`.
    pub variant: String,
    /// The tables that contain any of these chains, or a rule that leads to one.
    pub tables: Vec<ChainTable>,
}

/// flannel's chains in one table of iptables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainTable {
    /// The table's name, such as `nat` or `filter`.
    pub name: String,
    /// Names of the chains.
    pub chains: Vec<String>,
    /// The chains' rules, as `iptables-save` prints them, without `-A`.
    pub rules: Vec<String>,
    /// The rules in other chains that lead to these.
    pub jumps: Vec<Jump>,
}

/// A rule of flannel's in a chain that is not flannel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// The chain.
    pub chain: String,
    /// The rule's number in that chain, counted from 1.
    pub position: usize,
    /// The rule, without `-A` and the chain.
    pub rule: String,
}

/// One table of nftables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NftTable {
    /// `ip` or `ip6`.
    pub family: String,
    /// The table's name.
    pub name: String,
    /// What `nft list table` prints, which `nft -f` reads.
    pub text: String,
}

/// The beginning of the names of flannel's chains. Nobody else's chains begin so.
const CHAIN: &str = "FLANNEL-";
/// The beginning of the comments in flannel's rules. What a rule is for follows it.
const COMMENT: &str = "--comment \"flanneld ";
/// flannel's tables of nftables.
const TABLES: [(&str, &str); 2] = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")];

impl Rules {
    /// Looks for flannel's rules. A command that is not installed cannot have made any, so it is skipped.
    pub async fn find() -> Result<Self> {
        let mut rules = Self::default();
        for variant in iptables::variants() {
            let tables = read(&save(variant).await?);
            if !tables.is_empty() {
                rules.iptables.push(IptablesRules { variant: variant.into(), tables });
            }
        }
        for (family, name) in TABLES {
            if let Some(text) = list(family, name).await? {
                rules.nftables.push(NftTable { family: family.into(), name: name.into(), text });
            }
        }
        Ok(rules)
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.iptables.is_empty() && self.nftables.is_empty()
    }

    /// Whether the rules masquerade, which is so if flanneld ran with `--ip-masq`.
    pub fn masquerade(&self) -> bool {
        let by_iptables = self.iptables.iter().flat_map(|iptables| &iptables.tables);
        by_iptables
            .flat_map(|table| table.rules.iter().chain(table.jumps.iter().map(|jump| &jump.rule)))
            .any(|rule| rule.contains("-j MASQUERADE"))
            || self.nftables.iter().any(|table| table.text.contains("masquerade"))
    }

    /// The names of the chains and tables, for people, such as `iptables-nft nat FLANNEL-POSTRTG`.
    pub fn names(&self) -> Vec<String> {
        let chains = self.iptables.iter().flat_map(|iptables| {
            iptables.tables.iter().flat_map(|table| {
                table.chains.iter().map(|chain| format!("{} {} {chain}", iptables.variant, table.name))
            })
        });
        let tables = self.nftables.iter().map(|table| format!("nftables {} {}", table.family, table.name));
        chains.chain(tables).collect()
    }

    /// Removes the rules. A rule that is gone already counts as removed.
    ///
    /// # Errors
    /// When something could not be removed. The error says why.
    pub async fn remove(&self) -> Result<()> {
        for IptablesRules { variant, tables } in &self.iptables {
            let present: Vec<ChainTable> = read(&save(variant).await?);
            let present = present.into_iter().filter(|it| tables.iter().any(|table| table.name == it.name));
            restore(variant, &removal(&present.collect::<Vec<_>>())).await?;
        }
        for NftTable { family, name, .. } in &self.nftables {
            if list(family, name).await?.is_some() {
                nft(&["delete", "table", family, name], "").await?;
            }
        }
        Ok(())
    }

    /// Puts back those of the rules that are missing.
    ///
    /// # Errors
    /// When something is still missing. The error says why.
    pub async fn put_back(&self) -> Result<()> {
        for IptablesRules { variant, tables } in &self.iptables {
            let saved = save(variant).await?;
            restore(variant, &restoration(tables, &saved)).await?;
        }
        for NftTable { family, name, text } in &self.nftables {
            if list(family, name).await?.is_none() {
                nft(&["-f", "-"], text).await?;
            }
        }
        Ok(())
    }
}

impl ChainTable {
    /// Whether this table contains all of `other`.
    fn holds(&self, other: &Self) -> bool {
        let has =
            |jump: &Jump| self.jumps.iter().any(|it| (&it.chain, &it.rule) == (&jump.chain, &jump.rule));
        (&self.name, &self.chains, &self.rules) == (&other.name, &other.chains, &other.rules)
            && other.jumps.iter().all(has)
    }
}

/// Finds flannel's chains and rules in the text of `iptables-save`.
fn read(saved: &str) -> Vec<ChainTable> {
    let mut tables = Vec::new();
    let mut table = ChainTable::default();
    let mut lengths = BTreeMap::<String, usize>::new();
    for line in lines(saved) {
        if let Some(name) = line.strip_prefix('*') {
            table = ChainTable { name: name.to_owned(), ..ChainTable::default() };
            lengths.clear();
        } else if let Some(chain) = line.strip_prefix(':').filter(|chain| chain.starts_with(CHAIN)) {
            table.chains.extend(chain.split(' ').next().map(str::to_owned));
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            let length = lengths.entry(chain.to_owned()).or_default();
            *length += 1;
            if chain.starts_with(CHAIN) {
                table.rules.push(format!("{chain} {rule}"));
            } else if rule.contains(&format!("-j {CHAIN}")) || rule.contains(COMMENT) {
                let (chain, rule) = (chain.to_owned(), rule.to_owned());
                table.jumps.push(Jump { chain, position: *length, rule });
            }
        } else if line == "COMMIT" {
            let found = std::mem::take(&mut table);
            if !found.chains.is_empty() || !found.jumps.is_empty() {
                tables.push(found);
            }
        }
    }
    tables
}

/// Writes the script that removes these tables' rules by `iptables-restore --noflush`, which carries out each table whole or
/// not at all.
fn removal(tables: &[ChainTable]) -> String {
    let mut script = String::new();
    for ChainTable { name, chains, jumps, .. } in tables {
        // Writing to a string does not fail.
        let _ = writeln!(script, "*{name}");
        for Jump { chain, rule, .. } in jumps {
            let _ = writeln!(script, "-D {chain} {rule}");
        }
        for (command, chain) in ["-F", "-X"].iter().flat_map(|it| chains.iter().map(move |chain| (it, chain)))
        {
            let _ = writeln!(script, "{command} {chain}");
        }
        script += "COMMIT\n";
    }
    script
}

/// Writes the script that puts the rules back. `saved` is what there is now. flannel's chains are filled anew. A jump that
/// exists stays where it is. One that is missing comes to its old place, or to the end of a chain that has become shorter.
fn restoration(tables: &[ChainTable], saved: &str) -> String {
    let present = read(saved);
    let mut script = String::new();
    let is_whole = |table: &ChainTable| present.iter().any(|now| now.holds(table));
    for ChainTable { name, chains, rules, jumps } in tables.iter().filter(|table| !is_whole(table)) {
        let _ = writeln!(script, "*{name}");
        for chain in chains {
            let _ = writeln!(script, ":{chain} - [0:0]");
        }
        for rule in rules {
            let _ = writeln!(script, "-A {rule}");
        }
        let mut lengths = lengths(saved, name);
        for Jump { chain, position, rule } in jumps {
            let same = |jump: &Jump| (&jump.chain, &jump.rule) == (chain, rule);
            if present.iter().any(|table| table.name == *name && table.jumps.iter().any(same)) {
                continue;
            }
            let length = lengths.entry(chain.clone()).or_default();
            let _ = writeln!(script, "-I {chain} {} {rule}", (*position).min(*length + 1));
            *length += 1;
        }
        script += "COMMIT\n";
    }
    script
}

/// How many rules each chain of a table has.
fn lengths(saved: &str, table: &str) -> BTreeMap<String, usize> {
    let mut lengths = BTreeMap::new();
    let mut inside = false;
    for line in lines(saved) {
        if let Some(name) = line.strip_prefix('*') {
            inside = name == table;
        } else if let Some(rule) = line.strip_prefix("-A ").filter(|_| inside) {
            let chain = rule.split(' ').next().unwrap_or_default();
            *lengths.entry(chain.to_owned()).or_default() += 1;
        }
    }
    lengths
}

async fn restore(variant: &str, script: &str) -> Result<()> {
    if !script.is_empty() {
        iptables::restore(variant, script).await?;
    }
    Ok(())
}

/// Lists a table of nftables. Returns `None` if there is no such table, or no `nft`.
async fn list(family: &str, name: &str) -> Result<Option<String>> {
    if !nft_has_table(family, name).await? {
        return Ok(None);
    }
    nft(&["list", "table", family, name], "").await.map(Some)
}

async fn nft(words: &[&str], input: &str) -> Result<String> {
    Ok(run("nft", words, input).await?)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

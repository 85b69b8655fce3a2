//! Reads all rules of the host's packet filters, once, into one form.
use std::collections::HashSet;

use futures::future::join_all;
use tokio::task::spawn_blocking;

use super::{
    super::{
        ebtables,
        iptables::{LEGACY, is_legacy_in_use, lines, save, variants},
    },
    iptables, nftables,
    quote::list_chain,
    rules::Table,
};
use crate::host::{
    command::{Failed, find, run},
    netlink::generation,
};

/// A listing of more bytes than this is not read. At about 300 bytes a rule this is more than 200,000 rules.
const LONGEST: usize = 64 << 20;
/// The variant of iptables whose rules are nftables'.
const NEWER: &str = "iptables-nft";

/// All rules, as far as they could be read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// The tables.
    pub tables: Vec<Table>,
    /// The variants of iptables that were read.
    pub variants: Vec<&'static str>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A kind of rules that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Whose rules they are: a variant of iptables, nftables, or the older ebtables.
    pub what: &'static str,
    /// What kept them from being read.
    pub why: Why,
    /// Whether there may be rules among them that nothing else has listed.
    pub may_be_rules: bool,
}

/// What kept rules from being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The command that lists them failed.
    Failed(Failed),
    /// They are too many.
    TooMany,
    /// Their listing has another form than it should have.
    Strange(String),
    /// The whole reason.
    Other(String),
}

impl Unread {
    /// Whether they are rules of iptables, which no frame meets that a bridge forwards without bridge netfilter.
    pub fn is_of_iptables(&self) -> bool {
        self.what.starts_with("iptables")
    }

    /// The reason in a sentence.
    pub fn sentence(&self) -> String {
        let what = self.what;
        match &self.why {
            Why::Failed(error) => format!("the rules of {what} cannot be read: {error}"),
            Why::TooMany => format!("the rules of {what} are too many to be read"),
            Why::Strange(error) => format!("the rules of {what} cannot be understood: {error}"),
            Why::Other(why) => why.clone(),
        }
    }
}

impl Read {
    /// Reads all rules. The commands that list them run at the same time.
    pub(super) async fn all() -> Self {
        let variants = variants();
        let (saved, listing, ebtables) = tokio::join!(save_all(&variants), list(), ebtables::legacy());
        let mut read = Self::default();
        let whole = read.iptables(&variants, saved);
        if let Some(why) = ebtables {
            read.miss("ebtables-legacy", Why::Other(why), true);
        }
        read.nftables(listing, whole).await;
        read
    }

    fn miss(&mut self, what: &'static str, why: Why, may_be_rules: bool) {
        self.unread.push(Unread { what, why, may_be_rules });
    }

    /// Reads what both variants of iptables have listed. Returns the tables that its newer variant has listed whole.
    fn iptables(&mut self, variants: &[&'static str], saved: Vec<Result<String, Failed>>) -> HashSet<String> {
        let mut whole = HashSet::new();
        for (&variant, saved) in variants.iter().zip(saved) {
            match saved {
                Ok(saved) if saved.len() > LONGEST => self.miss(variant, Why::TooMany, true),
                Ok(saved) => match iptables::read(variant, &saved) {
                    Ok(tables) => {
                        if variant == NEWER {
                            whole = whole_tables(&saved);
                        }
                        self.tables.extend(tables);
                        self.variants.push(variant);
                    }
                    Err(error) => self.miss(variant, Why::Strange(error), variant == LEGACY),
                },
                // What belongs to nftables is listed by nft, too.
                Err(error) => self.miss(variant, Why::Failed(error), variant == LEGACY),
            }
        }
        if variants.is_empty() {
            self.miss("iptables", Why::Failed(Failed::Missing("iptables-save".into())), false);
        }
        // A container may have brought an iptables command of the other variant, which made rules that nobody has looked at.
        match is_legacy_in_use() {
            Ok(true) if !variants.contains(&LEGACY) => {
                self.miss(LEGACY, Why::Failed(Failed::Missing(format!("{LEGACY}-save"))), true);
            }
            Err(error) if !variants.contains(&LEGACY) => self.miss(LEGACY, Why::Failed(error), true),
            _ => {}
        }
        whole
    }

    async fn nftables(&mut self, listing: Result<String, Failed>, but: HashSet<String>) {
        match listing {
            Ok(listing) if listing.len() > LONGEST => self.miss("nftables", Why::TooMany, true),
            Ok(listing) if listing.is_empty() => {}
            Ok(listing) => match spawn_blocking(move || nftables::read(&listing, &but)).await {
                Ok(Ok(mut tables)) => {
                    find_devices(&mut tables).await;
                    self.tables.extend(tables);
                }
                Ok(Err(error)) => self.miss("nftables", Why::Strange(error), true),
                Err(error) => self.miss("nftables", Why::Failed(Failed::Other(error.to_string())), true),
            },
            Err(error) => {
                let may_be_rules = match &error {
                    Failed::Unsupported(_) => false,
                    Failed::Missing(_) => !generation().is_ok_and(|generation| generation <= 1),
                    Failed::Other(_) => true,
                };
                self.miss("nftables", Why::Failed(error), may_be_rules);
            }
        }
    }
}

/// What each variant of iptables lists.
async fn save_all(variants: &[&'static str]) -> Vec<Result<String, Failed>> {
    let save = async |variant| {
        if variant == NEWER && is_untouched() { Ok(String::new()) } else { save(variant).await }
    };
    join_all(variants.iter().map(|&variant| save(variant))).await
}

/// What nft lists. It is empty where there is nothing to list.
async fn list() -> Result<String, Failed> {
    if is_untouched() && find("nft").is_some() {
        return Ok(String::new());
    }
    run("nft", &["--json", "list", "ruleset"], "").await
}

/// Whether nobody has ever written a rule of nftables here. The kernel counts the changes from one on, and a kernel without
/// nftables counts none.
fn is_untouched() -> bool {
    generation().is_ok_and(|generation| generation == 1)
}

/// The tables that are listed whole. One in which somebody has made chains of another kind is listed without them, with a remark.
fn whole_tables(saved: &str) -> HashSet<String> {
    let is_whole = |name: &&str| {
        let remark = format!("# Table `{name}' contains incompatible");
        !lines(saved).any(|line| line.starts_with(&remark))
    };
    lines(saved).filter_map(|line| line.strip_prefix('*')).filter(is_whole).map(str::to_owned).collect()
}

/// Asks nft for the interfaces that chains stand at, where its listing has not told.
async fn find_devices(tables: &mut [Table]) {
    for (at, name) in nftables::without_devices(tables) {
        let table = &mut tables[at];
        let Some((family, place)) = table.place.split_once(' ') else { continue };
        // If it does not tell either, the chain may stand anywhere.
        let listed = list_chain(&[family, place, &name], false).await;
        let base = table.chains.get_mut(&name).and_then(|chain| chain.base.as_mut());
        if let Some(base) = base {
            base.devices = nftables::devices(&listed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_a_remark_is_not_whole_and_a_comment_makes_none() {
        let saved = "# Table `mangle' contains incompatible base-chains, use 'nft' tool to list them.\n*mangle\nCOMMIT\n*filter\n\
                     -A FORWARD -m comment --comment \"a\n*raw\" -j DROP\nCOMMIT\n";
        assert_eq!(whole_tables(saved), HashSet::from(["filter".to_owned()]));
    }
}

//! Where a rule stands, and its text, which nft is asked for only when somebody wants to read it.
use crate::host::{command::run, firewall::nft::is_nft_name};

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Quote {
    /// Its text.
    Text(String),
    /// Its handle in nftables, by which `nft` is asked for the text.
    Handle {
        /// Family of the table.
        family: String,
        /// Name of the table.
        table: String,
        /// Name of the chain.
        chain: String,
        /// Handle of the rule.
        handle: u64,
    },
}

impl Quote {
    /// The rule, and where it stands.
    pub(super) async fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Handle { family, table, chain, handle } => {
                let place = format!("nft {family} {table} {chain}");
                let text = list_chain(&[family, table, chain], true).await;
                let end = format!(" # handle {handle}");
                match text.lines().find_map(|line| line.strip_suffix(&end)) {
                    Some(rule) => format!("{place}: {}", rule.trim()),
                    None => format!("{place}: the rule with handle {handle}"),
                }
            }
        }
    }
}

/// What nft lists of a chain, given by family, table and name. It is empty if nft does not tell.
pub(super) async fn list_chain(place: &[&str; 3], has_handles: bool) -> String {
    if !place.iter().all(|name| is_nft_name(name)) {
        return String::new();
    }
    let options: &[&str] = if has_handles { &["--handle"] } else { &[] };
    run("nft", &[options, &["list", "chain"], &place[..]].concat(), "").await.unwrap_or_default()
}

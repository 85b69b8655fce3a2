//! Follows the host's packet filters, and finds what could refuse, alter or delay a packet between containers of different hosts:
//! in both variants of iptables, in nftables (ip, inet, bridge, netdev), and through jumps, sets and verdict maps.
//!
//! A rule that cannot be proven harmless counts as harmful. It is enough that the stack decides about each connection
//! ([`FastPath::Established`]) where a rule's answer is equal for all of its packets, and the stack must carry every packet
//! ([`FastPath::Off`]) where it is not: limits, marks, lengths, flags.
mod expressions;
mod extensions;
mod findings;
mod interface;
mod iptables;
mod nftables;
mod probe;
mod quote;
mod range;
mod read;
mod rules;
#[cfg(test)]
mod tests;
mod walk;

use tokio::task::spawn_blocking;

pub use self::{
    findings::{End, Gate, Harm, Kind},
    read::{Unread, Why},
};
use self::{probe::Scope, quote::Quote, read::Read};
use crate::{host::site::Site, model::fast_path::FastPath};

/// What the rules of the host do to packets between containers and to the tunnel's own.
#[derive(Debug)]
pub struct Analysis {
    /// What could refuse, alter or delay packets between containers, the worst first.
    harms: Vec<Harm<Quote>>,
    /// What could refuse, alter or delay frames between containers behind one bridge, or could not be read.
    bridged: Option<Quote>,
    gates: Vec<Gate<Quote>>,
    /// The variants of iptables that were read.
    pub variants: Vec<&'static str>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// Reads the rules, and follows them.
pub async fn analyse(site: &Site) -> Analysis {
    let Read { tables, variants, unread } = Read::all().await;
    let site = site.clone();
    let walks =
        move || [Scope::BetweenHosts, Scope::BehindBridge].map(|scope| walk::walk(&tables, &site, scope));
    let walked = spawn_blocking(walks).await;
    let failed = walked.is_err().then(|| "the agent failed to follow the packet filter's rules".to_owned());
    let [walked, bridged] = walked.unwrap_or_default();
    let bridged = seen_at_bridges(bridged, &unread, failed.as_deref());
    let hidden = unread.iter().filter(|unread| unread.may_be_rules).map(Unread::sentence);
    let cut_short =
        walked.is_cut_short.then(|| "the packet filter has more rules than are followed".to_owned());
    let harm = |why| Harm { at_most: FastPath::Established, kind: Kind::Other, quote: Quote::Text(why) };
    let mut harms: Vec<_> = hidden.chain(cut_short).chain(failed).map(harm).chain(walked.harms).collect();
    harms.sort_by_key(|harm| std::cmp::Reverse(harm.at_most));
    Analysis { harms, bridged, gates: walked.gates, variants, unread }
}

/// What could refuse, alter or delay frames that a bridge forwards. Rules of iptables are not among it: without bridge netfilter,
/// which is asked about elsewhere, such frames never meet them.
fn seen_at_bridges(walked: walk::Found, unread: &[Unread], failed: Option<&str>) -> Option<Quote> {
    let may_be_at_bridges = |unread: &&Unread| unread.may_be_rules && !unread.is_of_iptables();
    let hidden = unread.iter().find(may_be_at_bridges).map(Unread::sentence);
    let cut_short =
        walked.is_cut_short.then(|| "the packet filter has more rules than are followed".to_owned());
    let unknown = failed.map(str::to_owned).or(hidden).or(cut_short).map(Quote::Text);
    walked.harms.into_iter().next().map(|harm| harm.quote).or(unknown)
}

impl Analysis {
    /// Everything could be read. Otherwise it is worth while to look again, though the rules have not changed.
    pub fn is_whole(&self) -> bool {
        !self.unread.iter().any(|unread| unread.may_be_rules)
    }

    /// The first of what could refuse, alter or delay packets between containers. There is none if nothing could.
    pub async fn worst(&self) -> Option<Harm<String>> {
        match self.harms.first() {
            Some(harm) => Some(read_out(harm).await),
            None => None,
        }
    }

    /// What could refuse, alter or delay frames between containers behind one bridge. There is nothing if nothing could, where
    /// bridge netfilter is off.
    pub async fn at_bridges(&self) -> Option<String> {
        match &self.bridged {
            Some(quote) => Some(quote.text().await),
            None => None,
        }
    }

    /// What could refuse, alter or delay packets between containers, the worst first: the first few of each kind.
    pub async fn harms(&self) -> Vec<Harm<String>> {
        let mut harms = Vec::new();
        for harm in &self.harms {
            harms.push(read_out(harm).await);
        }
        harms
    }

    /// The chains to the host and through it that refuse what no rule accepts, or refuse all of it by a rule.
    pub async fn gates(&self) -> Vec<Gate<String>> {
        let mut gates = Vec::new();
        for Gate { command, table, chain, is_input, accepting, end } in self.gates.clone() {
            let accepting = match accepting {
                Some(quote) => Some(quote.text().await),
                None => None,
            };
            let end = match end {
                Some(End::By(quote)) => Some(End::By(quote.text().await)),
                Some(End::Stopped(quote)) => Some(End::Stopped(quote.text().await)),
                Some(End::Closed) => Some(End::Closed),
                None => None,
            };
            gates.push(Gate { command, table, chain, is_input, accepting, end });
        }
        gates
    }
}

async fn read_out(harm: &Harm<Quote>) -> Harm<String> {
    let &Harm { at_most, kind, ref quote } = harm;
    Harm { at_most, kind, quote: quote.text().await }
}

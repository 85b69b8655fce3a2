//! Follows the host's packet filters, and finds what could refuse, alter or delay a packet between containers of different hosts:
//! in both variants of iptables, in nftables (ip, inet, bridge, netdev), and through jumps, sets and verdict maps.
//!
//! A rule that cannot be proven harmless counts as harmful. It is enough that the stack decides about each connection
//! ([`FastPath::Established`]) where a rule's answer is equal for all of its packets, and the stack must carry every packet
//! ([`FastPath::Off`]) where it is not: limits, marks, lengths, flags.
mod expressions;
mod extensions;
mod iptables;
mod nftables;
mod probe;
mod range;
mod rules;
mod site;
#[cfg(test)]
mod tests;
mod walk;

use std::{collections::HashSet, fmt::Display};

use ipnet::IpNet;
use tokio::task::spawn_blocking;

use self::rules::{Quote, Table};
pub use self::site::{Names, Site};
use super::{
    command::{Failed, run},
    ebtables,
    iptables::{LEGACY, is_legacy_in_use, save, variants},
};
use crate::{
    host::netlink::{Netlink, NetlinkError, generation},
    model::fast_path::FastPath,
};

/// A listing of more bytes than this is not read. At about 300 bytes a rule this is more than 200,000 rules.
const LONGEST: usize = 64 << 20;

/// The most that the fast path may carry, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The most that it may carry.
    pub at_most: FastPath,
    /// The rule, or what kept it from being read.
    pub why: String,
}

/// What the rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Analysis {
    /// What could refuse, alter or delay packets between containers, the worst first. It is empty if nothing could.
    pub reasons: Vec<Reason>,
    /// Everything could be read. Otherwise it is worth while to look again, though the rules have not changed.
    pub is_whole: bool,
}

/// Reads the rules, and follows them.
pub async fn analyse(site: &Site) -> Analysis {
    let (tables, mut reasons) = read().await;
    let is_whole = reasons.is_empty();
    let site = site.clone();
    let walked = spawn_blocking(move || walk::walk(&tables, &site)).await.unwrap_or_default();
    if walked.is_cut_short {
        reasons.push(Reason {
            at_most: FastPath::Established,
            why: "the packet filter has more rules than are followed".to_owned(),
        });
    }
    for harm in walked.harms {
        reasons.push(Reason { at_most: harm.at_most, why: quote(harm.quote).await });
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.at_most));
    Analysis { reasons, is_whole }
}

/// Where the host's interfaces lead: to containers if they have an address of this host's subnet, or a route to part of it, and
/// elsewhere if they have other addresses alone. Of the others nothing is known.
///
/// # Errors
/// When the kernel does not list links, addresses or routes.
pub async fn names(netlink: &Netlink, subnet: IpNet) -> Result<Names, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let routes = netlink.routes().await?;
    let mut names = Names::default();
    for link in netlink.links().await? {
        let mut own = addresses.iter().filter(|address| address.link == link.index).peekable();
        let has_route = |leads: &dyn Fn(&IpNet) -> bool| {
            routes.iter().any(|route| route.link == Some(link.index) && leads(&route.destination))
        };
        let has_address = own.peek().is_some();
        let is_wider = |into: &IpNet| into.prefix_len() > 0 && into.contains(&subnet) && *into != subnet;
        if has_route(&|into| subnet.contains(into)) || own.any(|address| subnet.contains(&address.address)) {
            names.containers.insert(link.name);
        } else if has_address && !has_route(&is_wider) {
            // A route to more than the subnet may lead to containers, to hosts, or to both.
            names.elsewhere.insert(link.name);
        }
    }
    Ok(names)
}

/// All tables, and what could not be read.
async fn read() -> (Vec<Table>, Vec<Reason>) {
    let mut tables = Vec::new();
    let mut reasons = Vec::new();
    let mut not_read = |why: String| reasons.push(Reason { at_most: FastPath::Established, why });
    let unreadable = |what: &str, error: &dyn Display| format!("the rules of {what} cannot be read: {error}");
    let mut seen = HashSet::new();
    let variants = variants();
    for variant in &variants {
        match save(variant).await {
            Ok(saved) if saved.len() > LONGEST => {
                not_read(format!("the rules of {variant} are too many to be read"))
            }
            Ok(saved) => {
                if *variant == "iptables-nft" {
                    // A table in which somebody has made chains of another kind is listed without them, with a remark.
                    let is_whole =
                        |name: &&str| !saved.contains(&format!("# Table `{name}' contains incompatible"));
                    let tables = saved.lines().filter_map(|line| line.strip_prefix('*'));
                    seen.extend(tables.filter(is_whole).map(str::to_owned));
                }
                tables.extend(iptables::read(variant, &saved));
            }
            // A table that somebody else has written rules of another form into is listed by nft, too.
            Err(error) if *variant != LEGACY => log::debug!("{error}"),
            Err(error) => not_read(unreadable(variant, &error)),
        }
    }
    match is_legacy_in_use() {
        Ok(true) if !variants.contains(&LEGACY) => {
            not_read(unreadable(LEGACY, &Failed::Missing(format!("{LEGACY}-save"))));
        }
        Ok(_) => {}
        Err(error) => not_read(unreadable(LEGACY, &error)),
    }
    if let Some(why) = ebtables::legacy().await {
        not_read(why);
    }
    match run("nft", &["--json", "list", "ruleset"], "").await {
        Ok(listing) if listing.len() > LONGEST => {
            not_read("the rules of nftables are too many to be read".to_owned())
        }
        Ok(listing) => match spawn_blocking(move || nftables::read(&listing, &seen)).await {
            Ok(Ok(mut read)) => {
                find_devices(&mut read).await;
                tables.extend(read);
            }
            Ok(Err(error)) => not_read(format!("the rules of nftables cannot be understood: {error}")),
            Err(error) => not_read(unreadable("nftables", &error)),
        },
        Err(Failed::Unsupported(_)) => {}
        // The kernel counts the changes of nftables from one on. Where there was none, there is no rule.
        Err(Failed::Missing(_)) if generation().is_ok_and(|generation| generation <= 1) => {}
        Err(error) => not_read(unreadable("nftables", &error)),
    }
    (tables, reasons)
}

/// Asks nft for the interfaces that chains stand at, where its listing has not told.
async fn find_devices(tables: &mut [Table]) {
    for (at, name) in nftables::without_devices(tables) {
        let table = &mut tables[at];
        let words: Vec<&str> = ["list", "chain"]
            .into_iter()
            .chain(table.name.split(' ').skip(1))
            .chain([name.as_str()])
            .collect();
        // If it does not tell either, the chain may stand anywhere.
        let listed = run("nft", &words, "").await.unwrap_or_default();
        let base = table.chains.get_mut(&name).and_then(|chain| chain.base.as_mut());
        if let Some(base) = base {
            base.devices = nftables::devices(&listed);
        }
    }
}

/// The text of what was found.
async fn quote(quote: Quote) -> String {
    match quote {
        Quote::Text(text) => text,
        Quote::Handle { family, table, chain, handle } => {
            let place = format!("nft {family} {table} {chain}");
            let listed = run("nft", &["--handle", "list", "chain", &family, &table, &chain], "").await;
            let end = format!(" # handle {handle}");
            let text = listed.unwrap_or_default();
            match text.lines().find_map(|line| line.strip_suffix(&end)) {
                Some(rule) => format!("{place}: {}", rule.trim()),
                None => format!("{place}: the rule with handle {handle}"),
            }
        }
    }
}

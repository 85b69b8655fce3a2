//! One thing that `overlay check` looked at, how it stands, and what to do about it.
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The condition holds.
    Ok,
    /// It works, but not for everything, or not as one might think.
    Warn,
    /// It will not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How serious the finding is.
    pub level: Level,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

impl Finding {
    pub(super) fn ok(what: &str, detail: impl Into<String>) -> Self {
        Self::new(what, Level::Ok, detail, "")
    }

    pub(super) fn new(
        what: &str,
        level: Level,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { what: what.to_owned(), level, detail: detail.into(), remedy: remedy.into() }
    }
}

/// Reads a sysctl by its name below `net`.
pub(super) type Sysctl<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Whether an address or range of addresses in a firewall rule overlaps `network`.
pub(super) fn overlaps(rule: &str, network: IpNet) -> bool {
    let parsed = rule.parse::<IpNet>().ok().or_else(|| {
        let address: IpAddr = rule.parse().ok()?;
        Some(IpNet::from(address))
    });
    parsed.is_some_and(|rule| rule.contains(&network) || network.contains(&rule))
}

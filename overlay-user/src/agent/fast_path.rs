//! Decides how much the fast path may carry: as much as was asked for, and under `--fast-path auto` no more than the host's packet
//! filter allows.
use std::collections::BTreeSet;

use log::{info, warn};

use crate::{
    host::{
        firewall::{
            analysis::{Reason, Site, analyse, elsewhere},
            fingerprint::fingerprint,
        },
        netlink::Netlink,
    },
    model::fast_path::{AskedFastPath, FastPath, FastPathStatus},
};

/// Decides, and decides again when something has changed.
pub(crate) struct Decider {
    asked: AskedFastPath,
    /// What of the host does not change as long as the agent runs.
    site: Site,
    netlink: Netlink,
    /// What the last decision rested on, and the decision.
    last: Option<(u32, BTreeSet<String>, FastPathStatus)>,
    /// What was last logged.
    logged: Option<FastPathStatus>,
}

impl Decider {
    /// Nothing is decided yet, but for what an earlier one may have decided and logged.
    pub(crate) const fn new(
        asked: AskedFastPath,
        site: Site,
        netlink: Netlink,
        logged: Option<FastPathStatus>,
    ) -> Self {
        Self { asked, site, netlink, last: None, logged }
    }

    /// Whether the rules of the packet filter make a difference.
    pub(crate) fn is_bound_to_rules(&self) -> bool {
        matches!(self.asked, AskedFastPath::Auto | AskedFastPath::Established)
    }

    /// Decides by what is so now. What cannot be read counts as something that could refuse packets.
    pub(crate) async fn decide(&mut self) -> FastPathStatus {
        let status = self.look().await;
        if self
            .logged
            .as_ref()
            .is_none_or(|logged| (logged.effective, &logged.why) != (status.effective, &status.why))
        {
            let FastPathStatus { asked, effective, why, .. } = &status;
            match effective {
                FastPath::On => info!("the fast path is on ({asked})"),
                _ if *asked == AskedFastPath::Auto => warn!("the fast path is {effective}: {why}"),
                _ => info!("the fast path is {effective}: {why}"),
            }
            self.logged = Some(status.clone());
        }
        status
    }

    async fn look(&mut self) -> FastPathStatus {
        let asked = self.asked;
        let decided =
            |effective, why: &str, rules| FastPathStatus { asked, effective, why: why.to_owned(), rules };
        match asked {
            AskedFastPath::Off => return decided(FastPath::Off, "--fast-path off", 0),
            AskedFastPath::On => return decided(FastPath::On, "", 0),
            AskedFastPath::Established | AskedFastPath::Auto => {}
        }
        // The number is taken before the rules are read, so that a change meanwhile is seen at the next look.
        let rules = match fingerprint().await {
            Ok(rules) => rules,
            Err(error) => {
                let why = format!("whether the packet filter changes cannot be told: {error:#}");
                return decided(FastPath::Established, &why, 0);
            }
        };
        if asked == AskedFastPath::Established {
            return decided(FastPath::Established, "--fast-path established", rules);
        }
        let elsewhere = match elsewhere(&self.netlink, self.site.subnet).await {
            Ok(elsewhere) => elsewhere,
            Err(error) => {
                warn!("{error:#}: rules about any interface count as rules about the containers' ones");
                BTreeSet::new()
            }
        };
        if let Some((number, names, status)) = &self.last
            && (*number, names) == (rules, &elsewhere)
        {
            return status.clone();
        }
        self.site.elsewhere.clone_from(&elsewhere);
        let status = match analyse(&self.site).await.into_iter().next() {
            Some(Reason { at_most, why }) => decided(at_most, &why, rules),
            None => decided(FastPath::On, "", rules),
        };
        self.last = Some((rules, elsewhere, status.clone()));
        status
    }
}

//! Decides how much the fast path may carry: as much as was asked for, under `--fast-path auto` no more than the host's packet
//! filter allows, and nothing while an IPsec policy is about such packets.
use log::{info, warn};

use crate::{
    host::{
        firewall::{
            analysis::{Analysis, Names, Reason, Site, analyse, names},
            fingerprint::fingerprint,
        },
        ipsec::{Traffic, matching},
        netlink::{Netlink, xfrm},
    },
    model::fast_path::{AskedFastPath, FastPath, FastPathStatus},
};

/// Decides, and decides again when something has changed.
pub(crate) struct Decider {
    asked: AskedFastPath,
    /// What the analysis must know of the host. Only `names` changes while the agent runs.
    site: Site,
    netlink: Netlink,
    /// What the last decision rested on, and the decision.
    last: Option<(u32, Names, FastPathStatus)>,
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
                _ if asked.fixed() != Some(*effective) => warn!("the fast path is {effective}: {why}"),
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
        if let Some(why) = self.policy().filter(|_| asked != AskedFastPath::Off) {
            return decided(FastPath::Off, &why, 0);
        }
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
        let names = match names(&self.netlink, self.site.subnet).await {
            Ok(names) => names,
            Err(error) => {
                warn!("{error:#}: rules about any interface count as rules about the containers' ones");
                Names::default()
            }
        };
        if let Some((number, known, status)) = &self.last
            && (*number, known) == (rules, &names)
        {
            return status.clone();
        }
        self.site.names.clone_from(&names);
        let Analysis { reasons, is_whole } = analyse(&self.site).await;
        let status = match reasons.first() {
            Some(Reason { at_most, why }) => decided(*at_most, why, rules),
            None => decided(FastPath::On, "", rules),
        };
        self.last = is_whole.then(|| (rules, names, status.clone()));
        status
    }

    /// The IPsec policies that are about packets between containers, if there are any. Only the stack looks them up.
    fn policy(&self) -> Option<String> {
        let Site { network, address, port, .. } = self.site;
        let traffic = Traffic { network: Some(network), underlay: Some(address), port };
        match xfrm::policies() {
            Ok(policies) => {
                let found = matching(&policies, &traffic);
                let more = found.len().saturating_sub(1);
                let rest = if more == 0 { String::new() } else { format!(", and {more} more") };
                found.first().map(|first| format!("IPsec policy {first}{rest}"))
            }
            Err(error) => Some(format!("IPsec policies cannot be read: {error}")),
        }
    }
}

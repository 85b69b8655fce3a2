//! Decides how much the fast path may carry: as much as was asked for, under `--fast-path auto` no more than the host's packet
//! filter allows, and nothing while an IPsec policy is about such packets.
use log::{debug, info, warn};

use crate::{
    host::{
        firewall::{
            analysis::{Harm, analyse},
            fingerprint::fingerprint,
        },
        ipsec::matching,
        netlink::{Netlink, xfrm},
        site::{Names, Site},
    },
    model::fast_path::{AskedFastPath, FastPath, FastPathStatus},
};

/// What keeps frames to their bridge while the fast path is off.
const OFF: &str = "the fast path is off";

/// Decides, and decides again when something has changed. A clone knows what the original has found, so that it need not read the
/// rules again before they change.
#[derive(Clone)]
pub(crate) struct Decider {
    asked: AskedFastPath,
    /// What is known of the host. Only `names` changes while the agent runs.
    site: Site,
    netlink: Netlink,
    /// What the last decision rested on, and the decision.
    last: Option<(u32, Names, FastPathStatus)>,
    /// What was last logged.
    logged: Option<FastPathStatus>,
    /// Why the host's interfaces could not be listed, as it was last logged.
    complaint: Option<String>,
}

impl Decider {
    /// Nothing is decided yet. `netlink` must not be used by others at the same time, because the kernel refuses a second dump on
    /// a socket while one is under way (EBUSY).
    pub(crate) const fn new(asked: AskedFastPath, site: Site, netlink: Netlink) -> Self {
        Self { asked, site, netlink, last: None, logged: None, complaint: None }
    }

    /// Whether the rules of the packet filter make a difference, if only to frames between containers behind one bridge.
    pub(crate) fn is_bound_to_rules(&self) -> bool {
        self.asked != AskedFastPath::Off
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
        let decided = |effective, why: &str, rules, at_bridges| FastPathStatus {
            asked,
            effective,
            why: why.to_owned(),
            rules,
            // Endpoints are told later than the fast path is switched on. They must not have been told before that bridges only
            // forward, because by then it may be so no longer.
            at_bridges: if effective == FastPath::Off { Some(OFF.to_owned()) } else { at_bridges },
        };
        if asked == AskedFastPath::Off {
            return decided(FastPath::Off, "--fast-path off", 0, None);
        }
        if let Some(why) = self.policy() {
            return decided(FastPath::Off, &why, 0, None);
        }
        // The number is taken before the rules are read, so that a change meanwhile is seen at the next look.
        let rules = match fingerprint().await {
            Ok(rules) => rules,
            Err(error) => {
                let unknown = format!("whether the packet filter changes cannot be told: {error:#}");
                let at_bridges = Some(unknown.clone());
                return match asked {
                    AskedFastPath::On => decided(FastPath::On, "", 0, at_bridges),
                    _ => decided(FastPath::Established, &unknown, 0, at_bridges),
                };
            }
        };
        let names = self.names().await;
        if let Some(status) = self.remembered(rules, &names) {
            return status.clone();
        }
        self.site.names.clone_from(&names);
        debug!("reading the packet filter's rules");
        let analysis = analyse(&self.site).await;
        let at_bridges = analysis.at_bridges().await;
        let status = match asked {
            // Between hosts the rules make no difference.
            AskedFastPath::On => decided(FastPath::On, "", 0, at_bridges),
            AskedFastPath::Established => {
                decided(FastPath::Established, "--fast-path established", rules, at_bridges)
            }
            AskedFastPath::Auto | AskedFastPath::Off => match analysis.worst().await {
                Some(Harm { at_most, quote, .. }) => decided(at_most, &quote, rules, at_bridges),
                None => decided(FastPath::On, "", rules, at_bridges),
            },
        };
        self.last = analysis.is_whole().then(|| (rules, names, status.clone()));
        status
    }

    /// The last decision, if it rested on these rules and interfaces.
    fn remembered(&self, rules: u32, names: &Names) -> Option<&FastPathStatus> {
        let (number, known, status) = self.last.as_ref()?;
        ((*number, known) == (rules, names)).then_some(status)
    }

    /// Where the host's interfaces lead.
    async fn names(&mut self) -> Names {
        let (names, complaint) = match self.site.look_around(&self.netlink).await {
            Ok(names) => (names, None),
            Err(error) => (Names::default(), Some(format!("{error:#}"))),
        };
        if let Some(error) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            warn!("{error}: rules about any interface count as rules about the containers' ones");
        }
        self.complaint = complaint;
        names
    }

    /// The IPsec policies that are about packets between containers, if there are any. Only the stack looks them up.
    fn policy(&self) -> Option<String> {
        match xfrm::policies() {
            Ok(policies) => {
                let found = matching(&policies, &self.site);
                let more = found.len().saturating_sub(1);
                let rest = if more == 0 { String::new() } else { format!(", and {more} more") };
                found.first().map(|first| format!("IPsec policy {first}{rest}"))
            }
            Err(error) => Some(format!("IPsec policies cannot be read: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_told_nothing_of_bridges_while_the_fast_path_is_off() {
        let mut decider = Decider::new(AskedFastPath::Off, Site::example(), Netlink::open().unwrap());
        let decided = decider.decide().await;
        assert_eq!((decided.effective, decided.at_bridges.as_deref()), (FastPath::Off, Some(OFF)));
    }

    #[tokio::test]
    async fn a_clone_need_not_read_the_rules_that_the_first_has_read() {
        let names = Names { containers: ["docker0".into()].into(), ..Names::default() };
        let status = FastPathStatus { rules: 7, ..FastPathStatus::default() };
        let first = Decider {
            last: Some((7, names.clone(), status.clone())),
            ..Decider::new(AskedFastPath::Auto, Site::example(), Netlink::open().unwrap())
        };
        let second = first.clone();
        assert_eq!(second.remembered(7, &names), Some(&status));
        assert_eq!(second.remembered(8, &names), None, "the rules have changed");
        assert_eq!(second.remembered(7, &Names::default()), None, "the interfaces have changed");
    }
}

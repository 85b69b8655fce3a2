//! Our rules in the host's packet filter: put in force, kept in force, told in the status, taken away by `overlay down`.
pub mod analysis;
mod ebtables;
pub mod fingerprint;
pub mod forward;
pub mod iptables;
pub mod masquerade;
pub mod nft;
mod status;
mod wanted;

use std::{fmt, time::Duration};

use anyhow::{Result, anyhow, bail};
use log::{debug, info, warn};
use tokio::time::{sleep, timeout};

use self::{forward::Forward, masquerade::Masquerade, status::Looked};
pub use self::{
    status::{RuleState, RuleStatus, RulesStatus},
    wanted::Wanted,
};
use crate::host::netlink::{NftablesEvents, told};

/// Longest pause between two looks at the rules, unless `--iptables-resync` says otherwise. The older variant of iptables does
/// not tell anybody that it changed something.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Shortest pause between two looks at the rules. A program that removes our rules again and again, or a busy
/// kube-proxy, must not cost much CPU time.
const PAUSE: Duration = Duration::from_secs(1);
/// How long `nft` or `iptables` may take. Each waits while another command of its kind runs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps the rules of one network in force.
pub struct FirewallKeeper {
    masquerade: Option<Masquerade>,
    forward: Option<Forward>,
    status: RulesStatus,
    period: Duration,
    /// Called with the status whenever it changes.
    report: Box<dyn Fn(&RulesStatus) + Send>,
}

impl FirewallKeeper {
    /// Puts the wanted rules in force, and removes those that only an earlier agent was asked for. What fails is tried
    /// again by [`Self::keep`]. `report` is called with the rules' state whenever it changes.
    pub async fn start(wanted: &Wanted, report: impl Fn(&RulesStatus) + Send + 'static) -> Self {
        let Wanted { name, plan, .. } = wanted;
        let period = wanted.period;
        let masquerade = wanted.masquerade.then(|| Masquerade::new(wanted));
        let forward = wanted.forward.then(|| Forward::new(name, plan.network));
        if masquerade.is_none() {
            warn_of(masquerade::remove(name).await);
        }
        if forward.is_none() {
            warn_of(forward::remove(name).await);
        }
        let mut keeper =
            Self { masquerade, forward, status: RulesStatus::default(), period, report: Box::new(report) };
        keeper.look().await;
        keeper
    }

    /// The rules' state at the last look.
    pub fn status(&self) -> &RulesStatus {
        &self.status
    }

    /// Keeps the rules in force as long as it runs. It looks at them when the kernel tells that the packet filter changed,
    /// and every period otherwise.
    pub async fn keep(mut self) -> Result<()> {
        if self.masquerade.is_none() && self.forward.is_none() {
            return std::future::pending().await;
        }
        let period = self.period;
        let mut changes =
            NftablesEvents::listen().inspect_err(|error| warn!("{error}: looking every {period:?}")).ok();
        loop {
            let changed = told(changes.as_mut().map(NftablesEvents::next));
            // If the notifications end, that is a reason to look, too.
            let _ = timeout(period, changed).await;
            self.look().await;
            sleep(PAUSE).await;
        }
    }

    async fn look(&mut self) {
        let mut is_news = false;
        if let Some(masquerade) = &mut self.masquerade {
            let looked = within(masquerade.look()).await;
            is_news |= take_in(&mut self.status.masquerade, "masquerading", looked);
        }
        if let Some(forward) = &mut self.forward {
            let looked = within(forward.look()).await;
            is_news |= take_in(&mut self.status.forward, "forward rules", looked);
        }
        if is_news {
            (self.report)(&self.status);
        }
    }
}

/// Removes all rules of the network with this name.
///
/// # Errors
/// Names what could not be removed.
pub async fn remove(name: &str) -> Result<()> {
    all_or_failures([masquerade::remove(name).await, forward::remove(name).await])
}

/// Succeeds if all of `results` did, and fails with all of their errors in one line otherwise.
fn all_or_failures(done: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failures: Vec<String> =
        done.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    if failures.is_empty() { Ok(()) } else { bail!(failures.join("; ")) }
}

async fn within(looked: impl Future<Output = Result<Looked>>) -> Result<Looked> {
    timeout(PATIENCE, looked).await.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")))
}

fn warn_of(removed: Result<(), impl fmt::Display>) {
    if let Err(error) = removed {
        warn!("rules of an earlier agent may stay: {error}");
    }
}

/// Writes into a rule's status what a look found, logs what is new about it, and returns whether anything is new.
fn take_in(rule: &mut RuleStatus, what: &str, looked: Result<Looked>) -> bool {
    let before = rule.clone();
    let looked = looked.map_err(|error| error.to_string());
    match &looked {
        Ok(Looked::Absent) => rule.state = RuleState::Absent,
        Ok(Looked::Unneeded) => rule.state = RuleState::Unneeded,
        Ok(Looked::Kept) => rule.state = RuleState::Active,
        Ok(Looked::Written) => {
            if before.state == RuleState::Active {
                rule.restored += 1;
                warn!("{what}: somebody removed or altered our rules; they are in force again");
            } else {
                info!("{what}: in force");
            }
            rule.state = RuleState::Active;
        }
        Err(error) => {
            rule.state = RuleState::Failed;
            if before.error.as_ref() != Some(error) {
                warn!("{what}: not in force: {error}; it will be tried again");
            }
        }
    }
    rule.error = looked.err();
    debug!("{what}: {rule:?}");
    *rule != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_by_others_is_counted_and_the_first_time_is_not() {
        let mut rule = RuleStatus::default();
        let mut look = |looked| {
            take_in(&mut rule, "x", looked);
            (rule.state, rule.restored, rule.error.clone())
        };
        assert_eq!(look(Ok(Looked::Written)), (RuleState::Active, 0, None));
        assert_eq!(look(Ok(Looked::Kept)), (RuleState::Active, 0, None));
        assert_eq!(look(Ok(Looked::Written)), (RuleState::Active, 1, None));
        assert_eq!(look(Err(anyhow!("why"))), (RuleState::Failed, 1, Some("why".into())));
        assert_eq!(look(Ok(Looked::Written)), (RuleState::Active, 1, None));
        assert_eq!(look(Ok(Looked::Unneeded)), (RuleState::Unneeded, 1, None));
        assert_eq!(look(Ok(Looked::Absent)), (RuleState::Absent, 1, None));
    }
}

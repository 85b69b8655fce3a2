//! Our rules in the host's packet filter: put in force, kept in force, told in the status, taken away by `overlay down`.
pub mod command;
pub mod forward;
pub mod iptables;
pub mod masquerade;

use std::{fmt::Display, time::Duration};

use ipnet::Ipv4Net;
use log::{debug, info, warn};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use self::{forward::Forward, masquerade::Masquerade};
use crate::{agent::status::Status, host::netlink::Nftables};

/// Between two looks though nobody said that anything changed: iptables' older variant tells nobody.
const PERIOD: Duration = Duration::from_secs(10);
/// Between two looks at least: a quarrel with whoever removes our rules, or a busy kube-proxy, must not take the CPU.
const PAUSE: Duration = Duration::from_secs(1);
/// How long `nft` or `iptables` may take: each waits for others of its kind.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an agent wants of the packet filter.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Name of the network on this host (`--network`): part of our table's name and of our rules' comments.
    pub name: String,
    /// The whole overlay.
    pub network: Ipv4Net,
    /// This host's subnet.
    pub subnet: Ipv4Net,
    /// `--ip-masq`.
    pub masquerade: bool,
    /// `--forward-rules`.
    pub forward: bool,
}

/// The rules, as they were when last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesStatus {
    /// Masquerading of what leaves the overlay.
    pub masquerade: RuleStatus,
    /// Accepting the overlay's packets where FORWARD drops.
    pub forward: RuleStatus,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Whether it is in force.
    pub state: RuleState,
    /// How often somebody else had removed or altered it, and it was put back, since the agent started.
    pub restored: u64,
    /// Why it could not be put in force.
    pub error: Option<String>,
}

/// Whether a rule is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleState {
    /// Not asked for.
    #[default]
    Off,
    /// Asked for, and there is no command to look by: it is not known whether there is something for it to do.
    Absent,
    /// Asked for, and there is nothing for it to do.
    Unneeded,
    /// In force.
    Active,
    /// Asked for, and could not be put in force.
    Failed,
}

/// What a look did; of several the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Looked {
    /// There is no command to look by.
    Absent,
    /// There is nothing for the rule to do.
    Unneeded,
    /// It was as it should be.
    Kept,
    /// It was written.
    Written,
}

/// Looks after the rules of one network.
#[derive(Debug)]
pub struct Keeper {
    masquerade: Option<Masquerade>,
    forward: Option<Forward>,
    status: watch::Sender<Status>,
}

impl Keeper {
    /// Removes what an earlier agent was asked for and this one is not, and puts the rest in force. What fails is tried
    /// again by [`Self::keep`].
    pub async fn start(wanted: &Wanted, status: watch::Sender<Status>) -> Self {
        let Wanted { name, network, subnet, .. } = wanted;
        let masquerade = wanted.masquerade.then(|| Masquerade::new(name, *network, *subnet));
        let forward = wanted.forward.then(|| Forward::new(name, *network));
        if masquerade.is_none() {
            say(masquerade::remove(name).await);
        }
        if forward.is_none() {
            say(forward::remove(name).await);
        }
        let mut keeper = Self { masquerade, forward, status };
        keeper.look().await;
        keeper
    }

    /// Keeps the rules in force, as long as it runs: looks when the kernel says that the packet filter changed, and now
    /// and then.
    pub async fn keep(mut self) -> anyhow::Result<()> {
        if self.masquerade.is_none() && self.forward.is_none() {
            return std::future::pending().await;
        }
        let mut changes =
            Nftables::listen().inspect_err(|error| warn!("{error}: looking every {PERIOD:?}")).ok();
        loop {
            let changed = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            // Its end is a reason to look, too.
            let _ = timeout(PERIOD, changed).await;
            self.look().await;
            sleep(PAUSE).await;
        }
    }

    async fn look(&mut self) {
        if let Some(masquerade) = &mut self.masquerade {
            let looked = within(masquerade.look()).await;
            note(&self.status, "masquerading", |rules| &mut rules.masquerade, looked);
        }
        if let Some(forward) = &mut self.forward {
            let looked = within(forward.look()).await;
            note(&self.status, "forward rules", |rules| &mut rules.forward, looked);
        }
    }
}

/// Removes all rules of the network named so.
///
/// # Errors
/// What could not be removed.
pub async fn remove(name: &str) -> Result<(), String> {
    let failures: Vec<String> = [masquerade::remove(name).await, forward::remove(name).await]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

async fn within(looked: impl Future<Output = Result<Looked, String>>) -> Result<Looked, String> {
    timeout(PATIENCE, looked).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

fn say(removed: Result<(), impl Display>) {
    if let Err(error) = removed {
        warn!("rules of an earlier agent may stay: {error}");
    }
}

/// Writes into the status what a look found, and logs what is new about it.
fn note(
    status: &watch::Sender<Status>,
    what: &str,
    which: fn(&mut RulesStatus) -> &mut RuleStatus,
    looked: Result<Looked, String>,
) {
    status.send_if_modified(|status| {
        let rule = which(&mut status.rules);
        let before = rule.clone();
        match looked {
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
            Err(ref error) => {
                rule.state = RuleState::Failed;
                if before.error.as_ref() != Some(error) {
                    warn!("{what}: not in force: {error}; trying again every {PERIOD:?}");
                }
            }
        }
        rule.error = looked.err();
        debug!("{what}: {rule:?}");
        *rule != before
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_by_others_is_counted_and_the_first_time_is_not() {
        let net = |text: &str| text.parse().unwrap();
        let status = Status::new(
            [10, 0, 0, 1].into(),
            net("10.244.1.0/24"),
            net("10.244.0.0/16"),
            crate::model::backend::Mode::DEFAULT,
        );
        let (status, seen) = watch::channel(status);
        let note = |looked| {
            note(&status, "x", |rules| &mut rules.masquerade, looked);
            let rule = seen.borrow().rules.masquerade.clone();
            (rule.state, rule.restored, rule.error)
        };
        assert_eq!(note(Ok(Looked::Written)), (RuleState::Active, 0, None));
        assert_eq!(note(Ok(Looked::Kept)), (RuleState::Active, 0, None));
        assert_eq!(note(Ok(Looked::Written)), (RuleState::Active, 1, None));
        assert_eq!(note(Err("why".into())), (RuleState::Failed, 1, Some("why".into())));
        assert_eq!(note(Ok(Looked::Written)), (RuleState::Active, 1, None));
        assert_eq!(note(Ok(Looked::Unneeded)), (RuleState::Unneeded, 1, None));
        assert_eq!(note(Ok(Looked::Absent)), (RuleState::Absent, 1, None));
    }
}

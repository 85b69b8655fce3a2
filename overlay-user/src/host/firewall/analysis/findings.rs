//! What is found of rules that packets between containers, or the tunnel's own, may meet.
use std::mem;

use super::{
    interface::Interface,
    probe::{Hook, Probe},
    range::Holds,
    rules::{Action, Asked, Condition, Rule, Table},
};
use crate::{host::site::Site, model::fast_path::FastPath};

/// A rule that could refuse, alter or delay packets, or whatever kept rules from being read. `Q` says where it stands: as a place
/// or, once somebody wants to read it, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm<Q> {
    /// The most that the fast path may carry so that it is obeyed.
    pub at_most: FastPath,
    /// What is known of its purpose.
    pub kind: Kind,
    /// Where it stands.
    pub quote: Q,
}

/// The purpose of a rule, as far as there is advice about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It gives packets of this host's containers, which it names, the host's address, even on their way to other containers.
    Masquerading,
    /// It drops what reaches a bridge of containers by another interface, as Docker's filters against direct access do.
    DirectAccess,
    /// Any other.
    Other,
}

impl Kind {
    /// The kind of a rule that the packets of a probe may meet.
    pub(super) fn of(rule: &Rule, probe: &Probe, site: &Site) -> Self {
        let has = |of: &dyn Fn(&Asked) -> bool| rule.conditions.iter().any(of);
        match rule.action {
            Action::Masquerade => {
                let is_own =
                    site.subnet.is_some_and(|subnet| probe.is_from(&[subnet.into()]) == Holds::Always);
                let names =
                    |asked: &Asked| matches!(asked.condition, Condition::Source(_)) && !asked.is_negated;
                if is_own && has(&names) { Self::Masquerading } else { Self::Other }
            }
            Action::Refuse => {
                let is_bridge =
                    |names: &[String]| Interface::Containers.is_named(names, site) != Holds::Never;
                let is_elsewhere = |asked: &Asked| {
                    asked.is_negated
                        && matches!(&asked.condition, Condition::Input(names) if is_bridge(names))
                };
                let is_there = |asked: &Asked| {
                    !asked.is_negated
                        && matches!(asked.condition, Condition::Output(_) | Condition::Destination(_))
                };
                let is_guard = rule.conditions.iter().all(|asked| is_elsewhere(asked) || is_there(asked));
                if is_guard && has(&is_elsewhere) { Self::DirectAccess } else { Self::Other }
            }
            _ => Self::Other,
        }
    }
}

/// A chain at the hook to the host, or through it, and what it makes of packets that it should let pass: the tunnel's, or those
/// between containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate<Q> {
    /// The command that lists it: a variant of iptables, or `nft`.
    pub command: String,
    /// What the command calls its table: `-t filter`, `inet firewalld`.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether the tunnel's packets to this host pass it, and not those between containers.
    pub is_input: bool,
    /// The first rule that may have been written to accept such packets, or some of them.
    pub accepting: Option<Q>,
    /// What refuses all those packets that no rule has accepted before. `None` if all are accepted.
    pub end: Option<End<Q>>,
}

/// What refuses packets at the end of their way through a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<Q> {
    /// The chain refuses whatever no rule accepts, by its policy or by its last rule. The agent's rules are reached there.
    Closed,
    /// A rule that refuses everything and has other rules behind it, or stands in a chain that the packets are led to. Nothing
    /// that is put behind it is reached.
    Stopped(Q),
    /// A rule that was written for such packets.
    By(Q),
}

impl<Q> End<Q> {
    pub(super) fn map<R>(self, of: impl FnOnce(Q) -> R) -> End<R> {
        match self {
            Self::Closed => End::Closed,
            Self::Stopped(quote) => End::Stopped(of(quote)),
            Self::By(quote) => End::By(of(quote)),
        }
    }
}

impl<Q> Gate<Q> {
    /// A chain that no packet has passed yet.
    pub(super) fn at(table: &Table, chain: &str, hook: Hook) -> Self {
        Self {
            command: table.command.clone(),
            table: table.place.clone(),
            chain: chain.to_owned(),
            is_input: hook == Hook::Input,
            accepting: None,
            end: None,
        }
    }

    /// Takes in what became of the packets of one probe. Of several ends the worst is told: a rule that stops everything
    /// is worse than a chain that is closed, and that is worse than a rule about certain packets.
    pub(super) fn take_in(&mut self, accepting: Option<Q>, end: Option<End<Q>>) {
        const fn rank<Q>(end: Option<&End<Q>>) -> u8 {
            match end {
                None => 0,
                Some(End::By(_)) => 1,
                Some(End::Closed) => 2,
                Some(End::Stopped(_)) => 3,
            }
        }
        let before = mem::take(&mut self.accepting);
        self.accepting = before.or(accepting);
        if rank(end.as_ref()) >= rank(self.end.as_ref()) {
            self.end = end;
        }
    }
}

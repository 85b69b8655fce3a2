//! Rules of any of the host's packet filters, as far as the analysis distinguishes them.
use std::{collections::BTreeMap, net::IpAddr};

use overlay_common::header::protocol;

use super::{
    probe::{Hook, Probe},
    quote::Quote,
    range::{Holds, Range},
};
use crate::host::site::Site;

/// The number of a protocol that rules name. Those that are not needed to tell packets between containers apart have none here.
pub(super) fn protocol_named(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => protocol::ICMP,
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "sctp" => protocol::SCTP,
        _ => return None,
    })
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Its source lies in one of these ranges.
    Source(Vec<Range<IpAddr>>),
    /// Its destination lies in one of these ranges.
    Destination(Vec<Range<IpAddr>>),
    /// The interface it came in by has such a name; see [`super::interface::Interface::is_named`].
    Input(Vec<String>),
    /// The interface it goes out by has such a name.
    Output(Vec<String>),
    /// It has one of these protocols.
    Protocol(Vec<u8>),
    /// It has one of these destination ports.
    Port(Vec<Range<u16>>),
    /// It has one of these source ports.
    SourcePort(Vec<Range<u16>>),
    /// Its destination is an address of this host.
    ToHost,
    /// Its source is an address of this host.
    FromHost,
    /// Connection tracking has seen its connection in both directions, perhaps among other states.
    Established,
    /// Nothing that a packet between containers has on the fast path: another family, a fragment.
    Impossible,
    /// Something that is equal for all packets of one connection in one direction, or that is asked of the first packets alone.
    Fixed,
    /// Something that may be different from one packet to the next, or is not known to be equal.
    Varying,
}

/// A condition, or its opposite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The condition.
    pub condition: Condition,
    /// Whether it must not hold.
    pub is_negated: bool,
}

impl From<Condition> for Asked {
    fn from(condition: Condition) -> Self {
        Self { condition, is_negated: false }
    }
}

impl Asked {
    /// Whether it holds for the packets of a probe.
    pub(super) fn of(&self, probe: &Probe, site: &Site) -> Holds {
        let certain = |does_hold| if does_hold { Holds::Always } else { Holds::Never };
        let holds = match &self.condition {
            Condition::Source(ranges) => probe.is_from(ranges),
            Condition::Destination(ranges) => probe.is_to(ranges),
            Condition::Input(names) => probe.input.is_named(names, site),
            Condition::Output(names) => probe.output.is_named(names, site),
            Condition::Protocol(protocols) => probe.has_protocol(protocols),
            Condition::Port(ports) => probe.has_port(ports),
            Condition::ToHost => certain(probe.is_to_host),
            Condition::FromHost => certain(probe.is_from_host),
            Condition::Impossible => Holds::Never,
            Condition::SourcePort(_) | Condition::Established | Condition::Fixed | Condition::Varying => {
                Holds::Maybe
            }
        };
        holds.negated(self.is_negated)
    }

    /// Whether it holds for all of a probe's packets, or picks some of them by what they are and where they come from. A
    /// connection's state picks none: the tunnel's packets stay new to connection tracking. Most belong to an entry that is there
    /// already, but no answer ever matches one, since both directions go to the tunnel's port, from ports that are hashes. (Where
    /// one does match, under `--outer-df` in UDP mode, the first packet is still new.) Hashes are never the ports of services.
    fn admits(&self, probe: &Probe, site: &Site) -> bool {
        const SERVICES: u16 = 1023;
        match self.of(probe, site) {
            Holds::Always => true,
            Holds::Never => false,
            Holds::Maybe => match &self.condition {
                Condition::Established => false,
                Condition::SourcePort(ports) => ports.iter().any(|ports| ports.last > SERVICES),
                _ => !self.is_negated,
            },
        }
    }
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing that the packet, or whoever sent it, could notice.
    Continue,
    /// It leaves the base chain, accepted.
    Accept,
    /// It leaves the chain.
    Return,
    /// It passes another chain, and comes back.
    Jump(String),
    /// It passes another chain, and does not come back.
    Goto(String),
    /// It is lost.
    Refuse,
    /// Something is done to its connection, once and for all: addresses are translated, tracking is switched off, or the
    /// handshake names another segment size.
    Translate,
    /// Its connection gets the address of the interface by which it leaves.
    Masquerade,
    /// It is altered, marked or delayed, or handed to a program that decides about it.
    Alter,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// All of these must hold.
    pub conditions: Vec<Asked>,
    /// What is done then.
    pub action: Action,
    /// Where it stands.
    pub quote: Quote,
}

impl Rule {
    /// Whether its conditions hold for the packets of a probe.
    pub(super) fn holds(&self, probe: &Probe, site: &Site) -> Holds {
        self.conditions.iter().map(|asked| asked.of(probe, site)).min().unwrap_or(Holds::Always)
    }

    /// A rule of which nobody can tell what it asks or does.
    pub(super) const fn unreadable(quote: Quote) -> Self {
        Self { conditions: Vec::new(), action: Action::Alter, quote }
    }

    /// Whether it may have been written for the packets of a probe, or for some of them, as they arrive.
    pub(super) fn admits(&self, probe: &Probe, site: &Site) -> bool {
        self.conditions.iter().all(|asked| asked.admits(probe, site))
    }

    /// How much there is to compare: itself, and the members of the sets that it names.
    pub(super) fn weight(&self) -> usize {
        let members = |asked: &Asked| match &asked.condition {
            Condition::Source(ranges) | Condition::Destination(ranges) => ranges.len(),
            Condition::Input(names) | Condition::Output(names) => names.len(),
            _ => 1,
        };
        1 + self.conditions.iter().map(members).sum::<usize>()
    }

    /// Whether its conditions may hold for one packet of a connection and not for the next.
    pub(super) fn varies(&self) -> bool {
        self.conditions.iter().any(|asked| asked.condition == Condition::Varying)
    }

    /// Whether it holds for every packet of a probe, once that packet's connection is established.
    pub(super) fn holds_when_established(&self, probe: &Probe, site: &Site) -> bool {
        let is_state = |asked: &Asked| asked.condition == Condition::Established && !asked.is_negated;
        self.conditions.iter().any(is_state)
            && self.conditions.iter().all(|asked| is_state(asked) || asked.of(probe, site) == Holds::Always)
    }
}

/// A chain that packets enter by a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// The hook.
    pub hook: Hook,
    /// The interfaces that the chain stands at. It is empty for hooks that are no interface's.
    pub devices: Vec<String>,
    /// Whether what no rule decides about is dropped.
    pub drops: bool,
    /// Whether only the first packet of each connection passes the chain, as in tables for address translation.
    pub is_first_only: bool,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// How packets enter it, unless they do so from other chains alone.
    pub base: Option<Base>,
    /// Its rules, in their order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// Whether what no rule accepts is refused, by the policy or by a rule that refuses everything.
    pub(super) fn is_closed(&self) -> bool {
        let refuses_all = |rule: &Rule| rule.conditions.is_empty() && rule.action == Action::Refuse;
        self.base.as_ref().is_some_and(|base| base.drops) || self.rules.iter().any(refuses_all)
    }
}

/// The families of tables through which packets between containers can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4, or both families of IP.
    Ip,
    /// Bridges.
    Bridge,
    /// Single interfaces.
    Device,
}

/// A table: chains that can name each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its family. Tables for both families of IP can have chains at single interfaces, which their hook tells.
    pub family: Family,
    /// The command that lists it: a variant of iptables, or `nft`.
    pub command: String,
    /// What the command calls it: `-t filter`, `inet firewalld`.
    pub place: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
}

impl Table {
    /// What it is called where something of it is quoted: `iptables-nft -t filter`, `nft inet firewalld`.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.command, self.place)
    }
}

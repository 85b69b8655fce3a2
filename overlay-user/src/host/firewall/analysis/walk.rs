//! Leads probes through chains, and finds what could refuse, translate or alter them, and which chains refuse what no rule accepts.
use std::collections::HashMap;

use super::{
    findings::{End, Gate, Harm, Kind},
    probe::{self, Hook, Probe, Scope},
    quote::Quote,
    range::Holds,
    rules::{Action, Base, Chain, Family, Rule, Table},
};
use crate::{host::site::Site, model::fast_path::FastPath};

/// How many rules, or members of the sets that they name, are looked at altogether, over all chains and probes. A rule set that
/// needs more is not followed further.
const BUDGET: usize = 2_000_000;
/// How deep chains can lie in each other. nftables refuses more than 16 (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 64;
/// How many findings are kept of each kind.
const KEPT: usize = 4;

/// What the walk has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The first few of each kind.
    pub harms: Vec<Harm<Quote>>,
    /// The chains at the hooks to the host and through it that refuse what no rule accepts, or refuse all of it by a rule.
    pub gates: Vec<Gate<Quote>>,
    /// The rules are too many to follow them all.
    pub is_cut_short: bool,
}

/// Leads all probes of this scope through all tables.
pub(super) fn walk(tables: &[Table], site: &Site, scope: Scope) -> Found {
    walk_within(BUDGET, tables, site, scope)
}

/// Does the same as [`walk`], within another budget.
pub(super) fn walk_within(budget: usize, tables: &[Table], site: &Site, scope: Scope) -> Found {
    let mut walker = Walker { site, scope, found: Found::default(), budget };
    for table in tables {
        for (name, chain) in &table.chains {
            walker.enter(table, name, chain);
        }
    }
    walker.found.harms.sort_by_key(|harm| std::cmp::Reverse(harm.at_most));
    walker.found
}

/// What is known of the packets that have come so far in a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sifted {
    /// Of one connection, some packets may come here and others not.
    varying: bool,
    /// Packets of established connections do not come here, so that whatever follows decides about first packets alone.
    only_first: bool,
}

impl Sifted {
    /// What is known of these packets, as far as the programs can tell. When the tunnel's own packet leaves, overlay0 has already
    /// sent the packet in it, and the programs take it for carried by the stack even if a rule drops it now.
    const fn seen_by(self, probe: &Probe) -> Self {
        if probe.is_sent { Self { varying: true, only_first: false } } else { self }
    }

    /// What is known of these packets and of others together.
    fn or(self, others: Option<Self>) -> Self {
        others.map_or(self, |others| Self {
            varying: self.varying || others.varying,
            only_first: self.only_first && others.only_first,
        })
    }
}

/// How packets have come into a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Path {
    /// All that were left undecided come, whatever they are.
    is_everyone: bool,
    /// All of the probe's packets that were left undecided come.
    is_all: bool,
    /// The rules that lead here may have been written for the probe's packets; see [`Rule::admits`].
    is_admitted: bool,
}

impl Path {
    /// To the beginning of a base chain.
    const BASE: Self = Self { is_everyone: true, is_all: true, is_admitted: true };

    /// The path on, by a rule that jumps.
    fn by(self, rule: &Rule, holds: Holds, probe: &Probe, site: &Site) -> Self {
        Self {
            is_everyone: self.is_everyone && rule.conditions.is_empty(),
            is_all: self.is_all && holds == Holds::Always,
            is_admitted: self.is_admitted && rule.admits(probe, site),
        }
    }
}

/// What became of packets in a chain.
#[derive(Clone, Copy, Debug)]
struct Passed {
    /// Some may come out of it undecided.
    goes_on: bool,
    sifted: Sifted,
}

struct Walker<'a> {
    site: &'a Site,
    scope: Scope,
    found: Found,
    budget: usize,
}

/// One probe in one base chain.
struct Journey<'a> {
    table: &'a Table,
    probe: &'a Probe,
    passed: HashMap<(&'a str, Sifted, Path), Passed>,
    /// The first rule that may have been written to accept such packets.
    accepting: Option<&'a Quote>,
    /// What refuses all that come so far.
    end: Option<End<&'a Quote>>,
}

impl Walker<'_> {
    fn enter(&mut self, table: &Table, name: &str, chain: &Chain) {
        let Some(base) = &chain.base else { return };
        let probes = self.probes(table.family, base);
        let mut gate = Gate::at(table, name, base.hook);
        for probe in &probes {
            let mut journey = Journey { table, probe, passed: HashMap::new(), accepting: None, end: None };
            let sifted = Sifted { varying: false, only_first: base.is_first_only };
            let passed = self.pass(&mut journey, name, chain, sifted, Path::BASE, 0);
            if passed.goes_on && base.drops {
                let policy = format!("the policy of chain {name} in {}: drop", table.name());
                self.add(passed.sifted.seen_by(probe), false, Kind::Other, Quote::Text(policy));
                journey.end = Some(End::Closed);
            }
            gate.take_in(journey.accepting.cloned(), journey.end.map(|end| end.map(Quote::clone)));
        }
        let is_gate = table.family == Family::Ip && matches!(base.hook, Hook::Input | Hook::Forward);
        if is_gate && (gate.end.is_some() || chain.is_closed()) {
            self.found.gates.push(gate);
        }
    }

    /// The probes that meet this base chain.
    fn probes(&self, family: Family, base: &Base) -> Vec<Probe> {
        let site = self.site;
        let is_at_device = matches!(base.hook, Hook::Ingress | Hook::Egress);
        // A listing that does not tell where the chain stands leaves every interface.
        let is_anywhere = base.devices.is_empty() || base.devices.iter().any(|name| name.ends_with('*'));
        let at_devices =
            |at: &dyn Fn(&str) -> Vec<Probe>| base.devices.iter().flat_map(|name| at(name)).collect();
        match (self.scope, family) {
            (Scope::BetweenHosts, _) if is_at_device && is_anywhere => {
                probe::at_any_device_hook(site, base.hook)
            }
            (Scope::BetweenHosts, _) if is_at_device => {
                at_devices(&|name| probe::at_device_hook(site, base.hook, name))
            }
            (Scope::BetweenHosts, Family::Ip) => probe::at_ip_hook(site, base.hook),
            (Scope::BetweenHosts, Family::Bridge) => probe::at_bridge_hook(site, base.hook),
            (Scope::BehindBridge, _) if is_at_device && is_anywhere => {
                probe::bridged_at_device_hook(site, base.hook, None)
            }
            (Scope::BehindBridge, _) if is_at_device => {
                at_devices(&|name| probe::bridged_at_device_hook(site, base.hook, Some(name)))
            }
            (Scope::BehindBridge, Family::Bridge) => probe::bridged_at_bridge_hook(site, base.hook),
            (Scope::BehindBridge, Family::Ip) | (_, Family::Device) => Vec::new(),
        }
    }

    fn pass<'a>(
        &mut self,
        journey: &mut Journey<'a>,
        name: &'a str,
        chain: &'a Chain,
        sifted: Sifted,
        path: Path,
        depth: usize,
    ) -> Passed {
        if let Some(passed) = journey.passed.get(&(name, sifted, path)) {
            return *passed;
        }
        let passed = self.pass_anew(journey, chain, sifted, path, depth);
        journey.passed.insert((name, sifted, path), passed);
        passed
    }

    fn pass_anew<'a>(
        &mut self,
        journey: &mut Journey<'a>,
        chain: &'a Chain,
        mut sifted: Sifted,
        path: Path,
        depth: usize,
    ) -> Passed {
        // Packets that have left the chain for the one they came from, undecided, before its end.
        let mut left = None::<Sifted>;
        for (at, rule) in chain.rules.iter().enumerate() {
            if self.budget == 0 || depth > DEPTH {
                self.found.is_cut_short = true;
                return Passed { goes_on: true, sifted };
            }
            self.budget = self.budget.saturating_sub(rule.weight());
            let holds = rule.holds(journey.probe, self.site);
            if holds == Holds::Never {
                continue;
            }
            let varies = holds == Holds::Maybe && rule.varies();
            let ended = |sifted, left: Option<Sifted>| match left {
                Some(left) => Passed { goes_on: true, sifted: left },
                None => Passed { goes_on: false, sifted },
            };
            match &rule.action {
                Action::Continue => {}
                // The tunnel's own packets come from the address that they would be given.
                Action::Masquerade if journey.probe.is_from_host && self.site.names.is_masqueraded_alike => {}
                Action::Alter => {
                    self.add(Sifted { varying: true, ..sifted }, false, Kind::Other, rule.quote.clone());
                }
                Action::Refuse | Action::Translate | Action::Masquerade => {
                    let kind = Kind::of(rule, journey.probe, self.site);
                    self.add(sifted.seen_by(journey.probe), varies, kind, rule.quote.clone());
                    if holds == Holds::Always && rule.action == Action::Refuse {
                        if path.is_all {
                            let stops_all = path.is_everyone && rule.conditions.is_empty();
                            let is_last = depth == 0 && at + 1 == chain.rules.len();
                            journey.end = Some(match (stops_all, is_last) {
                                (true, true) => End::Closed,
                                (true, false) => End::Stopped(&rule.quote),
                                (false, _) => End::By(&rule.quote),
                            });
                        }
                        return ended(sifted, left);
                    }
                    sifted = self.sift(sifted, rule, journey.probe, varies);
                }
                Action::Accept => {
                    if journey.accepting.is_none()
                        && path.is_admitted
                        && rule.admits(journey.probe, self.site)
                    {
                        journey.accepting = Some(&rule.quote);
                    }
                    if holds == Holds::Always {
                        return ended(sifted, left);
                    }
                    sifted = self.sift(sifted, rule, journey.probe, varies);
                }
                Action::Return if holds == Holds::Always => break,
                Action::Return => {
                    sifted.varying |= varies;
                    left = Some(sifted.or(left));
                }
                Action::Jump(target) | Action::Goto(target) => {
                    let before = Sifted { varying: sifted.varying || varies, ..sifted };
                    let Some((target, chain)) = journey.table.chains.get_key_value(target) else {
                        // A chain that is not listed may do anything, as one whose name is no text.
                        self.add(Sifted { varying: true, ..before }, false, Kind::Other, rule.quote.clone());
                        continue;
                    };
                    let path = path.by(rule, holds, journey.probe, self.site);
                    let passed = self.pass(journey, target, chain, before, path, depth + 1);
                    sifted.varying |= varies || passed.sifted.varying;
                    if holds == Holds::Always {
                        sifted.only_first |= passed.sifted.only_first;
                    }
                    if matches!(rule.action, Action::Goto(_)) && passed.goes_on {
                        left = Some(passed.sifted.or(left));
                    }
                    if holds == Holds::Always && (!passed.goes_on || matches!(rule.action, Action::Goto(_))) {
                        return ended(sifted, left);
                    }
                }
            }
        }
        Passed { goes_on: true, sifted: sifted.or(left) }
    }

    /// What is known of the packets that a rule with a verdict has left.
    fn sift(&self, sifted: Sifted, rule: &Rule, probe: &Probe, varies: bool) -> Sifted {
        let is_tunnels = probe.is_to_host || probe.is_from_host;
        if matches!(rule.action, Action::Translate | Action::Masquerade) {
            // The packet may go on to the next rule.
            return Sifted { varying: sifted.varying || varies, ..sifted };
        }
        Sifted {
            varying: sifted.varying || varies,
            // Connection tracking never sees an answer to the tunnel's packets: both directions go to the tunnel's port, from ports
            // that are hashes.
            only_first: sifted.only_first || !is_tunnels && rule.holds_when_established(probe, self.site),
        }
    }

    fn add(&mut self, sifted: Sifted, varies: bool, kind: Kind, quote: Quote) {
        let varies = (sifted.varying || varies) && !sifted.only_first;
        let at_most = if varies { FastPath::Off } else { FastPath::Established };
        let harm = Harm { at_most, kind, quote };
        let is_like = |other: &&Harm<Quote>| (other.at_most, other.kind) == (at_most, kind);
        let like = self.found.harms.iter().filter(is_like).count();
        if like < KEPT && !self.found.harms.contains(&harm) {
            self.found.harms.push(harm);
        }
    }
}

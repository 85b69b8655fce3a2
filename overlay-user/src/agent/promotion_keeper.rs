//! Keeps the fast path and its promotions in step with the host. The stack's connection tracking knows every promoted connection
//! as long as that lives, so that a connection which returns to the stack is accepted as if it had never left it. When the host's
//! packet filter or its IPsec policies change, it is decided anew how much the fast path may carry; a change of the packet filter
//! takes every promotion back.
use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use log::{debug, info, warn};
use overlay_common::{
    FLOW_BEGUN_BACKWARD, FLOW_CLOSING, Flow, FlowKey,
    header::protocol::{TCP, UDP},
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    agent::{fast_path::Decider, status::Status},
    datapath::{lifetimes::Lifetimes, stack_flows, tables::Tables},
    host::netlink::{
        NftablesEvents,
        conntrack::{self, Tuple},
        told,
        xfrm::XfrmEvents,
    },
    model::fast_path::{FastPath, FastPathStatus},
};

/// How often new promotions are looked for. A connection that returns to the stack before the next look meets only what
/// connection tracking has recorded of its first packets.
const PERIOD: Duration = Duration::from_secs(5);
/// How long connection tracking keeps an upheld connection without hearing of it. This is long enough for an agent to be
/// started again.
const LIFETIME: Duration = Duration::from_secs(300);
/// How old the entry of an upheld connection may become before the connection is upheld again.
const RENEW: Duration = Duration::from_secs(100);
/// A look takes at most this part of the time: the pause after a look is at least this many times as long as the look.
const SHARE: u32 = 20;
/// The pause after a look lasts at least this many times as long as the look, or [`PERIOD`], even when rules or policies change
/// meanwhile. Otherwise rules that change all the time would keep the agent busy.
const PAUSE: u32 = 4;

/// Keeps promotions in step with the host until the agent ends. `at_bridges` is told which rules see bridged frames.
///
/// # Errors
/// When the pinned maps cannot be read.
pub(crate) async fn keep(
    pins: PathBuf,
    mut decider: Decider,
    status: watch::Sender<Status>,
    at_bridges: watch::Sender<Option<String>>,
) -> Result<()> {
    let mut keeper = Keeper { tables: Tables::open(&pins)?, upheld: HashMap::new() };
    let mut changes = None;
    if decider.is_bound_to_rules() {
        let listening = NftablesEvents::listen();
        changes = listening.inspect_err(|error| warn!("{error}: looking every {PERIOD:?}")).ok();
    }
    let listening = XfrmEvents::listen();
    let mut policies =
        listening.inspect_err(|error| warn!("{error}: looking every {PERIOD:?}")).unwrap_or_default();
    loop {
        let started = Instant::now();
        let decided = decider.decide().await;
        at_bridges.send_if_modified(|known| {
            let is_new = *known != decided.at_bridges;
            known.clone_from(&decided.at_bridges);
            is_new
        });
        keeper.tables.set_fast_path(decided.effective)?;
        let epoch = keeper.tables.stack_flows.epoch()?;
        let wanted_epoch = wanted_epoch(&decided, epoch);
        let new_epoch = (wanted_epoch != epoch).then_some(wanted_epoch);
        let look = spawn_blocking(move || {
            let looked = keeper.look(new_epoch);
            (keeper, looked)
        });
        let looked;
        (keeper, looked) = look.await.context("look at the promoted connections")?;
        match looked {
            Ok(taken_back) if new_epoch.is_some() && taken_back > 0 => {
                info!("the packet filter changed: {taken_back} connections begin on the stack again");
            }
            Ok(_) => {}
            Err(error) => debug!("{error:#}"),
        }
        let took = started.elapsed();
        // Whoever reads this knows that it is in force.
        status.send_if_modified(|status| {
            let is_new = status.fast_path != decided;
            status.fast_path = decided;
            is_new
        });
        sleep((took * PAUSE).min(PERIOD)).await;
        tokio::select! {
            () = told(changes.as_mut().map(NftablesEvents::next)) => {}
            () = told(policies.as_mut().map(XfrmEvents::next)) => {}
            () = sleep(PERIOD.max(took * SHARE)) => {}
        }
    }
}

/// The epoch that promotions must be of. Where the stack does not decide on every connection, its rules are never asked about most
/// of them, so they need not be asked again about the others.
fn wanted_epoch(decided: &FastPathStatus, epoch: u32) -> u32 {
    match (decided.effective, decided.rules) {
        // What was accepted under rules that cannot be told from others must not hold under others.
        (FastPath::Established, 0) => epoch.wrapping_add(2),
        (FastPath::Established, rules) => rules,
        (FastPath::On | FastPath::Off, _) => 0,
    }
}

struct Keeper {
    tables: Tables,
    /// Connections that connection tracking was told of, and when it was told.
    upheld: HashMap<FlowKey, (Tuple, Instant)>,
}

impl Keeper {
    /// Upholds connections that are promoted and alive, forgets those that have ended, and then begins a new epoch, if one is
    /// given. Returns how many connections were promoted until then.
    fn look(&mut self, new_epoch: Option<u32>) -> Result<usize> {
        let promoted = self.tables.stack_flows.promoted()?;
        let upheld = self.uphold(&promoted);
        // The new epoch begins even if connection tracking could not be told, because the rules have changed in any case.
        if let Some(epoch) = new_epoch {
            self.tables.stack_flows.begin_epoch(epoch)?;
        }
        upheld?;
        Ok(promoted.len())
    }

    fn uphold(&mut self, promoted: &[(FlowKey, Flow)]) -> Result<()> {
        let (now, clock, lifetimes) = (Instant::now(), stack_flows::now()?, Lifetimes::of_this_host());
        let is_over = |key: &FlowKey, flow: &Flow| lifetimes.is_over_at(clock, key, flow);
        // Only TCP and UDP are upheld. For most other protocols connection tracking makes an entry from any packet. For SCTP it
        // would need the tags of the handshake, which the programs do not keep.
        let is_tracked = |(key, flow): &&(FlowKey, Flow)| {
            matches!(key.protocol, TCP | UDP) && flow.state & FLOW_CLOSING == 0 && !is_over(key, flow)
        };
        let living: HashMap<_, _> = promoted.iter().filter(is_tracked).copied().collect();
        let mut news = Vec::new();
        if conntrack::is_in_use() {
            for (key, flow) in &living {
                if self.upheld.get(key).is_none_or(|(_, since)| now - *since >= RENEW) {
                    let tuple = first_direction(key, flow.state);
                    news.push(tuple);
                    self.upheld.insert(*key, (tuple, now));
                }
            }
        }
        let refused = conntrack::uphold(&news, LIFETIME)?;
        if refused > 0 {
            debug!("connection tracking refused {refused} of {} promoted connections", news.len());
        }
        let flows = &self.tables.stack_flows;
        let mut ended = Vec::new();
        self.upheld.retain(|key, (tuple, _)| {
            if living.contains_key(key) {
                return true;
            }
            // A connection that goes on without a promotion is the stack's again, and connection tracking sees its packets from
            // now on.
            if flows.get(key).is_none_or(|flow| flow.state & FLOW_CLOSING != 0 || is_over(key, &flow)) {
                ended.push(*tuple);
            }
            false
        });
        Ok(conntrack::forget(&ended)?)
    }
}

/// A connection, in the direction of its first packet.
fn first_direction(key: &FlowKey, state: u32) -> Tuple {
    let (from, to) = if state & FLOW_BEGUN_BACKWARD == 0 { (0, 1) } else { (1, 0) };
    let address = |end: usize| IpAddr::from(key.addresses[end].octets);
    let port = |end: usize| u16::from_be_bytes(key.ports[end]);
    Tuple {
        source: address(from),
        destination: address(to),
        ports: (port(from), port(to)),
        protocol: key.protocol,
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::Addr4;

    use super::*;

    #[test]
    fn a_connection_is_told_in_the_direction_of_its_first_packet() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 3]));
        let key = FlowKey::new(a, b, [[0x9c, 0x40], [0, 80]], 6);
        let is_forward = key.addresses[0] == a;
        let from_a = if is_forward { 0 } else { FLOW_BEGUN_BACKWARD };
        let tuple = first_direction(&key, from_a);
        assert_eq!((tuple.source, tuple.ports), ([10, 244, 1, 2].into(), (40000, 80)));
        let tuple = first_direction(&key, from_a ^ FLOW_BEGUN_BACKWARD);
        assert_eq!((tuple.source, tuple.ports), ([10, 244, 2, 3].into(), (80, 40000)));
    }
}

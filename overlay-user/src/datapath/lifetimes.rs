//! When a stack flow may be removed: not before the stack's connection tracking has forgotten its connection.
use std::{fs, time::Duration};

use aya::Pod;
use log::debug;
use overlay_common::{
    Address, FLOW_BACKWARD, FLOW_CLOSING, FLOW_DELIVERED, FLOW_FORWARD, FLOW_KEPT, FLOW_SENT, Flow, FlowKey,
    header::protocol::{ICMP, ICMPV6, TCP, UDP},
};

use super::{
    DatapathError,
    stack_flows::{StackFlows, now},
};

/// How long conntrack keeps an idle connection of each kind; a stack flow lives as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// `nf_conntrack_tcp_timeout_established`.
    pub tcp: Duration,
    /// `nf_conntrack_tcp_timeout_syn_sent`: nobody has answered yet.
    pub tcp_attempt: Duration,
    /// The longest a TCP connection stays after its FIN or RST was seen.
    pub tcp_closing: Duration,
    /// `nf_conntrack_udp_timeout_stream`.
    pub udp: Duration,
    /// `nf_conntrack_udp_timeout`: nobody has answered yet.
    pub udp_attempt: Duration,
    /// `nf_conntrack_icmp_timeout`.
    pub icmp: Duration,
    /// `nf_conntrack_generic_timeout`.
    pub other: Duration,
}

impl Lifetimes {
    /// The defaults of Documentation/networking/nf_conntrack-sysctl.rst.
    pub const DEFAULT: Self = Self {
        tcp: Duration::from_secs(432_000),
        tcp_attempt: Duration::from_secs(120),
        tcp_closing: Duration::from_secs(120),
        udp: Duration::from_secs(120),
        udp_attempt: Duration::from_secs(30),
        icmp: Duration::from_secs(30),
        other: Duration::from_secs(600),
    };

    /// This host's, from its sysctls; the defaults where conntrack is not loaded.
    pub fn of_this_host() -> Self {
        let read = |name: &str, default: Duration| {
            fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .map_or(default, Duration::from_secs)
        };
        let default = Self::DEFAULT;
        Self {
            tcp: read("tcp_timeout_established", default.tcp),
            tcp_attempt: read("tcp_timeout_syn_sent", default.tcp_attempt),
            tcp_closing: read("tcp_timeout_fin_wait", default.tcp_closing).max(default.tcp_closing),
            udp: read("udp_timeout_stream", default.udp),
            udp_attempt: read("udp_timeout", default.udp_attempt),
            icmp: read("icmp_timeout", default.icmp),
            other: read("generic_timeout", default.other),
        }
    }

    /// How long a stack flow stays after the end of a promoted TCP connection was seen. The stack's connection tracking has nothing
    /// that either direction needs, so only the last packets of the connection are waited for.
    const PROMOTED_CLOSING: Duration = Duration::from_secs(10);

    /// Whether a stack flow in this state (`FLOW_*` bits), last seen `idle` ago, may go.
    pub fn is_over(&self, protocol: u8, state: u32, idle: Duration) -> bool {
        const ANSWERED: u32 = FLOW_FORWARD | FLOW_BACKWARD;
        let answered = state & ANSWERED == ANSWERED;
        // Stack flows are refreshed once a second only.
        let slack = Duration::from_secs(2);
        let was_promoted = state & (FLOW_SENT | FLOW_DELIVERED | FLOW_KEPT) == FLOW_SENT | FLOW_DELIVERED;
        let lifetime = match protocol {
            TCP if state & FLOW_CLOSING != 0 && was_promoted => Self::PROMOTED_CLOSING,
            TCP if state & FLOW_CLOSING != 0 => self.tcp_closing,
            TCP if answered => self.tcp,
            TCP => self.tcp_attempt,
            UDP if answered => self.udp,
            UDP => self.udp_attempt,
            ICMP | ICMPV6 => self.icmp,
            _ => self.other,
        };
        idle > lifetime + slack
    }

    /// Whether a stack flow may go at this time of the programs' clock.
    pub(crate) fn is_over_at<A>(&self, now: Duration, key: &FlowKey<A>, flow: &Flow) -> bool {
        self.is_over(key.protocol, flow.state, idle(now, flow))
    }

    /// Removes what is over; returns how many went and how many stay.
    pub fn expire<A: Address>(&self, flows: &mut StackFlows<A>) -> Result<(usize, usize), DatapathError>
    where
        FlowKey<A>: Pod,
    {
        let (over, stay) = self.sort(flows)?;
        let gone = self.forget(flows, &over)?;
        Ok((gone, stay + over.len() - gone))
    }

    /// Which are over, and how many are not.
    pub fn sort<A: Address>(&self, flows: &StackFlows<A>) -> Result<(Vec<FlowKey<A>>, usize), DatapathError>
    where
        FlowKey<A>: Pod,
    {
        let now = now()?;
        let mut over = Vec::new();
        let mut stay = 0;
        for entry in flows.iter() {
            let (key, flow) = entry.map_err(|error| failed(&error))?;
            if self.is_over_at(now, &key, &flow) { over.push(key) } else { stay += 1 }
        }
        Ok((over, stay))
    }

    /// Removes those of `over` that still are: ports are used again, and sorting many takes a while. Returns how many went.
    pub fn forget<A: Address>(
        &self,
        flows: &mut StackFlows<A>,
        over: &[FlowKey<A>],
    ) -> Result<usize, DatapathError>
    where
        FlowKey<A>: Pod,
    {
        let mut gone = 0;
        for key in over {
            let now = now()?;
            let still = flows.get(key).is_some_and(|flow| self.is_over_at(now, key, &flow));
            if still {
                gone += 1;
                // Gone already is as good.
                if let Err(error) = flows.remove(key) {
                    debug!("remove a stack flow: {error}");
                }
            }
        }
        Ok(gone)
    }
}

fn idle(now: Duration, flow: &Flow) -> Duration {
    now.saturating_sub(Duration::from_nanos(flow.seen_ns))
}

fn failed(error: &dyn std::fmt::Display) -> DatapathError {
    DatapathError::Failed { action: "expire stack flows".into(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_flow_outlives_conntracks_own_entry() {
        let lifetimes = Lifetimes::DEFAULT;
        let both = FLOW_FORWARD | FLOW_BACKWARD;
        for (protocol, state, seconds) in [
            (TCP, both, 432_000),
            (TCP, FLOW_FORWARD, 120),
            (TCP, both | FLOW_CLOSING, 120),
            (TCP, both | FLOW_CLOSING | FLOW_SENT | FLOW_DELIVERED | FLOW_KEPT, 120),
            (TCP, both | FLOW_CLOSING | FLOW_SENT | FLOW_DELIVERED, 10),
            (UDP, both, 120),
            (UDP, FLOW_BACKWARD, 30),
            (ICMP, both, 30),
            (132, both, 600),
        ] {
            assert!(!lifetimes.is_over(protocol, state, Duration::from_secs(seconds)), "{protocol} {state}");
            assert!(
                lifetimes.is_over(protocol, state, Duration::from_secs(seconds + 3)),
                "{protocol} {state}"
            );
        }
    }
}

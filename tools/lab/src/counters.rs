//! Counters of one host: the one place that knows what `overlay status --json` looks like.
use anyhow::{Context as _, Result};
use overlay_common::{Hook, Reason, Verdict};
use serde::Deserialize;

/// Packets by hook and reason, as `overlay status --json` gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(Vec<(Hook, Reason, u64, u64)>);

/// Packets of one host by the tier that carried them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Encapsulated at a container's veth or its bridge.
    pub fast_out: u64,
    /// Decapsulated at the underlay device, by TC or XDP.
    pub fast_in: u64,
    /// Sent by the stack through overlay0.
    pub stack_out: u64,
    /// Received by the stack through overlay0.
    pub stack_in: u64,
    /// Dropped, or answered by an error, at any hook.
    pub dropped: u64,
}

impl Counters {
    /// Reads what `overlay status --json` printed.
    pub fn parse(answer: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Status {
            counters: Vec<Counter>,
        }
        #[derive(Deserialize)]
        struct Counter {
            hook: String,
            reason: String,
            packets: u64,
            bytes: u64,
        }
        let status: Status = serde_json::from_str(answer).context("read `overlay status --json`")?;
        let known = |Counter { hook, reason, packets, bytes }| {
            let which = Hook::ALL.iter().find(|known| known.as_str() == hook);
            let why = Reason::ALL.iter().find(|known| known.as_str() == reason);
            let unknown = || format!("`overlay status --json` counts what is unknown: {hook} {reason}");
            Ok((*which.with_context(unknown)?, *why.with_context(unknown)?, packets, bytes))
        };
        status.counters.into_iter().map(known).collect::<Result<_>>().map(Self)
    }

    /// Packets counted at `hook` for `reason`.
    pub fn packets(&self, hook: Hook, reason: Reason) -> u64 {
        self.count(hook, reason).0
    }

    /// Packets and bytes counted at `hook` for `reason`.
    pub fn count(&self, hook: Hook, reason: Reason) -> (u64, u64) {
        let same = self.0.iter().filter(|(at, why, ..)| (*at, *why) == (hook, reason));
        same.fold((0, 0), |sum, (_, _, packets, bytes)| (sum.0 + packets, sum.1 + bytes))
    }

    /// All that is not zero: packets, bytes.
    pub fn all(&self) -> &[(Hook, Reason, u64, u64)] {
        &self.0
    }

    /// Adds up by tier.
    pub fn carried(&self) -> Carried {
        let mut carried = Carried::default();
        for (hook, reason, packets, _) in &self.0 {
            match (hook, reason.verdict()) {
                // It stays on its host, so no peer is part of it.
                (Hook::Encap, Verdict::Carried) if *reason == Reason::SameHost => {}
                (Hook::Encap, Verdict::Carried) => carried.fast_out += packets,
                (Hook::Decap | Hook::Xdp, Verdict::Carried) => carried.fast_in += packets,
                (Hook::Send, Verdict::Carried) => carried.stack_out += packets,
                (Hook::Receive, Verdict::Carried) => carried.stack_in += packets,
                (_, Verdict::Drop | Verdict::Answered) => carried.dropped += packets,
                // What was left to the stack is counted again at the hook where the stack sent or received it.
                (_, Verdict::Carried | Verdict::Stack | Verdict::Event) => {}
            }
        }
        carried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_by_tier() {
        let answer = r#"{"counters":[{"hook":"encap","reason":"carried","packets":5,"bytes":500},
            {"hook":"encap","reason":"unlearned-endpoint","packets":2,"bytes":200},
            {"hook":"encap","reason":"same-host","packets":9,"bytes":900},
            {"hook":"send","reason":"carried","packets":2,"bytes":200},
            {"hook":"decap","reason":"carried","packets":4,"bytes":400},
            {"hook":"receive","reason":"carried","packets":3,"bytes":400},
            {"hook":"decap","reason":"unknown-peer","packets":1,"bytes":90}],"lease":null}"#;
        let expected = Carried { fast_out: 5, fast_in: 4, stack_out: 2, stack_in: 3, dropped: 1 };
        let counters = Counters::parse(answer).unwrap();
        assert_eq!(counters.carried(), expected);
        assert_eq!(counters.packets(Hook::Encap, Reason::Unlearned), 2);
        assert_eq!(counters.packets(Hook::Encap, Reason::NoPeer), 0);
        assert!(Counters::parse("{}").is_err());
        assert!(
            Counters::parse(r#"{"counters":[{"hook":"encap","reason":"whim","packets":5,"bytes":1}]}"#)
                .is_err()
        );
    }
}

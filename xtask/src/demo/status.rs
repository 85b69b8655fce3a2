//! The one place that knows what `overlay status --json` looks like.
use anyhow::{Context as _, Result};
use overlay_common::{Reason, Verdict};
use serde::Deserialize;

#[derive(Deserialize)]
struct Status {
    counters: Vec<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    hook: String,
    reason: String,
    packets: u64,
}

/// Packets of one host by the tier that carried them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Encapsulated at a container's veth or its bridge.
    pub(super) fast_out: u64,
    /// Decapsulated at the underlay device.
    pub(super) fast_in: u64,
    /// Sent by the stack through overlay0.
    pub(super) stack_out: u64,
    /// Received by the stack through overlay0.
    pub(super) stack_in: u64,
    /// Dropped, or answered by an error, at any hook.
    pub(super) dropped: u64,
}

/// Adds up the counters in what `overlay status --json` printed.
pub(super) fn carried(answer: &str) -> Result<Carried> {
    let status: Status = serde_json::from_str(answer).context("read `overlay status --json`")?;
    let mut carried = Carried::default();
    for Counter { hook, reason, packets } in status.counters {
        let reason = Reason::ALL
            .iter()
            .find(|known| known.as_str() == reason)
            .with_context(|| format!("`overlay status --json` counts an unknown reason: {reason}"))?;
        match (hook.as_str(), reason.verdict()) {
            ("encap", Verdict::Carried) => carried.fast_out += packets,
            ("decap", Verdict::Carried) => carried.fast_in += packets,
            ("send", Verdict::Carried) => carried.stack_out += packets,
            ("receive", Verdict::Carried) => carried.stack_in += packets,
            (_, Verdict::Drop | Verdict::Answered) => carried.dropped += packets,
            // Left to the stack: counted again where the stack took it.
            (_, Verdict::Carried | Verdict::Stack | Verdict::Event) => {}
        }
    }
    Ok(carried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_by_tier() {
        let answer = r#"{"counters":[{"hook":"encap","reason":"carried","packets":5,"bytes":500},
            {"hook":"encap","reason":"unlearned-endpoint","packets":2,"bytes":200},
            {"hook":"send","reason":"carried","packets":2,"bytes":200},
            {"hook":"decap","reason":"carried","packets":4,"bytes":400},
            {"hook":"receive","reason":"carried","packets":3,"bytes":400},
            {"hook":"decap","reason":"unknown-peer","packets":1,"bytes":90}],"lease":null}"#;
        let expected = Carried { fast_out: 5, fast_in: 4, stack_out: 2, stack_in: 3, dropped: 1 };
        assert_eq!(carried(answer).unwrap(), expected);
        assert!(carried("{}").is_err());
        assert!(carried(r#"{"counters":[{"hook":"encap","reason":"whim","packets":5}]}"#).is_err());
    }
}

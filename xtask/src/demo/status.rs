//! The one place that knows what `overlay status --json` looks like.
use anyhow::{Context as _, Result};
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

/// Packets of one host by who carried them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Sent by the encapsulation program.
    pub(super) out: u64,
    /// Delivered by the decapsulation program.
    pub(super) r#in: u64,
    /// Left to the stack, or dropped, for a reason of its own.
    pub(super) other: u64,
}

/// Adds up the counters in what `overlay status --json` printed.
pub(super) fn carried(answer: &str) -> Result<Carried> {
    let status: Status = serde_json::from_str(answer).context("read `overlay status --json`")?;
    let mut carried = Carried::default();
    for counter in status.counters {
        let sum = match (counter.hook.as_str(), counter.reason.as_str()) {
            ("encap", "carried") => &mut carried.out,
            ("decap", "carried") => &mut carried.r#in,
            _ => &mut carried.other,
        };
        *sum += counter.packets;
    }
    Ok(carried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_by_tier() {
        let answer = r#"{"counters":[{"hook":"encap","reason":"carried","packets":5,"bytes":500},
            {"hook":"decap","reason":"carried","packets":4,"bytes":400},
            {"hook":"decap","reason":"unknown-peer","packets":1,"bytes":90}],"lease":null}"#;
        assert_eq!(
            carried(answer).unwrap(),
            Carried {
                out: 5,
                r#in: 4,
                other: 1
            }
        );
        assert!(carried("{}").is_err());
    }
}

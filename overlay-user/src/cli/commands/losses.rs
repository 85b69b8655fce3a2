//! What devices lost, as `overlay status` shows it.
use std::path::Path;

use anyhow::Result;

use crate::{
    cli::table::table,
    datapath::losses::{self, Loss, Reading},
    host::netlink::Netlink,
};

/// Reads the counters as they are now.
pub(super) async fn now(pins: &Path) -> Result<Vec<Reading>> {
    losses::read(&Netlink::open()?, pins).await
}

/// How many losses are shown to people, since a host may have thousands of containers. `--json` has the rest.
const LOSSES_SHOWN: usize = 20;

pub(super) fn text(losses: &[Loss], error: Option<&str>) -> String {
    if let Some(error) = error {
        return format!("device losses: not known: {error}");
    }
    if losses.is_empty() {
        return "device losses: none".into();
    }
    let number = |packets: Option<u64>| packets.map_or_else(|| "-".into(), |packets| packets.to_string());
    let rows = losses.iter().take(LOSSES_SHOWN).map(|loss| {
        vec![
            loss.reading.device.clone(),
            loss.reading.counter.clone(),
            number(loss.reading.packets),
            number(loss.since_start),
            format!("{}: {}", loss.meaning, loss.remedy),
        ]
    });
    let heading = ["device losses", "counter", "packets", "since agent start", "what it means: what to do"];
    let more = match losses.len().saturating_sub(LOSSES_SHOWN) {
        0 => String::new(),
        more => format!("\nand {more} more: `overlay status --json`"),
    };
    table(&heading, rows) + &more
}

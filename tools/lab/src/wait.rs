//! Waiting for a condition that comes true by itself.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::interrupt::check_interrupted;

/// Asks `ready` every 20 ms until it returns true, for at most `limit`. `what` says in the error what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !ready().with_context(|| format!("wait for {what}"))? {
        check_interrupted()?;
        if started.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

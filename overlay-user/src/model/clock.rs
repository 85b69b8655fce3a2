//! The time of day, which only a status shows: everything else goes by the monotonic clock.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Now, in seconds since the Unix epoch.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// When a moment of the monotonic clock is or was, in seconds since the Unix epoch.
pub fn unix_at(moment: Instant) -> u64 {
    let now = Instant::now();
    let ahead = moment.saturating_duration_since(now);
    let behind = now.saturating_duration_since(moment);
    (unix_now() + rounded(ahead)).saturating_sub(rounded(behind))
}

fn rounded(duration: Duration) -> u64 {
    (duration + Duration::from_millis(500)).as_secs()
}

//! Waiting for a known time, with a line now and then, so that nobody takes a long quiet phase for a run that hangs.
use std::time::Duration;

/// How often the line comes.
const TOLD: Duration = Duration::from_secs(30);

/// Waits for this time. `what` says what it is for.
pub(crate) async fn pass(what: &str, time: Duration) {
    let mut left = time;
    loop {
        if left >= Duration::from_secs(1) {
            eprintln!("    {what}: {} s to go", left.as_secs());
        }
        let step = left.min(TOLD);
        tokio::time::sleep(step).await;
        left -= step;
        if left.is_zero() {
            return;
        }
    }
}

//! Tells of others' programs that see packets before ours: the log tells it once, and the status as long as it is so.
use std::{path::PathBuf, time::Duration};

use log::{info, warn};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    agent::status::Status,
    datapath::links::{InFront, Links},
};

/// The time between two looks, which are needed because the kernel does not tell when a program is attached.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks at regular intervals until the future is dropped. `pins` is the network's folder of pins.
pub async fn watch(pins: PathBuf, status: watch::Sender<Status>) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = None;
    loop {
        period.tick().await;
        let now = match Links::in_front(&pins) {
            Ok(now) => now,
            Err(error) => {
                let error = error.to_string();
                if complaint.as_ref() != Some(&error) {
                    warn!("{error}: it is not known whether others' programs see packets before ours");
                }
                complaint = Some(error);
                continue;
            }
        };
        complaint = None;
        status.send_if_modified(|status| {
            for one in news(&status.in_front, &now) {
                warn!("{one}, which does not get what is ended there; {}", one.remedy());
            }
            for one in news(&now, &status.in_front) {
                info!("no longer so: {one}");
            }
            let is_news = status.in_front != now;
            status.in_front = now;
            is_news
        });
    }
}

/// What `now` contains and `before` did not.
fn news<'a>(before: &'a [InFront], now: &'a [InFront]) -> impl Iterator<Item = &'a InFront> {
    now.iter().filter(|one| !before.contains(one))
}

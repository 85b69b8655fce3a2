//! What a host keeps while it joins again: nobody else takes its place, and nothing ends when somebody removes pins.
use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use log::warn;
use tokio::{
    pin, select,
    time::{MissedTickBehavior, interval},
};

use crate::{
    agent::join::Former,
    datapath::{
        Datapath as _,
        ebpf::EbpfDatapath,
        state::{Lock, Ownership},
    },
};

/// How often the pins are looked after, as in the rest of the agent's life. Joining may wait for a store without end.
const LOOK: Duration = Duration::from_secs(2);

/// The network's lock and its data path, as they were before the underlay changed.
pub(super) struct Held {
    lock: Arc<Lock>,
    datapath: EbpfDatapath,
}

impl Held {
    pub(super) fn new(lock: Arc<Lock>, datapath: EbpfDatapath) -> Self {
        Self { lock, datapath }
    }

    /// What whoever joins again goes on with.
    pub(super) fn former(&self) -> Former {
        Former { lock: self.lock.clone(), attached: self.datapath.attached() }
    }

    /// Looks whether all of it is still there, and pins again what somebody removed.
    ///
    /// # Errors
    /// When another agent owns the network on this host by now.
    pub(super) fn keep(&mut self) -> Result<()> {
        if let Ok(Ownership::Lost(who)) = self.lock.keep() {
            bail!(who);
        }
        match self.datapath.keep_pins() {
            Ok(kept) if kept.restored > 0 => {
                warn!("somebody removed pins: {} maps and links are pinned again", kept.restored);
            }
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
        Ok(())
    }
}

/// Does what takes long, and looks after what is held at once and every two seconds until that is done.
///
/// # Errors
/// As `keep`, whose error ends what takes long, too.
pub(super) async fn beside<T>(
    long: impl Future<Output = T>,
    mut keep: impl FnMut() -> Result<()>,
) -> Result<T> {
    pin!(long);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            biased;
            _ = looks.tick() => keep()?,
            done = &mut long => return Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_looked_after_for_as_long_as_joining_takes() {
        let looks = Cell::new(0);
        let count = || {
            looks.set(looks.get() + 1);
            Ok(())
        };
        let before = beside(async { looks.get() }, count).await.unwrap();
        assert_eq!(before, 1, "it is looked after before the first try");
        let joining = async {
            sleep(Duration::from_secs(61)).await;
            looks.get()
        };
        assert_eq!(beside(joining, count).await.unwrap(), 1 + 31);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_lost_the_network_waits_for_the_store_no_longer() {
        let looks = Cell::new(0);
        let lost = || {
            looks.set(looks.get() + 1);
            if looks.get() == 3 { bail!("another agent (pid 7)") } else { Ok(()) }
        };
        let error = beside(pending::<()>(), lost).await.unwrap_err();
        assert_eq!((looks.get(), error.to_string().as_str()), (3, "another agent (pid 7)"));
    }
}

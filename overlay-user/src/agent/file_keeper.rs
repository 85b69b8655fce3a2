//! Keeps the files that others read and that the next agent needs: subnet.env, the record and the lock. Nobody tells when one of
//! them is removed, so they are looked at every second. The lock says whether this agent still is the network's only one; if
//! it is not, the agent ends.
use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use log::{info, warn};
use tokio::{sync::watch, time::sleep};

use crate::{
    agent::status::Status,
    datapath::state::{Lock, Ownership, Paths, Record},
    host::subnet_env::SubnetEnv,
};

const PERIOD: Duration = Duration::from_secs(1);

/// The files, and what must be in them.
pub(crate) struct Files {
    /// The network's folders.
    pub(crate) paths: Paths,
    /// The lock that this agent has.
    pub(crate) lock: Arc<Lock>,
    /// What the record says, but for the number of the bpf file system.
    pub(crate) record: Record,
    /// What subnet.env says.
    pub(crate) subnet_env: SubnetEnv,
    /// Path of subnet.env.
    pub(crate) subnet_file: PathBuf,
}

/// Looks at regular intervals until the agent ends.
///
/// # Errors
/// When another agent has become the network's owner. This one must touch nothing any more then.
pub(crate) async fn keep(mut files: Files, status: watch::Sender<Status>) -> Result<()> {
    loop {
        sleep(PERIOD).await;
        files.record.bpffs = status.borrow().state.bpffs.or(files.record.bpffs);
        let kept = match files.lock.keep() {
            Ok(Ownership::Lost(who)) => {
                bail!(
                    "{who}. This agent touches nothing any more, and ends; what it pinned is that agent's to replace"
                )
            }
            Ok(Ownership::Kept) => files.keep(),
            Err(error) => Err(error),
        };
        status.send_if_modified(|status| {
            let state = &mut status.state;
            let before = (state.files_restored, state.files_error.clone());
            match kept {
                Ok(restored) => {
                    state.files_restored += restored;
                    if state.files_error.take().is_some() {
                        info!("all files can be written again");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if state.files_error.as_ref() != Some(&error) {
                        warn!("{error}; traffic goes on, trying again every {PERIOD:?}");
                    }
                    state.files_error = Some(error);
                }
            }
            before != (state.files_restored, state.files_error.clone())
        });
    }
}

impl Files {
    /// Writes again what is missing or altered. Returns how many files that were.
    fn keep(&self) -> Result<u64> {
        let mut restored = 0;
        if fs::read_to_string(&self.subnet_file).ok().as_deref() != Some(&self.subnet_env.text()) {
            self.subnet_env.write(&self.subnet_file)?;
            warn!("somebody removed or altered {}: written again", self.subnet_file.display());
            restored += 1;
        }
        let recorded = self.paths.record().ok().flatten();
        if recorded.as_ref() != Some(&self.record) {
            self.paths.write(&self.record)?;
            // That its pins are on another file system is no other hand's doing in the record.
            if recorded.is_none_or(|recorded| Record { bpffs: self.record.bpffs, ..recorded } != self.record)
            {
                warn!(
                    "somebody removed or altered the record in {}: written again",
                    self.paths.state.display()
                );
                restored += 1;
            }
        }
        Ok(restored)
    }
}

//! Removes what outlives an agent.
use std::{fs, io, sync::Arc};

use anyhow::Result;

use super::{error::failed, lock::Lock, paths::Paths};

impl Paths {
    /// Removes every trace of the network, also the lock file. It is no error if there is nothing.
    pub fn remove(&self, lock: impl Into<Arc<Lock>>) -> Result<()> {
        let lock = lock.into();
        self.forget_other_layouts()?;
        self.forget()?;
        let removed = fs::remove_file(self.lock_path());
        removed.map_err(|error| failed("remove", &self.lock_path(), error))?;
        drop(lock);
        // These folders are shared with other networks. They are only removed if they are empty.
        let shared = self.pins.ancestors().skip(1).take(2);
        for folder in shared.chain([self.state.as_path()]) {
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Removes the pins and the files about them, and then makes the folders again for a new start.
    pub fn clear(&self) -> Result<()> {
        self.forget()?;
        fs::create_dir_all(&self.pins).map_err(|error| failed("create", &self.pins, error))
    }

    /// Removes the pins and the files about them.
    fn forget(&self) -> Result<()> {
        let (record, origin, removals) = (self.record_path(), self.origin_path(), self.removals_path());
        for (path, removed) in [
            (&self.pins, fs::remove_dir_all(&self.pins)),
            (&record, fs::remove_file(&record)),
            (&origin, fs::remove_file(&origin)),
            (&removals, fs::remove_file(&removals)),
        ] {
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

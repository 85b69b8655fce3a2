//! What flannel was on this host. It is recorded in `<state dir>/<network>/flannel.json` before anything of it is touched.
//! `overlay down` leaves that file in place, so that the way back stays open.
use std::{fs, io::ErrorKind};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Flannel;
use crate::datapath::state::Paths;

/// The record of what flannel was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlannelRecord {
    /// Whether the move came to its end. If not, it was cut off, and this host may be partly flannel's and partly the
    /// overlay's.
    pub finished: bool,
    /// Name of our tunnel device.
    pub tunnel: String,
    /// The whole overlay.
    pub network: IpNet,
    /// flannel as it was.
    pub flannel: Flannel,
}

impl FlannelRecord {
    /// Reads the record, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, since what it says must not be guessed.
    pub fn read(paths: &Paths) -> Result<Option<Self>> {
        let path = paths.flannel_path();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let record = serde_json::from_slice(&text);
        record.map(Some).with_context(|| {
            format!("read {}: with the file gone, `--back` goes by the leases in the store", path.display())
        })
    }

    /// Writes the record. Its folder must exist.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, paths: &Paths) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("write down what flannel was")?;
        paths.replace(&paths.flannel_path(), &text)
    }

    /// Removes the record. It is no error if there is none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(paths: &Paths) -> Result<()> {
        let path = paths.flannel_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => {
                // After `overlay down` the record was the last thing in this folder, which can then be removed, too.
                let _ = fs::remove_dir(&paths.state);
                Ok(())
            }
        }
    }
}

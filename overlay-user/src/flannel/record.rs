//! What flannel was on this host, recorded before anything of it is touched: in `<state dir>/<network>/flannel.json`, which
//! `overlay down` leaves there, so that the way back stays open.
use std::{fs, io::ErrorKind};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Flannel;
use crate::datapath::state::Paths;

/// The note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlannelRecord {
    /// The move came to its end. If not, it was cut off: this host may be half of either.
    pub finished: bool,
    /// Name of our tunnel device.
    pub tunnel: String,
    /// The whole overlay.
    pub network: IpNet,
    /// As it was.
    pub flannel: Flannel,
}

impl FlannelRecord {
    /// Reads it, if there is one.
    ///
    /// # Errors
    /// When it cannot be read: what it says is not to be guessed.
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

    /// Writes it. Its folder must be there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, paths: &Paths) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("write down what flannel was")?;
        paths.replace(&paths.flannel_path(), &text)
    }

    /// Removes it. None there is no error.
    ///
    /// # Errors
    /// When it stays.
    pub fn remove(paths: &Paths) -> Result<()> {
        let path = paths.flannel_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => {
                // After `overlay down` it was the last thing there.
                let _ = fs::remove_dir(&paths.state);
                Ok(())
            }
        }
    }
}

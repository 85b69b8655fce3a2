//! Finds the map layouts that are pinned for a network beside the present one, and tells whether an agent may touch them.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use overlay_common::ABI;

use super::{
    error::failed,
    paths::{FILLING, Paths},
};
use crate::datapath::layouts::{Older, is_readable};

impl Paths {
    /// The pins of this network that agents with older layouts left, oldest first. The newest of them is in force, because
    /// an agent removes older pins only after it has taken them over.
    ///
    /// # Errors
    /// If there is a layout that this program does not know. A newer agent made it, so it must be neither adopted nor removed.
    pub fn older(&self) -> Result<Vec<Older>> {
        let mut found = Vec::new();
        for pins in self.all_layouts()? {
            let folder = pins.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or("");
            if pins == self.pins || folder == FILLING || !has_pins(&pins) {
                continue;
            }
            match folder.strip_prefix('v').and_then(|abi| abi.parse().ok()).filter(|abi| is_readable(*abi)) {
                Some(abi) => found.push(Older { abi, pins }),
                None => bail!(
                    "{} holds pins of a map layout that this agent (layout {ABI}) does not know: a newer agent ran here. Start \
                     that one again. To go back to this one, take the network off the host first, which interrupts its \
                     traffic: `overlay down --network {}`",
                    pins.display(),
                    self.network
                ),
            }
        }
        found.sort_by_key(|older| older.abi);
        Ok(found)
    }

    /// Removes the pins of older layouts, after their maps and links were taken over.
    pub fn forget_older(&self, older: &[Older]) -> Result<()> {
        for Older { pins, abi } in older {
            log::info!("removing what the agent with map layout {abi} left in {}", pins.display());
            #[cfg(feature = "next-layout")]
            crate::datapath::crash::may_crash_removing(pins);
            self.forget_layout(pins)?;
        }
        Ok(())
    }

    /// Removes all layouts but the present one, also those that this program does not know. This is for removing the network
    /// from the host.
    pub(super) fn forget_other_layouts(&self) -> Result<()> {
        for pins in self.all_layouts()?.into_iter().filter(|pins| *pins != self.pins) {
            self.forget_layout(&pins)?;
        }
        // A crash may have left this folder empty.
        let _ = self.filling.parent().map(fs::remove_dir);
        Ok(())
    }

    fn forget_layout(&self, pins: &Path) -> Result<()> {
        let removed = if pins.is_dir() { fs::remove_dir_all(pins) } else { fs::remove_file(pins) };
        removed.map_err(|error| failed("remove", pins, error))?;
        // These folders are shared with other networks. They are only removed if they are empty.
        let _ = pins.parent().map(fs::remove_dir);
        Ok(())
    }

    /// The folders `<bpf root>/overlay/*/<network>` that exist, one for each layout, the present one included.
    pub fn all_layouts(&self) -> Result<Vec<PathBuf>> {
        let Some(all) = self.pins.ancestors().nth(2) else { return Ok(Vec::new()) };
        let folders = match fs::read_dir(all) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folders => folders.map_err(|error| failed("read", all, error))?,
        };
        let mut found = Vec::new();
        for folder in folders {
            let pins = folder.map_err(|error| failed("read", all, error))?.path().join(&self.network);
            if pins.exists() {
                found.push(pins);
            }
        }
        Ok(found)
    }
}

/// Whether anything is pinned in a folder. An agent makes its folders before it knows whether it may start.
pub(super) fn has_pins(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut files) => files.any(|file| file.is_ok_and(|file| has_pins(&file.path()))),
        // Whatever is not a folder is a pin.
        Err(_) => path.exists(),
    }
}

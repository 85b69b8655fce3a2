//! Keeps in the file system what should outlive the agent. The agent holds a descriptor of everything that it has pinned, so that
//! nothing ends when somebody removes pins, mounts another bpf file system over them, or unmounts theirs.
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::MapData;
use log::warn;
use overlay_common::Settings6;

use super::{
    DatapathError, PinsKept,
    bpffs::{self, is_bpffs},
    index, ipv6,
    links::Links,
    state::{Lock, Ownership},
    tables::MAPS,
    xdp::{XdpLink, XdpTargets},
};

/// The pins of one network, and what they are of.
pub(super) struct PinKeeper {
    pins: PathBuf,
    maps: Vec<(&'static str, MapData)>,
    /// The folder of the pins as it was made or found, whatever is at its path now.
    folder: File,
    lock: Option<Arc<Lock>>,
}

impl PinKeeper {
    /// Opens everything that is pinned in `pins`, also for IPv6 if there is any. Whoever has `lock` owns it; without one, nobody else
    /// is expected.
    pub(super) fn open(
        pins: &Path,
        settings6: &Settings6,
        lock: Option<Arc<Lock>>,
    ) -> Result<Self, DatapathError> {
        let all = MAPS.iter().chain([&XdpTargets::MAP]).chain(&index::MAPS).chain(ipv6::pinned(settings6));
        let maps = all.map(|(_, pin)| {
            let map = MapData::from_pin(pins.join(pin));
            let map = map.map_err(|error| DatapathError::failed(format!("open pinned map {pin}"), &error));
            Ok((*pin, map?))
        });
        let maps = maps.collect::<Result<_, DatapathError>>()?;
        Ok(Self { pins: pins.to_owned(), maps, folder: open(pins)?, lock })
    }

    /// Refuses to touch anything when another agent has become the owner of the network's folders.
    pub(super) fn check_owner(&self) -> Result<(), DatapathError> {
        match self.lock.as_ref().map(|lock| lock.keep()) {
            Some(Ok(Ownership::Lost(who))) => Err(DatapathError::missing("change nothing any more", &who)),
            // A file that cannot be made again is told by whoever keeps the files. Nobody else has the network then.
            _ => Ok(()),
        }
    }

    /// Pins again what is not pinned any more.
    pub(super) fn keep(&mut self, links: &Links, xdp: &XdpLink) -> Result<PinsKept, DatapathError> {
        self.check_owner()?;
        let here = is_bpffs(&self.pins).then(|| bpffs::device(&self.pins)).flatten();
        let held = self.folder.metadata().map(|folder| folder.dev()).ok();
        if here.is_none() {
            let action = format!("look after {}", self.pins.display());
            let what = "it is on no bpf filesystem any more: somebody has unmounted it, or mounted something else over it. The \
                        programs go on as long as this agent runs, and end with it. Mount it again (`mount -t bpf bpf \
                        /sys/fs/bpf`, or whatever --bpf-root names), and everything is pinned there";
            return Err(DatapathError::missing(action, what));
        }
        let moved = here != held;
        let restored = self.restore_maps()? + links.restore()? + xdp.restore()?;
        if moved {
            // Else the links would live on there when they are unpinned here.
            if let Err(error) = bpffs::empty(&bpffs::inside(&self.folder)) {
                warn!("remove the pins from the bpf filesystem that is covered: {error}");
            }
        }
        if moved || restored > 0 {
            self.folder = open(&self.pins)?;
        }
        Ok(PinsKept { restored, moved, bare: false, bpffs: here })
    }

    fn restore_maps(&self) -> Result<usize, DatapathError> {
        let mut restored = 0;
        for (pin, map) in &self.maps {
            let path = self.pins.join(pin);
            if path.exists() {
                continue;
            }
            let action = || format!("pin {}", path.display());
            fs::create_dir_all(&self.pins).map_err(|error| DatapathError::failed(action(), &error))?;
            map.pin(&path).map_err(|error| DatapathError::failed(action(), &error))?;
            restored += 1;
        }
        Ok(restored)
    }
}

fn open(pins: &Path) -> Result<File, DatapathError> {
    File::open(pins).map_err(|error| DatapathError::failed(format!("open {}", pins.display()), &error))
}

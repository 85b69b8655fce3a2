//! The pinned map of peers, which is read from outside while an agent fills it, and the sizes of all of a network's
//! maps.
use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use overlay_common::{Addr4, PeerEntry};
use serde::Serialize;

use super::peer::Stranger;

/// How long to wait at most. Nothing that is measured takes nearly so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The map of peers that an agent has pinned.
pub(super) struct Peers {
    map: HashMap<MapData, Addr4, PeerEntry>,
}

impl Peers {
    /// Opens the map of peers.
    pub(super) fn open(pins: &Path) -> Result<Self> {
        let path = pins.join("peers");
        let open = || anyhow::Ok(Map::from_map_data(MapData::from_pin(&path)?)?.try_into()?);
        Ok(Self { map: open().with_context(|| format!("open the map {}", path.display()))? })
    }

    /// Whether the map has this host as it is now.
    pub(super) fn hold(&self, stranger: Stranger) -> bool {
        self.map.get(&stranger.map_key(), 0).is_ok_and(|entry| stranger.is_in(&entry))
    }

    /// Whether the map has no peer for this host's subnet.
    pub(super) fn lack(&self, stranger: Stranger) -> bool {
        self.map.get(&stranger.map_key(), 0).is_err()
    }

    /// How many peers there are.
    pub(super) fn count(&self) -> Result<usize> {
        self.map.keys().try_fold(0, |count, key| key.map(|_| count + 1)).context("read the map of peers")
    }

    /// Waits until the first `count` strangers are in the map, and returns when the last one came. It reads one entry
    /// at a time, so that the agent is not disturbed: reading the whole map takes longer than writing it.
    pub(super) fn fill(&self, count: u32) -> Result<Instant> {
        let mut came = Instant::now();
        // The agent writes in order, so when the last one is there, the others are too, and are read once each.
        for stranger in (0..count).rev().map(Stranger::new) {
            if !self.hold(stranger) {
                came = poll(&stranger.key(), Duration::from_micros(200), || Ok(self.hold(stranger)))?;
            }
        }
        Ok(came)
    }
}

/// Calls `done` until it returns true, and returns when that was.
pub(super) fn poll(what: &str, pause: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Instant> {
    let started = Instant::now();
    while !done()? {
        ensure!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        if pause.is_zero() {
            std::thread::yield_now();
        } else {
            std::thread::sleep(pause);
        }
    }
    Ok(Instant::now())
}

/// The size of one map in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapSize {
    /// Name of its pin.
    pub name: String,
    /// The number of entries that it has space for.
    pub max_entries: u32,
    /// Bytes of kernel memory, as the kernel counts them (`memlock` in the map's fdinfo; exact since Linux 6.4).
    pub bytes: u64,
}

/// The sizes of all maps pinned in a folder, the largest first.
pub(super) fn sizes(pins: &Path) -> Result<Vec<MapSize>> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(pins).with_context(|| format!("list {}", pins.display()))? {
        let path = entry?.path();
        if path.is_file() {
            sizes.push(size(&path).with_context(|| format!("ask for the size of {}", path.display()))?);
        }
    }
    sizes.sort_by_key(|size| std::cmp::Reverse(size.bytes));
    Ok(sizes)
}

fn size(pin: &Path) -> Result<MapSize> {
    let map = MapData::from_pin(pin)?;
    let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    Ok(MapSize { name, max_entries: map.info()?.max_entries(), bytes: memlock(&info)? })
}

/// The bytes of kernel memory that the fdinfo of a map's descriptor tells.
pub(crate) fn memlock(info: &str) -> Result<u64> {
    let value = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    value.and_then(|value| value.trim().parse().ok()).context("no memlock in its fdinfo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maps_weight_is_its_memlock() {
        assert_eq!(memlock("pos:\t0\nmap_type:\t1\nmemlock:\t532480\nmap_id:\t4\n").unwrap(), 532_480);
        assert!(memlock("pos:\t0\n").is_err());
    }

    #[test]
    fn polling_goes_on_until_yes_and_ends_at_an_error() {
        let mut asked = 0;
        let third = || {
            asked += 1;
            Ok(asked == 3)
        };
        poll("three", Duration::ZERO, third).unwrap();
        assert_eq!(asked, 3);
        assert!(poll("an error", Duration::ZERO, || anyhow::bail!("no")).is_err());
    }
}

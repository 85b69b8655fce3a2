//! Peers and endpoints: a table that people and agents read, and beside it an array, the index, that says the same to the
//! programs by the number of a subnet in Network, or of an address in the subnet.
//!
//! An index holds nothing that its table does not hold: an entry is put into the table first, and removed from it last. Each
//! agent makes indexes of its own at the start, and fills them before its programs take the place of the last agent's, which go
//! on with theirs.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use overlay_common::{
    Addr4, EndpointEntry, MAX_ENDPOINT_INDEX, MAX_PEER_INDEX, PeerEntry, SETTING_ENDPOINT_INDEX,
    SETTING_PEER_INDEX, Settings,
};

use super::DatapathError;

/// Names of the arrays in the programs, and of their pins.
pub(super) const MAPS: [(&str, &str); 2] = [PeerEntry::INDEX, EndpointEntry::INDEX];

/// An entry of a table that has an index beside it.
pub trait Entry: Pod + Default + PartialEq {
    /// What such entries are called, in the plural.
    const PLURAL: &str;
    /// Name of the index in the programs, and of its pin.
    const INDEX: (&str, &str);
    /// The flag of the settings that says that there is an index.
    const FLAG: u32;
    /// Length of the longest index that is made.
    const MAX_INDEX: u32;

    /// Length of the index that a network with these settings needs.
    fn places(settings: &Settings) -> u64;

    /// The place of this key in the index. None for a key outside Network, about which the programs ask no table.
    fn number(settings: &Settings, key: Addr4) -> Option<u32>;

    /// Whether this is an entry at all: an array has zeros where there is none.
    fn exists(&self) -> bool;

    /// The same entry, but for the field by which the programs tell that there is one: they take it for none.
    fn concealed(self) -> Self;
}

impl Entry for PeerEntry {
    const PLURAL: &str = "peers";
    const INDEX: (&str, &str) = ("PEER_INDEX", "peer_index");
    const FLAG: u32 = SETTING_PEER_INDEX;
    const MAX_INDEX: u32 = MAX_PEER_INDEX;

    fn places(settings: &Settings) -> u64 {
        settings.subnets()
    }

    fn number(settings: &Settings, base: Addr4) -> Option<u32> {
        settings.subnet_number(base)
    }

    fn exists(&self) -> bool {
        self.outer != Addr4::default()
    }

    fn concealed(self) -> Self {
        Self { outer: Addr4::default(), ..self }
    }
}

impl Entry for EndpointEntry {
    const PLURAL: &str = "endpoints";
    const INDEX: (&str, &str) = ("ENDPOINT_INDEX", "endpoint_index");
    const FLAG: u32 = SETTING_ENDPOINT_INDEX;
    const MAX_INDEX: u32 = MAX_ENDPOINT_INDEX;

    fn places(settings: &Settings) -> u64 {
        settings.addresses()
    }

    fn number(settings: &Settings, address: Addr4) -> Option<u32> {
        settings.address_number(address)
    }

    fn exists(&self) -> bool {
        self.ifindex != 0
    }

    fn concealed(self) -> Self {
        Self { ifindex: 0, ..self }
    }
}

/// The settings with flags that say which indexes there are. What would need a longer index than is made has none, and the
/// programs ask its table.
pub(super) fn settings(settings: &Settings) -> Settings {
    let flag = |fits: bool, flag: u32| if fits { flag } else { 0 };
    let flags = flag(fits::<PeerEntry>(settings), PeerEntry::FLAG)
        | flag(fits::<EndpointEntry>(settings), EndpointEntry::FLAG);
    Settings { flags: settings.flags & !(PeerEntry::FLAG | EndpointEntry::FLAG) | flags, ..*settings }
}

fn fits<V: Entry>(settings: &Settings) -> bool {
    V::places(settings) <= V::MAX_INDEX.into()
}

/// Tells the loader how long the indexes are.
pub(super) fn size(loader: &mut EbpfLoader<'_>, settings: &Settings) {
    fn one<V: Entry>(loader: &mut EbpfLoader<'_>, settings: &Settings) {
        // The programs name the index whether they use it or not.
        let places = if settings.flags & V::FLAG == 0 { 1 } else { V::places(settings) as u32 };
        loader.map_max_entries(V::INDEX.0, places);
    }
    one::<PeerEntry>(loader, settings);
    one::<EndpointEntry>(loader, settings);
}

/// Unpins the last agent's indexes. Its programs keep them until they are replaced.
pub(super) fn unpin(pins: &Path) -> Result<(), DatapathError> {
    for (_, pin) in MAPS {
        let path = pins.join(pin);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DatapathError::failed(format!("remove {}", path.display()), &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A table and its index.
pub struct Indexed<V: Entry> {
    table: HashMap<MapData, Addr4, V>,
    /// The index, if the programs are this process's own. Whoever only opens the pins does not write.
    index: Option<Index<V>>,
}

struct Index<V: Entry> {
    array: Array<MapData, V>,
    /// Keys whose places are not empty. Nobody else writes the array, so this is complete.
    placed: BTreeSet<Addr4>,
    settings: Settings,
}

impl<V: Entry> Indexed<V> {
    /// A table that is only read.
    pub(super) fn read_only(table: HashMap<MapData, Addr4, V>) -> Self {
        Self { table, index: None }
    }

    /// Adds the index of freshly loaded programs.
    pub(super) fn take_index(&mut self, ebpf: &mut Ebpf, settings: &Settings) -> Result<(), DatapathError> {
        let (name, _) = V::INDEX;
        let map = ebpf
            .take_map(name)
            .ok_or_else(|| DatapathError::missing(format!("find map {name}"), "not in the object"))?;
        let array = map
            .try_into()
            .map_err(|error: MapError| DatapathError::failed(format!("use map {name}"), &error))?;
        self.index = Some(Index { array, placed: BTreeSet::new(), settings: *settings });
        Ok(())
    }

    /// Makes the index say what the table says, and returns how many entries it corrected.
    pub(super) fn mend(&mut self) -> Result<usize, DatapathError> {
        let entries = self.entries()?;
        let Some(index) = &mut self.index else { return Ok(0) };
        index.mend(&entries).map_err(|error| {
            DatapathError::failed(format!("put right the programs' index of {}", V::PLURAL), &error)
        })
    }

    /// The entry with this key: a container's address, or the base address of a peer's subnet.
    pub fn get(&self, key: Addr4) -> Option<V> {
        self.table.get(&key, 0).ok()
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// When the table is full.
    pub fn put(&mut self, key: Addr4, value: V) -> Result<(), MapError> {
        self.table.insert(key, value, 0)?;
        self.index.as_mut().map_or(Ok(()), |index| index.put(key, value))
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, key: Addr4) -> Result<(), MapError> {
        self.index.as_mut().map_or(Ok(()), |index| index.remove(key))?;
        self.table.remove(&key)
    }

    /// Every entry.
    pub fn entries(&self) -> Result<BTreeMap<Ipv4Addr, V>, DatapathError> {
        self.table
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.into(), value)))
            .collect::<Result<_, _>>()
            .map_err(|error| DatapathError::failed(format!("read the table of {}", V::PLURAL), &error))
    }
}

impl<V: Entry> Index<V> {
    fn put(&mut self, key: Addr4, value: V) -> Result<(), MapError> {
        let Some(number) = self.number(key) else { return Ok(()) };
        if !self.array.get(&number, 0)?.exists() {
            // The kernel copies eight bytes at a time, and no packet may see an address whose MAC address is still to come.
            self.array.set(number, value.concealed(), 0)?;
        }
        self.array.set(number, value, 0)?;
        self.placed.insert(key);
        Ok(())
    }

    fn remove(&mut self, key: Addr4) -> Result<(), MapError> {
        let Some(number) = self.number(key) else { return Ok(()) };
        self.array.set(number, V::default(), 0)?;
        self.placed.remove(&key);
        Ok(())
    }

    fn mend(&mut self, entries: &BTreeMap<Ipv4Addr, V>) -> Result<usize, MapError> {
        let is_stale = |key: &&Addr4| !entries.contains_key(&Ipv4Addr::from(**key));
        let stale: Vec<_> = self.placed.iter().filter(is_stale).copied().collect();
        for key in &stale {
            self.remove(*key)?;
        }
        let mut put = 0;
        for (key, value) in entries {
            let key = Addr4::from(*key);
            if !self.holds(key, value) {
                self.put(key, *value)?;
                put += 1;
            }
        }
        Ok(stale.len() + put)
    }

    /// Whether the index says this of the key. True also if it has no place for the key: then the programs do not ask it.
    fn holds(&self, key: Addr4, value: &V) -> bool {
        self.number(key).is_none_or(|number| self.array.get(&number, 0).is_ok_and(|found| found == *value))
    }

    fn number(&self, key: Addr4) -> Option<u32> {
        (self.settings.flags & V::FLAG != 0).then(|| V::number(&self.settings, key))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_for_an_index_has_none() {
        let flags = |network: [u8; 4], subnet: [u8; 4]| {
            let wanted = Settings { network_mask: network, subnet_mask: subnet, ..Settings::default() };
            settings(&wanted).flags
        };
        const BOTH: u32 = SETTING_PEER_INDEX | SETTING_ENDPOINT_INDEX;
        assert_eq!(flags([255, 255, 0, 0], [255, 255, 255, 0]), BOTH);
        assert_eq!(flags([255, 0, 0, 0], [255, 255, 255, 240]), BOTH);
        assert_eq!(flags([255, 0, 0, 0], [255, 255, 255, 248]), SETTING_ENDPOINT_INDEX);
        assert_eq!(flags([255, 0, 0, 0], [255, 254, 0, 0]), SETTING_PEER_INDEX);
        assert_eq!(flags([0; 4], [0; 4]), SETTING_PEER_INDEX);
    }
}

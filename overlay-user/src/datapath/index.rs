//! Where the programs find peers and endpoints: arrays by the number of a subnet in Network, and of an address in the subnet.
//!
//! The tables of peers and endpoints are what people and agents read; an index says the same to the programs. It holds nothing
//! that its table does not: entries come after the table's and go before it. Each agent makes its own at the start, and fills
//! it before its programs take the place of the last agent's, which go on with theirs.
use std::{fs, io, path::Path};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, MapError},
};
use overlay_common::{
    Addr4, Endpoint, MAX_ENDPOINT_INDEX, MAX_PEER_INDEX, Peer, SETTING_ENDPOINT_INDEX, SETTING_PEER_INDEX,
    Settings,
};

use super::DatapathError;

/// Names of the maps in the programs, and of their pins.
pub(super) const MAPS: [(&str, &str); 2] =
    [("PEER_INDEX", "peer_index"), ("ENDPOINT_INDEX", "endpoint_index")];

/// Both indexes of one network on this host.
pub(super) struct Index {
    peers: Array<MapData, Peer>,
    endpoints: Array<MapData, Endpoint>,
    settings: Settings,
}

/// Settings that say which indexes there are: none for more than the programs' arrays may hold, whose table is asked then.
pub(super) fn settings(settings: &Settings) -> Settings {
    let mut indexed = *settings;
    indexed.flags &= !(SETTING_PEER_INDEX | SETTING_ENDPOINT_INDEX);
    if settings.subnets() <= MAX_PEER_INDEX.into() {
        indexed.flags |= SETTING_PEER_INDEX;
    }
    if settings.addresses() <= MAX_ENDPOINT_INDEX.into() {
        indexed.flags |= SETTING_ENDPOINT_INDEX;
    }
    indexed
}

/// Tells the loader how long they are.
pub(super) fn size(loader: &mut EbpfLoader<'_>, settings: &Settings) {
    let length = |flag, entries: u64| if settings.flags & flag == 0 { 1 } else { entries as u32 };
    loader.map_max_entries("PEER_INDEX", length(SETTING_PEER_INDEX, settings.subnets()));
    loader.map_max_entries("ENDPOINT_INDEX", length(SETTING_ENDPOINT_INDEX, settings.addresses()));
}

/// Forgets the last agent's, whose programs keep them until they are replaced.
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

impl Index {
    /// Those of freshly loaded programs.
    pub(super) fn take(ebpf: &mut Ebpf, settings: &Settings) -> Result<Self, DatapathError> {
        let [peers, endpoints] = MAPS;
        Ok(Self { peers: array(ebpf, peers.0)?, endpoints: array(ebpf, endpoints.0)?, settings: *settings })
    }

    /// Has the programs find this peer for the subnet with this base address.
    pub(super) fn put_peer(&mut self, base: Addr4, peer: Peer) -> Result<(), MapError> {
        let Some(number) = self.peer_number(base) else { return Ok(()) };
        if !is_peer(&self.peers.get(&number, 0)?) {
            // The kernel copies eight bytes at a time: no packet may see an address whose MAC is still to come.
            self.peers.set(number, Peer { outer: [0; 4], ..peer }, 0)?;
        }
        self.peers.set(number, peer, 0)
    }

    /// Has them find none.
    pub(super) fn remove_peer(&mut self, base: Addr4) -> Result<(), MapError> {
        self.peer_number(base).map_or(Ok(()), |number| self.peers.set(number, Peer::default(), 0))
    }

    /// Has the programs find this endpoint.
    pub(super) fn put_endpoint(&mut self, address: Addr4, endpoint: Endpoint) -> Result<(), MapError> {
        let Some(number) = self.endpoint_number(address) else { return Ok(()) };
        if !is_endpoint(&self.endpoints.get(&number, 0)?) {
            // As for peers.
            self.endpoints.set(number, Endpoint { ifindex: 0, ..endpoint }, 0)?;
        }
        self.endpoints.set(number, endpoint, 0)
    }

    /// Has them find none.
    pub(super) fn remove_endpoint(&mut self, address: Addr4) -> Result<(), MapError> {
        self.endpoint_number(address)
            .map_or(Ok(()), |number| self.endpoints.set(number, Endpoint::default(), 0))
    }

    /// Whether the programs find this peer.
    pub(super) fn has_peer(&self, base: Addr4, peer: &Peer) -> bool {
        self.peer_number(base)
            .is_none_or(|number| self.peers.get(&number, 0).is_ok_and(|found| found == *peer))
    }

    /// Whether they find this endpoint.
    pub(super) fn has_endpoint(&self, address: Addr4, endpoint: &Endpoint) -> bool {
        self.endpoint_number(address)
            .is_none_or(|number| self.endpoints.get(&number, 0).is_ok_and(|found| found == *endpoint))
    }

    /// Nothing where there is no index, or no place in it: what is outside Network the programs ask no table about.
    fn peer_number(&self, base: Addr4) -> Option<u32> {
        let is_there = self.settings.flags & SETTING_PEER_INDEX != 0;
        is_there.then(|| self.settings.subnet_number(base))?
    }

    fn endpoint_number(&self, address: Addr4) -> Option<u32> {
        let is_there = self.settings.flags & SETTING_ENDPOINT_INDEX != 0;
        is_there.then(|| self.settings.address_number(address))?
    }
}

fn is_peer(entry: &Peer) -> bool {
    entry.outer != [0; 4]
}

fn is_endpoint(entry: &Endpoint) -> bool {
    entry.ifindex != 0
}

fn array<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, V>, DatapathError> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| DatapathError::missing(format!("find map {name}"), "not in the object"))?;
    map.try_into().map_err(|error: MapError| DatapathError::failed(format!("use map {name}"), &error))
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

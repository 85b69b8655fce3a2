//! The tables of IPv6, and the programs for IPv6, which those for IPv4 call. Where the network has no IPv6, nothing of this is pinned.
use std::{fs, io, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, ProgramArray},
    programs::{ProgramError, SchedClassifier},
};
use overlay_common::{Addr6, EndpointEntry, Ipv6Program, PeerEntry, Settings6, Vtep};

use super::{DatapathError, error::load_again, stack_flows::StackFlows};
use crate::model::fast_path::FastPath;

/// Names of the maps in the programs, and of their pins.
pub const MAPS: [(&str, &str); 8] = [
    ("PEERS6", "peers6"),
    ("VTEPS6", "vteps6"),
    ("ENDPOINTS6", "endpoints6"),
    ("STACK_FLOWS6", "stack_flows6"),
    ("FLOW_MARKS6", "flow_marks6"),
    ("FLOW_MARKS_HALF6", "flow_marks_half6"),
    ("FAST_PATH6", "fast_path6"),
    PROGRAMS,
];

/// The array of programs, and its pin.
const PROGRAMS: (&str, &str) = ("IPV6_PROGRAMS", "ipv6_programs");

/// How many addresses of IPv6 there is room for, for each of IPv4: a container may have several.
const ADDRESSES: u32 = 4;

/// The maps that are pinned: all of them, or none.
pub(super) fn pinned(settings: &Settings6) -> &'static [(&'static str, &'static str)] {
    if settings.is_on() { &MAPS } else { &[] }
}

/// Unpins what a network had that has no IPv6 any more. Programs that use it keep it until they are replaced.
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

/// Tells the loader how large the tables are: as those of IPv4, or of one entry where there is no IPv6.
pub(super) fn size(loader: &mut EbpfLoader<'_>, settings: &Settings6, [peers, flows, endpoints]: [u32; 3]) {
    let or_one = |wanted: u32| if settings.is_on() { wanted } else { 1 };
    loader
        .map_max_entries("PEERS6", or_one(peers))
        // A peer whose address changes has two addresses for a moment.
        .map_max_entries("VTEPS6", or_one(peers.saturating_add(1)))
        .map_max_entries("STACK_FLOWS6", or_one(flows))
        .map_max_entries("ENDPOINTS6", or_one(endpoints.saturating_mul(ADDRESSES)));
}

/// Loads the programs for IPv6, and puts each where the one for IPv4 at the same hook looks for it. What has been there is replaced
/// in place, so that each packet meets one or the other.
pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let mut loaded = Vec::new();
    for program in Ipv6Program::ALL {
        let name = program.name();
        let classifier: &mut SchedClassifier = ebpf
            .program_mut(name)
            .ok_or_else(|| DatapathError::missing(format!("find program {name}"), "not in the object"))?
            .try_into()
            .map_err(|error: ProgramError| DatapathError::failed(format!("use program {name}"), &error))?;
        let failed = |error: ProgramError| DatapathError::failed(format!("load program {name}"), &error);
        load_again(|| classifier.load()).map_err(failed)?;
        let fd = classifier.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)?;
        loaded.push((program as u32, fd));
    }
    let failed = |error: &dyn std::error::Error| DatapathError::failed("hand IPv6 to its programs", error);
    let map = ebpf.map_mut(PROGRAMS.0);
    let map = map.ok_or_else(|| DatapathError::missing("find map IPV6_PROGRAMS", "not in the object"))?;
    let mut array = ProgramArray::try_from(map).map_err(|error| failed(&error))?;
    for (place, fd) in loaded {
        array.set(place, &fd, 0).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The tables of IPv6.
pub struct Tables6 {
    /// Peers by base address of their subnet.
    pub peers: HashMap<MapData, Addr6, PeerEntry<Addr6>>,
    /// Peers by underlay address.
    pub vteps: HashMap<MapData, Addr6, Vtep>,
    /// Containers by address.
    pub endpoints: HashMap<MapData, Addr6, EndpointEntry>,
    /// Connections that the stack has seen.
    pub stack_flows: StackFlows<Addr6>,
    fast_path: Array<MapData, u32>,
}

impl Tables6 {
    /// The maps that `map` gives for a name in the programs and the name of a pin. `epoch` is the promotion epoch, which both
    /// families share.
    pub(super) fn build(
        mut map: impl FnMut(&'static str, &'static str) -> Result<Map, DatapathError>,
        epoch: Array<MapData, u32>,
    ) -> Result<Self, DatapathError> {
        let wrong = |error: MapError| DatapathError::failed("use the maps of IPv6", &error);
        let [peers, vteps, endpoints, flows, marks, half, fast_path, _] = MAPS;
        Ok(Self {
            peers: map(peers.0, peers.1)?.try_into().map_err(wrong)?,
            vteps: map(vteps.0, vteps.1)?.try_into().map_err(wrong)?,
            endpoints: map(endpoints.0, endpoints.1)?.try_into().map_err(wrong)?,
            stack_flows: StackFlows {
                flows: map(flows.0, flows.1)?.try_into().map_err(wrong)?,
                marks: map(marks.0, marks.1)?.try_into().map_err(wrong)?,
                half: map(half.0, half.1)?.try_into().map_err(wrong)?,
                epoch,
            },
            fast_path: map(fast_path.0, fast_path.1)?.try_into().map_err(wrong)?,
        })
    }

    /// Tells the programs which packets of IPv6 to carry past the stack. It holds from the next packet on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_fast_path(&mut self, fast_path: FastPath) -> Result<(), DatapathError> {
        let written = self.fast_path.set(0, fast_path.number(), 0);
        written.map_err(|error| DatapathError::failed("write the map fast_path6", &error))
    }
}

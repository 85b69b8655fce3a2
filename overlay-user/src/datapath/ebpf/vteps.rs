//! The table of the peers' underlay addresses, made to agree with the peers.
use std::{collections::BTreeSet, net::Ipv4Addr};

use aya::maps::MapError;
use log::warn;
use overlay_common::{Addr4, Vtep};

use crate::datapath::{
    error::{DatapathError, removed},
    slots::Slots,
    tables::Tables,
};

/// Makes the underlay addresses those of the peers, and returns how many it corrected. An agent that was killed between its two
/// writes leaves an address that no peer has, which would count as a known peer for ever.
pub(super) fn mend(tables: &mut Tables, slots: &Slots) -> Result<usize, DatapathError> {
    let failed = |error| DatapathError::failed("put right the table of VTEPs", &error);
    let present: BTreeSet<Addr4> = tables.vteps.keys().collect::<Result<_, MapError>>().map_err(failed)?;
    let mut mended = 0;
    for address in present.iter().filter(|address| !slots.knows(**address)) {
        warn!("VTEP {} belongs to no peer: removing it", Ipv4Addr::from(*address));
        removed(tables.vteps.remove(address)).map_err(failed)?;
        mended += 1;
    }
    for (address, slot) in slots.addresses().filter(|(address, _)| !present.contains(address)) {
        warn!("peer {} is no VTEP: adding it", Ipv4Addr::from(address));
        tables.vteps.insert(address, Vtep { slot }, 0).map_err(failed)?;
        mended += 1;
    }
    Ok(mended)
}

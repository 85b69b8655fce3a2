//! What is pinned here stays this host's when the host's own address changes, or it takes another of its addresses.
use std::net::IpAddr;

use anyhow::Result;

use super::{paths::Paths, record::Record};

impl Paths {
    /// The public IP that the pins here were made for, if that was an address of this host and `public_ip` takes its place: it is
    /// gone, or another interface was chosen. The boot and the network namespace are the same, so the pins can be nobody else's.
    pub fn former_ip(&self, public_ip: IpAddr) -> Result<Option<IpAddr>> {
        let Some(found) = self.record()? else { return Ok(None) };
        let was_own = found.underlay_address == Some(found.public_ip);
        Ok((was_own && found.public_ip != public_ip && found.is_of_here()?).then_some(found.public_ip))
    }

    /// Writes into the record that this host's public IP is another one now. This is called once the lease says so: until then
    /// the lease is found by the former one.
    pub fn follow(&self, public_ip: IpAddr) -> Result<()> {
        match self.record()? {
            Some(found) => self.write(&Record { public_ip, ..found }),
            None => Ok(()),
        }
    }
}

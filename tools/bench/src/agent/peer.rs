//! Hosts that do not exist: their leases as flannel writes them, and the map entries that the agent must make of them.
use std::net::Ipv4Addr;

use overlay_common::{Addr4, PeerEntry};

/// How many such hosts there may be, of the network's /24 subnets.
pub const MOST: u32 = 30_000;
/// The network's config. The real host leases a subnet behind all of theirs.
pub const CONFIG: &str =
    r#"{"Network":"10.128.0.0/9","SubnetLen":24,"SubnetMin":"10.255.0.0","Backend":{"Type":"vxlan"}}"#;
/// The prefix of the leases' keys.
const PREFIX: &str = "/coreos.com/network/subnets/";

/// Host number `index`, counted from zero, after it has moved `moves` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Number of the host.
    pub index: u32,
    /// How often its addresses have changed.
    pub moves: u8,
}

impl Stranger {
    /// The host as it first came.
    pub fn new(index: u32) -> Self {
        Self { index, moves: 0 }
    }

    fn subnet(self) -> Ipv4Addr {
        // The first subnet stays free, as flannel keeps it.
        (u32::from(Ipv4Addr::new(10, 128, 0, 0)) + ((self.index + 1) << 8)).into()
    }

    fn public_ip(self) -> Ipv4Addr {
        let network = Ipv4Addr::new(172, 16, 0, 0);
        (u32::from(network) + (u32::from(self.moves % 16) << 16) + self.index).into()
    }

    fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.index.to_be_bytes();
        // The first byte marks a locally administered address.
        [0x02, self.moves, a, b, c, d]
    }

    /// The key of its lease in etcd.
    pub fn key(self) -> String {
        format!("{PREFIX}{}-24", self.subnet())
    }

    /// The value of its lease, byte for byte as flannel writes it.
    pub fn value(self) -> String {
        let mac = self.mac().map(|byte| format!("{byte:02x}")).join(":");
        format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#,
            self.public_ip()
        )
    }

    /// Its key in the map of peers.
    pub fn map_key(self) -> Addr4 {
        self.subnet().into()
    }

    /// Whether the map's entry describes this host as it is now.
    pub fn is_in(self, entry: &PeerEntry) -> bool {
        (entry.outer, entry.vtep_mac) == (self.public_ip().into(), self.mac())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_lease_is_flannels_and_names_what_the_map_must_hold() {
        let stranger = Stranger { index: 258, moves: 3 };
        assert_eq!(stranger.key(), "/coreos.com/network/subnets/10.129.3.0-24");
        assert_eq!(
            stranger.value(),
            r#"{"PublicIP":"172.19.1.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:03:00:00:01:02"}}"#
        );
        let entry =
            |outer| PeerEntry { outer: Addr4::new(outer), vtep_mac: stranger.mac(), flags: 0, slot: 0 };
        assert!(stranger.is_in(&entry([172, 19, 1, 2])));
        assert!(!stranger.is_in(&entry([172, 16, 1, 2])));
        assert!(!Stranger::new(258).is_in(&entry([172, 16, 1, 2])), "another MAC address");
    }

    #[test]
    fn all_have_addresses_of_their_own_inside_the_network() {
        let all = || (0..MOST).map(Stranger::new);
        assert_eq!(all().map(Stranger::subnet).collect::<BTreeSet<_>>().len(), MOST as usize);
        assert_eq!(all().map(Stranger::public_ip).collect::<BTreeSet<_>>().len(), MOST as usize);
        let last = Stranger { index: MOST - 1, moves: 15 };
        assert!(last.subnet() < Ipv4Addr::new(10, 255, 255, 0), "{}", last.subnet());
        assert!(last.public_ip() < Ipv4Addr::new(172, 32, 0, 0), "{}", last.public_ip());
    }
}

//! What was decided about local endpoints and ports, and what of it is not in force yet. Pure.
use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::{
    datapath::{Change, Installed},
    model::entries::{Endpoint, PortKind},
};

/// Decisions about endpoints and ports; `None` means "must not be there". What is in force without a decision (adopted
/// from an earlier run) is left alone.
#[derive(Debug, Default)]
pub struct Decided {
    endpoints: BTreeMap<Ipv4Addr, Option<Endpoint>>,
    ports: BTreeMap<u32, Option<PortKind>>,
}

impl Decided {
    /// Notes a decision before it is carried out. Peers are not this table's.
    pub fn note(&mut self, change: &Change) {
        match *change {
            Change::PutEndpoint(address, endpoint) => {
                self.endpoints.insert(address, Some(endpoint));
            }
            Change::RemoveEndpoint(address) => {
                self.endpoints.insert(address, None);
            }
            Change::Attach(port, kind) => {
                if !kind.is_containers() {
                    // There is one of them: the one before is gone.
                    self.ports.retain(|_, other| *other != Some(kind));
                }
                self.ports.insert(port, Some(kind));
            }
            Change::Detach(port) => {
                self.ports.insert(port, None);
            }
            Change::PutPeer(..) | Change::RemovePeer(_) | Change::Receives(..) => {}
        }
    }

    /// The interface is gone: nothing about it is worth trying again. The host's own devices stay wanted.
    pub fn forget_port(&mut self, port: u32) {
        self.ports.retain(|other, kind| *other != port || kind.is_some_and(|kind| !kind.is_containers()));
        self.endpoints.retain(|_, endpoint| endpoint.is_none_or(|endpoint| endpoint.port != port));
    }

    /// The host's own devices that should have programs and have none.
    pub fn bare(&self, installed: &Installed) -> Vec<PortKind> {
        let wanted = self.ports.iter().filter_map(|(port, kind)| Some((port, (*kind)?)));
        let bare =
            wanted.filter(|(port, kind)| !kind.is_containers() && installed.ports.get(port) != Some(kind));
        bare.map(|(_, kind)| kind).collect()
    }

    /// What makes `installed` agree with the decisions: ports before the endpoints behind them, removals last.
    /// Decisions to remove that are in force are forgotten.
    pub fn missing(&mut self, installed: &Installed) -> Vec<Change> {
        self.ports.retain(|port, kind| kind.is_some() || installed.ports.contains_key(port));
        self.endpoints
            .retain(|address, endpoint| endpoint.is_some() || installed.endpoints.contains_key(address));
        let attach = self.ports.iter().filter_map(|(&port, &kind)| {
            let kind = kind.filter(|kind| installed.ports.get(&port) != Some(kind))?;
            Some(Change::Attach(port, kind))
        });
        let put = self.endpoints.iter().filter_map(|(&address, &endpoint)| {
            let endpoint = endpoint.filter(|endpoint| installed.endpoints.get(&address) != Some(endpoint))?;
            Some(Change::PutEndpoint(address, endpoint))
        });
        let remove = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_none());
        let remove = remove.map(|(&address, _)| Change::RemoveEndpoint(address));
        let detach =
            self.ports.iter().filter(|(_, kind)| kind.is_none()).map(|(&port, _)| Change::Detach(port));
        attach.chain(put).chain(remove).chain(detach).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mac::Mac;

    fn endpoint(port: u32) -> Endpoint {
        Endpoint { port, mac: Mac([2; 6]), gateway_mac: Mac([4; 6]), pinned: false }
    }

    #[test]
    fn only_decisions_are_repaired_and_strangers_are_left_alone() {
        let (a, b, stranger) =
            (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 4));
        let mut decided = Decided::default();
        for change in [
            Change::Attach(7, PortKind::Veth),
            Change::PutEndpoint(a, endpoint(7)),
            Change::RemoveEndpoint(b),
            Change::Detach(8),
        ] {
            decided.note(&change);
        }
        let mut installed = Installed::default();
        assert_eq!(
            decided.missing(&installed),
            [Change::Attach(7, PortKind::Veth), Change::PutEndpoint(a, endpoint(7))]
        );
        installed.endpoints = BTreeMap::from([(a, endpoint(7)), (stranger, endpoint(9))]);
        installed.ports = BTreeMap::from([(7, PortKind::Veth), (9, PortKind::Veth)]);
        assert!(decided.missing(&installed).is_empty());
        decided.note(&Change::RemoveEndpoint(a));
        assert_eq!(decided.missing(&installed), [Change::RemoveEndpoint(a)]);
    }

    #[test]
    fn a_gone_port_takes_its_endpoints_along() {
        let mut decided = Decided::default();
        decided.note(&Change::Attach(7, PortKind::Veth));
        decided.note(&Change::PutEndpoint(Ipv4Addr::LOCALHOST, endpoint(7)));
        decided.forget_port(7);
        assert!(decided.missing(&Installed::default()).is_empty());
    }
}

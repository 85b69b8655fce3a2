//! The endpoints and ports that should be installed, and what of them is not in force yet. This module is pure: it calls
//! neither kernel nor store.
use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    datapath::Installed,
    model::change::LocalChange,
    model::entries::{Endpoint, PortKind},
};

/// The endpoints and ports that should be installed. `None` says that an endpoint or port must not be there. What is in force
/// although nobody decided on it, because it was adopted from an earlier run, is left alone.
#[derive(Debug, Default)]
pub struct Desired {
    endpoints: BTreeMap<IpAddr, Option<Endpoint>>,
    ports: BTreeMap<u32, Option<PortKind>>,
}

impl Desired {
    /// Records a decision before it is carried out.
    pub fn decide(&mut self, change: &LocalChange) {
        match *change {
            LocalChange::PutEndpoint(address, endpoint) => {
                self.endpoints.insert(address, Some(endpoint));
            }
            LocalChange::RemoveEndpoint(address) => {
                self.endpoints.insert(address, None);
            }
            LocalChange::Attach(port, kind) => {
                if !kind.is_containers() {
                    // The host has only one device of this kind, so this one has taken the place of the one before.
                    self.ports.retain(|_, other| *other != Some(kind));
                }
                self.ports.insert(port, Some(kind));
            }
            LocalChange::Detach(port) => {
                self.ports.insert(port, None);
            }
        }
    }

    /// Forgets the decisions about an interface that is gone, since it is useless to try them again. The host's own devices
    /// stay wanted.
    pub fn forget_port(&mut self, port: u32) {
        self.ports.retain(|other, kind| *other != port || kind.is_some_and(|kind| !kind.is_containers()));
        self.endpoints.retain(|_, endpoint| endpoint.is_none_or(|endpoint| endpoint.port != port));
    }

    /// The host's own devices that should have programs but have none.
    pub fn bare(&self, installed: &Installed) -> Vec<PortKind> {
        let wanted = self.ports.iter().filter_map(|(port, kind)| Some((port, (*kind)?)));
        let bare =
            wanted.filter(|(port, kind)| !kind.is_containers() && installed.ports.get(port) != Some(kind));
        bare.map(|(_, kind)| kind).collect()
    }

    /// The changes that make `installed` agree with the decisions: ports come before the endpoints behind them, and removals
    /// come last. Decisions to remove something are forgotten once it is gone.
    pub fn missing(&mut self, installed: &Installed) -> Vec<LocalChange> {
        self.ports.retain(|port, kind| kind.is_some() || installed.ports.contains_key(port));
        self.endpoints
            .retain(|address, endpoint| endpoint.is_some() || installed.endpoints.contains_key(address));
        let attach = self.ports.iter().filter_map(|(&port, &kind)| {
            let kind = kind.filter(|kind| installed.ports.get(&port) != Some(kind))?;
            Some(LocalChange::Attach(port, kind))
        });
        let put = self.endpoints.iter().filter_map(|(&address, &endpoint)| {
            let endpoint = endpoint.filter(|endpoint| installed.endpoints.get(&address) != Some(endpoint))?;
            Some(LocalChange::PutEndpoint(address, endpoint))
        });
        let remove = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_none());
        let remove = remove.map(|(&address, _)| LocalChange::RemoveEndpoint(address));
        let detach =
            self.ports.iter().filter(|(_, kind)| kind.is_none()).map(|(&port, _)| LocalChange::Detach(port));
        attach.chain(put).chain(remove).chain(detach).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{entries::ForeignTc, mac::Mac};

    fn endpoint(port: u32) -> Endpoint {
        Endpoint {
            port,
            mac: Mac([2; 6]),
            gateway_mac: Mac([4; 6]),
            pinned: false,
            foreign_tc: ForeignTc::default(),
            bridge: None,
        }
    }

    #[test]
    fn only_decisions_are_repaired_and_strangers_are_left_alone() {
        let (a, b, stranger) =
            (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]), IpAddr::from([10, 0, 0, 4]));
        let mut desired = Desired::default();
        for change in [
            LocalChange::Attach(7, PortKind::Veth),
            LocalChange::PutEndpoint(a, endpoint(7)),
            LocalChange::RemoveEndpoint(b),
            LocalChange::Detach(8),
        ] {
            desired.decide(&change);
        }
        let mut installed = Installed::default();
        assert_eq!(
            desired.missing(&installed),
            [LocalChange::Attach(7, PortKind::Veth), LocalChange::PutEndpoint(a, endpoint(7))]
        );
        installed.endpoints = BTreeMap::from([(a, endpoint(7)), (stranger, endpoint(9))]);
        installed.ports = BTreeMap::from([(7, PortKind::Veth), (9, PortKind::Veth)]);
        assert!(desired.missing(&installed).is_empty());
        desired.decide(&LocalChange::RemoveEndpoint(a));
        assert_eq!(desired.missing(&installed), [LocalChange::RemoveEndpoint(a)]);
    }

    #[test]
    fn a_gone_port_takes_its_endpoints_along() {
        let mut desired = Desired::default();
        desired.decide(&LocalChange::Attach(7, PortKind::Veth));
        desired.decide(&LocalChange::PutEndpoint(IpAddr::from([127, 0, 0, 1]), endpoint(7)));
        desired.forget_port(7);
        assert!(desired.missing(&Installed::default()).is_empty());
    }
}

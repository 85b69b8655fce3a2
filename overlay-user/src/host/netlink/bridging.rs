//! Reads what a bridge does to the frames that it forwards, from what the kernel tells of a bridge or of a port.
use netlink_packet_core::Nla as _;
use netlink_packet_route::{
    AddressFamily,
    link::{
        BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkInfo,
        LinkMessage, LinkProtoInfoBridge,
    },
};

use super::types::Bridging;

// From linux/if_link.h.
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_VLAN_TUNNEL: u16 = 29;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_BACKUP_PORT: u16 = 34;
const IFLA_BRPORT_LOCKED: u16 = 39;
/// `BR_STATE_FORWARDING` of linux/if_bridge.h.
const FORWARDING: u8 = 3;

/// What a bridge does there: of a bridge by its own settings, of a port by the port's.
pub(super) fn of_link(message: &LinkMessage) -> Option<Bridging> {
    let promiscuous = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::Promiscuity(listeners) if *listeners > 0));
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(settings)) => {
            // Whoever listens at a promiscuous bridge gets a copy of every frame that it forwards.
            let copies = promiscuous.then_some("promisc on");
            Some(Bridging(settings.iter().filter_map(of_bridge).chain(copies).collect()))
        }
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            Some(Bridging(settings.iter().filter_map(of_port).collect()))
        }
        _ => None,
    })
}

/// Interface index of a port, and its settings, from what its bridge tells when they change. The kernel sends this in place of
/// news of the link, or beside it.
pub(super) fn of_news(message: &LinkMessage) -> Option<(u32, Bridging)> {
    if message.header.interface_family != AddressFamily::Bridge {
        return None;
    }
    let settings = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::ProtoInfoBridge(settings) => Some(settings),
        _ => None,
    })?;
    let one = |setting: &LinkProtoInfoBridge| {
        let mut value = vec![0; setting.value_len()];
        setting.emit_value(&mut value);
        of_numbered(setting.kind(), &value)
    };
    Some((message.header.index, Bridging(settings.iter().filter_map(one).collect())))
}

/// The words of `ip link` for a bridge's setting that makes it do more than forward.
fn of_bridge(setting: &InfoBridge) -> Option<&'static str> {
    match setting {
        InfoBridge::VlanFiltering(true) => Some("vlan_filtering 1"),
        InfoBridge::NfCallIpTables(true) => Some("nf_call_iptables 1"),
        // It forgets at once where a MAC address is, so that every port gets every frame.
        InfoBridge::AgeingTime(0) => Some("ageing_time 0"),
        _ => None,
    }
}

/// The words of `ip link` for a port's setting that makes the bridge do more, or less, than forward.
fn of_port(setting: &InfoBridgePort) -> Option<&'static str> {
    match *setting {
        InfoBridgePort::State(state) => of_state(state == BridgePortState::Forwarding),
        InfoBridgePort::Learning(on) => of_switch(IFLA_BRPORT_LEARNING, on),
        InfoBridgePort::UnicastFlood(on) => of_switch(IFLA_BRPORT_UNICAST_FLOOD, on),
        InfoBridgePort::VlanTunnel(on) => of_switch(IFLA_BRPORT_VLAN_TUNNEL, on),
        InfoBridgePort::Isolated(on) => of_switch(IFLA_BRPORT_ISOLATED, on),
        InfoBridgePort::BackupPort(port) => of_switch(IFLA_BRPORT_BACKUP_PORT, port != 0),
        InfoBridgePort::Locked(on) => of_switch(IFLA_BRPORT_LOCKED, on),
        _ => None,
    }
}

/// The same by the kernel's number of the setting.
fn of_numbered(number: u16, value: &[u8]) -> Option<&'static str> {
    match number {
        IFLA_BRPORT_STATE => of_state(value == [FORWARDING]),
        _ => of_switch(number, value.iter().any(|byte| *byte != 0)),
    }
}

/// A port forwards in one state alone (IEEE 802.1D section 7.4), in which every port is that takes no part in spanning trees.
fn of_state(forwards: bool) -> Option<&'static str> {
    (!forwards).then_some("state other than forwarding")
}

fn of_switch(number: u16, on: bool) -> Option<&'static str> {
    match (number, on) {
        (IFLA_BRPORT_LEARNING, false) => Some("learning off"),
        (IFLA_BRPORT_UNICAST_FLOOD, false) => Some("flood off"),
        (IFLA_BRPORT_VLAN_TUNNEL, true) => Some("vlan_tunnel on"),
        (IFLA_BRPORT_ISOLATED, true) => Some("isolated on"),
        (IFLA_BRPORT_BACKUP_PORT, true) => Some("backup_port"),
        (IFLA_BRPORT_LOCKED, true) => Some("locked on"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(infos: Vec<LinkInfo>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::LinkInfo(infos)];
        message
    }

    #[test]
    fn a_bridge_and_a_port_by_the_kernels_defaults_only_forward() {
        let bridge = [InfoBridge::VlanFiltering(false), InfoBridge::AgeingTime(30_000)];
        let plain = message(vec![LinkInfo::Data(InfoData::Bridge(bridge.into()))]);
        assert_eq!(of_link(&plain), Some(Bridging::default()));
        let port = [
            InfoBridgePort::State(BridgePortState::Forwarding),
            InfoBridgePort::Learning(true),
            InfoBridgePort::UnicastFlood(true),
            InfoBridgePort::HairpinMode(true),
            InfoBridgePort::Isolated(false),
            InfoBridgePort::Locked(false),
        ];
        let plain = message(vec![LinkInfo::PortData(InfoPortData::BridgePort(port.into()))]);
        assert_eq!(of_link(&plain), Some(Bridging::default()));
        assert_eq!(of_link(&message(Vec::new())), None);
        assert_eq!(of_link(&LinkMessage::default()), None);
    }

    #[test]
    fn each_setting_that_does_more_is_named() {
        let bridge =
            [InfoBridge::VlanFiltering(true), InfoBridge::NfCallIpTables(true), InfoBridge::AgeingTime(0)];
        let mut odd = message(vec![LinkInfo::Data(InfoData::Bridge(bridge.into()))]);
        odd.attributes.push(LinkAttribute::Promiscuity(1));
        let named = ["vlan_filtering 1", "nf_call_iptables 1", "ageing_time 0", "promisc on"];
        assert_eq!(of_link(&odd), Some(Bridging(named.into())));
        let port = [
            InfoBridgePort::State(BridgePortState::Blocking),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::VlanTunnel(true),
            InfoBridgePort::Isolated(true),
            InfoBridgePort::BackupPort(7),
            InfoBridgePort::Locked(true),
        ];
        let named = [
            "state other than forwarding",
            "learning off",
            "flood off",
            "vlan_tunnel on",
            "isolated on",
            "backup_port",
            "locked on",
        ];
        let odd = message(vec![LinkInfo::PortData(InfoPortData::BridgePort(port.into()))]);
        assert_eq!(of_link(&odd), Some(Bridging(named.into())));
        let values: [(u16, &[u8]); 7] = [
            (IFLA_BRPORT_STATE, &[4]),
            (IFLA_BRPORT_LEARNING, &[0]),
            (IFLA_BRPORT_UNICAST_FLOOD, &[0]),
            (IFLA_BRPORT_VLAN_TUNNEL, &[1]),
            (IFLA_BRPORT_ISOLATED, &[1]),
            (IFLA_BRPORT_BACKUP_PORT, &[7, 0, 0, 0]),
            (IFLA_BRPORT_LOCKED, &[1]),
        ];
        assert_eq!(values.map(|(number, value)| of_numbered(number, value)), named.map(Some));
        assert_eq!(of_numbered(IFLA_BRPORT_STATE, &[FORWARDING]), None);
    }
}

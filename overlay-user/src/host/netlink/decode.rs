//! Translates kernel messages into the overlay's types. A message that does not concern the overlay becomes `None`.
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::Nla as _;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        InfoData, InfoKind, InfoTun, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    tc::{TcAttribute, TcHandle, TcMessage, TcStats2},
};

use super::{
    bridging,
    types::{
        Address, DeviceLosses, FdbEntry, FlaggedAddress, Ipv6Address, Link, LinkKind, LinkType, Neighbour,
        Route, TABLE_MAIN, Tun, Vxlan, Way,
    },
};
use crate::model::mac::Mac;

pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    // A bridge reports its ports with the family AF_BRIDGE, too. There, "deleted" means that the port left the bridge.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        link_type: LinkType(message.header.link_layer_type.into()),
        master: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        noarp: message.header.flags.contains(LinkFlags::Noarp),
        peer: None,
        peer_netns: None,
        bridging: bridging::of_link(message),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    Some(link)
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    let mut kind = LinkKind::Other(String::new());
    let (mut vxlan, mut tun) = (Vxlan::default(), Tun::default());
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::Vxlan) => kind = LinkKind::Vxlan(vxlan),
            LinkInfo::Kind(InfoKind::Tun) => kind = LinkKind::Tun(tun),
            LinkInfo::Kind(other) => kind = LinkKind::Other(other.to_string()),
            LinkInfo::Data(InfoData::Vxlan(attributes)) => {
                for attribute in attributes {
                    match attribute {
                        InfoVxlan::Id(vni) => vxlan.vni = *vni,
                        InfoVxlan::Port(port) => vxlan.port = *port,
                        InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = *on,
                        InfoVxlan::Vnifilter(on) => vxlan.vnifilter = *on,
                        _ => {}
                    }
                }
            }
            LinkInfo::Data(InfoData::Tun(attributes)) => {
                attributes.iter().for_each(|one| note_tun(&mut tun, one))
            }
            _ => {}
        }
    }
    match &mut kind {
        LinkKind::Vxlan(known) => *known = vxlan,
        LinkKind::Tun(known) => *known = tun,
        _ => {}
    }
    kind
}

/// The attributes of a TUN, `IFLA_TUN_*` of linux/if_link.h. The crates do not know them yet.
fn note_tun(tun: &mut Tun, attribute: &InfoTun) {
    const OWNER: u16 = 1;
    const TYPE: u16 = 3;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    match (attribute.kind(), value.as_slice()) {
        (OWNER, &[a, b, c, d]) => tun.owner = Some(u32::from_ne_bytes([a, b, c, d])),
        // IFF_TAP.
        (TYPE, &[kind]) => tun.is_tap = kind == 2,
        (PERSIST, &[on]) => tun.is_persistent = on != 0,
        (MULTI_QUEUE, &[on]) => tun.is_multi_queue = on != 0,
        _ => {}
    }
}

pub(super) fn losses(message: &LinkMessage) -> Option<DeviceLosses> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut losses = DeviceLosses {
        index: message.header.index,
        no_carrier: flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::LowerUp),
        ..DeviceLosses::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => losses.name.clone_from(name),
            LinkAttribute::Stats64(stats) => {
                losses.rx_errors = stats.rx_errors;
                losses.rx_dropped = stats.rx_dropped;
                losses.rx_missed = stats.rx_missed_errors;
                losses.tx_errors = stats.tx_errors;
                losses.tx_dropped = stats.tx_dropped;
            }
            _ => {}
        }
    }
    Some(losses)
}

/// Interface index, and what one queueing discipline dropped. A classful discipline counts its children's drops as its
/// own, and so does `mq` with its queues. Therefore only roots are looked at.
pub(super) fn queue_drops(message: &TcMessage) -> (u32, u64) {
    let index = message.header.index as u32;
    if message.header.parent != TcHandle::ROOT {
        return (index, 0);
    }
    let drops = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Stats2(stats) => stats.iter().find_map(|stats| match stats {
            TcStats2::Queue(queue) => Some(u64::from(queue.drops)),
            _ => None,
        }),
        _ => None,
    });
    (index, drops.unwrap_or(0))
}

/// Id of the driver's program, or of the generic one. If both exist, the kernel has an attribute for each.
pub(super) fn xdp_program(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(infos) => infos.iter().find_map(|info| match info {
            LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) if *id != 0 => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    // On a point-to-point link IFA_ADDRESS is the other end's address. IFA_LOCAL is always ours.
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) if address.is_ipv4() => Some(*address),
        _ => None,
    })?;
    Some(Address { link: message.header.index, address, prefix_len: message.header.prefix_len })
}

pub(super) fn flagged_address(message: &AddressMessage) -> Option<FlaggedAddress> {
    let has = |flag| message.header.flags.contains(flag);
    Some(FlaggedAddress {
        address: address(message)?,
        is_deprecated: has(AddressHeaderFlags::Deprecated),
        is_permanent: has(AddressHeaderFlags::Permanent),
        is_secondary: has(AddressHeaderFlags::Secondary),
    })
}

pub(super) fn ipv6_address(message: &AddressMessage) -> Option<Ipv6Address> {
    // The kernel adds IFA_LOCAL on point-to-point links alone. There IFA_ADDRESS is the other end's address.
    let of = |wants_local| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if wants_local && address.is_ipv6() => Some(*address),
            AddressAttribute::Address(address) if !wants_local && address.is_ipv6() => Some(*address),
            _ => None,
        })
    };
    let has = |flag| message.header.flags.contains(flag);
    Some(Ipv6Address {
        link: message.header.index,
        address: of(true).or_else(|| of(false))?,
        is_tentative: has(AddressHeaderFlags::Tentative),
        is_duplicate: has(AddressHeaderFlags::Dadfailed),
        is_deprecated: has(AddressHeaderFlags::Deprecated),
        // IFA_F_TEMPORARY is another name of IFA_F_SECONDARY.
        is_temporary: has(AddressHeaderFlags::Secondary),
        is_permanent: has(AddressHeaderFlags::Permanent),
    })
}

/// A route that leads further than this host's own links. The next hops of a multipath route stand in an attribute of their
/// own.
pub(super) fn way(message: &RouteMessage) -> Option<Way> {
    let route = route(message).filter(|route| route.table == TABLE_MAIN)?;
    let mut links = Vec::from_iter(route.link);
    let mut has_gateway = route.destination.prefix_len() == 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
            RouteAttribute::MultiPath(hops) => {
                has_gateway = true;
                links.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    has_gateway.then_some(Way { destination: route.destination, links, metric: route.metric })
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet || header.kind != RouteType::Unicast {
        return None;
    }
    let mut destination = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let mut route = Route {
        destination: IpNet::default(),
        link: None,
        gateway: None,
        source: None,
        metric: 0,
        table: u32::from(header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = (*address).into(),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => route.source = Some((*address).into()),
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.family != AddressFamily::Inet || !has_mac(message.header.state) {
        return None;
    }
    Some(Neighbour {
        link: message.header.ifindex,
        address: destination(message)?,
        mac: link_layer(message)?,
    })
}

/// Link and address of a neighbour entry, whatever its state is.
pub(super) fn neighbour_key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    (message.header.family == AddressFamily::Inet).then_some(())?;
    Some((message.header.ifindex, destination(message)?))
}

pub(super) fn fdb_entry(message: &NeighbourMessage) -> Option<FdbEntry> {
    // Permanent entries are the addresses of the bridge itself and of its ports.
    if message.header.family != AddressFamily::Bridge || message.header.state == NeighbourState::Permanent {
        return None;
    }
    let bridge = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Controller(index) => Some(*index),
        _ => None,
    })?;
    Some(FdbEntry { bridge, mac: link_layer(message)?, port: message.header.ifindex })
}

fn has_mac(state: NeighbourState) -> bool {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    matches!(state, Reachable | Stale | Delay | Probe | Permanent)
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        _ => None,
    })
}

fn link_layer(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

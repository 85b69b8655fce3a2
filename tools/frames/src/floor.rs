//! A host whose containers' packets to one peer are carried by the floor's programs, which have everything ready.
use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, Pod, include_bytes_aligned, maps::Array};
use nix::net::if_::if_nametoindex;
use overlay_common::{
    Addr4,
    bench::{FloorEndpoint, FloorPeer},
    checksum,
    header::{ethernet, ipv4, udp},
    wire::{DATAGRAM, ETHERNET, ETHERTYPE_IPV4, INNER, IPV4, Outer, Vxlan},
};
use serde::{Deserialize, Serialize};

use crate::lasting;

#[derive(Deserialize)]
pub(crate) struct Specification {
    /// The interface that leads to the peer, in the network namespace that this program was started in.
    underlay: String,
    containers: Vec<Container>,
    peer: Peer,
    /// Underlay address of this host.
    local: Ipv4Addr,
    /// MAC address of the underlay interface.
    local_mac: [u8; 6],
    vni: u32,
    /// UDP port of the tunnel.
    port: u16,
    /// Where the programs' links are pinned. The host has the floor as long as they are there.
    pins: PathBuf,
}

#[derive(Deserialize)]
struct Container {
    address: Ipv4Addr,
    /// Its veth on the host.
    port: String,
    mac: [u8; 6],
    /// MAC address of the container's gateway.
    gateway_mac: [u8; 6],
}

#[derive(Deserialize)]
struct Peer {
    /// The first address of its subnet, which has 256.
    subnet: Ipv4Addr,
    /// Underlay address and MAC address.
    address: Ipv4Addr,
    mac: [u8; 6],
}

#[derive(Serialize)]
pub(crate) struct Laid {
    containers: usize,
}

/// Source port of all outer headers, since a hash for each packet is nothing that a data path cannot do without.
const SOURCE_PORT: u16 = 49_152;
/// MAC address in both places of the inner Ethernet header. Nobody reads it.
const INNER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(crate) fn lay(specification: &Specification) -> Result<Laid> {
    let Specification { underlay, containers, peer, port, pins, .. } = specification;
    let index = |name: &str| if_nametoindex(name).with_context(|| format!("no interface {name}"));
    let port = u16::from_ne_bytes(port.to_be_bytes());
    let mut ebpf = EbpfLoader::new()
        .override_global("PORT", &port, true)
        .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay-floor")))
        .context("load the floor's programs")?;
    let [_, _, subnet, _] = peer.subnet.octets();
    set(&mut ebpf, "PEERS", subnet, ready(specification, index(underlay)?))?;
    for Container { address, port, mac, gateway_mac } in containers {
        let [_, _, _, last] = address.octets();
        let endpoint = FloorEndpoint { macs: [*mac, *gateway_mac], ifindex: index(port)? };
        set(&mut ebpf, "ENDPOINTS", last, endpoint)?;
    }
    let ports = containers.iter().map(|container| container.port.as_str());
    lasting::attach(&mut ebpf, "overlay_encap", ports, pins, "floor")?;
    lasting::attach(&mut ebpf, "overlay_decap", [underlay.as_str()], pins, "floor")?;
    Ok(Laid { containers: containers.len() })
}

fn set<T: Pod>(ebpf: &mut Ebpf, map: &str, at: u8, value: T) -> Result<()> {
    let found = ebpf.map_mut(map).with_context(|| format!("no map {map}"))?;
    let mut places: Array<_, T> = Array::try_from(found).with_context(|| format!("map {map}"))?;
    places.set(at.into(), value, 0).with_context(|| format!("write place {at} of {map}"))
}

/// The headers of all packets to the peer.
fn ready(specification: &Specification, ifindex: u32) -> FloorPeer {
    let Specification { peer, local, local_mac, vni, port, .. } = specification;
    let mut bytes = [0; INNER];
    let (link, rest) = bytes.split_at_mut(ETHERNET);
    link[..ethernet::offset::SOURCE].copy_from_slice(&peer.mac);
    link[ethernet::offset::SOURCE..ethernet::offset::ETHERTYPE].copy_from_slice(local_mac);
    link[ethernet::offset::ETHERTYPE..].copy_from_slice(&ETHERTYPE_IPV4);
    let (datagram, vxlan) = rest.split_at_mut(DATAGRAM);
    let outer = Outer {
        source: Addr4::new(local.octets()),
        destination: Addr4::new(peer.address.octets()),
        tos: 0,
        // With DF set it means nothing (RFC 6864 section 4.1).
        identification: 0,
        dont_fragment: true,
        source_port: SOURCE_PORT,
        port: port.to_be_bytes(),
        payload: 0,
    };
    let mut written = [0; DATAGRAM];
    outer.write(&mut written);
    // What each packet's length decides is not ready.
    for field in [ipv4::offset::LENGTH, ipv4::offset::CHECKSUM, IPV4 + udp::offset::LENGTH] {
        written[field..field + 2].fill(0);
    }
    datagram.copy_from_slice(&written);
    let mut inside = [0; INNER - ETHERNET - DATAGRAM];
    let ethertype = ETHERTYPE_IPV4;
    Vxlan { vni: *vni, destination_mac: INNER_MAC, source_mac: INNER_MAC, ethertype }.write(&mut inside);
    vxlan.copy_from_slice(&inside);
    let mut headers = [0; INNER / 8];
    for (word, bytes) in headers.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    FloorPeer { headers, sum: checksum::sum_words(&written, 0, IPV4), ifindex }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_headers_become_those_of_any_writer_of_vxlan() {
        let specification = Specification {
            underlay: "eth0".to_owned(),
            containers: Vec::new(),
            peer: Peer {
                subnet: Ipv4Addr::new(10, 244, 2, 0),
                address: Ipv4Addr::new(10, 99, 0, 2),
                mac: [2, 2, 2, 2, 2, 2],
            },
            local: Ipv4Addr::new(10, 99, 0, 1),
            local_mac: [1, 1, 1, 1, 1, 1],
            vni: 1,
            port: 8472,
            pins: PathBuf::new(),
        };
        let peer = ready(&specification, 3);
        assert_eq!(peer.ifindex, 3);
        // The last is beyond 65,535 with the headers.
        for frame in [60_u32, 1464, 65_514] {
            let words = peer.headers_for(frame);
            let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let mut expected = [0; DATAGRAM];
            let payload = frame - ETHERNET as u32 + (INNER - ETHERNET - DATAGRAM) as u32;
            let [source, destination] = [[10, 99, 0, 1], [10, 99, 0, 2]].map(Addr4::new);
            Outer {
                source,
                destination,
                tos: 0,
                identification: 0,
                dont_fragment: true,
                source_port: SOURCE_PORT,
                port: 8472_u16.to_be_bytes(),
                payload,
            }
            .write(&mut expected);
            assert_eq!(bytes[ETHERNET..ETHERNET + DATAGRAM], expected, "{frame}");
            assert_eq!(bytes[..ETHERNET], [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 8, 0]);
            assert_eq!(bytes[ETHERNET + DATAGRAM..][..8], [8, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(bytes[INNER - 2..], ETHERTYPE_IPV4);
        }
    }
}

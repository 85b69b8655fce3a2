//! The slow cases of bare IPv4 in UDP, between the socket that holds the port and the TUN: datagrams that arrived in outer
//! fragments, which only the kernel can put together, and packets too large for the link, which only it can cut up.
//!
//! Nothing is decided here. What the socket takes gets its outer headers back, and `overlay_receive` judges it at the TUN as
//! it judges all else; what `overlay_send` leaves to us has its outer headers already. The socket also spares peers the
//! port-unreachables. Without an agent these cases are lost, and nothing else is.
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use log::{debug, info, warn};
use overlay_common::wire::{DATAGRAM, IPV4, Outer};
use tokio::{net::UdpSocket, time::sleep};
use tokio_tun::Tun;

use crate::netlink::Netlink;

/// Between two tries to open the TUN, which somebody may have deleted.
const RETRY: Duration = Duration::from_secs(1);
/// The largest IPv4 packet (RFC 791 section 3.1).
const LARGEST: usize = 65535;

/// The port could not be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "bind udp port {port} at {address}: {detail}; find who has it with `ss -ulnp 'sport = :{port}'` (flannel's udp backend \
     has it while flanneld runs) and stop it"
)]
pub struct PortTaken {
    address: Ipv4Addr,
    port: u16,
    detail: io::Error,
}

/// Takes the port, at the address that peers send to.
pub async fn bind(address: Ipv4Addr, port: u16) -> Result<UdpSocket, PortTaken> {
    UdpSocket::bind((address, port)).await.map_err(|detail| PortTaken { address, port, detail })
}

/// Relays between `socket` and the TUN called `device` for as long as it is polled. A TUN that goes is opened again once it
/// is back: opening makes what is not there.
pub async fn relay(socket: UdpSocket, device: String, netlink: Netlink) -> io::Result<()> {
    let SocketAddr::V4(local) = socket.local_addr()? else {
        return Err(io::Error::other("the socket is not one of IPv4"));
    };
    let (local, port) = (*local.ip(), local.port());
    let mut complaint = String::new();
    loop {
        if netlink.link_named(&device).await.is_ok_and(|link| link.is_some()) {
            let ended = match Tun::builder().name(&device).build() {
                Ok(tuns) => {
                    complaint.clear();
                    carry(&socket, &tuns[0], local, port).await
                }
                Err(error) => io::Error::other(error),
            };
            let text = ended.to_string();
            if text != complaint {
                warn!("{device}: {text}; datagrams in fragments wait until it can be read again");
                complaint = text;
            }
        }
        sleep(RETRY).await;
    }
}

async fn carry(socket: &UdpSocket, tun: &Tun, local: Ipv4Addr, port: u16) -> io::Error {
    info!("relaying fragmented datagrams between udp port {port} and {}", tun.name());
    let (mut inward, mut outward) = (vec![0; LARGEST], vec![0; LARGEST]);
    loop {
        tokio::select! {
            received = socket.recv_from(&mut inward[DATAGRAM..]) => match received {
                Ok((length, SocketAddr::V4(from))) => {
                    let packet = &mut inward[..DATAGRAM + length];
                    put_headers(packet, (*from.ip(), from.port()), (local, port));
                    // Refused while the device is down.
                    if let Err(error) = tun.send(packet).await {
                        debug!("to {}: {error}", tun.name());
                    }
                }
                Ok(_) => {}
                Err(error) => debug!("udp port {port}: {error}"),
            },
            read = tun.recv(&mut outward) => match read {
                Ok(length) => {
                    if let Some((peer, payload)) = datagram(&outward[..length], local, port)
                        && let Err(error) = socket.send_to(payload, (peer, port)).await
                    {
                        debug!("to {peer}: {error}");
                    }
                }
                // Deleted, or of another process.
                Err(error) => return error,
            },
        }
    }
}

/// The outer headers of a datagram as it came, in front of its payload. ECN's bits are not known any more.
fn put_headers(packet: &mut [u8], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let payload = packet.len().saturating_sub(DATAGRAM) as u32;
    if let Some(headers) = packet.first_chunk_mut() {
        let outer = Outer {
            source: from.0.octets(),
            destination: to.0.octets(),
            tos: 0,
            identification: 0,
            dont_fragment: false,
            source_port: from.1,
            port: to.1.to_be_bytes(),
            payload,
        };
        outer.write(headers);
    }
}

/// Whom a packet that `overlay_send` has wrapped is for, and what is in it. Anything else at the TUN has met no program,
/// and must not leave.
fn datagram(packet: &[u8], local: Ipv4Addr, port: u16) -> Option<(Ipv4Addr, &[u8])> {
    let headers: &[u8; DATAGRAM] = packet.first_chunk()?;
    let is_ours = headers[0] == 0x45
        && headers[9] == 17
        && headers[12..16] == local.octets()
        && headers[IPV4 + 2..IPV4 + 4] == port.to_be_bytes();
    let peer = Ipv4Addr::from([headers[16], headers[17], headers[18], headers[19]]);
    is_ours.then_some((peer, &packet[DATAGRAM..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

    #[test]
    fn only_what_is_wrapped_leaves_and_for_its_peer() {
        let mut packet = [7; DATAGRAM + 3];
        put_headers(&mut packet, (HERE, 50000), (PEER, 8285));
        assert_eq!(datagram(&packet, HERE, 8285), Some((PEER, &[7, 7, 7][..])));
        assert_eq!(packet[2..4], [0, 31]);
        assert_eq!(datagram(&packet, PEER, 8285), None);
        assert_eq!(datagram(&packet, HERE, 8286), None);
        assert_eq!(datagram(&packet[..DATAGRAM - 1], HERE, 8285), None);
        packet[9] = 6;
        assert_eq!(datagram(&packet, HERE, 8285), None);
    }
}

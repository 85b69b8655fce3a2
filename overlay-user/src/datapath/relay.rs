//! The slow cases of bare IPv4 in UDP, which the agent relays between a UDP socket and the TUN. They are datagrams that
//! arrive in outer fragments, which only the kernel can put together, and packets that are too large for the link, which
//! only the kernel can divide into fragments.
//!
//! What the socket receives gets its outer headers back, so that `overlay_receive` checks it at the TUN as it checks everything
//! else. What `overlay_send` leaves to us it has checked already. Because the socket is open, the kernel also answers peers with
//! no port unreachable. Without an agent these cases are lost, and nothing else is.
mod unfinished;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::anyhow;
use ipnet::{IpNet, Ipv4Net};
use log::{debug, info, warn};
use nix::{errno::Errno, net::if_::if_nametoindex};
use overlay_common::{
    Addr4,
    wire::{DATAGRAM, IPV4, Outer},
};
use tokio::{net::UdpSocket, sync::watch, time::sleep};
use tokio_tun::Tun;

use crate::{
    datapath::{DatapathError, tables::Tables},
    model::addr::ipv4_net,
};

/// The first pause between two tries to open the TUN, and the longest. Each pause is twice as long as the one before.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After this many failed tries the agent ends, so that it is started again. Each failed try may cost a file descriptor,
/// because tokio-tun 0.16 keeps a descriptor open that it could not attach.
const TRIES: u32 = 100;
/// The largest IPv4 packet (RFC 791 section 3.1).
const LARGEST: usize = 65535;

/// Opens the socket, at the address and port that peers send to.
pub async fn bind(address: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    UdpSocket::bind((address, port)).await.map_err(|error| {
        anyhow!(
            "bind udp port {port} at {address}: {error}; find who has it with `ss -ulnp 'sport = :{port}'` (flannel's udp \
             backend has it while flanneld runs) and stop it"
        )
    })
}

/// Relays between `socket` and the TUN called `device`, with the peers in `routes`, as long as it is polled. `attached` has
/// the index of the TUN whose programs are attached. No other TUN is opened, and when the index changes, the TUN with the
/// former index is closed.
pub async fn relay(
    socket: UdpSocket,
    device: String,
    mut attached: watch::Receiver<u32>,
    routes: Routes,
) -> io::Result<()> {
    let SocketAddr::V4(local) = socket.local_addr()? else {
        return Err(io::Error::other("the socket is not one of IPv4"));
    };
    let local = (*local.ip(), local.port());
    let (mut pause, mut failed) = (PAUSE.0, 0);
    loop {
        let ifindex = *attached.borrow_and_update();
        let why = match open(&device, ifindex) {
            Ok(tun) => {
                (pause, failed) = (PAUSE.0, 0);
                tokio::select! {
                    error = carry(&socket, &tun, local, &routes) => error,
                    // After the device was deleted, reading from its file waits for ever.
                    changed = attached.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return Ok(()),
                    },
                }
            }
            Err(error) => error,
        };
        failed += 1;
        if failed == TRIES {
            let why = format!("read packets of {device}: {why}; who else has it open? `lsof /dev/net/tun`");
            return Err(io::Error::other(why));
        }
        warn!("read packets of {device}: {why}; datagrams in fragments wait, next try in {pause:?}");
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(PAUSE.1),
            changed = attached.changed() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

/// Opens the TUN with this name and this index. A TUN with the same name but another index is new or another program's.
fn open(device: &str, ifindex: u32) -> io::Result<Tun> {
    // Opening by a name makes a TUN if no interface has the name.
    let is_there = |index: Result<u32, _>| index.is_ok_and(|index| index == ifindex);
    if !is_there(if_nametoindex(device).map_err(drop)) {
        return Err(io::Error::other("it is not there"));
    }
    let tuns = Tun::builder().name(device).build().map_err(io::Error::other)?;
    let tun = tuns.into_iter().next().ok_or_else(|| io::Error::other("no queue"))?;
    if is_there(tun.index().map_err(drop)) { Ok(tun) } else { Err(io::Error::other("it was replaced")) }
}

async fn carry(socket: &UdpSocket, tun: &Tun, local: (Ipv4Addr, u16), routes: &Routes) -> io::Error {
    let port = local.1;
    info!("relaying fragmented datagrams between udp port {port} and {}", tun.name());
    let (mut inward, mut outward) = (vec![0; LARGEST], vec![0; LARGEST]);
    loop {
        tokio::select! {
            received = socket.recv_from(&mut inward[DATAGRAM..]) => match received {
                Ok((length, SocketAddr::V4(from))) => {
                    let packet = &mut inward[..DATAGRAM + length];
                    unfinished::finish(&mut packet[DATAGRAM..]);
                    put_headers(packet, (*from.ip(), from.port()), local);
                    match tun.send(packet).await {
                        Ok(_) => {}
                        // The TUN is down.
                        Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => debug!("{error}"),
                        Err(error) => return error,
                    }
                }
                Ok(_) => {}
                Err(error) => debug!("udp port {port}: {error}"),
            },
            read = tun.recv(&mut outward) => match read {
                Ok(length) => {
                    if let Some(peer) = routes.peer_of(&outward[..length])
                        && let Err(error) = socket.send_to(&outward[..length], (peer, port)).await
                    {
                        debug!("to {peer}: {error}");
                    }
                }
                // The TUN was deleted, or another process opened it.
                Err(error) => return error,
            },
        }
    }
}

/// Writes a datagram's outer headers in front of its payload, as they arrived. The bits of ECN are lost.
fn put_headers(packet: &mut [u8], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let payload = packet.len().saturating_sub(DATAGRAM) as u32;
    if let Some(headers) = packet.first_chunk_mut() {
        let outer = Outer::<Addr4> {
            source: from.0.into(),
            destination: to.0.into(),
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

/// Tells which peer a packet is for. It reads the same map as the programs.
pub struct Routes {
    tables: Tables,
    subnet: Ipv4Net,
}

impl Routes {
    /// The peers of the network that is pinned in `pins`, for the host with this subnet.
    ///
    /// # Errors
    /// When nothing is pinned there.
    pub fn open(pins: &Path, subnet: IpNet) -> Result<Self, DatapathError> {
        let subnet = ipv4_net(subnet).map_err(|error| DatapathError::failed("relay datagrams", &error))?;
        Ok(Self { tables: Tables::open(pins)?, subnet })
    }

    fn peer_of(&self, packet: &[u8]) -> Option<Ipv4Addr> {
        let key = subnet_of(packet, self.subnet.netmask())?;
        self.tables.peers.get(key).map(|peer| peer.outer.into())
    }
}

/// The base address of the subnet that an IPv4 packet is for. `None` for other packets from the TUN, such as IPv6, which
/// are not relayed.
fn subnet_of(packet: &[u8], mask: Ipv4Addr) -> Option<Addr4> {
    let header: &[u8; IPV4] = packet.first_chunk()?;
    let destination = Addr4::new([header[16], header[17], header[18], header[19]]);
    (header[0] >> 4 == 4).then(|| destination.masked(mask.octets()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

    #[test]
    fn headers_are_put_back_and_packets_find_their_subnet() {
        let mut packet = [7; DATAGRAM + 3];
        put_headers(&mut packet, (PEER, 50000), (HERE, 8285));
        assert_eq!(packet[2..4], [0, 31]);
        assert_eq!(packet[12..20], [10, 99, 0, 2, 10, 99, 0, 1]);
        assert_eq!(packet[20..26], [0xc3, 0x50, 0x20, 0x5d, 0, 11]);
        assert_eq!(packet[DATAGRAM..], [7, 7, 7]);
        let mask = Ipv4Addr::new(255, 255, 0, 0);
        assert_eq!(subnet_of(&packet, mask), Some(Addr4::new([10, 99, 0, 0])));
        assert_eq!(subnet_of(&packet[..IPV4 - 1], mask), None);
        packet[0] = 0x60;
        assert_eq!(subnet_of(&packet, mask), None);
    }
}

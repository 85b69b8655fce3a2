//! Announcements of addresses (gratuitous ARP, RFC 5227 section 3), which whoever takes an address over sends. The kernel keeps what
//! they say only for neighbours that it knows already, and it forgets those whose packets take the fast path.
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::Interest,
    net::UdpSocket,
    time::{Instant, sleep_until},
};

use crate::{
    host::netlink::Neighbour,
    learn::packet_filter::{self, Condition, ETHERTYPE_ARP, ETHERTYPE_IPV4, Field},
    model::mac::Mac,
};

/// The length of an ARP packet for Ethernet and IPv4.
const LENGTH: usize = 28;
/// The highest of the types, from linux/if_packet.h, of packets that are for this host or for all. A higher one is of packets to others
/// (which a promiscuous interface has, too), or of such as leave.
const PACKET_MULTICAST: u8 = 2;
/// How long the socket rests after it was read. It costs nothing that anybody would notice, and a flood wakes the agent no oftener.
const PAUSE: Duration = Duration::from_millis(5);
/// How many packets are read at once. The socket's queue has room for fewer by default.
const AT_ONCE: usize = 512;

/// A socket that receives the ARP packets of this thread's network namespace. On a bridge it has those that the bridge itself takes
/// in, as all that are broadcast. tokio has no type for such a socket; its type for UDP waits for any.
pub(super) struct Announcements {
    socket: UdpSocket,
    rests_until: Instant,
}

impl Announcements {
    /// Begins to listen for announcements of addresses of a subnet. This needs CAP_NET_RAW.
    pub(super) fn listen(subnet: IpNet) -> io::Result<Self> {
        let protocol = i32::from(ETHERTYPE_ARP.to_be());
        let domain = Domain::from(AddressFamily::Packet as i32);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::from(protocol)))?;
        packet_filter::attach(&socket, &filter(subnet))?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { socket, rests_until: Instant::now() })
    }

    /// Waits for the next announcements: who says on which link that which address is theirs. Of several that speak of the same
    /// address on the same link, the last counts.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Neighbour>> {
        loop {
            sleep_until(self.rests_until).await;
            self.socket.readable().await?;
            let announced = self.read()?;
            self.rests_until = Instant::now() + PAUSE;
            if !announced.is_empty() {
                return Ok(announced);
            }
        }
    }

    /// Reads what is there.
    fn read(&self) -> io::Result<Vec<Neighbour>> {
        let mut announced = BTreeMap::new();
        let mut packet = [0; LENGTH];
        for _ in 0..AT_ONCE {
            let receive = || Ok(recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut packet)?);
            let (length, from) = match self.socket.try_io(Interest::READABLE, receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                received => received?,
            };
            let Some(from) = from else { continue };
            let source = from.addr().map(Mac).filter(|_| from.halen() == 6);
            if let Some((address, mac)) = heard(&packet[..length], from.pkttype(), source) {
                announced.insert((from.ifindex() as u32, address), mac);
            }
        }
        Ok(announced.into_iter().map(|((link, address), mac)| Neighbour { link, address, mac }).collect())
    }
}

/// The packets that may announce an address of the subnet.
fn filter(subnet: IpNet) -> Vec<Condition> {
    let mut conditions = vec![
        Condition::AtMost(Field::PacketType, PACKET_MULTICAST.into()),
        Condition::Same(Field::Word(14), Field::Word(24)),
    ];
    if let IpNet::V4(subnet) = subnet {
        let (mask, network) = (subnet.netmask().to_bits(), subnet.network().to_bits());
        conditions.push(Condition::Masked(Field::Word(14), mask, network));
    }
    conditions
}

/// What a packet of this type, from this MAC address, announces. Whoever names another MAC address than its own speaks for somebody
/// else.
fn heard(packet: &[u8], packet_type: u8, source: Option<Mac>) -> Option<(IpAddr, Mac)> {
    let is_for_us = packet_type <= PACKET_MULTICAST;
    announcement(packet).filter(|(_, mac)| is_for_us && source == Some(*mac))
}

/// The address and its MAC address, if this ARP packet announces them: the sender's address is the target's, too.
fn announcement(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    let packet: &[u8; LENGTH] = packet.first_chunk()?;
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let is_announcement = number(0) == 1
        && number(2) == ETHERTYPE_IPV4
        && packet[4..6] == [6, 4]
        && matches!(number(6), 1 | 2)
        && packet[14..18] == packet[24..28];
    let address: [u8; 4] = *packet[14..].first_chunk()?;
    is_announcement.then_some((address.into(), Mac(*packet[8..].first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ARP packet about 10.244.1.2.
    fn packet(operation: u8, target: [u8; 4]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &[2, 0, 0, 0, 0, 0xb], &[10, 244, 1, 2], &[0; 6], &target].concat()
    }

    #[test]
    fn what_the_kernel_may_drop_unread_is_no_announcement_to_all_of_an_address_of_the_subnet() {
        let takes = |subnet: &str, packet: &[u8], packet_type| {
            packet_filter::takes(&filter(subnet.parse().unwrap()), packet, 7, packet_type)
        };
        let (announced, asked) = (packet(1, [10, 244, 1, 2]), packet(1, [10, 244, 1, 1]));
        // To the host, to all, to a group; to another host, and one that leaves.
        let by_type = [0, 1, 2, 3, 4].map(|packet_type| takes("10.244.1.0/24", &announced, packet_type));
        assert_eq!(by_type, [true, true, true, false, false]);
        assert!(!takes("10.244.1.0/24", &asked, 1));
        assert!(takes("10.244.0.0/16", &announced, 1) && !takes("10.244.2.0/24", &announced, 1));
        assert!(!takes("10.244.1.0/24", &announced[..LENGTH - 1], 1));
    }

    #[test]
    fn whoever_names_another_mac_address_than_its_own_announces_nothing() {
        let announced = packet(1, [10, 244, 1, 2]);
        let own = Mac([2, 0, 0, 0, 0, 0xb]);
        assert!(heard(&announced, 1, Some(own)).is_some());
        // The packet was on its way to another, or leaves.
        assert_eq!([3, 4].map(|packet_type| heard(&announced, packet_type, Some(own))), [None; 2]);
        assert_eq!(heard(&announced, 1, Some(Mac([2, 0, 0, 0, 0, 0xc]))), None);
        assert_eq!(heard(&announced, 1, None), None);
    }

    #[test]
    fn only_whoever_names_its_own_address_announces_it() {
        let expected = Some(([10, 244, 1, 2].into(), Mac([2, 0, 0, 0, 0, 0xb])));
        // Both forms are in use: requests (RFC 5227) and answers (as of VRRP's daemons).
        for operation in [1, 2] {
            assert_eq!(announcement(&packet(operation, [10, 244, 1, 2])), expected);
            assert_eq!(
                announcement(&packet(operation, [10, 244, 1, 1])),
                None,
                "it asks, or answers another"
            );
        }
        let whole = packet(1, [10, 244, 1, 2]);
        for length in 0..whole.len() {
            assert_eq!(announcement(&whole[..length]), None, "{length}");
        }
        for at in [0, 2, 4, 5, 6] {
            let mut other = whole.clone();
            other[at] ^= 0x40;
            assert_eq!(announcement(&other), None, "byte {at}");
        }
        assert_eq!(announcement(&packet(8, [10, 244, 1, 2])), None, "of inverse ARP");
    }
}

//! A real overlay0: a test run gives a program an Ethernet header whatever the interface, and a TUN's packets have none. So
//! these programs are attached, packets go in by the TUN or by the stack, and what comes out is read from a packet socket.
use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use aya::programs::TcAttachType;
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn,
            SockaddrLike as _, bind, recvfrom, send, sendto, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use overlay_common::{Hook, Reason};
use tokio::runtime::Runtime;
use tokio_tun::Tun;

use super::bed::*;
use crate::support::{ip, sysctl};

/// Patience with what must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A packet socket on one interface: behind the programs there when it receives.
pub struct Wire {
    fd: OwnedFd,
    ifindex: usize,
}

impl Wire {
    pub fn on(interface: &str, protocol: SockProtocol) -> Self {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        let address = getifaddrs()
            .unwrap()
            .filter(|entry| entry.interface_name == interface)
            .filter_map(|entry| entry.address)
            .find(|address| address.family() == Some(AddressFamily::Packet));
        // A TUN has none: the socket hears every interface.
        if let Some(address) = address {
            bind(fd.as_raw_fd(), &address).unwrap();
        }
        let patience = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
        setsockopt(&fd, ReceiveTimeout, &patience).unwrap();
        Self { fd, ifindex: nix::net::if_::if_nametoindex(interface).unwrap() as usize }
    }

    pub fn send(&self, frame: &[u8]) {
        send(self.fd.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    /// The next frame; all that is sent comes in order.
    #[track_caller]
    pub fn next(&self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        loop {
            let received = recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer);
            let (length, from) = received.unwrap_or_else(|error| panic!("no frame came: {error}"));
            if from.is_some_and(|from| from.ifindex() == self.ifindex) {
                return buffer[..length].to_vec();
            }
        }
    }
}

/// A host whose overlay0 has its programs.
pub struct Host<'a> {
    pub bed: &'a mut Bed,
    /// The other end of the TUN, the agent's, if overlay0 is one.
    pub agent: Option<(Tun, Runtime)>,
    /// What enters the stack by overlay0.
    pub inside: Wire,
    /// The other end of the underlay.
    pub wire: Wire,
    /// The stack, as a source of packets.
    stack: OwnedFd,
}

/// overlay0 is a TUN. Packets are encapsulated in UDP, or not at all if `flags` say so.
pub fn with_tun(flags: u32, test: fn(&mut Host<'_>)) {
    with_settings(
        |settings| {
            bare(settings);
            ip("tuntap add dev overlay0 mode tun");
            settings.flags = flags;
            settings.device = nix::net::if_::if_nametoindex("overlay0").unwrap();
        },
        |bed| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tun = {
                let _inside = runtime.enter();
                Tun::builder().name("overlay0").build().unwrap().remove(0)
            };
            ip("link set overlay0 mtu 1472");
            test(&mut Host::up(bed, Some((tun, runtime))));
        },
    );
}

/// overlay0 is a VXLAN device, as the agent makes it.
pub fn with_vxlan(flags: u32, test: fn(&mut Host<'_>)) {
    with_settings(
        |settings| {
            ip(
                "link add overlay0 address 02:00:00:00:00:01 mtu 1450 type vxlan external dstport 8472 nolearning",
            );
            ip("link set overlay0 arp off");
            settings.flags = flags;
            settings.device = nix::net::if_::if_nametoindex("overlay0").unwrap();
        },
        |bed| test(&mut Host::up(bed, None)),
    );
}

impl<'a> Host<'a> {
    fn up(bed: &'a mut Bed, agent: Option<(Tun, Runtime)>) -> Self {
        bed.attach("overlay_receive", "overlay0", TcAttachType::Ingress);
        bed.attach("overlay_send", "overlay0", TcAttachType::Egress);
        bed.attach("overlay_decap", "eth0", TcAttachType::Ingress);
        sysctl("ipv6/conf/overlay0/disable_ipv6", "1");
        ip("addr add 10.244.1.0/32 dev overlay0");
        ip("link set overlay0 up");
        ip("route add 10.244.0.0/16 dev overlay0 src 10.244.1.0");
        // There is no bridge: what enters the stack for the container ends there, without an answer by overlay0.
        ip("route add blackhole 10.244.1.2/32");
        let raw = (AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Self {
            bed,
            agent,
            inside: Wire::on("overlay0", SockProtocol::EthIp),
            wire: Wire::on("wire", SockProtocol::EthIp),
            stack: socket(raw.0, raw.1, raw.2, raw.3).unwrap(),
        }
    }

    /// Has the packet arrive at the TUN, and returns what was counted: the kernel runs the program in this call.
    pub fn write(&mut self, packet: &[u8]) -> Vec<(Hook, Reason)> {
        let Some((tun, runtime)) = &self.agent else { panic!("overlay0 is no TUN") };
        let send = |_: &mut Bed| runtime.block_on(tun.send(packet)).unwrap();
        self.bed.counting(send).1
    }

    /// What goes past the programs to the agent.
    #[track_caller]
    pub fn read(&mut self) -> Vec<u8> {
        let Some((tun, runtime)) = &self.agent else { panic!("overlay0 is no TUN") };
        let mut buffer = [0; 4096];
        let read = runtime.block_on(async { tokio::time::timeout(PATIENCE, tun.recv(&mut buffer)).await });
        let length = read.expect("nothing went to the agent").unwrap();
        buffer[..length].to_vec()
    }

    /// Has the stack send the packet by overlay0, and returns what was counted.
    pub fn route(&mut self, packet: &[u8]) -> Vec<(Hook, Reason)> {
        let [.., a, b, c, d] = packet[..20] else { panic!("no header") };
        let to = SockaddrIn::new(a, b, c, d, 0);
        let stack = self.stack.as_raw_fd();
        let send = |_: &mut Bed| match sendto(stack, packet, &to, MsgFlags::empty()) {
            // A packet that a program dropped at egress.
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => panic!("send: {error}"),
        };
        self.bed.counting(send).1
    }

    /// The packet enters the stack as `left`.
    #[track_caller]
    pub fn enters(&mut self, packet: &[u8], left: &[u8]) {
        assert_eq!(self.write(packet), [(Hook::Receive, Reason::Carried)]);
        assert_eq!(self.inside.next(), left);
    }

    /// The packet is dropped, and the next one that enters is another.
    #[track_caller]
    pub fn is_dropped(&mut self, packet: &[u8], reason: Reason) {
        assert_eq!(self.write(packet), [(Hook::Receive, reason)], "{packet:02x?}");
        let sentinel = udp_with(REMOTE, CONTAINER, [7, 7], 7, |ip| ip[4] = 0x77);
        self.enters(&Datagram::default().packet(&sentinel), &sentinel);
    }
}

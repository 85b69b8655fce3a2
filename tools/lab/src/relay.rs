//! A userspace relay between hosts, with a TUN on one side and a UDP socket on the other. It moves packets as flannel's
//! UDP mode does (flannel pkg/backend/udp): with one thread and one packet in each system call, and with flannel's
//! weaknesses.
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{net, runtime, sync::oneshot};
use tokio_tun::Tun;

use self::packet::{net_unreachable, take_one_hop};
use crate::{
    command::sh,
    host::Host,
    subnet::{address_in, length_of},
};

mod packet;

/// Name of the TUN.
const DEVICE: &str = "flannel0";

/// A relay that runs until it is dropped. Its device ends with it.
#[derive(Debug)]
pub struct Relay {
    routes: Arc<Routes>,
    /// It is dropped to end the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The routes are searched from the front, and the one that is found is moved there, as flannel does.
#[derive(Debug, Default)]
struct Routes(Mutex<Vec<Route>>);

#[derive(Debug)]
struct Route {
    network: u32,
    mask: u32,
    to: Ipv4Addr,
}

/// What the thread works with.
struct Worker {
    tun: Tun,
    socket: UdpSocket,
    /// The same socket as tokio has it, which is waited for.
    waiting: net::UdpSocket,
    routes: Arc<Routes>,
    /// All hosts use this port, because no lease carries one.
    port: u16,
    /// The first address of the own subnet, from which ICMP messages are sent.
    own: Ipv4Addr,
    /// Holds one packet. The end of a longer packet is cut off silently.
    buffer: Vec<u8>,
}

impl Host {
    /// Relays between the containers of `subnet` on this host and the other subnets of `network`.
    pub fn start_relay(&self, subnet: &str, network: &str, port: u16) -> Result<Relay> {
        let (subnet, network) = (subnet.to_owned(), network.to_owned());
        let (local, mtu) = (self.address(), self.mtu()?);
        self.namespace().enter(move || Relay::start(&subnet, &network, local, port, mtu))
    }
}

impl Relay {
    /// Bytes that the outer headers take: IPv4's and UDP's.
    pub const OVERHEAD: u32 = 28;

    /// Makes the device and starts the relay in the network namespace of the calling thread. The host owns `subnet` of
    /// `network`, and has the address `local` on an underlay of this MTU.
    pub fn start(subnet: &str, network: &str, local: Ipv4Addr, port: u16, underlay_mtu: u32) -> Result<Self> {
        let own = address_in(subnet, 0)?;
        let mtu = underlay_mtu - Self::OVERHEAD;
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let tun = Tun::builder().name(DEVICE).close_on_exec().build();
        let tun = tun.with_context(|| format!("make the TUN {DEVICE}"))?.remove(0);
        sh(&format!("ip link set {DEVICE} mtu {mtu} up"))?;
        sh(&format!("ip address add {own}/32 dev {DEVICE}"))?;
        // One route serves all peers. The route to the own subnet, by the bridge, is more specific.
        sh(&format!("ip route add {network} dev {DEVICE}"))?;
        let socket = UdpSocket::bind((local, port)).with_context(|| format!("bind UDP {local}:{port}"))?;
        socket.set_nonblocking(true)?;

        let (waiting, buffer) = (net::UdpSocket::from_std(socket.try_clone()?)?, vec![0; mtu.try_into()?]);
        drop(entered);

        let (running, stopped) = oneshot::channel();
        let routes = Arc::<Routes>::default();
        let mut worker = Worker { tun, socket, waiting, routes: Arc::clone(&routes), port, own, buffer };
        let thread = thread::spawn(move || {
            if let Err(error) = runtime.block_on(worker.run(stopped)) {
                eprintln!("the relay at {local}:{port} ends: {error:#}");
            }
        });
        Ok(Self { routes, running: Some(running), thread: Some(thread) })
    }

    /// Has packets for `subnet` go to the host at `to` from now on.
    pub fn put_route(&self, subnet: &str, to: Ipv4Addr) -> Result<()> {
        let (network, mask) = prefix(subnet)?;
        let mut routes = self.routes.lock();
        routes.retain(|route| (route.network, route.mask) != (network, mask));
        routes.push(Route { network, mask, to });
        Ok(())
    }

    /// Has packets for `subnet` go to no host from now on. It is no error if there is no such route.
    pub fn remove_route(&self, subnet: &str) -> Result<()> {
        let (network, mask) = prefix(subnet)?;
        self.routes.lock().retain(|route| (route.network, route.mask) != (network, mask));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.take();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

fn prefix(subnet: &str) -> Result<(u32, u32)> {
    let (network, length) = (u32::from(address_in(subnet, 0)?), length_of(subnet)?);
    ensure!((1..=32).contains(&length), "{subnet}: a prefix of {length} bits");
    let mask = u32::MAX << (32 - length);
    Ok((network & mask, mask))
}

impl Worker {
    async fn run(&mut self, mut stopped: oneshot::Receiver<()>) -> Result<()> {
        loop {
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                read = self.tun.recv(&mut self.buffer) => {
                    let length = read.with_context(|| format!("read {DEVICE}"))?;
                    self.outwards(length);
                }
                ready = self.waiting.readable() => ready?,
            }
            // The two sides take turns, packet by packet, until neither has one.
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                let out =
                    some(self.tun.try_recv(&mut self.buffer)).with_context(|| format!("read {DEVICE}"))?;
                out.inspect(|length| self.outwards(*length));
                let back = self.received().context("read the socket")?;
                back.inspect(|length| self.inwards(*length));
                if out.is_none() && back.is_none() {
                    break;
                }
            }
        }
    }

    /// Reads the next datagram, if there is one.
    fn received(&mut self) -> std::io::Result<Option<usize>> {
        // tokio asks the kernel only for what it has been told is ready, and it learns that nothing is ready any more
        // only if the read goes through it.
        match some(self.waiting.try_recv(&mut self.buffer))? {
            None => some(self.socket.recv(&mut self.buffer)),
            received => Ok(received),
        }
    }

    /// Sends a packet of this host to the peer that holds its destination.
    fn outwards(&mut self, length: usize) {
        let packet = &mut self.buffer[..length];
        // The kernel sends IPv6 packets on every device that is up; they are not relayed.
        if length < 20 || packet[0] >> 4 != 4 {
            return;
        }
        let Some(to) = self.routes.next_hop(packet) else {
            if let Some(answer) = net_unreachable(self.own, packet) {
                // If the queue is full, the packet is lost. This holds below as well.
                let _ = self.tun.try_send(&answer);
            }
            return;
        };
        if take_one_hop(packet) {
            let _ = self.socket.send_to(packet, (to, self.port));
        }
    }

    /// Passes a datagram from the underlay to this host, whoever sent it.
    fn inwards(&mut self, length: usize) {
        let packet = &mut self.buffer[..length];
        if length >= 20 && take_one_hop(packet) {
            let _ = self.tun.try_send(packet);
        }
    }
}

/// Turns "would block" into `None`.
fn some(read: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match read {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, Vec<Route>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host that a packet's destination belongs to.
    fn next_hop(&self, packet: &[u8]) -> Option<Ipv4Addr> {
        let destination = u32::from_be_bytes([packet[16], packet[17], packet[18], packet[19]]);
        let mut routes = self.lock();
        let at = routes.iter().position(|route| destination & route.mask == route.network)?;
        routes.swap(0, at);
        Some(routes[0].to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_one_route() {
        let relay = Relay { routes: Arc::default(), running: None, thread: None };
        let mut packet = [0; 20];
        packet[16..].copy_from_slice(&[10, 244, 31, 2]);
        let (first, second) = (Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2));
        relay.put_route("10.244.7.0/24", first).unwrap();
        relay.put_route("10.244.31.0/24", first).unwrap();
        relay.put_route("10.244.31.0/24", second).unwrap();
        assert_eq!(relay.routes.next_hop(&packet), Some(second));
        relay.remove_route("10.244.31.0/24").unwrap();
        assert_eq!(relay.routes.next_hop(&packet), None);
        assert!(relay.put_route("10.244.31.0/33", first).is_err());
    }
}

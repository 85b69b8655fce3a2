//! A plain userspace relay between hosts, a TUN on one side and a UDP socket on the other: how flannel's UDP mode moves
//! packets (flannel pkg/backend/udp), one thread, one packet in each system call, down to what it does badly.
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

/// A relay that runs until it is dropped; its device goes with it.
#[derive(Debug)]
pub struct Relay {
    routes: Arc<Routes>,
    /// Dropped to end the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Looked through from the front, and a hit moved there, as flannel does.
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
    /// The same, to wait for.
    waiting: net::UdpSocket,
    routes: Arc<Routes>,
    /// Of every host, for the port is in no lease.
    port: u16,
    /// First address of the own subnet: who speaks in ICMP messages.
    own: Ipv4Addr,
    /// One packet. What is longer is cut off without a word.
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

    /// Makes the device and starts, in the network namespace of the calling thread: for a host that owns `subnet` of
    /// `network`, whose address on an underlay of this MTU is `local`.
    pub fn start(subnet: &str, network: &str, local: Ipv4Addr, port: u16, underlay_mtu: u32) -> Result<Self> {
        let own = address_in(subnet, 0)?;
        let mtu = underlay_mtu - Self::OVERHEAD;
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let tun = Tun::builder().name(DEVICE).close_on_exec().build();
        let tun = tun.with_context(|| format!("make the TUN {DEVICE}"))?.remove(0);
        sh(&format!("ip link set {DEVICE} mtu {mtu} up"))?;
        sh(&format!("ip address add {own}/32 dev {DEVICE}"))?;
        // One for all peers; the own subnet's, the bridge's, is more specific.
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

    /// From now on packets for `subnet` go to the host at `to`.
    pub fn put_route(&self, subnet: &str, to: Ipv4Addr) -> Result<()> {
        let (network, mask) = prefix(subnet)?;
        let mut routes = self.routes.lock();
        routes.retain(|route| (route.network, route.mask) != (network, mask));
        routes.push(Route { network, mask, to });
        Ok(())
    }

    /// From now on packets for `subnet` go to nobody. No such route is no error.
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
            // A panic has been printed where it happened.
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
            // One packet of each side in turn, until there is none.
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

    /// The next datagram, if there is one.
    fn received(&mut self) -> std::io::Result<Option<usize>> {
        // What tokio has not heard of yet it does not ask the kernel for; nor does it forget what it has heard of without
        // being asked itself.
        match some(self.waiting.try_recv(&mut self.buffer))? {
            None => some(self.socket.recv(&mut self.buffer)),
            received => Ok(received),
        }
    }

    /// Host to underlay.
    fn outwards(&mut self, length: usize) {
        let packet = &mut self.buffer[..length];
        // IPv6, which the kernel sends on every device that is up.
        if length < 20 || packet[0] >> 4 != 4 {
            return;
        }
        let Some(to) = self.routes.next_hop(packet) else {
            if let Some(answer) = net_unreachable(self.own, packet) {
                // A full queue is a packet lost, here as below.
                let _ = self.tun.try_send(&answer);
            }
            return;
        };
        if take_one_hop(packet) {
            let _ = self.socket.send_to(packet, (to, self.port));
        }
    }

    /// Underlay to host, from whomever.
    fn inwards(&mut self, length: usize) {
        let packet = &mut self.buffer[..length];
        if length >= 20 && take_one_hop(packet) {
            let _ = self.tun.try_send(packet);
        }
    }
}

/// What was read, if there was something.
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

//! The bed of the kernel rung: one host's programs and maps, and the frames around them.
use aya::{
    Ebpf, Pod, TestRunResult,
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use etherparse::{IpNumber, PacketBuilder};
use overlay_common::{
    Addr4, ENCAPSULATION_VXLAN, Endpoint, Flow, FlowKey, Hook, Peer, Reason, Settings, Vtep, wire,
};
use overlay_user::datapath::{ebpf, tables::Tables, xdp::Receivers};

use crate::support::{in_own_namespace, ip, sysctl};

pub const NETWORK: [u8; 4] = [10, 244, 0, 0];
/// This host: subnet 10.244.1.0/24 at 10.99.0.1.
pub const LOCAL: [u8; 4] = [10, 99, 0, 1];
pub const VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The peer: subnet 10.244.2.0/24 at 10.99.0.2.
pub const PEER: [u8; 4] = [10, 99, 0, 2];
pub const PEER_VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// A second peer: subnet 10.244.3.0/24 at 10.99.0.3.
pub const OTHER_PEER: [u8; 4] = [10, 99, 0, 3];
pub const STRANGER: [u8; 4] = [10, 99, 0, 66];
pub const UNDERLAY_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x01];
pub const NEXT_HOP_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x02];
/// The container on this host, and its gateway.
pub const CONTAINER: [u8; 4] = [10, 244, 1, 2];
pub const CONTAINER_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x02];
pub const UNLEARNED: [u8; 4] = [10, 244, 1, 9];
pub const GATEWAY: [u8; 4] = [10, 244, 1, 1];
pub const GATEWAY_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x01];
/// A container of the peer.
pub const REMOTE: [u8; 4] = [10, 244, 2, 7];
pub const PORT: u16 = 8472;
pub const VNI: u32 = 1;

pub const SHOT: i32 = 2;
pub const NEXT: i32 = -1;
pub const REDIRECT: i32 = 7;
pub const XDP_PASS: i32 = 2;
pub const XDP_REDIRECT: i32 = 4;

/// What a program made of a frame.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: i32,
    pub frame: Vec<u8>,
    pub counted: Vec<(Hook, Reason)>,
}

impl Outcome {
    #[track_caller]
    pub fn assert(&self, verdict: i32, counted: &[(Hook, Reason)]) {
        assert_eq!(
            (self.verdict, self.counted.as_slice()),
            (verdict, counted),
            "frame begins {:02x?}",
            &self.frame[..self.frame.len().min(80)]
        );
    }
}

/// One host: namespace, links, programs, maps.
pub struct Bed {
    ebpf: Ebpf,
    pub tables: Tables,
    pub receivers: Receivers,
    pub underlay: u32,
    pub container: u32,
    pub elsewhere: u32,
    pub bridge: u32,
}

/// Runs `test` on a host of its own.
pub fn with_bed(test: impl FnOnce(&mut Bed) + Send) {
    with_settings(|_| {}, test);
}

/// Runs `test` on a host of its own whose settings were altered by `alter`.
pub fn with_settings(alter: impl FnOnce(&mut Settings) + Send, test: impl FnOnce(&mut Bed) + Send) {
    in_own_namespace(|| test(&mut Bed::new(alter)));
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

impl Bed {
    fn new(alter: impl FnOnce(&mut Settings)) -> Self {
        ip("link set lo up");
        ip("link add eth0 type veth peer name wire");
        ip("link set eth0 address 06:00:00:00:00:01 up");
        ip("link set wire up");
        ip("addr add 10.99.0.1/24 dev eth0");
        for peer in [PEER, OTHER_PEER] {
            let [a, b, c, d] = peer;
            ip(&format!("neigh replace {a}.{b}.{c}.{d} lladdr 06:00:00:00:00:02 dev eth0 nud permanent"));
        }
        ip("link add br0 address 0a:00:00:00:00:01 type bridge");
        ip("link set br0 up");
        for name in ["c1", "c2"] {
            ip(&format!("link add {name} type veth peer name {name}p"));
            ip(&format!("link set {name} master br0 up"));
            ip(&format!("link set {name}p up"));
        }
        sysctl("ipv4/ip_forward", "1");
        let mut settings = Settings {
            network: NETWORK,
            network_mask: [255, 255, 0, 0],
            subnet: [10, 244, 1, 0],
            subnet_mask: [255, 255, 255, 0],
            local: LOCAL,
            underlay: index("eth0"),
            device: 0,
            vni: VNI,
            port: PORT.to_be_bytes(),
            vtep_mac: VTEP_MAC,
            flags: 0,
            port_min: 49152,
            port_count: 16384,
            gateway: GATEWAY,
            underlay_mac: UNDERLAY_MAC,
            encapsulation: ENCAPSULATION_VXLAN,
            reserved: 0,
        };
        alter(&mut settings);
        let (ebpf, mut tables, receivers) =
            ebpf::load_unpinned(&settings).unwrap_or_else(|error| panic!("{error}"));
        for (slot, (subnet, outer, vtep_mac)) in
            [([10, 244, 2, 0], PEER, PEER_VTEP_MAC), ([10, 244, 3, 0], OTHER_PEER, [2, 0, 0, 0, 0, 3])]
                .into_iter()
                .enumerate()
        {
            let slot = slot as u32;
            let peer = Peer { outer, vtep_mac, reserved: [0; 2], slot };
            tables.peers.insert(Addr4::new(subnet), peer, 0).unwrap();
            tables.vteps.insert(Addr4::new(outer), Vtep { slot }, 0).unwrap();
        }
        let mut bed = Self {
            ebpf,
            tables,
            receivers,
            underlay: index("eth0"),
            container: index("c1"),
            elsewhere: index("c2"),
            bridge: index("br0"),
        };
        bed.learn(CONTAINER, bed.container);
        bed.receivers.set(bed.container, true).unwrap();
        bed
    }

    /// Makes `address` an endpoint on interface `ifindex`.
    pub fn learn(&mut self, address: [u8; 4], ifindex: u32) {
        let endpoint = Endpoint { ifindex, mac: CONTAINER_MAC, gateway_mac: GATEWAY_MAC, flags: 0 };
        self.tables.endpoints.insert(Addr4::new(address), endpoint, 0).unwrap();
    }

    /// The noted connections.
    pub fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.tables.flows.iter().map(Result::unwrap).collect()
    }

    /// Notes the connection of these addresses and ports as the stack's.
    pub fn note(&mut self, source: [u8; 4], destination: [u8; 4], ports: [u16; 2], protocol: u8) {
        let ports = ports.map(u16::to_be_bytes);
        let key = FlowKey::new(Addr4::new(source), Addr4::new(destination), ports, protocol);
        self.tables.flows.insert(key, Flow::default(), 0).unwrap();
    }

    fn counts(&self) -> Vec<((Hook, Reason), u64)> {
        let mut counts = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                counts.push(((*hook, *reason), self.tables.counter(*hook, *reason).unwrap().packets));
            }
        }
        counts
    }

    /// Runs `program` on `frame` as it arrives on interface `ifindex`.
    pub fn run(&mut self, program: &str, ifindex: u32, frame: &[u8]) -> Outcome {
        self.run_with(program, Skb { ifindex, ..Skb::default() }, frame)
    }

    /// Runs `program` on `frame` in a buffer with these fields.
    pub fn run_with(&mut self, program: &str, skb: Skb, frame: &[u8]) -> Outcome {
        self.counted(|bed| bed.run_uncounted(program, skb, frame))
    }

    /// The same without reading the counters, which takes far longer than the packet: for what depends on a rate.
    pub fn run_uncounted(&mut self, program: &str, skb: Skb, frame: &[u8]) -> (i32, Vec<u8>) {
        let program: &mut SchedClassifier = self.ebpf.program_mut(program).unwrap().try_into().unwrap();
        test_run(frame, &skb.bytes(), |options| program.test_run(options))
    }

    /// Runs an XDP program on `frame`. The frame that comes out begins with its metadata.
    pub fn run_xdp(&mut self, program: &str, frame: &[u8]) -> Outcome {
        self.counted(|bed| {
            let program: &mut Xdp = bed.ebpf.program_mut(program).unwrap().try_into().unwrap();
            test_run(frame, &[], |options| program.test_run(options))
        })
    }

    fn counted(&mut self, run: impl FnOnce(&mut Self) -> (i32, Vec<u8>)) -> Outcome {
        let before = self.counts();
        let (verdict, frame) = run(self);
        let counted = self
            .counts()
            .into_iter()
            .zip(before)
            .filter(|((_, now), (_, before))| now != before)
            .map(|((key, _), _)| key)
            .collect();
        Outcome { verdict, frame, counted }
    }

    /// Runs `frame` through the programs of the underlay device, and returns what TC's made of it. Whatever TC does not
    /// deliver, XDP must leave as it is, for TC to count; what TC does, XDP must too (what it cannot is in xdp.rs).
    #[track_caller]
    pub fn take_in(&mut self, frame: &[u8]) -> Outcome {
        let outcome = self.run("overlay_decap", self.underlay, frame);
        let redirected = self.run_xdp("overlay_xdp", frame);
        // A device may have vouched for an outer checksum; strip leaves such frames alone.
        let mut unchecked = frame.to_vec();
        if let Some(sum) = unchecked.get_mut(40..42) {
            sum.fill(0);
        }
        let stripped = self.run_xdp("overlay_xdp_strip", &unchecked);
        if outcome.counted == [(Hook::Decap, Reason::Carried)] {
            redirected.assert(XDP_REDIRECT, &[(Hook::Xdp, Reason::Carried)]);
            assert_eq!(redirected.frame, outcome.frame);
            stripped.assert(XDP_PASS, &[]);
            let (note, stripped) = stripped.frame.split_at(16);
            assert!(note.starts_with(b"ov") && stripped == outcome.frame);
        } else {
            for (left, frame) in [(redirected, frame), (stripped, unchecked.as_slice())] {
                left.assert(XDP_PASS, &[]);
                assert_eq!(left.frame, frame, "XDP changed a frame that it leaves to TC");
            }
        }
        outcome
    }
}

fn test_run(
    frame: &[u8],
    context: &[u8],
    run: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError>,
) -> (i32, Vec<u8>) {
    let mut out = vec![0xa5; frame.len() + 256];
    let result = run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(context).filter(|context| !context.is_empty()),
        ..TestRunOptions::default()
    })
    .unwrap_or_else(|error| panic!("test run: {error:?}"));
    out.truncate(result.data_size_out as usize);
    (result.return_value as i32, out)
}

/// The fields of `struct __sk_buff` (linux/bpf.h) that a test run takes.
#[derive(Clone, Copy, Default)]
pub struct Skb {
    pub ifindex: u32,
    pub gso_segs: u32,
    pub gso_size: u32,
}

impl Skb {
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        // Offsets in struct __sk_buff: fixed, it is part of the kernel's interface.
        put(40, self.ifindex);
        put(164, self.gso_segs);
        put(176, self.gso_size);
        bytes
    }
}

const _: () = {
    const fn pod<T: Pod>() {}
    pod::<Settings>();
};

/// An IPv4 packet of `length` bytes of payload behind a UDP header, by a library that nobody here wrote.
pub fn udp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], length: usize) -> Vec<u8> {
    udp_with(source, destination, ports, length, |_| {})
}

/// As [`udp`], with the 20 bytes of the IPv4 header altered before its checksum is made.
pub fn udp_with(
    source: [u8; 4],
    destination: [u8; 4],
    ports: [u16; 2],
    length: usize,
    alter: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut packet = Vec::new();
    let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
    PacketBuilder::ipv4(source, destination, 64)
        .udp(ports[0], ports[1])
        .write(&mut packet, &payload)
        .unwrap();
    alter(&mut packet[..20]);
    seal(&mut packet);
    packet
}

/// A TCP packet with these flags (byte 13).
pub fn tcp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], flags: u8, length: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .tcp(ports[0], ports[1], 1000, 512)
        .write(&mut packet, &vec![0x5a; length])
        .unwrap();
    packet[33] = flags;
    packet[36..38].fill(0);
    let length = (packet.len() as u16 - 20).to_be_bytes();
    let sum = checksum(&[&packet[12..20], &[0, 6], &length, &packet[20..]].concat());
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An ICMP packet of type `kind` about `payload`.
pub fn icmp(source: [u8; 4], destination: [u8; 4], kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    body.extend_from_slice(payload);
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64).write(&mut packet, IpNumber::ICMP, &body).unwrap();
    packet
}

/// Writes the IPv4 header's checksum anew.
pub fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum, the plain way (RFC 1071 section 4.1).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// `packet` behind an Ethernet header.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [destination.as_slice(), &source, &wire::ETHERTYPE_IPV4, packet].concat()
}

/// `packet` as the container sends it to its gateway.
pub fn from_container(packet: &[u8]) -> Vec<u8> {
    ethernet(GATEWAY_MAC, CONTAINER_MAC, packet)
}

/// What `overlay_xdp_strip` writes in front of the frame of the peer with this slot: magic, port, VNI, address, slot.
pub fn note(slot: u32) -> Vec<u8> {
    [b"ov".as_slice(), &PORT.to_be_bytes(), &VNI.to_ne_bytes(), &LOCAL, &slot.to_ne_bytes()].concat()
}

/// What can differ in a frame that arrives on the underlay.
#[derive(Clone, Copy)]
pub struct Tunnel {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub port: u16,
    pub vni: u32,
    pub flags: u8,
    pub tos: u8,
    pub inner_destination_mac: [u8; 6],
    pub inner_type: [u8; 2],
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            source: PEER,
            destination: LOCAL,
            port: PORT,
            vni: VNI,
            flags: wire::VXLAN_VNI_VALID,
            tos: 0,
            inner_destination_mac: VTEP_MAC,
            inner_type: wire::ETHERTYPE_IPV4,
        }
    }
}

impl Tunnel {
    /// `packet` in VXLAN, as it arrives on the underlay device.
    pub fn wrap(&self, packet: &[u8]) -> Vec<u8> {
        let vni = self.vni.to_be_bytes();
        let vxlan = [self.flags, 0, 0, 0, vni[1], vni[2], vni[3], 0];
        let inner = [&vxlan, self.inner_destination_mac.as_slice(), &PEER_VTEP_MAC, &self.inner_type, packet]
            .concat();
        let mut outer = Vec::new();
        PacketBuilder::ipv4(self.source, self.destination, 64)
            .udp(51234, self.port)
            .write(&mut outer, &inner)
            .unwrap();
        outer[1] = self.tos;
        seal(&mut outer);
        ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, &outer)
    }
}

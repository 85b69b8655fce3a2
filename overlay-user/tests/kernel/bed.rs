//! What the tests of the kernel rung work on: one host's programs and maps, and what they make of a frame.
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use aya::{
    Ebpf, Pod, TestRunResult,
    maps::{MapData, PerCpuArray},
    programs::{Program, ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, Xdp, tc},
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use overlay_common::{
    Addr4, Addr6, ENCAPSULATION_UDP, ENCAPSULATION_VXLAN, EndpointEntry, Flow, FlowKey, Hook, KeptNextHop,
    KeptPort, PEER_ZERO_CHECKSUM6, PeerEntry, Reason, SETTING_DIRECT, Settings, Settings6, Vtep,
};
use overlay_user::datapath::{load, tables::Tables, xdp::XdpTargets};
pub use overlay_user::model::fast_path::FastPath;

pub use super::{frames::*, world::*};
use crate::support::{in_own_namespace, ip, ip_lines, sysctl};

/// The Ethernet header of an encapsulated packet whose next hop the kernel is to resolve: it writes the addresses itself.
pub const TO_BE_RESOLVED: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00];
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
    /// What was counted when the counters were read last, if no program can have run since. Reading them all takes far longer than
    /// a packet.
    counts: Option<Counts>,
    /// Whether programs run by themselves, too, since they are attached.
    is_attached: bool,
    pub tables: Tables,
    pub xdp_targets: XdpTargets,
    pub underlay: u32,
    /// The device that stands for overlay0.
    pub device: u32,
    pub container: u32,
    pub wrong_port: u32,
    pub bridge: u32,
}

type Counts = Vec<((Hook, Reason), u64)>;

/// Runs `test` on a host of its own.
pub fn with_bed(test: impl FnOnce(&mut Bed) + Send) {
    with_settings(|_| {}, test);
}

/// Runs `test` on a host of its own whose settings were altered by `alter`.
pub fn with_settings(alter: impl FnOnce(&mut Settings) + Send, test: impl FnOnce(&mut Bed) + Send) {
    in_own_namespace(|| test(&mut Bed::new(alter, Settings6::default())));
}

/// Runs `test` on a host of a network of both families, whose settings were altered by `alter`.
pub fn with_ipv6(alter: impl FnOnce(&mut Settings) + Send, test: impl FnOnce(&mut Bed) + Send) {
    let subnet = addr6("fd00:244:0:1::");
    let settings6 = Settings6 {
        network: addr6("fd00:244::"),
        network_mask: addr6("ffff:ffff:ffff::"),
        subnet,
        subnet_mask: addr6("ffff:ffff:ffff:ffff::"),
        local: addr6(LOCAL6),
        gateway: addr6(GATEWAY6),
        ..Settings6::default()
    };
    in_own_namespace(|| {
        let mut bed = Bed::new(alter, settings6);
        bed.furnish_ipv6();
        test(&mut bed);
    });
}

/// An address of IPv6 from its text.
pub fn addr6(text: &str) -> Addr6 {
    Addr6::from(text.parse::<std::net::Ipv6Addr>().unwrap())
}

/// Runs `test` on hosts that find peers and endpoints in each way there is: both by number, a network of too many subnets for
/// that, a subnet of too many addresses. It is told a peer's container.
pub fn with_each_look_up(test: impl Fn(&mut Bed, [u8; 4]) + Send + Sync) {
    with_bed(|bed| test(bed, REMOTE));
    let many =
        |settings: &mut Settings| (settings.network, settings.network_mask) = ([0; 4], [0xe0, 0, 0, 0]);
    with_settings(many, |bed| test(bed, REMOTE));
    let large = |settings: &mut Settings| {
        (settings.network, settings.network_mask) = ([10, 0, 0, 0], [255, 0, 0, 0]);
        (settings.subnet, settings.subnet_mask, settings.host_bits) = (NETWORK, [255, 254, 0, 0], 17);
    };
    with_settings(large, |bed| {
        let peer = PeerEntry { outer: Addr4::new(PEER), vtep_mac: PEER_VTEP_MAC, ..PeerEntry::default() };
        bed.tables.peers.put(Addr4::new([10, 246, 0, 0]), peer).unwrap();
        test(bed, [10, 247, 255, 7]);
    });
}

/// Runs `test` on a host whose network is bare IPv4 in UDP, with these settings.
pub fn with_udp(flags: u32, test: impl FnOnce(&mut Bed) + Send) {
    with_settings(|settings| (settings.flags, _) = (flags, bare(settings)), test);
}

/// Bare IPv4 in UDP.
pub fn bare(settings: &mut Settings) {
    settings.encapsulation = ENCAPSULATION_UDP;
    settings.port = UDP_PORT.to_be_bytes();
    settings.vni = 0;
}

fn network(settings: &Settings) -> String {
    let ([a, b, c, d], mask) = (settings.network, u32::from_be_bytes(settings.network_mask));
    format!("{a}.{b}.{c}.{d}/{}", mask.count_ones())
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Whether no host has had such settings yet. The first one that has them loads all programs, as the verifier judges programs with
/// other constants anew; the others load those alone that they run. Interfaces' numbers are of no account.
fn is_new(settings: &Settings) -> bool {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let any = Settings { underlay: 0, device: 0, ..*settings };
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{any:?}"))
}

/// Keeps this thread on the CPU that it is on: what one program notes for the next about a packet is this CPU's.
fn stay_here() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

impl Bed {
    fn new(alter: impl FnOnce(&mut Settings), settings6: Settings6) -> Self {
        stay_here();
        let mut lines: Vec<String> = [
            "link set lo up",
            "link add eth0 type veth peer name wire",
            "link set eth0 address 06:00:00:00:00:01 up",
            "link set wire up",
            "addr add 10.99.0.1/24 dev eth0",
            "link add br0 address 0a:00:00:00:00:01 type bridge",
            "link set br0 up",
        ]
        .map(str::to_owned)
        .into();
        for [a, b, c, d] in [PEER, OTHER_PEER] {
            lines.push(format!(
                "neigh replace {a}.{b}.{c}.{d} lladdr 06:00:00:00:00:02 dev eth0 nud permanent"
            ));
        }
        for name in ["c1", "c2"] {
            lines.push(format!("link add {name} type veth peer name {name}p"));
            lines.push(format!("link set {name} master br0 up"));
            lines.push(format!("link set {name}p up"));
        }
        ip_lines(&lines);
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
            host_bits: 8,
            leasable_first: 0,
            leasable_last: 0,
        };
        alter(&mut settings);
        if settings.device == 0 {
            // Some tests make an overlay0 of their own, and routes that are preferred to this one.
            ip_lines(&[
                "link add stack0 type bridge".to_owned(),
                "link set stack0 up".to_owned(),
                format!("route add {} dev stack0 metric 9", network(&settings)),
            ]);
            settings.device = index("stack0");
        }
        let made = if is_new(&settings) || settings6.is_on() {
            load::load_unpinned(&settings, &settings6)
        } else {
            load::make_unpinned(&settings, &settings6)
        };
        let (ebpf, mut tables, xdp_targets) = made.unwrap_or_else(|error| panic!("{error}"));
        for (slot, (subnet, outer, vtep_mac)) in
            [([10, 244, 2, 0], PEER, PEER_VTEP_MAC), ([10, 244, 3, 0], OTHER_PEER, [2, 0, 0, 0, 0, 3])]
                .into_iter()
                .enumerate()
        {
            let slot = slot as u32;
            let peer = PeerEntry { outer: Addr4::new(outer), vtep_mac, flags: 0, slot };
            tables.peers.put(Addr4::new(subnet), peer).unwrap();
            tables.vteps.insert(Addr4::new(outer), Vtep { slot }, 0).unwrap();
        }
        let mut bed = Self {
            ebpf,
            counts: None,
            is_attached: false,
            tables,
            xdp_targets,
            underlay: index("eth0"),
            device: settings.device,
            container: index("c1"),
            wrong_port: index("c2"),
            bridge: index("br0"),
        };
        bed.learn(CONTAINER, bed.container);
        bed.xdp_targets.set(bed.container, true).unwrap();
        bed
    }

    /// Gives the host its addresses, neighbours and routes of IPv6, and its tables two peers and a container.
    fn furnish_ipv6(&mut self) {
        sysctl("ipv6/conf/all/forwarding", "1");
        ip_lines(&[
            format!("addr add {LOCAL6}/64 dev eth0 nodad"),
            format!("neigh replace {PEER6} lladdr 06:00:00:00:00:02 dev eth0 nud permanent"),
            format!("neigh replace {OTHER_PEER6} lladdr 06:00:00:00:00:02 dev eth0 nud permanent"),
        ]);
        // A test's own overlay0 may be down still.
        if let Some(device) =
            nix::net::if_::if_indextoname(self.device).ok().and_then(|name| name.into_string().ok())
        {
            ip_lines(&[format!("route add {NETWORK6} dev {device} metric 9")]);
        }
        let ipv6 = self.tables.ipv6.as_mut().unwrap();
        for (slot, (subnet, outer, mac, flags)) in [
            ("fd00:244:0:2::", PEER6, PEER_VTEP_MAC, PEER_ZERO_CHECKSUM6),
            ("fd00:244:0:3::", OTHER_PEER6, [2, 0, 0, 0, 0, 3], 0),
        ]
        .into_iter()
        .enumerate()
        {
            let slot = slot as u32;
            let peer = PeerEntry { outer: addr6(outer), vtep_mac: mac, flags, slot };
            ipv6.peers.insert(addr6(subnet), peer, 0).unwrap();
            ipv6.vteps.insert(addr6(outer), Vtep { slot }, 0).unwrap();
        }
        let endpoint =
            EndpointEntry { ifindex: self.container, mac: CONTAINER_MAC, gateway_mac: GATEWAY_MAC, flags: 0 };
        ipv6.endpoints.insert(addr6(CONTAINER6), endpoint, 0).unwrap();
    }

    /// Makes `address` an endpoint on interface `ifindex`.
    pub fn learn(&mut self, address: [u8; 4], ifindex: u32) {
        self.learn_with(address, ifindex, 0);
    }

    /// The same with these `ENDPOINT_*` bits.
    pub fn learn_with(&mut self, address: [u8; 4], ifindex: u32, flags: u32) {
        let endpoint = EndpointEntry { ifindex, mac: CONTAINER_MAC, gateway_mac: GATEWAY_MAC, flags };
        self.tables.endpoints.put(Addr4::new(address), endpoint).unwrap();
    }

    /// The stack flows.
    pub fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.tables.stack_flows.iter().map(Result::unwrap).collect()
    }

    /// Makes the connection of these addresses and ports a stack flow.
    pub fn keep_to_stack(&mut self, source: [u8; 4], destination: [u8; 4], ports: [u16; 2], protocol: u8) {
        let ports = ports.map(u16::to_be_bytes);
        let key = FlowKey::new(Addr4::new(source), Addr4::new(destination), ports, protocol);
        self.tables.stack_flows.insert(key, Flow::default()).unwrap();
    }

    fn counts(&self) -> Counts {
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
        let program = self.at_tc(program);
        test_run(frame, &skb.bytes(), |options| program.test_run(options))
    }

    /// Runs `program` so many times on one frame, each time as the run before has left it: far faster than one run after the other.
    pub fn run_in_a_row(&mut self, program: &str, skb: Skb, frame: &[u8], repeat: u32) -> (i32, Vec<u8>) {
        let program = self.at_tc(program);
        test_run(frame, &skb.bytes(), |options| program.test_run(TestRunOptions { repeat, ..options }))
    }

    /// The next hops that each CPU keeps.
    pub fn next_hops(&mut self) -> PerCpuArray<&mut MapData, KeptNextHop> {
        self.ebpf.map_mut("NEXT_HOPS").unwrap().try_into().unwrap()
    }

    /// The ports that each CPU keeps.
    pub fn ports(&mut self) -> PerCpuArray<&mut MapData, KeptPort> {
        self.ebpf.map_mut("PORTS").unwrap().try_into().unwrap()
    }

    /// The verdict about `frame`, and what the program leaves in `cb`.
    pub fn run_for_cb(&mut self, program: &str, skb: Skb, frame: &[u8]) -> (i32, [u32; 5]) {
        let program = self.at_tc(program);
        let (context, mut left) = (skb.bytes(), [0; 192]);
        let (verdict, _) = test_run(frame, &context, |options| {
            program.test_run(TestRunOptions { ctx_out: Some(&mut left), ..options })
        });
        let word =
            |number: usize| left[CB + 4 * number..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        (verdict, std::array::from_fn(|number| word(number).unwrap()))
    }

    /// Runs an XDP program on `frame`. The frame that comes out begins with its metadata.
    pub fn run_xdp(&mut self, program: &str, frame: &[u8]) -> Outcome {
        self.counted(|bed| {
            let program: &mut Xdp = bed.program(program).try_into().unwrap();
            test_run(frame, &[], |options| program.test_run(options))
        })
    }

    fn counted(&mut self, run: impl FnOnce(&mut Self) -> (i32, Vec<u8>)) -> Outcome {
        let ((verdict, frame), counted) = self.counting(run);
        Outcome { verdict, frame, counted }
    }

    /// What `run` gives, and what was counted meanwhile.
    pub fn counting<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> (T, Vec<(Hook, Reason)>) {
        let known = self.counts.take().filter(|_| !self.is_attached);
        let before = known.unwrap_or_else(|| self.counts());
        let result = run(self);
        let now = self.counts();
        let counted =
            now.iter().zip(before).filter(|(now, before)| *now != before).map(|((key, _), _)| *key).collect();
        self.counts = Some(now);
        (result, counted)
    }

    /// The program of this name, which is loaded if it is not yet. Once somebody has it, the counters may change.
    fn program(&mut self, name: &str) -> &mut Program {
        self.counts = None;
        if matches!(self.ebpf.program(name).unwrap().fd(), Err(ProgramError::NotLoaded)) {
            load::load_program(&mut self.ebpf, name).unwrap_or_else(|error| panic!("{error}"));
        }
        self.ebpf.program_mut(name).unwrap()
    }

    fn at_tc(&mut self, name: &str) -> &mut SchedClassifier {
        self.program(name).try_into().unwrap()
    }

    /// Attaches a program to an interface of this host, so that what happens there meets it.
    pub fn attach(&mut self, program: &str, interface: &str, side: TcAttachType) {
        self.is_attached = true;
        let program = self.at_tc(program);
        // Attached by TCX where the kernel has it, and by this qdisc before Linux 6.6. It may be there already.
        let _ = tc::qdisc_add_clsact(interface);
        program.attach(interface, side).unwrap_or_else(|error| panic!("attach to {interface}: {error}"));
    }

    /// Runs `frame` through the programs of the underlay device, and returns what TC's made of it. Whatever TC does not
    /// deliver, XDP must leave as it is, for TC to count; what TC does, XDP must too (what it cannot is in xdp.rs).
    #[track_caller]
    pub fn take_in(&mut self, frame: &[u8]) -> Outcome {
        let outcome = self.take_in_redirecting(frame);
        // A device may have vouched for an outer checksum; strip leaves such frames alone.
        let mut unchecked = frame.to_vec();
        if let Some(sum) = unchecked.get_mut(40..42) {
            sum.fill(0);
        }
        if outcome.counted == [(Hook::Decap, Reason::Carried)] {
            let stripped = self.run_xdp("overlay_xdp_strip", &unchecked);
            stripped.assert(XDP_PASS, &[]);
            let (mark, stripped) = stripped.frame.split_at(16);
            assert!(mark.starts_with(b"ov") && stripped == outcome.frame);
        } else {
            self.is_left("overlay_xdp_strip", &unchecked, "not delivered by TC");
        }
        outcome
    }

    /// The same of a frame without outer headers, from which strip has nothing to take.
    #[track_caller]
    pub fn take_in_unencapsulated(&mut self, frame: &[u8]) -> Outcome {
        self.is_left("overlay_xdp_strip", frame, "nothing to strip");
        self.take_in_redirecting(frame)
    }

    #[track_caller]
    fn take_in_redirecting(&mut self, frame: &[u8]) -> Outcome {
        let outcome = self.run("overlay_decap", self.underlay, frame);
        if outcome.counted == [(Hook::Decap, Reason::Carried)] {
            let redirected = self.run_xdp("overlay_xdp", frame);
            redirected.assert(XDP_REDIRECT, &[(Hook::Xdp, Reason::Carried)]);
            assert_eq!(redirected.frame, outcome.frame);
        } else {
            self.is_left("overlay_xdp", frame, "not delivered by TC");
        }
        outcome
    }

    /// The frame is TC's: an XDP program passes it on as it is, and does not count it.
    #[track_caller]
    pub fn is_left(&mut self, program: &str, frame: &[u8], name: &str) {
        let outcome = self.run_xdp(program, frame);
        assert_eq!((outcome.verdict, outcome.counted), (XDP_PASS, vec![]), "{name}");
        assert_eq!(outcome.frame, frame, "{name}");
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
    pub ingress_ifindex: u32,
    pub cb: [u32; 5],
}

/// Where `cb` is in `struct __sk_buff`.
const CB: usize = 48;

impl Skb {
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        // Offsets in struct __sk_buff: fixed, it is part of the kernel's interface.
        put(36, self.ingress_ifindex);
        put(40, self.ifindex);
        for (number, word) in self.cb.into_iter().enumerate() {
            put(CB + 4 * number, word);
        }
        put(164, self.gso_segs);
        put(176, self.gso_size);
        bytes
    }
}

const _: () = {
    const fn pod<T: Pod>() {}
    pod::<Settings>();
};

/// What stands in for direct routing where the peer is not on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    Vxlan,
    Udp,
}

impl Fallback {
    /// Bytes that encapsulation adds.
    pub const fn overhead(self) -> usize {
        match self {
            Self::Vxlan => 50,
            Self::Udp => 28,
        }
    }

    pub fn encapsulate(self, packet: &[u8]) -> Vec<u8> {
        match self {
            Self::Vxlan => Tunnel::default().encapsulate(packet),
            Self::Udp => Datagram::default().encapsulate(packet),
        }
    }

    /// What becomes of a frame that overlay0 gets: a VXLAN device wants its own MAC address in it.
    pub fn handed_over(self, mut frame: Vec<u8>) -> Vec<u8> {
        if self == Self::Vxlan {
            frame[..6].copy_from_slice(&VTEP_MAC);
        }
        frame
    }
}

pub fn with_direct(flags: u32, test: fn(&mut Bed, Fallback)) {
    for fallback in [Fallback::Vxlan, Fallback::Udp] {
        with_settings(
            |settings| {
                if fallback == Fallback::Udp {
                    bare(settings);
                }
                settings.flags = flags | SETTING_DIRECT;
            },
            |bed| test(bed, fallback),
        );
    }
}

/// Changes what the programs keep an answer about: they do not believe it any longer.
pub fn change(words: &str) {
    ip(words);
    wait_a_tick();
}

/// Waits until the kernel's clock has ticked, which it does 100 times a second at least: what was kept is not believed then.
pub fn wait_a_tick() {
    thread::sleep(Duration::from_millis(20));
}

/// Moves the second peer, whose container is [`FAR`], away from the link.
pub fn behind_a_gateway() {
    change("route add 10.99.0.3/32 via 10.99.0.2 dev eth0");
}

//! The host's side against the real kernel, each test in network namespaces of its own. Needs root, `ip` and `unshare`.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]

use std::{
    future::Future,
    io::Write as _,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};
use overlay_common::ABI;
use overlay_user::{
    cli::check::{self, CheckSpec, Level},
    datapath::{
        Installed,
        state::{Adoption, Paths, Record},
    },
    host::{
        device::{self, DeviceKind, DeviceSpec},
        netlink::{LinkKind, Netlink},
        underlay::{self, Choice},
    },
    learn::{
        learner::{LearnConfig, Probe},
        observe::{self, observe},
        probe::Prober,
        view::View,
    },
    model::{backend::Backend, change::LocalChange, entries::PortKind, mac::Mac},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);

/// Runs a test in a network namespace that ends with it. Netlink sockets stay in the namespace of the thread that
/// opened them, hence one thread and its own runtime.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("make a network namespace: this rung needs root (`cargo xtask test` says more)");
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A container as the host sees it: a process in a network namespace of its own, behind a veth of the bridge.
struct Container {
    process: Child,
}

impl Container {
    /// Starts it with `veth` as its port on br0 and `address` inside.
    fn start(veth: &str, address: Ipv4Addr) -> Self {
        let container = Self::behind(veth);
        container.run(&format!("ip address add {address}/24 dev eth0"));
        run(&format!("ip link set {veth} master br0 up"));
        container
    }

    /// Starts it without a bridge, as the CNI plugin `ptp` does: the gateway on the veth, a host route to the container.
    fn start_routed(veth: &str, address: Ipv4Addr) -> Self {
        let container = Self::behind(veth);
        run(&format!("ip address add 10.244.1.1/32 dev {veth}"));
        run(&format!("ip link set {veth} up"));
        run(&format!("ip route add {address}/32 dev {veth} scope host"));
        container.run(&format!("ip address add {address}/32 dev eth0"));
        container.run("ip route add 10.244.1.1/32 dev eth0 scope link");
        container
    }

    fn behind(veth: &str) -> Self {
        // Ends with this test, however that ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "60"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let container = Self { process };
        let pid = container.process.id();
        let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        while std::fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino() == own {
            std::thread::sleep(Duration::from_millis(2));
        }
        run(&format!("ip link add {veth} type veth peer name eth0 netns {pid}"));
        container.run("ip link set lo up");
        container.run("ip link set eth0 up");
        container
    }

    fn run(&self, command: &str) -> String {
        run(&format!("nsenter --target {} --net {command}", self.process.id()))
    }

    /// Sends something, so that the kernel's bridge and neighbour table see the container.
    fn ping_gateway(&self) {
        self.run("ping -c 1 -W 2 10.244.1.1");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spec() -> DeviceSpec {
    DeviceSpec {
        name: "overlay0".into(),
        kind: DeviceKind::Vxlan { port: 8472, vni: 1, mac: None },
        mtu: Backend::DEFAULT.overlay_mtu(1500),
        subnet: "10.244.1.0/24".parse().unwrap(),
        network: "10.244.0.0/16".parse().unwrap(),
    }
}

/// overlay0 is all that `spec()` says.
fn assert_stands() {
    let link = run("ip -details link show overlay0");
    let parts = [
        "NOARP",
        ",UP",
        "mtu 1450",
        "external",
        "vnifilter",
        "dstport 8472",
        "nolearning",
        "addrgenmode none",
    ];
    for part in parts {
        assert!(link.contains(part), "no {part} in {link}");
    }
    assert!(run("ip -4 address show overlay0").contains("inet 10.244.1.0/32"));
    let routes = run("ip route");
    let route = "10.244.0.0/16 dev overlay0 proto static scope link src 10.244.1.0";
    assert!(routes.contains(route), "{routes}");
    let vnis = run("bridge vni show dev overlay0");
    assert!(vnis.split_whitespace().any(|word| word == "1"), "vni 1 is not in {vnis}");
}

#[test]
fn overlay0_is_created_adopted_and_repaired() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let spec = spec();
        let created = device::ensure(&netlink, &spec).await.unwrap();
        assert!(created.vnifilter);
        assert_stands();
        assert_eq!(device::ensure(&netlink, &spec).await.unwrap(), created);
        for damage in [
            "ip link set overlay0 mtu 1200",
            "ip address delete 10.244.1.0/32 dev overlay0",
            "ip route delete 10.244.0.0/16",
            "ip link set overlay0 down",
            "bridge vni delete dev overlay0 vni 1",
            "ip link set overlay0 arp on",
        ] {
            run(damage);
            assert_eq!(device::ensure(&netlink, &spec).await.unwrap(), created, "{damage}");
            assert_stands();
        }

        let moved = DeviceSpec { subnet: "10.244.9.0/24".parse().unwrap(), ..spec.clone() };
        assert_eq!(device::ensure(&netlink, &moved).await.unwrap(), created);
        let addresses = run("ip -4 address show overlay0");
        assert!(addresses.contains("10.244.9.0/32") && !addresses.contains("10.244.1.0"), "{addresses}");
        assert!(run("ip route").contains("src 10.244.9.0"));

        // Another MAC address, as a lease of an earlier life may want it, without taking the device down.
        let mac = Mac::random();
        let renamed = DeviceSpec { kind: DeviceKind::Vxlan { port: 8472, vni: 1, mac: Some(mac) }, ..moved };
        let adopted = device::ensure(&netlink, &renamed).await.unwrap();
        assert_eq!((adopted.ifindex, adopted.mac), (created.ifindex, Some(mac)));
        assert!(run("ip link show overlay0").contains(&mac.to_string()));

        let other_port =
            DeviceSpec { kind: DeviceKind::Vxlan { port: 4789, vni: 1, mac: created.mac }, ..spec.clone() };
        let anew = device::ensure(&netlink, &other_port).await.unwrap();
        assert_ne!(anew.ifindex, created.ifindex);
        assert_eq!(anew.mac, created.mac);

        device::remove(&netlink, "overlay0").await.unwrap();
        device::remove(&netlink, "overlay0").await.unwrap();
        assert_eq!(netlink.link_named("overlay0").await.unwrap(), None);
    });
}

#[test]
fn networks_share_the_port_by_their_vni() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        device::ensure(&netlink, &spec()).await.unwrap();
        let second = DeviceSpec {
            name: "overlay1".into(),
            kind: DeviceKind::Vxlan { port: 8472, vni: 2, mac: None },
            subnet: "10.245.1.0/24".parse().unwrap(),
            network: "10.245.0.0/16".parse().unwrap(),
            ..spec()
        };
        device::ensure(&netlink, &second).await.unwrap();
        device::remove(&netlink, "overlay1").await.unwrap();
        let same = DeviceSpec { kind: spec().kind, ..second };
        let error = device::ensure(&netlink, &same).await.unwrap_err().to_string();
        assert!(error.contains("vni 1 on udp port 8472 belongs to overlay0"), "{error}");
        assert_eq!(netlink.link_named("overlay1").await.unwrap(), None);
    });
}

#[test]
fn what_is_in_overlay0s_way_is_named_and_left_alone() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let spec = spec();
        let refusal = async || device::ensure(&netlink, &spec).await.unwrap_err().to_string();

        run("ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning");
        run("ip link set flannel.1 up");
        let error = refusal().await;
        let expected = "udp port 8472 belongs to vxlan device flannel.1 (vni 1)";
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("`ip link delete flannel.1`"), "{error}");
        assert!(!run("ip link").contains("overlay0"), "a half-made device was left");
        run("ip link delete flannel.1");

        let socket = UdpSocket::bind("0.0.0.0:8472").unwrap();
        let error = refusal().await;
        assert!(error.contains("udp port 8472 is bound by a process"), "{error}");
        drop(socket);

        run("ip link add overlay0 type bridge");
        let error = refusal().await;
        assert!(error.starts_with("interface overlay0 exists and is a bridge"), "{error}");
        assert!(device::remove(&netlink, "overlay0").await.is_err());
        run("ip link delete overlay0");

        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        run("ip route add 10.244.0.0/16 dev br0");
        let error = refusal().await;
        assert!(error.contains("already routed through interface br0"), "{error}");
        assert!(run("ip route").contains("10.244.0.0/16 dev br0"));
    });
}

#[test]
fn the_underlay_is_found_by_the_kernels_routes() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let error = underlay::choose(&netlink, &Choice::default()).await.unwrap_err();
        assert!(error.to_string().starts_with("there is no default route"), "{error}");
        for index in [0, 1] {
            run(&format!("ip link add eth{index} type veth peer name peer{index}"));
            run(&format!("ip address add 192.168.{index}.7/24 dev eth{index}"));
            run(&format!("ip link set eth{index} up"));
            run(&format!("ip link set peer{index} up"));
        }
        run("ip route add default via 192.168.1.1");
        let chosen = underlay::choose(&netlink, &Choice::default()).await.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth1", [192, 168, 1, 7].into()));
        let reaching = |address: [u8; 4]| Choice { can_reach: Some(address.into()), ..Choice::default() };
        let chosen = underlay::choose(&netlink, &reaching([192, 168, 0, 99])).await.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.mtu), ("eth0", 1500));
        run("ip route delete default");
        let error = underlay::choose(&netlink, &reaching([8, 8, 8, 8])).await.unwrap_err();
        assert!(error.to_string().starts_with("no route leads to 8.8.8.8"), "{error}");
    });
}

/// A running observer and what it said.
struct Observer {
    changes: mpsc::Receiver<Vec<LocalChange>>,
    commands: mpsc::Sender<observe::EndpointCommand>,
    view: watch::Receiver<View>,
    seen: Vec<LocalChange>,
}

impl Observer {
    async fn start(installed: Installed) -> Self {
        let (to_us, changes) = mpsc::channel(16);
        let (commands, to_it) = mpsc::channel(1);
        let (show, view) = watch::channel(View::default());
        let config = LearnConfig { subnet: "10.244.1.0/24".parse().unwrap(), bridges: vec![] };
        let netlink = Netlink::open().unwrap();
        tokio::spawn(observe(netlink, config, installed, to_us, to_it, show));
        let mut observer = Self { changes, commands, view, seen: Vec::new() };
        let first = timeout(Duration::from_secs(5), observer.changes.recv()).await;
        observer.seen = first.unwrap().unwrap();
        observer
    }

    /// Waits for a change of that description; returns it, and what was said before it.
    async fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&LocalChange) -> bool,
    ) -> (LocalChange, Vec<LocalChange>) {
        let mut said = Vec::new();
        let found = timeout(Duration::from_secs(20), async {
            loop {
                while !self.seen.is_empty() {
                    let change = self.seen.remove(0);
                    if wanted(&change) {
                        return change;
                    }
                    said.push(change);
                }
                self.seen = self.changes.recv().await.unwrap();
            }
        });
        let found = found.await;
        (found.unwrap_or_else(|_| panic!("not {what}; only {said:?}")), said)
    }

    /// Nothing more is said for a while.
    async fn is_quiet(&mut self, duration: Duration) {
        assert_eq!(self.seen, []);
        if let Ok(Some(changes)) = timeout(duration, self.changes.recv()).await {
            panic!("{changes:?}");
        }
    }
}

fn bridge() {
    // A fixed MAC address: otherwise the bridge takes its lowest port's, and endpoints follow.
    run("ip link add br0 address 02:00:0a:f4:01:01 type bridge");
    run("ip address add 10.244.1.1/24 dev br0");
    run("ip link set br0 up");
}

fn puts(address: Ipv4Addr, port: u32) -> impl Fn(&LocalChange) -> bool {
    move |change| matches!(change, LocalChange::PutEndpoint(put, endpoint) if *put == address && endpoint.port == port)
}

async fn index(name: &str) -> u32 {
    let netlink = Netlink::open().unwrap();
    netlink.link_named(name).await.unwrap().unwrap().index
}

#[test]
fn a_container_is_learned_and_forgotten_with_its_namespace() {
    in_namespace(|| async {
        bridge();
        let br0 = LocalChange::Attach(index("br0").await, PortKind::Bridge);
        let mut observer = Observer::start(Installed::default()).await;
        observer.until("br0 attached", |change| *change == br0).await;

        let container = Container::start("veth1", C1);
        let veth1 = index("veth1").await;
        container.ping_gateway();
        let (put, before) = observer.until("learned", puts(C1, veth1)).await;
        assert!(before.contains(&LocalChange::Attach(veth1, PortKind::Veth)), "{before:?}");
        let LocalChange::PutEndpoint(_, endpoint) = put else { unreachable!("until() waited for it") };
        let inside = container.run("ip link show eth0");
        assert!(inside.contains(&endpoint.mac.to_string()), "{} {inside}", endpoint.mac);
        assert!(run("ip link show br0").contains(&endpoint.gateway_mac.to_string()));
        let view = observer.view.borrow().clone();
        assert_eq!(view.bridges[0].name, "br0");
        assert_eq!(view.bridges[0].ports, ["veth1"]);

        // Entries that go prove nothing.
        run("ip neighbour flush dev br0");
        run("bridge fdb flush dev br0 dynamic");
        observer.is_quiet(Duration::from_millis(300)).await;

        // An agent that starts anew keeps what is installed, though the kernel's tables know nothing of it now.
        let installed = Installed {
            endpoints: [(C1, endpoint)].into(),
            ports: [(veth1, PortKind::Veth)].into(),
            ..Installed::default()
        };
        let again = Observer::start(installed).await;
        assert!(!again.seen.contains(&LocalChange::RemoveEndpoint(C1)), "{:?}", again.seen);

        drop(container);
        let gone = |change: &LocalChange| *change == LocalChange::Detach(veth1);
        let (_, before) = observer.until("detached", gone).await;
        assert_eq!(before, [LocalChange::RemoveEndpoint(C1)]);
    });
}

#[test]
fn a_running_container_is_found_at_start_and_a_named_one_pinned() {
    in_namespace(|| async {
        bridge();
        let container = Container::start("veth1", C1);
        container.ping_gateway();
        let veth1 = index("veth1").await;
        let mut observer = Observer::start(Installed::default()).await;
        observer.until("learned", puts(C1, veth1)).await;

        let (reply, answer) = oneshot::channel();
        let attach =
            observe::EndpointCommand::Attach { address: C1, interface: "veth1".into(), mac: None, reply };
        observer.commands.send(attach).await.unwrap();
        assert_eq!(answer.await.unwrap(), Ok(()));
        let pinned =
            |change: &LocalChange| matches!(change, LocalChange::PutEndpoint(_, endpoint) if endpoint.pinned);
        observer.until("pinned", pinned).await;
    });
}

#[test]
fn a_container_without_a_bridge_is_learned_by_its_route() {
    in_namespace(|| async {
        let mut observer = Observer::start(Installed::default()).await;
        let container = Container::start_routed("veth1", C1);
        let veth1 = index("veth1").await;
        container.ping_gateway();
        let (put, before) = observer.until("learned", puts(C1, veth1)).await;
        assert_eq!(before, [LocalChange::Attach(veth1, PortKind::Veth)]);
        let LocalChange::PutEndpoint(_, endpoint) = put else { unreachable!("until() waited for it") };
        assert!(run("ip link show veth1").contains(&endpoint.gateway_mac.to_string()));
        assert!(container.run("ip link show eth0").contains(&endpoint.mac.to_string()));
    });
}

#[test]
fn a_container_is_learned_though_events_were_lost() {
    in_namespace(|| async {
        bridge();
        let mut observer = Observer::start(Installed::default()).await;
        // The observer's runtime stands still while commands run: more events than its socket holds, then a container.
        let mut batch = tempfile::NamedTempFile::new().unwrap();
        for index in 0..8000 {
            let (high, low) = (index / 250, index % 250);
            let line = format!(
                "neighbour replace 10.99.{high}.{low} lladdr 02:00:00:00:00:01 dev br0 nud permanent"
            );
            writeln!(batch, "{line}").unwrap();
        }
        run(&format!("ip -batch {}", batch.path().display()));
        let container = Container::start("veth1", C1);
        container.ping_gateway();
        let veth1 = index("veth1").await;
        observer.until("learned", puts(C1, veth1)).await;
    });
}

#[test]
fn state_lives_on_bpffs_and_leaves_no_trace() {
    in_namespace(|| async {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("bpf");
        std::fs::create_dir(&root).unwrap();
        // A mount of this thread's own, which ends with it.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, private, none).unwrap();
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), none).unwrap();

        let paths = Paths::new(&root, &folder.path().join("state"), "default");
        paths.create().unwrap();
        let lock = paths.lock().unwrap();
        let record = Record::current([192, 168, 0, 1].into(), "10.244.1.0/24".parse().unwrap()).unwrap();
        assert_eq!(paths.adopt(&record).unwrap(), Adoption::Fresh);
        assert!(root.join(format!("overlay/v{ABI}/default")).is_dir());
        paths.remove(lock).unwrap();
        assert!(!root.join("overlay").exists());
        umount(&root).unwrap();
    });
}

#[test]
fn an_address_moves_only_when_its_holder_is_silent() {
    in_namespace(|| async {
        bridge();
        let mut observer = Observer::start(Installed::default()).await;
        let holder = Container::start("veth1", C1);
        let veth1 = index("veth1").await;
        holder.ping_gateway();
        observer.until("learned", puts(C1, veth1)).await;

        // Another container takes the same address; the kernel believes whoever spoke last.
        let claimant = Container::start("veth2", C1);
        let veth2 = index("veth2").await;
        run("ip neighbour flush dev br0");
        claimant.ping_gateway();
        let attached = |change: &LocalChange| *change == LocalChange::Attach(veth2, PortKind::Veth);
        observer.until("veth2 attached", attached).await;
        let refused = observer.view.wait_for(|view| view.conflicts_total >= 1);
        let refused = timeout(Duration::from_secs(5), refused).await;
        drop(refused.expect("no conflict was counted"));
        observer.is_quiet(Duration::from_millis(100)).await;

        // The holder gives it up without a word.
        holder.run("ip address delete 10.244.1.2/24 dev eth0");
        run("ip neighbour flush dev br0");
        claimant.ping_gateway();
        observer.until("moved", puts(C1, veth2)).await;
        assert_eq!(observer.view.borrow().moves_total, 1);
    });
}

#[test]
fn what_is_flooded_to_a_port_proves_nothing_about_who_is_behind_it() {
    in_namespace(|| async {
        bridge();
        let holder = Container::start("veth1", C1);
        let claimant = Container::start("veth2", C1);
        let mac = "02:00:00:00:00:0a";
        for container in [&holder, &claimant] {
            container.run(&format!("ip link set eth0 address {mac}"));
        }
        // It moved with its MAC address, and broadcasts.
        holder.run("ip address delete 10.244.1.2/24 dev eth0");
        let sent = || {
            let links: serde_json::Value =
                serde_json::from_str(&run("ip -json -statistics link show veth1")).unwrap();
            links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
        };
        let mut broadcasts = Command::new("nsenter")
            .args(["--target", &claimant.process.id().to_string(), "--net"])
            .args(["ping", "-b", "-q", "-i", "0.01", "-w", "20", "10.244.1.255"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let before = sent();
        while sent() < before + 10 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let probe = Probe {
            port: index("veth1").await,
            address: C1,
            mac: mac.parse().unwrap(),
            gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
        };
        let before = sent();
        let answered = Prober::open(probe, "veth1").unwrap().ask();
        let after = sent();
        broadcasts.kill().unwrap();
        broadcasts.wait().unwrap();
        assert!(!answered.unwrap(), "the holder is silent");
        // Beside the two questions.
        assert!(after > before + 2, "nothing was flooded");
    });
}

#[test]
fn check_finds_what_is_wrong_with_a_namespace() {
    in_namespace(|| async {
        bridge();
        run("ip link set br0 mtu 1500");
        run("ip link add eth0 type veth peer name peer0");
        run("ip link set eth0 up");
        run("ip route add 10.9.0.0/24 dev eth0 mtu 1400");
        run("ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning");
        let spec = CheckSpec {
            underlay: Some("eth0".into()),
            device: "overlay0".into(),
            backend: Backend::DEFAULT,
            subnet: Some("10.244.1.0/24".parse().unwrap()),
            bpf_root: "/proc".into(),
            pins: "/proc/overlay".into(),
        };
        let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
        for finding in &findings {
            eprintln!("{finding:?}");
            let helpful = finding.level == Level::Ok || !finding.remedy.is_empty();
            assert!(helpful, "{finding:?}");
        }
        let level = |what: &str| {
            let found = findings.iter().find(|finding| finding.what == what);
            found.unwrap_or_else(|| panic!("{what} was not looked at")).level
        };
        assert_eq!(level("udp port 8472"), Level::Fail);
        assert_eq!(level("mtu of br0"), Level::Warn);
        assert_eq!(level("bpffs at /proc"), Level::Fail);
        assert_eq!(level("capabilities"), Level::Ok);
        assert_eq!(level("mtu of routes"), Level::Warn);

        // The socket of our own device is no stranger's.
        run("ip link delete flannel.1");
        run("ip link add overlay0 type vxlan external dstport 8472");
        run("ip link set overlay0 up");
        let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
        let port = findings.iter().find(|finding| finding.what == "udp port 8472").unwrap();
        assert_eq!(port.level, Level::Ok, "{port:?}");

        // The network's own port and MTU, as its device has them.
        run("ip link delete overlay0");
        run("ip link add overlay0 mtu 1400 type vxlan external dstport 4789");
        run("ip link set br0 mtu 1401");
        let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
        let is_there = |what, level| {
            assert!(findings.iter().any(|it| it.what == what && it.level == level), "{findings:?}");
        };
        is_there("udp port 4789", Level::Ok);
        is_there("mtu of br0", Level::Warn);
        run("ip link set overlay0 up");

        // Network is what leads to our device, and a bridge of others has no place in it.
        run("ip route add 10.244.0.0/16 dev overlay0");
        run("ip link add br1 type bridge");
        for (address, level) in [("10.245.2.1/24", Level::Ok), ("10.244.2.1/24", Level::Warn)] {
            run(&format!("ip address add {address} dev br1"));
            let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
            let others = findings.iter().find(|finding| finding.what == "other networks").unwrap();
            assert_eq!(others.level, level, "{others:?}");
        }
    });
}

#[test]
fn links_are_told_apart_by_kind() {
    in_namespace(|| async {
        bridge();
        let container = Container::start("veth1", C1);
        let links = Netlink::open().unwrap().links().await.unwrap();
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        assert_eq!(named("br0").kind, LinkKind::Bridge);
        let veth1 = named("veth1");
        assert_eq!(veth1.kind, LinkKind::Veth);
        assert_eq!(veth1.master, Some(named("br0").index));
        assert!(veth1.peer.is_some() && veth1.peer_netns.is_some(), "{veth1:?}");
        drop(container);
    });
}

//! Containers are learned, moved and forgotten by what the kernel says about them.
use std::{
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use overlay_user::{
    datapath::Installed,
    host::netlink::Netlink,
    learn::{
        learner::{LearnConfig, Probe},
        observe::{self, observe},
        probe::Prober,
        view::View,
    },
    model::{change::LocalChange, entries::PortKind, mac::Mac},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::bed::{C1, Container, bridge, in_namespace, run};

/// A running observer and the changes that it reported.
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
        let (_, rule) = watch::channel(None);
        let config = LearnConfig { subnet: "10.244.1.0/24".parse().unwrap(), bridges: vec![] };
        let netlink = Netlink::open().unwrap();
        tokio::spawn(observe(netlink, config, installed, to_us, to_it, rule, show));
        let mut observer = Self { changes, commands, view, seen: Vec::new() };
        let first = timeout(Duration::from_secs(5), observer.changes.recv()).await;
        observer.seen = first.unwrap().unwrap();
        observer
    }

    /// Waits for a change that is `wanted`. Returns it, and what was reported before it.
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

    /// Asserts that nothing more is reported for a while.
    async fn is_quiet(&mut self, duration: Duration) {
        assert_eq!(self.seen, []);
        if let Ok(Some(changes)) = timeout(duration, self.changes.recv()).await {
            panic!("{changes:?}");
        }
    }
}

fn puts(address: IpAddr, port: u32) -> impl Fn(&LocalChange) -> bool {
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

        // The absence of neighbour entries proves nothing about a container.
        run("ip neighbour flush dev br0");
        run("bridge fdb flush dev br0 dynamic");
        observer.is_quiet(Duration::from_millis(300)).await;

        // An agent that starts keeps what is installed, even though the kernel's tables no longer know of it.
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
        // The observer's runtime stands still while commands run. There are more events than its socket holds, and then
        // a container.
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
fn an_address_moves_only_when_its_holder_is_silent() {
    in_namespace(|| async {
        bridge();
        let mut observer = Observer::start(Installed::default()).await;
        let holder = Container::start("veth1", C1);
        let veth1 = index("veth1").await;
        holder.ping_gateway();
        observer.until("learned", puts(C1, veth1)).await;

        // Another container takes the same address, and the kernel believes whichever spoke last.
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

        // The holder loses the address without announcing it.
        holder.run("ip address delete 10.244.1.2/24 dev eth0");
        run("ip neighbour flush dev br0");
        claimant.ping_gateway();
        observer.until("moved", puts(C1, veth2)).await;
        assert_eq!(observer.view.borrow().moves_total, 1);
    });
}

/// How many packets the host has sent to a port.
fn sent(port: &str) -> u64 {
    let links: serde_json::Value =
        serde_json::from_str(&run(&format!("ip -json -statistics link show {port}"))).unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn a_container_that_answers_for_its_other_address_alone_has_the_first_no_more() {
    in_namespace(|| async {
        // IPv6 would send packets of its own.
        for which in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
        bridge();
        let holder = Container::start("veth1", C1);
        let other = IpAddr::from([10, 244, 1, 9]);
        holder.run(&format!("ip address add {other}/32 dev eth0"));
        holder.run("ip link set eth0 address 02:00:00:00:00:0a");
        let probe = Probe {
            port: index("veth1").await,
            address: C1,
            mac: Mac([2, 0, 0, 0, 0, 0xa]),
            gateway_mac: Mac([2, 0, 0xa, 0xf4, 1, 1]),
            sibling: Some(other),
        };
        // Whether there was an answer, and whether four questions about each address were sent before that. The kernel may send a
        // packet or two of its own.
        let asked = |sibling| {
            let before = sent("veth1");
            let answered = Prober::open(Probe { sibling, ..probe }, "veth1").unwrap().ask().unwrap();
            (answered, sent("veth1") - before >= 8)
        };
        assert_eq!([asked(Some(other)), asked(None)], [(true, false); 2]);
        holder.run("ip address delete 10.244.1.2/24 dev eth0");
        // Four times it says no, for which nobody waits.
        assert_eq!(asked(Some(other)), (false, true));
        // Who has nothing to answer for is given its time, twice.
        assert_eq!(asked(None), (false, false));
        holder.run(&format!("ip address delete {other}/32 dev eth0"));
        assert_eq!(asked(Some(other)), (false, false));
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
        // The address moves together with its MAC address, and the container broadcasts.
        holder.run("ip address delete 10.244.1.2/24 dev eth0");
        let sent = || sent("veth1");
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
            sibling: None,
        };
        let before = sent();
        let answered = Prober::open(probe, "veth1").unwrap().ask();
        let after = sent();
        broadcasts.kill().unwrap();
        broadcasts.wait().unwrap();
        assert!(!answered.unwrap(), "the holder is silent");
        // More was received than the two questions.
        assert!(after > before + 2, "nothing was flooded");
    });
}

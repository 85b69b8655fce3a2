//! `overlay adopt-flannel`: a host of flannel's is moved in place, under traffic, and back.
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use overlay_lab::{Container, DIRECT_VXLAN, Host, Numbered, NumberedReport, Options, Steady};
use serde_json::{Value, json};

use super::{
    bed::{
        Bed, Flannel, FlannelHost, Mode, assert_reaches, flannels, lease_key, overlay, subnet_env, wait_for,
    },
    rules::{self, By},
};

/// The longest interruption of the stack's path that a move may cause, in microseconds, on a machine that is busy with
/// other things. Usual are 8,000 to 20,000; 265,000 were seen once on a busy machine.
const LONGEST: u64 = 1_000_000;

/// Two hosts of flannel's whose containers have talked to each other. The first is to be moved.
struct Scene {
    bed: Bed,
    etcd: String,
}

impl Scene {
    fn new(flannel: &Flannel) -> Self {
        Self::with(flannel, Mode::Vxlan.config())
    }

    fn with(flannel: &Flannel, config: &str) -> Self {
        let mut bed = Bed::with(flannel, 0, 2, config, Options::default());
        let etcd = bed.etcd().client_url();
        let scene = Self { bed, etcd };
        // kube-proxy and ufw do this.
        rules::drop_invalid(&scene.moved().host);
        let (a, b) = scene.containers();
        assert_reaches(a, b.address());
        assert_reaches(b, a.address());
        scene
    }

    fn moved(&self) -> &FlannelHost {
        &self.bed.flannel[0]
    }

    fn other(&self) -> &FlannelHost {
        &self.bed.flannel[1]
    }

    fn containers(&self) -> (&Container, &Container) {
        (&self.moved().container, &self.other().container)
    }

    /// `overlay adopt-flannel` for the host that is moved. The folder `path` comes first in `PATH`.
    fn command(&self, words: &[&str], path: Option<&PathBuf>) -> Command {
        let host = &self.moved().host;
        let words = [&[overlay().to_str().unwrap(), "adopt-flannel"], words].concat();
        let mut command = host.namespace().command(&words).unwrap();
        command.env("OVERLAY_ETCD_ENDPOINTS", &self.etcd).env("OVERLAY_IFACE", "eth0");
        command.env("OVERLAY_BPF_ROOT", host.bpf_root());
        command.env("OVERLAY_STATE_DIR", host.folder().join("state"));
        command.env("OVERLAY_SUBNET_FILE", host.subnet_file());
        if let Some(first) = path {
            let rest = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{rest}", first.display()));
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words, None).output().unwrap()
    }

    /// Runs the command, asserts that it succeeds, and returns what it prints.
    fn done(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command and asserts that it fails with these words.
    fn refused(&self, words: &[&str], says: &[&str]) {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", text(&output));
        for said in says {
            assert!(text(&output).contains(said), "`{said}` is not in: {}", text(&output));
        }
    }

    fn lease(&mut self) -> String {
        let key = lease_key(&self.bed.flannel[0].subnet);
        self.bed.get(&key)
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Everything of a host that a move changes or must not change.
#[derive(Debug, PartialEq, Eq)]
struct Picture(BTreeMap<&'static str, String>);

impl Picture {
    fn of(host: &Host) -> Self {
        let sorted = |line: &str| {
            let shown = host.exec(line).unwrap();
            let mut lines: Vec<_> = shown.lines().map(str::trim_end).collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        let links = host.exec("ip -d -j link show type vxlan").unwrap();
        let mut links: Value = serde_json::from_str(&links).unwrap();
        for link in links.as_array_mut().unwrap() {
            // A device made anew has another index, but must be the same otherwise.
            link["ifindex"] = Value::Null;
        }
        // The interfaces' indexes are cut off.
        let addresses = host.exec("ip -4 -o address").unwrap();
        let mut addresses: Vec<_> =
            addresses.lines().filter_map(|line| line.split_once(": ")).map(|it| it.1).collect();
        addresses.sort_unstable();
        Self(BTreeMap::from([
            ("links", format!("{links:#}")),
            ("addresses", addresses.join("\n")),
            ("routes", sorted("ip route show")),
            ("neighbours", sorted("ip neigh show nud permanent")),
            ("forwarding", sorted("bridge fdb show").lines().filter(|line| line.contains(" dst ")).collect()),
            ("rules", rules::shown(host)),
            ("subnet.env", subnet_env(host)),
        ]))
    }

    #[track_caller]
    fn same(&self, after: &Self, what: &str) {
        for (name, before) in &self.0 {
            assert_eq!(before, &after.0[name], "{what}: {name}");
        }
    }
}

/// What the other host knows about the one that is moved.
fn known_on_the_other_host(scene: &Scene) -> String {
    let (subnet, host) = (&scene.moved().subnet, &scene.other().host);
    let lines =
        ["ip neigh show dev flannel.1", "bridge fdb show dev flannel.1"].map(|it| host.exec(it).unwrap());
    format!("{}{}", lines.concat(), scene.other().route(subnet))
        + &host.exec(&format!("ip route get {}", subnet.replace("0/24", "2"))).unwrap()
}

/// Numbered packets and a connection in each direction.
struct Traffic {
    numbered: [Numbered; 2],
    steady: [Steady; 2],
}

impl Traffic {
    fn start(scene: &Scene) -> Self {
        let (a, b) = scene.containers();
        let both = [(a, b), (b, a)];
        let traffic = Self {
            numbered: both.map(|(from, to)| Numbered::start(from, to, 1000).unwrap()),
            steady: both.map(|(from, to)| Steady::start(from, to).unwrap()),
        };
        traffic.flow_on();
        traffic
    }

    /// Waits until 500 more packets are sent.
    fn flow_on(&self) {
        let goal = self.numbered[0].sent() + 500;
        wait_for("packets to be sent", || self.numbered[0].sent() > goal);
    }

    /// Asserts that the connections still work, and returns what became of the packets that left the moved host and of
    /// those that came to it.
    fn finish(self) -> [NumberedReport; 2] {
        self.flow_on();
        for steady in self.steady {
            let report = steady.finish().unwrap();
            assert!(report.bytes > 0);
        }
        self.numbered.map(|numbered| {
            let report = numbered.finish().unwrap();
            assert_eq!(report.duplicated, 0);
            report
        })
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn moves_under_traffic(flannel: &Flannel, by: By, options: &[&str]) -> ([NumberedReport; 2], Value) {
    let mut scene = Scene::new(flannel);
    rules::write(&scene.moved().host, by, &scene.moved().subnet);
    scene.bed.flannel[0].stop();
    let (lease, known) = (scene.lease(), known_on_the_other_host(&scene));
    let before = Picture::of(&scene.moved().host);

    let plan = scene.done(&[&["--dry-run"], options].concat());
    assert!(plan.contains(" 1. renew lease") && plan.contains("remove flannel.1, with 1 routes"), "{plan}");
    before.same(&Picture::of(&scene.moved().host), "--dry-run");

    // These connections begin under flannel, and end under it.
    let (a, b) = scene.containers();
    let through = [(a, b), (b, a)].map(|(from, to)| Steady::start(from, to).unwrap());
    let traffic = Traffic::start(&scene);
    let report = parsed(&scene.done(&[&["--json"], options].concat()));
    let lost = traffic.finish();
    let disruption = &report["toll"];
    assert!(disruption["interruption_us"].as_u64().unwrap() < LONGEST, "{report:#}");
    assert_eq!(disruption["refused"], 0, "{report:#}");

    // The store and the other host have not noticed anything.
    assert_eq!(scene.lease(), lease);
    assert_eq!(known_on_the_other_host(&scene), known);
    // Nothing of flannel's is left, and everything else is.
    let after = Picture::of(&scene.moved().host);
    assert!(!after.0["links"].contains("flannel"), "{}", after.0["links"]);
    assert!(!after.0["routes"].contains("flannel") && !after.0["routes"].contains("blackhole"), "{after:?}");
    let (old, new) = (&before.0["rules"], &after.0["rules"]);
    assert!(!new.to_lowercase().contains("flannel"), "{new}");
    let others = old.lines().filter(|line| line.contains("192.0.2.") || line.contains("docker0"));
    assert!(others.into_iter().all(|line| new.contains(line)), "{new}");
    assert!(new.contains("table ip overlay-default"), "masquerading goes on: {new}");

    // The agent finds everything and goes on with it.
    let line = report["next"].as_str().unwrap();
    assert!(line.starts_with("overlay agent") && line.ends_with("--ip-masq"), "{line}");
    let etcd = scene.etcd.clone();
    let arguments = [&["--etcd-endpoints", &etcd, "--ip-masq"], options].concat();
    let traffic = Traffic::start(&scene);
    let mut agent = scene.moved().host.start_agent(overlay(), &arguments).unwrap();
    agent.wait_ready(Duration::from_secs(60)).unwrap();
    assert!(agent.log().contains("adopting what an earlier agent left"), "{}", agent.log());
    for report in traffic.finish() {
        assert_eq!(report.lost, 0, "{report:?}");
    }
    assert_eq!(
        subnet_env(&scene.moved().host),
        before.0["subnet.env"].replace("IPMASQ=false", "IPMASQ=true")
    );
    // A second run has nothing to do.
    assert!(scene.done(&[]).contains("nothing to adopt"));

    // Now the host is moved back.
    scene.refused(&["--back"], &["end the agent first"]);
    agent.terminate().unwrap();
    let traffic = Traffic::start(&scene);
    let back = parsed(&scene.done(&["--back", "--json"]));
    traffic.finish();
    for steady in through {
        let silent = steady.finish().unwrap().longest_gap;
        assert!(silent < Duration::from_secs(5), "nothing for {silent:?}");
    }
    assert!(back["toll"]["interruption_us"].as_u64().unwrap() < LONGEST, "{back:#}");
    before.same(&Picture::of(&scene.moved().host), "--back");
    let left = |folder: PathBuf| fs::read_dir(folder).map_or(0, Iterator::count);
    assert_eq!(left(scene.moved().host.folder().join("state")), 0);
    let mac = scene.moved().mac();
    scene.bed.flannel[0].start_again();
    assert_eq!(scene.moved().mac(), mac, "flannel finds its device as it left it");
    assert_eq!(scene.lease(), lease);
    scene.bed.know_each_other();
    let (a, b) = scene.containers();
    assert_reaches(a, b.address());
    (lost, report)
}

#[test]
fn a_host_is_moved_under_traffic_without_a_packet_lost_in_the_fast_path() {
    for flannel in flannels() {
        let (lost, report) = moves_under_traffic(&flannel, By::Iptables("iptables-nft"), &[]);
        assert_eq!((lost[0].lost, lost[1].lost), (0, 0), "{lost:?} {report:#}");
    }
}

#[test]
fn what_the_stack_carries_is_interrupted_for_a_moment_and_the_packets_are_counted() {
    for flannel in flannels() {
        for by in [By::Iptables("iptables-legacy"), By::Nftables] {
            let (lost, report) = moves_under_traffic(&flannel, by, &["--fast-path", "off"]);
            let disruption = &report["toll"];
            let told = |name: &str| disruption[name].as_u64().unwrap();
            println!("{by:?}: lost {} and {}, told {disruption}", lost[0].lost, lost[1].lost);
            // The acknowledgements and segments of the two connections are among the packets that the report counts.
            assert!(lost[0].lost <= told("from_containers"), "{lost:?} {disruption}");
            assert!(lost[1].lost <= told("from_peers"), "{lost:?} {disruption}");
        }
    }
}

/// Makes a command that is found before the installed one. `does` is a shell script. Returns the command's folder.
fn in_place_of(host: &Host, command: &str, does: &str) -> PathBuf {
    let folder = host.folder().join("bin");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(command);
    fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Whether an interface was up when `links` was printed.
fn is_up(links: &str, name: &str) -> bool {
    let link = links.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {links}"));
    link.contains(",UP")
}

#[test]
fn a_move_that_fails_half_way_is_undone() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        rules::write(&scene.moved().host, By::Iptables("iptables-nft"), &scene.moved().subnet);
        scene.bed.flannel[0].stop();
        let lease = scene.lease();
        let before = Picture::of(&scene.moved().host);
        let seen = scene.moved().host.folder().join("seen");
        // Writing the rules is the last step that can fail. flannel's device has given up the port by then, and ours
        // has taken it.
        let does = format!("ip -br link > {}; echo no such luck >&2; exit 1", seen.display());
        let path = in_place_of(&scene.moved().host, "iptables-nft-restore", &does);
        let traffic = Traffic::start(&scene);
        let output = scene.command(&[], Some(&path)).output().unwrap();
        let lost = traffic.finish();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        for said in ["no such luck", "Nothing has changed: all is flannel's again"] {
            assert!(text(&output).contains(said), "{}", text(&output));
        }
        let links = fs::read_to_string(&seen).unwrap();
        assert!(is_up(&links, "overlay0") && !is_up(&links, "flannel.1"), "{links}");
        before.same(&Picture::of(&scene.moved().host), "undone");
        assert_eq!(scene.lease(), lease);
        assert!(!scene.moved().host.folder().join("state/default").exists());
        // The fast path went on during the move and its undoing.
        assert_eq!((lost[0].lost, lost[1].lost), (0, 0), "{lost:?}");
        // After that the move succeeds.
        scene.done(&[]);
    }
}

#[test]
fn a_move_that_is_cut_off_can_be_taken_back() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        rules::write(&scene.moved().host, By::Iptables("iptables-nft"), &scene.moved().subnet);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        let there = scene.moved().host.folder().join("there");
        let does = format!("touch {}; while kill -0 $PPID; do sleep 0.05; done", there.display());
        let path = in_place_of(&scene.moved().host, "iptables-nft-restore", &does);
        let traffic = Traffic::start(&scene);
        let mut command = scene.command(&[], Some(&path));
        let mut cut_off = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the last step", || there.exists());
        cut_off.kill().unwrap();
        cut_off.wait().unwrap();
        traffic.finish();

        scene.refused(&[], &["an earlier move was cut off", "--back"]);
        let traffic = Traffic::start(&scene);
        let plan = scene.done(&["--back"]);
        traffic.finish();
        assert!(plan.contains("this host is flannel's again"), "{plan}");
        before.same(&Picture::of(&scene.moved().host), "--back");
    }
}

#[test]
fn the_way_back_is_found_by_the_leases_too() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        scene.done(&[]);
        let host = scene.moved().host.clone();
        fs::remove_file(host.folder().join("state/default/flannel.json")).unwrap();
        assert!(scene.done(&["--back", "--dry-run"]).contains("1. make flannel.1 as it was"));
        scene.done(&["--back"]);
        before.same(&Picture::of(&host), "--back");
        scene.bed.flannel[0].start_again();
        scene.bed.assert_all_reached();
    }
}

#[test]
fn routes_of_direct_routing_go_and_come_back() {
    for flannel in flannels() {
        let mut scene = Scene::with(&flannel, DIRECT_VXLAN);
        scene.bed.flannel[0].stop();
        let before = Picture::of(&scene.moved().host);
        let direct = format!("{} via 10.99.0.2 dev eth0", scene.other().subnet);
        assert!(before.0["routes"].contains(&direct), "{before:?}");
        let traffic = Traffic::start(&scene);
        // clsact is the attach method on kernels without TCX.
        let plan = scene.done(&["--attach", "clsact"]);
        traffic.finish();
        assert!(plan.contains(&format!("remove flannel's plain routes: {}", scene.other().subnet)), "{plan}");
        let (a, b) = scene.containers();
        assert_reaches(a, b.address());
        scene.done(&["--back"]);
        before.same(&Picture::of(&scene.moved().host), "--back");
    }
}

#[test]
fn a_host_of_the_host_gw_backend_is_moved_without_a_gap() {
    for flannel in flannels() {
        let mut scene = Scene::with(&flannel, Mode::HostGw.config());
        rules::write(&scene.moved().host, By::Nftables, &scene.moved().subnet);
        scene.bed.flannel[0].stop();
        let (lease, route) = (scene.lease(), scene.other().route(&scene.moved().subnet));
        let before = Picture::of(&scene.moved().host);
        let traffic = Traffic::start(&scene);
        let report = parsed(&scene.done(&["--json"]));
        let lost = traffic.finish().map(|numbered| numbered.lost);
        assert_eq!(lost, [0, 0], "{report:#}");
        assert_eq!(report["toll"]["interruption_us"], 0, "{report:#}");
        assert_eq!((scene.lease(), scene.other().route(&scene.moved().subnet)), (lease, route));
        let after = Picture::of(&scene.moved().host);
        assert!(!after.0["routes"].contains(" via 10.99.0.2 "), "{after:?}");
        assert!(scene.done(&[]).contains("nothing to adopt"));

        let etcd = scene.etcd.clone();
        let arguments = ["--etcd-endpoints", &etcd, "--ip-masq"];
        let mut agent = scene.moved().host.start_agent(overlay(), &arguments).unwrap();
        agent.wait_ready(Duration::from_secs(60)).unwrap();
        assert!(agent.log().contains("adopting what an earlier agent left"), "{}", agent.log());
        agent.terminate().unwrap();
        let traffic = Traffic::start(&scene);
        scene.done(&["--back"]);
        for report in traffic.finish() {
            assert_eq!(report.lost, 0, "{report:?}");
        }
        before.same(&Picture::of(&scene.moved().host), "--back");
        scene.bed.flannel[0].start_again();
        scene.bed.know_each_other();
    }
}

/// All interfaces of a host, and whether they are up.
fn links(host: &Host) -> String {
    host.exec("ip -br link").unwrap()
}

#[test]
fn an_interface_that_is_not_ours_is_refused_as_device_and_left_alone_by_the_way_back() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let host = scene.moved().host.clone();
        let record = host.folder().join("state/default/flannel.json");
        host.namespace().ip("link add other type vxlan id 9 dev eth0 dstport 4000").unwrap();
        host.namespace().ip("link set other up").unwrap();
        let (before, up) = (Picture::of(&host), links(&host));
        let taken = "there is an interface of that name, and it is not of the overlay's making";
        let flannels = "flannel's own device is called so";
        for (device, says) in [("eth0", taken), ("br0", taken), ("other", taken), ("flannel.1", flannels)] {
            for mode in ["--dry-run", "--json", "--back"] {
                scene.refused(&["--device", device, mode], &[&format!("--device {device}: {says}")]);
                assert!(!record.exists(), "{device} {mode}");
            }
        }
        assert_eq!(links(&host), up);
        before.same(&Picture::of(&host), "refused");

        // Earlier versions wrote records of such devices, and then could not undo the move.
        scene.done(&[]);
        let mut recorded = parsed(&fs::read_to_string(&record).unwrap());
        scene.done(&["--back"]);
        let before = Picture::of(&host);
        for device in ["eth0", "other", "flannel.1"] {
            (recorded["finished"], recorded["tunnel"]) = (false.into(), device.into());
            fs::create_dir_all(record.parent().unwrap()).unwrap();
            fs::write(&record, recorded.to_string()).unwrap();
            scene.refused(&[], &["an earlier move was cut off"]);
            let output = scene.run(&["--back"]);
            assert!(output.status.success(), "{}", text(&output));
            let says = format!("{device} is not of the overlay's making: it stays as it is");
            assert!(text(&output).contains(&says), "{}", text(&output));
            assert!(!record.exists());
            for link in ["eth0", "br0", "other", "flannel.1"] {
                assert!(is_up(&links(&host), link), "{device}: {}", links(&host));
            }
            before.same(&Picture::of(&host), device);
        }
        scene.done(&[]);
    }
}

#[test]
fn a_route_that_cannot_be_put_back_is_named_and_stops_nothing() {
    for flannel in flannels() {
        for mode in [Mode::Vxlan, Mode::HostGw] {
            let mut scene = Scene::with(&flannel, mode.config());
            scene.bed.flannel[0].stop();
            let host = scene.moved().host.clone();
            let before = Picture::of(&host);
            scene.done(&[]);
            // The routes are as after a NIC was renamed, and after an address of the underlay was removed.
            let record = host.folder().join("state/default/flannel.json");
            let mut recorded = parsed(&fs::read_to_string(&record).unwrap());
            let route = |destination: &str, gateway: &str, interface: &str| {
                json!({
                    "destination": destination, "gateway": gateway, "interface": interface, "onlink": false, "protocol": 3,
                })
            };
            let routes = recorded["flannel"]["routes"].as_array_mut().unwrap();
            routes.insert(0, route("10.244.200.0/24", "10.99.0.9", "gone0"));
            routes.insert(1, route("10.244.201.0/24", "192.0.2.9", "eth0"));
            fs::write(&record, recorded.to_string()).unwrap();

            let output = scene.run(&["--back"]);
            assert!(output.status.success(), "{}", text(&output));
            for says in [
                "10.244.200.0/24 via 10.99.0.9 dev gone0 is not put back: gone0 is gone",
                "10.244.201.0/24 via 192.0.2.9 dev eth0 is not put back: add the route",
            ] {
                assert!(text(&output).contains(says), "`{says}` is not in: {}", text(&output));
            }
            before.same(&Picture::of(&host), "--back");
            assert!(!record.exists());
        }
    }
}

#[test]
fn a_way_back_that_fails_leaves_nothing_that_drops_packets() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let host = scene.moved().host.clone();
        scene.done(&[]);
        let before = host.exec("ip route show").unwrap();
        // This is what remains of a move that is killed while neither device has the port.
        host.namespace().ip("route add blackhole 10.244.0.0/16 metric 4294967295 proto static").unwrap();
        host.namespace().ip("link add flannel.1 type vxlan id 9 dev eth0 dstport 4000").unwrap();
        scene.refused(&["--back"], &["there is a flannel.1 already, and it is not as it was"]);
        assert_eq!(host.exec("ip route show").unwrap(), before);
        host.namespace().ip("link delete flannel.1").unwrap();
        scene.done(&["--back"]);
    }
}

/// Both ends of a connection that a host translates.
struct Translated {
    client: TcpStream,
    server: TcpStream,
}

impl Translated {
    fn open(from: &Container, to: (Ipv4Addr, u16), server: &Container, port: u16) -> Self {
        let address = (server.address(), port);
        let listener = server.namespace().enter(move || Ok(TcpListener::bind(address)?)).unwrap();
        let client = from.namespace().enter(move || Ok(TcpStream::connect(to)?)).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        Self { client, server }
    }

    /// Lets the server speak first, because a packet of the client would tell the host about the connection.
    fn talk(&mut self) {
        let mut heard = [0; 4];
        self.server.write_all(b"news").unwrap();
        self.client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"news");
        self.client.write_all(b"seen").unwrap();
        self.server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"seen");
    }
}

#[test]
fn connections_that_the_host_translates_live_through_it() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let (a, b) = scene.containers();
        // One connection goes to a service whose backend is on the other host, another to a port that is published
        // here.
        let service = Ipv4Addr::new(10, 96, 0, 10);
        let here: Ipv4Addr = scene.moved().subnet.replace("0/24", "1").parse().unwrap();
        let rules = format!(
            "add table ip services\n\
             add chain ip services pre {{ type nat hook prerouting priority dstnat; }}\n\
             add rule ip services pre ip daddr {service} tcp dport 80 dnat to {}:8080\n\
             add rule ip services pre ip daddr {here} tcp dport 81 dnat to {}:8081\n",
            b.address(),
            a.address()
        );
        let file = scene.moved().host.folder().join("services");
        fs::write(&file, rules).unwrap();
        scene.moved().host.exec(&format!("nft -f {}", file.display())).unwrap();
        let mut asked = Translated::open(a, (service, 80), b, 8080);
        let mut published = Translated::open(b, (here, 81), a, 8081);
        asked.talk();
        published.talk();
        scene.done(&[]);
        for _ in 0..3 {
            asked.talk();
            published.talk();
        }
        scene.done(&["--back"]);
        asked.talk();
        published.talk();
    }
}

#[test]
fn what_cannot_be_moved_is_refused_with_the_reason() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let host = scene.moved().host.clone();
        let before = Picture::of(&host);
        // Any process of this name is refused on this host; on another host it does not matter.
        let called_flanneld = host.folder().join("flanneld");
        fs::copy(Path::new("/bin/sleep"), &called_flanneld).unwrap();
        let line = format!("{} 1000", called_flanneld.display());
        let running = host.spawn(&line).unwrap();
        let _elsewhere = scene.other().host.spawn(&line).unwrap();
        let named =
            |pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "flanneld\n");
        wait_for("a flanneld", || named(running.pid()));
        let pid = format!("flanneld runs here (pid {})", running.pid());
        scene.refused(&[], &[&pid, "end it first"]);
        assert!(scene.done(&["--dry-run"]).contains(&format!("note: {pid}")));
        drop(running);

        // Another flanneld starts after the first check, before anything is changed.
        let (asked, go) = (host.folder().join("asked"), host.folder().join("go"));
        let does = format!(
            "touch {}; while kill -0 $PPID && ! [ -e {} ]; do sleep 0.05; done; PATH=${{PATH#*:}}; exec iptables-nft-save \"$@\"",
            asked.display(),
            go.display()
        );
        let path = in_place_of(&host, "iptables-nft-save", &does);
        let mut command = scene.command(&[], Some(&path));
        let moving = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the look for rules", || asked.exists());
        let running = host.spawn(&line).unwrap();
        wait_for("a flanneld", || named(running.pid()));
        fs::write(&go, "").unwrap();
        let output = moving.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let pid = format!("flanneld runs here (pid {})", running.pid());
        assert!(text(&output).contains(&pid), "{}", text(&output));
        let left = ["flannel.json", "record.json"].map(|it| host.folder().join("state/default").join(it));
        assert!(left.iter().all(|it| !it.exists()));
        before.same(&Picture::of(&host), "refused");
        drop(running);

        // A device of another network uses the port, and would receive the packets.
        host.namespace().ip("link add other type vxlan id 9 dev eth0 dstport 8472").unwrap();
        scene.refused(&[], &["other (vni 9) has udp port 8472 too"]);
        host.namespace().ip("link delete other").unwrap();
        before.same(&Picture::of(&host), "refused");

        // The config has another backend than the one that flannel was started with.
        for (mode, says) in
            [(Mode::Udp, "leaves nothing to adopt"), (Mode::HostGw, "is not of flannel's host-gw backend")]
        {
            scene.bed.etcd().ctl(&["put", "/coreos.com/network/config", mode.config()]).unwrap();
            scene.refused(&[], &[says]);
        }
        scene.bed.etcd().ctl(&["put", "/coreos.com/network/config", Mode::Vxlan.config()]).unwrap();
        before.same(&Picture::of(&host), "refused");

        host.namespace().ip("link delete flannel.1").unwrap();
        scene.refused(&[], &["no flannel here", "flannel.1 (vni 1, port 8472"]);
    }
}

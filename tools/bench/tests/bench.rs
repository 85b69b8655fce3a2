//! The benchmark runs, and it notices what would make its figures worthless. No speed is checked here.
use std::{fs, time::Duration};

use clap::Parser as _;
use overlay_bench::{
    agent::{self, Plan},
    measure::{self, Case, Load, Network, Part, Until, bench},
};
use overlay_lab::project;
use serde_json::Value;

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    options: measure::BenchOptions,
}

fn run(words: &[&str]) -> anyhow::Result<()> {
    let short = ["bench", "--rounds", "1", "--milliseconds", "20", "--quick"];
    bench(&Arguments::try_parse_from(short.iter().chain(words))?.options)
}

/// Measures everything but the agent, whose optimised build takes minutes, on few networks, with a build beside this one: the same.
/// Checks the files, and that a run does not differ from itself.
#[test]
fn each_measure_has_a_figure() {
    let folder = tempfile::tempdir().unwrap();
    let text = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
    let out = folder.path().to_str().unwrap();
    let only = "packets,programs,exchange,connect,streams,first,same-host,both-ways,flows,peers";
    let overlay = project::build_overlay().unwrap();
    let beside = overlay.to_str().unwrap();
    let networks = ["--networks", "direct,relay,floor,vxlan-strip", "--beside", beside];
    run(&[&["--only", only, "--peers", "50", "--out", out], networks.as_slice()].concat()).unwrap();
    let results: Value = serde_json::from_str(&text("results.json")).unwrap();
    let measures = results["measures"].as_array().unwrap();
    let of = |name: &str| {
        let measured = measures.iter().find(|measured| measured["name"] == name);
        measured.unwrap_or_else(|| panic!("no {name}"))["cases"].as_array().unwrap()
    };
    for (name, cases) in [
        ("packets of 64 bytes, container to container", 7),
        ("packets of 64 bytes, encapsulation alone", 6),
        ("packets of 64 bytes, decapsulation alone", 6),
        ("packets of 1400 bytes, container to container", 7),
        ("one run of overlay_encap", 3),
        ("one run of overlay_xdp_strip", 1),
        ("one run of overlay_decap", 3),
        ("TCP request/response, 32 flows, p50", 7),
        ("UDP request/response, 1 flow, p99", 7),
        ("TCP connect/request/response, p50", 7),
        ("4 TCP streams", 7),
        ("1 TCP stream, CPU", 7),
        ("first TCP stream of a new container", 5),
        ("first TCP stream of a new container, fast path", 2),
        ("packets of 64 bytes, same host", 6),
        ("TCP request/response, 1 flow, same host, p50", 6),
        ("packets of 64 bytes, both ways at once", 7),
        ("TCP streams, one each way at once", 7),
        ("packets of 64 bytes by flows, vxlan, xdp-strip", 3),
        ("packets of 64 bytes by peers, encapsulation alone", 3),
        ("packets of 64 bytes by peers, decapsulation alone", 3),
    ] {
        let found = of(name);
        assert_eq!(found.len(), cases, "{name}: {found:?}");
        for case in found {
            assert!(case["samples"][0].as_f64().unwrap() > 0.0, "{name}: {case}");
        }
        // The floor has programs of these names, the bare route none.
        if name == "one run of overlay_encap" {
            assert!(found.iter().all(|case| case["ratio"]["median"].as_f64().unwrap() > 0.0), "{found:?}");
        }
    }
    assert!(text("results.md").contains("| TCP request/response, 1 flow, p50, us"));
    let report = text("results.md");
    let (_, distances) = report.split_once("## veth, ours to the floor").unwrap();
    assert!(distances.contains("| one run of overlay_decap, ns (less is better) | **"), "{distances}");
    assert!(text("veth.svg").contains("4 TCP streams"));
    assert_eq!(fs::read(folder.path().join("veth.png")).unwrap()[1..4], *b"PNG");
}

/// Measures the agent as it is built for tests. All figures must be there, and plausible.
#[test]
fn the_agent_has_figures() {
    let overlay = project::build_overlay().unwrap();
    let plan = Plan { peers: 1000, changes: 3, starts: 2, watch: Duration::from_millis(300), rate: 100 };
    let report = agent::measure(&overlay, &plan, |_| ()).unwrap();
    assert_eq!((report.peers, report.cold_starts.len(), report.change.count), (1000, 2, 3));
    for start in &report.cold_starts {
        assert!(0.0 < start.maps_ms && start.maps_ms < start.last_peer_ms, "{start:?}");
    }
    assert!(0.0 < report.change.p50_ms && report.change.p50_ms <= report.change.p99_ms, "{report:?}");
    assert!(report.memory_at_rest.resident_kib > 1000, "{report:?}");
    assert!(report.maps.iter().any(|map| map.name == "peers" && map.bytes > 0), "{report:?}");
    assert!(report.cpu_at_rate_percent > 0.0, "{report:?}");
}

#[test]
fn a_lost_frame_or_one_that_comes_twice_is_an_error_and_no_figure() {
    let overlay = project::build_overlay().unwrap();
    let program = measure::build_program().unwrap();
    let network = Network::build(Case::Bare, &overlay, &program, false).unwrap();
    let until = Until::Time(Duration::from_millis(10));
    let load = Load { size: 64, flows: 4, peers: None, until, statistics: false };
    let send = || measure::send(&network, &program, Part::Whole, load);
    assert!(send().unwrap().rate() > 0.0);
    let (host, to) = (network.receiver().unwrap(), network.to.address());
    // Each rule affects two of 32768 frames: the one that it begins to count with, and the one 30000 later.
    let lose = "udp dport 9 numgen inc mod 30000 == 0 drop".to_owned();
    let double = format!("udp dport 9 numgen inc mod 30000 == 7 dup to {to} device br0");
    let error_under = |rules: &[&String]| {
        host.exec("nft flush chain ip bench forward").unwrap();
        for rule in rules {
            host.exec(&format!("nft add rule ip bench forward {rule}")).unwrap();
        }
        send().unwrap_err().to_string()
    };
    assert_eq!(error_under(&[&lose]), "32768 frames were sent, 32766 arrived");
    assert_eq!(error_under(&[&double]), "32768 frames were sent, 32770 arrived");
    // One frame is lost and another comes twice, so the count alone would be right.
    let both = error_under(&[&double, &lose]);
    assert_eq!(both, "32768 frames were sent, 32768 arrived, but not each once");
}

#[test]
fn a_command_alters_hosts_and_containers_of_a_network_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let places = folder.path().join("places");
    let out = folder.path().to_str().unwrap();
    let altered = |command: &str| {
        run(&["--only", "connect", "--networks", "vxlan", "--out", out, "--altered", command])
    };
    altered(&format!("echo $PLACE >> {}", places.display())).unwrap();
    let places = fs::read_to_string(&places).unwrap();
    assert_eq!(places.lines().collect::<Vec<_>>(), ["host", "host", "container", "container", "container"]);
    assert!(fs::read_to_string(folder.path().join("results.md")).unwrap().contains("| vxlan, altered |"));
    let error = format!("{:#}", altered("test $PLACE = host").unwrap_err());
    assert!(error.contains("--altered in a container"), "{error}");
}

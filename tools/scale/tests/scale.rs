//! A short run of `cargo xtask scale`: few hosts beside a real etcd of one member and of three. No figure depends on how fast the
//! machine is.
use std::fs;

use clap::Parser as _;
use overlay_scale::{Results, ScaleOptions, scale};

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    options: ScaleOptions,
}

#[test]
fn whatever_happens_all_agree_lose_no_route_and_ask_little() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let run = |words: &[&str]| {
        scale(&Arguments::try_parse_from(["scale", "--out", out].iter().chain(words)).unwrap().options)
            .unwrap();
    };
    // It fails if hosts do not agree in the end, or if a route is lost.
    run(&["--quick"]);
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let results: Results = serde_json::from_str(&text("results.json")).unwrap();
    for (members, scenario, least, most) in [
        // What one host asks: a connection, the config, all leases, a new etcd lease, its key, all leases, a watch; and again what
        // a lost race takes.
        (1, "cold start of all", 5.0, 60.0),
        // Nothing at all, but for signs of life, the first of which is due after five seconds.
        (1, "nothing happens", 0.0, 2.0),
        // Hosts ask nothing; those who write the leases do.
        (1, "one lease comes", 0.05, 1.0),
        // Count and watch, and before that a question to the endpoint, unless the first try falls behind the outage: then the
        // connection is made again without one. etcdctl asks a few times, too.
        (1, "restart of etcd", 2.0, 5.0),
        // The same for each that was cut off; one lease comes, too.
        (1, "a tenth cut off", 2.0, 8.0),
        // And all leases, of each that was not there before the compaction.
        (1, "restart and compaction", 2.0, 8.0),
        (1, "1 % of the hosts replaced each minute", 0.1, 5.0),
        // And all leases, and a new lease.
        (1, "etcd wiped", 3.0, 16.0),
        (3, "cold start of all", 5.0, 60.0),
        (3, "another leader", 0.1, 5.0),
        // As with one member: of each that has to turn to another one, and of all.
        (3, "restart of a member", 2.0, 9.0),
        (3, "restart of all members", 2.0, 7.0),
    ] {
        let found: Vec<_> = results.of(members, scenario).collect();
        assert!(!found.is_empty(), "{scenario} did not happen");
        for outcome in found {
            assert_eq!(outcome.lost_routes, 0, "{outcome:?}");
            // A host whose request takes too long on a busy machine asks again, so that the upper bound is a wide one.
            assert!((least..=4.0 * most).contains(&outcome.requests_per_host()), "{outcome:?}");
            assert!(outcome.cost.etcd_mib > 1.0, "{outcome:?}");
            // Beside several members it would be that of other hosts before.
            assert_eq!(outcome.cost.hosts_mib.is_some_and(|mib| mib > 1.0), members == 1, "{outcome:?}");
        }
    }
    // Each host hears once of each lease that comes.
    let change = results.of(1, "one lease comes").next().unwrap();
    assert_eq!(change.cost.events, 2.0 * change.hosts as f64, "{change:?}");
    // A tenth is every tenth of 24; one of three members is that of every third of 12.
    let concerned = |members, scenario| results.of(members, scenario).next().unwrap().concerned;
    assert_eq!((concerned(1, "a tenth cut off"), concerned(3, "restart of a member")), (3, 4));
    let churn = results.of(1, "1 % of the hosts replaced each minute").next().unwrap().churn;
    assert_eq!(churn.map(|churn| churn.changes), Some(2));
    assert!(text("scale.svg").contains("requests for a restart"));
    // Tables and plots are made again of what was written; for a run that was not quick, with what it says of more hosts.
    assert!(
        text("results.md").contains("| 3 | 12 | another leader |")
            && !text("results.md").contains("extrapolated")
    );
    let longer = text("results.json").replace(r#""quick": true"#, r#""quick": false"#);
    fs::write(folder.path().join("longer.json"), longer).unwrap();
    run(&["--draw", &format!("{out}/longer.json")]);
    assert!(
        text("results.md").contains("| 3 | 12 | another leader |")
            && text("results.md").contains("extrapolated")
    );
}

//! The kernel's IPsec policies, and the news that they changed.
use std::time::Duration;

use overlay_user::host::netlink::xfrm::{Policy, XfrmEvents, policies};
use tokio::time::timeout;

use super::bed::{in_namespace, run};

/// How long news may take before they count as lost.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn policies_and_their_default_are_read_and_every_change_is_told() {
    in_namespace(|| async {
        let mut events = XfrmEvents::listen().unwrap().expect("this kernel has IPsec");
        let names = || -> Vec<String> { policies().unwrap().iter().map(Policy::to_string).collect() };
        assert_eq!(names(), [""; 0]);
        let both = "src 10.99.0.1/32 dst 10.99.0.2/32 proto udp dport 8472 dir out";
        let blocked = format!("{both} action block");
        for (change, found) in [
            (format!("add {both} action block"), vec![blocked.as_str()]),
            ("setdefault fwd block".to_owned(), vec![blocked.as_str(), "default dir fwd action block"]),
            (format!("delete {both}"), vec!["default dir fwd action block"]),
            ("setdefault fwd accept".to_owned(), vec![]),
        ] {
            assert!(timeout(Duration::from_millis(100), events.next()).await.is_err(), "nothing changed yet");
            run(&format!("ip xfrm policy {change}"));
            timeout(PATIENCE, events.next()).await.expect(&change);
            assert_eq!(names(), found, "{change}");
        }
    });
}

//! What promoted connections leave behind in connection tracking: no more than they would without a fast path.
use std::time::Duration;

use overlay_lab::{Backend, wait_until};

use crate::{
    bed::wait_for,
    traffic::{Protocol, Server, Talk, strict_bed_of},
};

/// Longer than connection tracking keeps anything in this test, and than the agent waits between two looks.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn connection_tracking_forgets_what_has_ended() {
    const MANY: usize = 300;
    let bed = strict_bed_of(Backend::Vxlan, 1, &["--fast-path", "established"]);
    for member in &bed.members {
        for name in ["tcp_timeout_syn_recv", "tcp_timeout_time_wait", "icmp_timeout"] {
            member.host.namespace().sysctl(&format!("netfilter/nf_conntrack_{name}"), "3").unwrap();
        }
    }
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _server = Server::of(&b);
    // The kernel's own count includes what is over and not yet taken out of the table.
    let listed = |host: usize| bed[host].host.exec("cat /proc/net/nf_conntrack").unwrap();
    let known = |host: usize| listed(host).lines().filter(|line| line.contains("dport=8080")).count();
    for _ in 0..MANY {
        let mut talk = Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap();
        talk.ask().unwrap();
    }
    assert!((0..2).all(|host| known(host) >= MANY), "{} {}", known(0), known(1));
    for host in [0, 1] {
        let forgets = wait_until("connection tracking to forget them", SOON, || Ok(known(host) == 0));
        forgets.unwrap_or_else(|error| panic!("{error}: {}", listed(host)));
    }
    // One that lives long is upheld, and then forgotten when it ends, long before its entry's own end.
    let mut talk = Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap();
    talk.ask().unwrap();
    let upheld = |host: usize| {
        listed(host).lines().any(|line| line.contains("ESTABLISHED") && line.contains("dport=8080"))
    };
    wait_for("the connection to be upheld", || upheld(0) && upheld(1));
    talk.ask().unwrap();
    drop(talk);
    wait_for("the connection to be forgotten", || !upheld(0) && !upheld(1));
}

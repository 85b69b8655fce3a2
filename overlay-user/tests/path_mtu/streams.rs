//! TCP
use xtask::lab::{Container, transfer};
use super::bed::*;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tcp { timeouts: u64, probes: u64, retransmitted: u64 }

fn tcp(of: &Container) -> Tcp {
    let text = of.exec("cat /proc/net/netstat").unwrap() + &of.exec("cat /proc/net/snmp").unwrap();
    let lines: Vec<_> = text.lines().collect();
    let value = |group: &str, name: &str| {
        let pair = lines.windows(2).find(|pair| pair.iter().all(|line| line.starts_with(group)) ).unwrap();
        let at = pair[0].split(' ').position(|word| word == name).unwrap();
        pair[1].split(' ').nth(at).unwrap().parse::<u64>().unwrap()
    };
    Tcp { timeouts: value("TcpExt:", "TCPTimeouts"), probes: value("TcpExt:", "TCPLossProbes"), retransmitted: value("Tcp:", "RetransSegs") }
}

#[test]
fn explore() {
    for wire in [false, true] {
    for (name, carrier) in [("ours", Carrier::Ours(&[])), ("df", Carrier::Ours(&["--outer-df"])), ("flannel", Carrier::Flannel)] {
        let bed = Bed::new(carrier, VXLAN, wire);
        for route in [Route::Silent, Route::Plain, Route::Locked] {
            for tso in ["on", "off"] { for stamps in ["1", "0"] { for (kind, ends) in [("told", &bed.containers), ("wide", &bed.wide)] {
            for (from, to) in [(0, 1), (1, 0), (0, 2)] {
                bed.set_routes(route);
                let (from, to) = (&ends[from], &ends[to]);
                for end in [from, to] {
                    end.exec("ip route flush cache").unwrap();
                    end.exec("ip tcp_metrics flush all").unwrap();
                    end.exec(&format!("ethtool -K eth0 tso {tso} gso {tso}")).unwrap();
                    end.namespace().sysctl("ipv4/tcp_timestamps", stamps).unwrap();
                }
                let before = tcp(from);
                let t = transfer(from, to, 4 << 20).unwrap();
                let after = tcp(from);
                println!("wire {wire} {name} {route:?} tso {tso} ts {stamps} {kind} {}->{}: timeouts {} probes {} retrans {} {:?}", from.address(), to.address(), after.timeouts - before.timeouts, after.probes-before.probes, after.retransmitted-before.retransmitted, t.time);
            }}}}
        }
        for member in &bed.members { println!("{:?}", member.counters().unwrap()); }
    }}
}

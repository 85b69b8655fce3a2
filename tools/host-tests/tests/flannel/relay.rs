//! What flannel's UDP backend does among its own hosts, as captured from a real flannel. The tests of ours beside it
//! rely on this.
use std::{io::ErrorKind, net::Ipv4Addr, time::Duration};

use overlay_lab::PingOptions;

use super::{
    bed::{Bed, Mode, flannels, subnet_env},
    packets::{Inbox, connect, first_packet, ping_with_ttl, send_bare},
};

#[test]
fn flannels_own_hosts_send_bare_ipv4_and_each_relay_takes_a_hop_in_silence() {
    for flannel in flannels() {
        let bed = Bed::of(Mode::Udp, &flannel, 0, 2);
        bed.assert_all_reached();
        let [a, b] = &bed.flannel[..] else { panic!("two hosts") };
        let (from, to) = (&a.container, b.container.address());
        assert!(subnet_env(&a.host).contains("\nFLANNEL_MTU=1472\n"), "{}", subnet_env(&a.host));
        let network = a.host.exec("ip -o route show dev flannel0").unwrap();
        assert!(network.starts_with("10.244.0.0/16 "), "{network}");
        let base = a.subnet.replace("/24", "/32");
        let addresses = a.host.exec("ip -o -4 address show dev flannel0").unwrap();
        assert!(
            addresses.contains(&format!("inet {base} ")) && addresses.lines().count() == 1,
            "{addresses}"
        );

        let source = format!("udp port 8285 and src {}", a.host.address());
        let capture = a.host.capture("eth0", &source).unwrap();
        let ping = from.ping(to, PingOptions { count: 1, df: true, ..PingOptions::default() }).unwrap();
        // Four machines decrement the TTL of 64: a host, a relay, a relay, a host.
        assert!(ping.complete() && ping.output.contains("ttl=60"), "{}", ping.output);
        let frame = first_packet(&capture.finish().unwrap());
        let (outer, inner) = frame[14..].split_at(28);
        assert_eq!(frame.len(), 14 + 28 + 84);
        assert_eq!(outer[..4], [0x45, 0, 0, 112]);
        // DF is set and the fragment offset is 0; the TTL is 64, the protocol UDP.
        assert_eq!(outer[6..10], [0x40, 0, 64, 17]);
        assert_eq!(outer[12..20], [a.host.address().octets(), b.host.address().octets()].concat());
        assert_eq!(outer[20..26], [0x20, 0x5d, 0x20, 0x5d, 0, 92]);
        assert_eq!((&inner[..4], &inner[6..10]), (&[0x45, 0, 0, 84][..], &[0x40, 0, 62, 1][..]));
        assert_eq!(inner[12..20], [from.address().octets(), to.octets()].concat());

        // The first hop is the first host's stack, and the fourth is the second host's. The relays between them send no
        // ICMP message.
        let gateway = a.subnet.replace(".0/24", ".1");
        let other = b.subnet.replace("/24", "");
        for (ttl, says) in [(1, Some(&gateway)), (2, None), (3, None), (4, Some(&other))] {
            let text = ping_with_ttl(from, to, ttl);
            match says {
                Some(who) => assert!(text.contains(&format!("From {who} icmp_seq=1 Time to live")), "{text}"),
                None => assert!(text.contains("100% packet loss") && !text.contains("From "), "{text}"),
            }
        }
        assert!(ping_with_ttl(from, to, 5).contains(" 0% packet loss"));

        // Nobody has leased the destination's subnet. The relay answers TCP, but not ping. Its answer comes from an
        // address of the host itself, and by default a kernel discards packets from outside with a local source.
        let nobody = Ipv4Addr::new(10, 244, 255, 2);
        // Other answers of the relay may be on their way. This one quotes a TCP packet to `nobody`.
        let quoted = u32::from(nobody);
        let filter = format!("icmp[icmptype] == icmp-unreach and icmp[17] == 6 and icmp[24:4] == {quoted}");
        let capture = a.host.capture("flannel0", &filter).unwrap();
        assert_eq!(connect(from, nobody), ErrorKind::TimedOut);
        let answer = first_packet(&capture.finish().unwrap());
        assert_eq!(answer[..10], [0x45, 0, 0, 56, 0, 0, 0, 0, 8, 1]);
        let base: Ipv4Addr = a.subnet.replace("/24", "").parse().unwrap();
        assert_eq!(answer[12..20], [base.octets(), from.address().octets()].concat());
        assert_eq!((&answer[20..22], answer.len()), (&[3, 0][..], 56));
        assert_eq!(answer[28..32], [0x45, 0, 0, 60]);
        a.host.namespace().sysctl("ipv4/conf/flannel0/accept_local", "1").unwrap();
        assert_eq!(connect(from, nobody), ErrorKind::NetworkUnreachable);
        let ping = from.ping(nobody, PingOptions { count: 1, ..PingOptions::default() }).unwrap();
        assert!(ping.received == 0 && !ping.output.contains("Unreachable"), "{}", ping.output);

        // The relay accepts packets from any host with any source. What is longer than the MTU is cut off, and the
        // kernel notices that bytes are missing.
        let (inbox, stranger) = (Inbox::of(&b.container), Ipv4Addr::new(192, 0, 2, 1));
        let send = |packet| send_bare(bed.lab.switch(), b.host.address(), packet);
        send(inbox.packet(stranger, 1472 - 28 + 1));
        send(inbox.packet(stranger, 1472 - 28));
        assert_eq!(inbox.next(Duration::from_secs(5)), Some(1472 - 28));
        assert_eq!(inbox.next(Duration::from_millis(100)), None);
    }
}

//! UDP datagrams larger than the path: one by one, as segments of one send (UDP_SEGMENT), and more of them than the
//! rate of answers allows.
use std::{io::ErrorKind, net::UdpSocket, os::fd::AsFd as _, thread, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Container};

use super::bed::*;

/// Bytes of the IPv4 and UDP headers.
const HEADERS: u32 = 28;
/// How long to wait for datagrams that may still be under way, when no more are expected.
const QUIET: Duration = Duration::from_secs(3);

/// A socket in each container, the first connected to the second.
fn sockets(from: &Container, to: &Container, patience: Duration) -> [UdpSocket; 2] {
    let open =
        |container: &Container| container.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    let [sender, receiver] = [open(from), open(to)];
    sender.connect((to.address(), receiver.local_addr().unwrap().port())).unwrap();
    // The limit net.core.rmem_max applies in the container's namespace; RCVBUFFORCE lets root exceed it.
    setsockopt(&receiver.as_fd(), sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver.set_read_timeout(Some(patience)).unwrap();
    [sender, receiver]
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// Sends `count` datagrams of `length` bytes in one send, and returns how many arrived. Each is compared.
fn send(from: &Container, to: &Container, length: usize, count: usize, patience: Duration) -> usize {
    let [sender, receiver] = sockets(from, to, patience);
    let sent = bytes(length * count);
    if count > 1 {
        setsockopt(&sender.as_fd(), sockopt::UdpGsoSegment, &(length as i32)).unwrap();
    }
    assert_eq!(sender.send(&sent).unwrap(), sent.len());
    let mut buffer = vec![0; 65536];
    for (number, expected) in sent.chunks(length).enumerate() {
        match receiver.recv(&mut buffer) {
            Ok(received) => assert!(buffer[..received] == *expected, "datagram {number} of {length} bytes"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return number,
            Err(error) => panic!("datagram {number} of {length} bytes: {error}"),
        }
    }
    count
}

/// Whether the container's sockets set DF.
fn set_df(container: &Container, df: bool) {
    container.namespace().sysctl("ipv4/ip_no_pmtu_disc", if df { "0" } else { "1" }).unwrap();
    container.exec("ip route flush cache").unwrap();
}

#[test]
fn datagrams_without_df_arrive_whatever_the_path() {
    for carrier in [Carrier::Ours(&[]), Carrier::Ours(&["--outer-df"]), Carrier::Flannel] {
        let bed = Bed::new(carrier, Backend::Vxlan, false);
        let overlay = UNDERLAY - bed.overhead;
        for route in [Route::Silent, Route::Locked] {
            bed.set_routes(route);
            for index in [1, 2] {
                let (from, to, fits) = (&bed.containers[0], &bed.containers[index], bed.inner(index));
                set_df(from, false);
                if route == Route::Silent && matches!(carrier, Carrier::Ours(["--outer-df"])) {
                    // From this datagram the host learns the path MTU.
                    let length = (overlay - HEADERS) as usize;
                    assert_eq!(send(from, to, length, 1, Duration::from_millis(500)), 0);
                }
                for size in [fits, fits + 1, overlay, overlay + 1, 4000, 60_000] {
                    let length = (size - HEADERS) as usize;
                    assert_eq!(send(from, to, length, 1, QUIET), 1, "{carrier:?}, {route:?}, {size}");
                }
                for size in [fits, fits + 1, overlay] {
                    let segment = (size - HEADERS) as usize;
                    let arrived = send(from, to, segment, 20, QUIET);
                    assert_eq!(arrived, 20, "{carrier:?}, {route:?}, segments for {size}");
                }
            }
        }
        if !bed.members.is_empty() {
            assert_eq!(bed.dropped(), 0);
        }
    }
}

#[test]
fn datagrams_with_df_are_told_and_then_fit() {
    let bed = Bed::new(Carrier::Ours(&[]), Backend::Vxlan, false);
    let (from, to, fits) = (&bed.containers[0], &bed.containers[1], bed.inner(1));
    let overlay = UNDERLAY - bed.overhead;
    bed.set_routes(Route::Locked);
    let soon = Duration::from_millis(300);
    set_df(from, true);
    assert_eq!(send(from, to, (overlay - HEADERS) as usize, 1, soon), 0);
    assert_eq!(bed.counted(Hook::Encap, Reason::TooBig), 1);
    // The container's kernel was told the MTU, and fragments the datagrams itself.
    assert_eq!(send(from, to, (overlay - HEADERS) as usize, 1, QUIET), 1);

    // It refuses segments that do not fit, and the application gets the error.
    let segment = (fits - HEADERS) as usize;
    let [sender, _receiver] = sockets(from, to, soon);
    setsockopt(&sender.as_fd(), sockopt::UdpGsoSegment, &(segment as i32 + 1)).unwrap();
    sender.send(&bytes((segment + 1) * 20)).unwrap_err();
    // Segments that fit take the fast path.
    let before = bed.carried();
    assert_eq!(send(from, to, segment, 20, QUIET), 20);
    let after = bed.carried();
    assert_eq!((after.fast_out - before.fast_out, after.stack_out), (20, before.stack_out));
}

#[test]
fn beyond_the_rate_of_answers_the_stack_delivers_in_fragments() {
    const SENT: u64 = 2000;
    for options in [&[][..], &["--outer-df"]] {
        let bed = Bed::new(Carrier::Ours(options), Backend::Vxlan, false);
        let (from, to) = (&bed.containers[0], &bed.containers[1]);
        bed.set_routes(Route::Locked);
        // The sender does not hear the answers and goes on sending.
        from.exec("iptables -A INPUT -p icmp -j DROP").unwrap();
        let [sender, receiver] = sockets(from, to, Duration::from_millis(500));
        let payload = bytes((UNDERLAY - bed.overhead - HEADERS) as usize);
        for number in 0..SENT {
            sender.send(&payload).unwrap();
            if number % 10 == 9 {
                // At this pace no queue of the machine fills up.
                thread::sleep(Duration::from_micros(200));
            }
        }
        let mut buffer = vec![0; 2048];
        let mut received = 0;
        while receiver.recv(&mut buffer).is_ok_and(|length| buffer[..length] == payload) {
            received += 1;
        }
        let [answered, withheld] =
            [Reason::TooBig, Reason::AnswerWithheld].map(|reason| bed.counted(Hook::Encap, reason));
        assert_eq!(received, SENT - answered, "{options:?}");
        // With the first packet that is left to the stack, the whole connection becomes a stack flow.
        let left = bed.counted(Hook::Encap, Reason::StackFlow);
        assert_eq!(answered + withheld + left, SENT, "{options:?}");
        assert!(answered >= 50 && withheld >= 1, "{answered} answers, {withheld} withheld, {options:?}");
    }
}

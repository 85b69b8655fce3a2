//! Connections that outlive a move, and what the host's connection tracking must know of them.
//!
//! Connections whose addresses this host translates become stack flows before the fast path begins. Otherwise the fast path
//! would take over one direction of them and hand it on untranslated. After the move, the programs at overlay0 and at the
//! containers' veths make stack flows of such connections. On the way back to flannel, connection tracking is made to forget
//! what it saw before the fast path took over: a TCP connection has gone on since then, so its packets would count as INVALID,
//! and many hosts drop those. Connection tracking picks up an unknown connection in the middle (`nf_conntrack_tcp_loose`, which
//! is on unless somebody has switched it off).
use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use overlay_common::header::protocol::{TCP, UDP};

use crate::{
    datapath::{DatapathError, tables::Tables},
    host::netlink::{
        NetlinkError,
        conntrack::{self, Tracked, Tuple},
    },
    model::addr::ipv4,
};

/// Records as stack flows those of the connections that are the overlay's on either side of the translation. Returns how many
/// stack flows were recorded.
///
/// # Errors
/// When the table of stack flows is full, or cannot be written.
pub fn note(tables: &mut Tables, tracked: &[Tracked], network: IpNet) -> Result<usize, DatapathError> {
    let mut noted = 0;
    for (tuple, answered) in of_overlay(tracked, network) {
        let Tuple { source, destination, ports, protocol } = tuple;
        let end =
            |address| ipv4(address).map_err(|error| DatapathError::failed("record a stack flow", &error));
        let (source, destination) = (end(source)?, end(destination)?);
        tables.stack_flows.record((source, ports.0), (destination, ports.1), protocol, answered)?;
        noted += 1;
    }
    Ok(noted)
}

/// Prepares connection tracking for a time in which it sees only a part of the packets: what belongs to a TCP connection within the
/// overlay that it does not translate is never INVALID any more, which many hosts drop.
///
/// # Errors
/// When connection tracking does not take it.
pub fn loosen_plain(tracked: &[Tracked], network: IpNet) -> Result<(), NetlinkError> {
    conntrack::loosen(tracked.iter().filter(|it| is_plain(it, network)).map(|it| &it.original))
}

/// Makes connection tracking forget those plain TCP connections of which it has seen only the beginning, and the rest of which the
/// fast path carries, because an end is one of these addresses. A packet from their middle would be INVALID to it; of an unknown
/// connection it takes one.
///
/// # Errors
/// When connection tracking does not forget them.
pub fn forget_begun(
    tracked: &[Tracked],
    network: IpNet,
    carried: &BTreeSet<IpAddr>,
) -> Result<(), NetlinkError> {
    conntrack::forget(begun(tracked, network, carried))
}

fn begun<'a>(
    tracked: &'a [Tracked],
    network: IpNet,
    carried: &BTreeSet<IpAddr>,
) -> impl Iterator<Item = &'a Tuple> {
    let is_carried = |of: &Tuple| carried.contains(&of.source) || carried.contains(&of.destination);
    tracked
        .iter()
        .filter(move |it| it.is_beginning() && is_plain(it, network) && is_carried(&it.original))
        .map(|it| &it.original)
}

/// How long connection tracking keeps a TCP connection that it is told of without hearing of it: as long as it keeps any established
/// one, unless somebody has set `nf_conntrack_tcp_timeout_established`.
const LIFETIME: Duration = Duration::from_secs(5 * 24 * 60 * 60);

/// The connections from outside the overlay, this host's own among them, that this host sends to other hosts' containers under
/// another address of its own (`--ip-masq`), as far as they are alive. The kernel would drop them as soon as they leave by another
/// interface. Those in zones are left out, since connection tracking is told of none here.
pub fn masqueraded(tracked: &[Tracked], network: IpNet, subnet: IpNet) -> Vec<Tracked> {
    let is_masqueraded = |it: &&Tracked| {
        let is_translated =
            (it.reply.destination, it.reply.ports.1) != (it.original.source, it.original.ports.0);
        let to = it.reply.source;
        matches!(it.original.protocol, TCP | UDP)
            && it.is_alive()
            && !it.is_zoned
            && is_translated
            && !network.contains(&it.original.source)
            && network.contains(&to)
            && !subnet.contains(&to)
    };
    tracked.iter().filter(is_masqueraded).copied().collect()
}

/// Keeps the translation of these connections, whichever interface they leave by from now on. Returns how many it could not keep.
///
/// # Errors
/// When connection tracking does not answer.
pub fn keep_masqueraded(connections: &[Tracked]) -> Result<usize, NetlinkError> {
    conntrack::translate_for_good(connections)
}

/// Has connection tracking know the TCP connections of this host's own processes to other hosts' containers that it does not know
/// yet, because nothing needed it. Otherwise the first rule that masquerades would take their next packet for the first of a new
/// connection, and give it another address. Returns how many it refused.
///
/// # Errors
/// When connection tracking does not answer.
pub fn have_tracked(tracked: &[Tracked], network: IpNet, subnet: IpNet) -> Result<usize, NetlinkError> {
    conntrack::uphold(&untracked(&tcp_table(), tracked, network, subnet), LIFETIME)
}

/// Those of the connections in `table` that would be masqueraded if they were new, each by the direction away from this host.
fn untracked(table: &str, tracked: &[Tracked], network: IpNet, subnet: IpNet) -> Vec<Tuple> {
    let would_be = established(table).filter(|(local, other)| {
        !network.contains(&local.ip()) && network.contains(&other.ip()) && !subnet.contains(&other.ip())
    });
    let tuple = |(local, other): Ends| Tuple {
        source: local.ip(),
        destination: other.ip(),
        ports: (local.port(), other.port()),
        protocol: TCP,
    };
    let known: HashSet<Tuple> = tracked.iter().flat_map(|it| [it.original, it.reply]).collect();
    would_be.map(tuple).filter(|it| !known.contains(it)).collect()
}

fn tcp_table() -> String {
    fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default()
}

/// The established TCP connections of this host's own processes whose end here is `address`.
pub fn of_this_host(address: IpAddr) -> Vec<Ends> {
    established(&tcp_table()).filter(|(local, _)| local.ip() == address).collect()
}

/// This host's end of a connection, and the other.
type Ends = (SocketAddr, SocketAddr);

/// The established connections in the text of /proc/net/tcp, where addresses stand in hexadecimal and in the machine's order.
fn established(table: &str) -> impl Iterator<Item = Ends> {
    const ESTABLISHED: &str = "01";
    let end = |text: &str| {
        let (address, port) = text.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
        Some(SocketAddr::from((address, u16::from_str_radix(port, 16).ok()?)))
    };
    table.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, other) = (end(words.next()?)?, end(words.next()?)?);
        (words.next()? == ESTABLISHED).then_some((local, other))
    })
}

/// Makes connection tracking forget those TCP connections within the overlay that it does not translate.
///
/// # Errors
/// When connection tracking does not forget them.
pub fn forget_plain(tracked: &[Tracked], network: IpNet) -> Result<(), NetlinkError> {
    conntrack::forget(tracked.iter().filter(|it| is_plain(it, network)).map(|it| &it.original))
}

fn is_plain(connection: &Tracked, network: IpNet) -> bool {
    let Tuple { source, destination, protocol, .. } = &connection.original;
    // For other protocols, connection tracking never finds a packet to be out of turn.
    *protocol == TCP
        && !connection.is_translated()
        && !connection.is_zoned
        && network.contains(source)
        && network.contains(destination)
}

/// The forms in which the overlay sees the translated connections. Each connection has two forms, one on each side of the
/// translation. The form that a container or a peer sees has both ends in the overlay. A key is the same for both directions.
fn of_overlay(tracked: &[Tracked], network: IpNet) -> impl Iterator<Item = (Tuple, bool)> {
    let translated = tracked.iter().filter(|connection| connection.is_translated());
    let forms = translated.flat_map(|it| [(it.original, it.answered), (it.reply, it.answered)]);
    forms.filter(move |(form, _)| network.contains(&form.source) && network.contains(&form.destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::conntrack::TcpState;

    fn tuple(source: [u8; 4], destination: [u8; 4]) -> Tuple {
        Tuple { source: source.into(), destination: destination.into(), ports: (1, 2), protocol: 6 }
    }

    #[test]
    fn the_form_that_the_overlay_sees_is_noted_and_plain_connections_are_not() {
        let network = "10.244.0.0/16".parse().unwrap();
        let (a, service, b) = ([10, 244, 1, 2], [10, 96, 0, 1], [10, 244, 2, 2]);
        let own = [10, 244, 1, 1];
        let turned = |of: Tuple| Tuple { ports: (of.ports.1, of.ports.0), ..of };
        let connection = |original, reply| Tracked::example(original, turned(reply));
        // A container here asks a service whose backend is on another host.
        let asked = connection(tuple(a, service), tuple(b, a));
        // A container on another host asks a port that is published here.
        let published = connection(tuple(b, own), tuple(a, b));
        let plain = connection(tuple(a, b), tuple(b, a));
        let noted: Vec<_> = of_overlay(&[asked, published, plain], network).map(|(form, _)| form).collect();
        assert_eq!(noted, [asked.reply, published.original, published.reply]);
        let plains = [asked, published, plain].map(|connection| is_plain(&connection, network));
        assert_eq!(plains, [false, false, true]);
        let outside = connection(tuple(a, [192, 0, 2, 1]), tuple([192, 0, 2, 1], a));
        assert!(!is_plain(&outside, network));
    }

    #[test]
    fn what_began_on_the_stack_and_went_over_to_the_fast_path_is_found() {
        let network = "10.244.0.0/16".parse().unwrap();
        let (a, b, unknown) = ([10, 244, 1, 2], [10, 244, 2, 2], [10, 244, 1, 3]);
        let plain = |from, to| Tracked::example(tuple(from, to), Tuple { ports: (2, 1), ..tuple(to, from) });
        let beginning = |it| Tracked { tcp_state: TcpState::SYN_SENT, answered: false, ..it };
        let outwards = beginning(plain(a, b));
        let inwards = Tracked { tcp_state: TcpState::SYN_RECV, ..plain(b, a) };
        let others = [
            plain(a, b),
            beginning(plain(unknown, b)),
            Tracked { is_zoned: true, ..outwards },
            Tracked { tcp_state: TcpState::TIME_WAIT, ..outwards },
        ];
        let all = [&[outwards, inwards], &others[..]].concat();
        let found: Vec<_> = begun(&all, network, &BTreeSet::from([a.into()])).copied().collect();
        assert_eq!(found, [outwards.original, inwards.original]);
    }

    #[test]
    fn masqueraded_connections_to_other_hosts_containers_are_found() {
        let (network, subnet) = ("10.244.0.0/16".parse().unwrap(), "10.244.1.0/24".parse().unwrap());
        let (host, here, there, outside) = ([10, 99, 0, 1], [10, 244, 1, 2], [10, 244, 2, 2], [192, 0, 2, 1]);
        let tuple = |source: [u8; 4], from, destination: [u8; 4], to| Tuple {
            source: source.into(),
            destination: destination.into(),
            ports: (from, to),
            protocol: TCP,
        };
        let connection = Tracked::example;
        // This host's address stays, and the port changes, as MASQUERADE --random-fully has it.
        let own = connection(tuple(host, 1, there, 80), tuple(there, 80, host, 2));
        let passing = connection(tuple(outside, 1, host, 81), tuple(there, 80, [10, 244, 1, 0], 2));
        let plain = connection(tuple(host, 1, there, 80), tuple(there, 80, host, 1));
        let to_here = connection(tuple(host, 1, here, 80), tuple(here, 80, host, 2));
        let from_here = connection(tuple(here, 1, outside, 80), tuple(outside, 80, host, 2));
        // These have ended, or their tuples do not say which connection they are.
        let ended = Tracked { tcp_state: TcpState::TIME_WAIT, ..own };
        let broken_off = Tracked { tcp_state: TcpState::CLOSE, ..passing };
        let zoned = Tracked { is_zoned: true, ..own };
        let all = [own, passing, plain, to_here, from_here, ended, broken_off, zoned];
        assert_eq!(masqueraded(&all, network, subnet), [own, passing]);
    }

    #[test]
    fn the_kernels_table_of_tcp_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n   \
            0: 0001F40A:9C40 0202F40A:0050 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n   \
            1: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n";
        let expected: Ends = ("10.244.1.0:40000".parse().unwrap(), "10.244.2.2:80".parse().unwrap());
        assert_eq!(established(table).collect::<Vec<_>>(), [expected]);
        let (network, subnet) = ("10.244.2.0/23".parse().unwrap(), "10.244.3.0/24".parse().unwrap());
        let found = untracked(table, &[], network, subnet);
        assert_eq!(found, [Tuple { ports: (40000, 80), ..tuple([10, 244, 1, 0], [10, 244, 2, 2]) }]);
        let original = found[0];
        let known = Tracked::example(original, original);
        assert_eq!(untracked(table, &[known], network, subnet), []);
        assert_eq!(untracked(table, &[], "10.244.0.0/16".parse().unwrap(), subnet), []);
    }
}

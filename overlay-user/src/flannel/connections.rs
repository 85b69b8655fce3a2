//! Connections that outlive a move, and what the host's connection tracking must know of them.
//!
//! Connections whose addresses this host translates become stack flows before the fast path begins. Otherwise the fast path
//! would take over one direction of them and hand it on untranslated. After the move, the programs at overlay0 and at the
//! containers' veths make stack flows of such connections. On the way back to flannel, connection tracking is made to forget
//! what it saw before the fast path took over: a TCP connection has gone on since then, so its packets would count as INVALID,
//! and many hosts drop those. Connection tracking picks up an unknown connection in the middle (`nf_conntrack_tcp_loose`, which
//! is on unless somebody has switched it off).
use ipnet::IpNet;

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

/// Makes connection tracking forget those TCP connections within the overlay that it does not translate.
///
/// # Errors
/// When connection tracking does not forget them.
pub fn forget_plain(tracked: &[Tracked], network: IpNet) -> Result<(), NetlinkError> {
    conntrack::forget(tracked.iter().filter(|it| is_plain(it, network)).map(|it| &it.original))
}

fn is_plain(connection: &Tracked, network: IpNet) -> bool {
    const TCP: u8 = 6;
    let Tuple { source, destination, protocol, .. } = &connection.original;
    // For other protocols, connection tracking never finds a packet to be out of turn.
    *protocol == TCP
        && !connection.is_translated()
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

    fn tuple(source: [u8; 4], destination: [u8; 4]) -> Tuple {
        Tuple { source: source.into(), destination: destination.into(), ports: (1, 2), protocol: 6 }
    }

    #[test]
    fn the_form_that_the_overlay_sees_is_noted_and_plain_connections_are_not() {
        let network = "10.244.0.0/16".parse().unwrap();
        let (a, service, b) = ([10, 244, 1, 2], [10, 96, 0, 1], [10, 244, 2, 2]);
        let own = [10, 244, 1, 1];
        let turned = |of: Tuple| Tuple { ports: (of.ports.1, of.ports.0), ..of };
        let connection = |original, reply| Tracked { original, reply: turned(reply), answered: true };
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
}

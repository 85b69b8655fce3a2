//! Connections as the kernel's connection tracking knows them, and which of them it translates.
mod attributes;
mod connection;

use std::{fs, time::Duration};

use bytes::BytesMut;
use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

pub use self::connection::{TcpState, Tracked, Tuple};
use self::{
    attributes::{
        CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, put_alive, put_loose, put_mark, put_translation, put_tuple, read,
    },
    connection::turned,
};
use super::{
    error::NetlinkError,
    raw::{NLM_F_CREATE, NLM_F_DUMP, request, requests},
};
use crate::model::addr::OtherFamily;

// From linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const CTNETLINK_NEW: u16 = 1 << 8;
const CTNETLINK_GET: u16 = 1 << 8 | 1;
const CTNETLINK_DELETE: u16 = 1 << 8 | 2;
/// `struct nfgenmsg`: AF_INET, version 0, resource 0.
const IPV4: [u8; 4] = [2, 0, 0, 0];
/// What is done when connections are forgotten, for errors.
const FORGET: &str = "forget tracked connections";

/// All IPv4 connections of this thread's network namespace. There are none if the kernel tracks no connections.
///
/// # Errors
/// When the kernel tracks connections, but they cannot be listed.
pub fn connections() -> Result<Vec<Tracked>, NetlinkError> {
    match request(NETLINK_NETFILTER, CTNETLINK_GET, NLM_F_DUMP, &IPV4) {
        Ok(answers) => Ok(answers.iter().filter_map(|answer| read(answer.get(4..)?)).collect()),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            // This kernel has no connection tracking, so it translates nothing either.
            Some(Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => Ok(Vec::new()),
            _ => Err(NetlinkError::io("list tracked connections", &error)),
        },
    }
}

/// Whether connection tracking knows any connection in this thread's network namespace. It knows none where no rule of the packet
/// filter needs it.
pub fn is_in_use() -> bool {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").is_ok_and(|count| count.trim() != "0")
}

/// Has connection tracking know these connections, each given by the direction of its first packet, as established for another
/// `lifetime`. It is told not to look at the numbers of TCP's windows any more, since it does not see most of the packets.
/// Returns how many it refused.
///
/// # Errors
/// When the kernel does not answer.
pub fn uphold(connections: &[Tuple], lifetime: Duration) -> Result<usize, NetlinkError> {
    let action = "have established connections tracked";
    let refused = ask(action, CTNETLINK_NEW, NLM_F_CREATE, connections, |body, tuple| {
        put_tuple(body, CTA_TUPLE_REPLY, &turned(tuple))?;
        put_alive(body, tuple.protocol, TcpState::ESTABLISHED, lifetime);
        Ok(())
    })?;
    Ok(refused.len())
}

/// Tells connection tracking not to look at the numbers of TCP's windows in these connections any more, each given by the
/// direction of its first packet. All else that it knows of them stays. What it does not know is passed over.
///
/// # Errors
/// When the kernel does not answer, or refuses.
pub fn loosen<'a>(connections: impl IntoIterator<Item = &'a Tuple>) -> Result<(), NetlinkError> {
    let action = "have tracked connections looked at less strictly";
    let refused = ask(action, CTNETLINK_NEW, 0, connections, |body, _| {
        put_loose(body);
        Ok(())
    })?;
    unless_unknown(action, refused)
}

/// Makes these translated connections anew, with the same translation and state, and with the time that was left to them.
/// Connection tracking drops a connection that a rule `MASQUERADE` has translated when its packets leave by another interface, or
/// when its interface goes down (nf_nat_masquerade.c), because it remembers the interface; of one made here it remembers none.
/// Returns how many could not be made anew. One of them does not keep the others from it.
///
/// # Errors
/// When the kernel does not answer.
pub fn translate_for_good(connections: &[Tracked]) -> Result<usize, NetlinkError> {
    let mut refused = 0;
    for connection in connections {
        // A flowtable carries this one, and the kernel does not give it up. Or it ends in this very second.
        if connection.left.is_zero() {
            refused += 1;
            continue;
        }
        // An entry cannot get another translation. Between the two requests, a packet would be one of a new connection; the time
        // is a few microseconds for each.
        let kept = ask(FORGET, CTNETLINK_DELETE, 0, [&connection.original], |_, _| Ok(()))?;
        match kept[..] {
            [] => refused += make_anew(connection)?.len(),
            // It has ended meanwhile.
            [Errno::ENOENT] => {}
            _ => refused += 1,
        }
    }
    Ok(refused)
}

fn make_anew(connection: &Tracked) -> Result<Vec<Errno>, NetlinkError> {
    let action = "keep the translation of connections";
    let Tracked { original, tcp_state, left, mark, .. } = connection;
    ask(action, CTNETLINK_NEW, NLM_F_CREATE, [original], |body, _| {
        // The reply's direction is given as it would be untranslated: the kernel works out the other.
        put_tuple(body, CTA_TUPLE_REPLY, &turned(original))?;
        put_alive(body, original.protocol, *tcp_state, *left);
        put_mark(body, *mark);
        put_translation(body, connection)
    })
}

/// Makes the kernel forget connections, each given by the direction of its first packet. It takes the next packet of one for a
/// packet in the middle of a connection. It is no error if the kernel does not know a connection.
///
/// # Errors
/// When the kernel does not answer, or refuses.
pub fn forget<'a>(connections: impl IntoIterator<Item = &'a Tuple>) -> Result<(), NetlinkError> {
    let refused = ask(FORGET, CTNETLINK_DELETE, 0, connections, |_, _| Ok(()))?;
    unless_unknown(FORGET, refused)
}

/// An error, unless the kernel refused only because it does not know a connection.
fn unless_unknown(action: &str, refused: Vec<Errno>) -> Result<(), NetlinkError> {
    match refused.into_iter().find(|why| *why != Errno::ENOENT) {
        Some(why) => Err(NetlinkError::io(action, &why.into())),
        None => Ok(()),
    }
}

/// Asks for the same about many connections; `more` appends what stands behind a connection's first direction. Returns why some
/// were refused.
fn ask<'a>(
    action: &str,
    kind: u16,
    flags: u16,
    connections: impl IntoIterator<Item = &'a Tuple>,
    more: impl Fn(&mut BytesMut, &Tuple) -> Result<(), OtherFamily>,
) -> Result<Vec<Errno>, NetlinkError> {
    let body = |tuple| {
        let mut body = BytesMut::from(IPV4.as_slice());
        put_tuple(&mut body, CTA_TUPLE_ORIG, tuple)?;
        more(&mut body, tuple)?;
        Ok(body)
    };
    let bodies: Result<Vec<_>, OtherFamily> = connections.into_iter().map(body).collect();
    let bodies = bodies.map_err(|error| NetlinkError::invalid(action, error))?;
    requests(NETLINK_NETFILTER, kind, flags, &bodies).map_err(|error| NetlinkError::io(action, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_namespace_can_be_read() {
        connections().unwrap();
    }
}

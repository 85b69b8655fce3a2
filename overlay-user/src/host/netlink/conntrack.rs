//! Connections as the kernel's connection tracking knows them, and which of them it translates.
use std::{fs, net::IpAddr, time::Duration};

use bytes::BytesMut;
use nix::errno::Errno;
use overlay_common::header::protocol::TCP;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::{
    error::NetlinkError,
    raw::{NLM_F_CREATE, NLM_F_DUMP, find, nest, put, request, requests, word},
};
use crate::model::addr::{OtherFamily, ipv4};

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Address of the sender.
    pub source: IpAddr,
    /// Address of the receiver.
    pub destination: IpAddr,
    /// Their ports, in the machine's order. For ICMP echo both are the identifier, and for other protocols both are zero.
    pub ports: (u16, u16),
    /// IP protocol number.
    pub protocol: u8,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The direction of its first packet, as the packet arrived.
    pub original: Tuple,
    /// The direction of the answers, as they arrive.
    pub reply: Tuple,
    /// Whether an answer has arrived.
    pub answered: bool,
}

// From linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h and nf_conntrack_common.h.
const CTNETLINK_NEW: u16 = 1 << 8;
const CTNETLINK_GET: u16 = 1 << 8 | 1;
const CTNETLINK_DELETE: u16 = 1 << 8 | 2;
/// `struct nfgenmsg`: AF_INET, version 0, resource 0.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`.
const BE_LIBERAL: u8 = 1 << 3;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
/// Set on every connection in the kernel's table, so that a request without it would be one to take it away.
const CONFIRMED: u32 = 1 << 3;

impl Tracked {
    /// Whether addresses or ports differ between the two sides of this host.
    pub fn is_translated(&self) -> bool {
        let Tuple { source, destination, ports, .. } = self.reply;
        (self.original.source, self.original.destination, self.original.ports)
            != (destination, source, (ports.1, ports.0))
    }
}

/// All IPv4 connections of this thread's network namespace. There are none if the kernel tracks no connections.
///
/// # Errors
/// When the kernel tracks connections, but they cannot be listed.
pub fn connections() -> Result<Vec<Tracked>, NetlinkError> {
    match request(NETLINK_NETFILTER, CTNETLINK_GET, NLM_F_DUMP, &IPV4) {
        Ok(answers) => Ok(answers.iter().filter_map(|answer| tracked(answer.get(4..)?)).collect()),
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
        let Tuple { source, destination, ports, protocol } = *tuple;
        let reply = Tuple { source: destination, destination: source, ports: (ports.1, ports.0), protocol };
        put_tuple(body, CTA_TUPLE_REPLY, &reply)?;
        put(body, CTA_STATUS, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes());
        put(body, CTA_TIMEOUT, &(lifetime.as_secs() as u32).to_be_bytes());
        if protocol == TCP {
            nest(body, CTA_PROTOINFO, |out| {
                nest(out, CTA_PROTOINFO_TCP, |out| {
                    put(out, CTA_PROTOINFO_TCP_STATE, &[TCP_CONNTRACK_ESTABLISHED]);
                    for direction in [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY] {
                        put(out, direction, &[BE_LIBERAL; 2]);
                    }
                });
            });
        }
        Ok(())
    })?;
    Ok(refused.len())
}

/// Makes the kernel forget connections, each given by the direction of its first packet. It takes the next packet of one for a
/// packet in the middle of a connection. It is no error if the kernel does not know a connection.
///
/// # Errors
/// When the kernel does not answer, or refuses.
pub fn forget<'a>(connections: impl IntoIterator<Item = &'a Tuple>) -> Result<(), NetlinkError> {
    let action = "forget tracked connections";
    let refused = ask(action, CTNETLINK_DELETE, 0, connections, |_, _| Ok(()))?;
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

/// Writes the tuple of a connection. It leaves out ICMP's identifier and type, so the kernel finds no ICMP connection by
/// it.
fn put_tuple(out: &mut BytesMut, kind: u16, tuple: &Tuple) -> Result<(), OtherFamily> {
    let (source, destination) = (ipv4(tuple.source)?, ipv4(tuple.destination)?);
    nest(out, kind, |out| {
        nest(out, CTA_TUPLE_IP, |out| {
            put(out, CTA_IP_V4_SRC, &source.octets());
            put(out, CTA_IP_V4_DST, &destination.octets());
        });
        nest(out, CTA_TUPLE_PROTO, |out| {
            put(out, CTA_PROTO_NUM, &[tuple.protocol]);
            put(out, CTA_PROTO_SRC_PORT, &tuple.ports.0.to_be_bytes());
            put(out, CTA_PROTO_DST_PORT, &tuple.ports.1.to_be_bytes());
        });
    });
    Ok(())
}

fn tracked(attributes: &[u8]) -> Option<Tracked> {
    let status = find(attributes, CTA_STATUS).and_then(word).map_or(0, u32::from_be);
    Some(Tracked {
        original: tuple(find(attributes, CTA_TUPLE_ORIG)?)?,
        reply: tuple(find(attributes, CTA_TUPLE_REPLY)?)?,
        answered: status & SEEN_REPLY != 0,
    })
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (find(attributes, CTA_TUPLE_IP)?, find(attributes, CTA_TUPLE_PROTO)?);
    let address = |kind| find(ip, kind)?.first_chunk::<4>().copied().map(IpAddr::from);
    let port = |kind| find(proto, kind)?.first_chunk().copied().map(u16::from_be_bytes);
    let echo = port(CTA_PROTO_ICMP_ID);
    let either = |kind| port(kind).or(echo).unwrap_or_default();
    Some(Tuple {
        source: address(CTA_IP_V4_SRC)?,
        destination: address(CTA_IP_V4_DST)?,
        ports: (either(CTA_PROTO_SRC_PORT), either(CTA_PROTO_DST_PORT)),
        protocol: *find(proto, CTA_PROTO_NUM)?.first()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_translated_connection_is_told_from_a_plain_one() {
        let (client, service, backend) = ([10, 244, 1, 2], [10, 96, 0, 1], [10, 244, 2, 2]);
        let tuple = |source: [u8; 4], destination: [u8; 4], ports| Tuple {
            source: source.into(),
            destination: destination.into(),
            ports,
            protocol: 6,
        };
        let read = |replies_from, port| {
            let mut message = BytesMut::new();
            put_tuple(&mut message, CTA_TUPLE_ORIG, &tuple(client, service, (40000, 80))).unwrap();
            put_tuple(&mut message, CTA_TUPLE_REPLY, &tuple(replies_from, client, (port, 40000))).unwrap();
            put(&mut message, CTA_STATUS, &0x0e_u32.to_be_bytes());
            tracked(&message).unwrap()
        };
        let translated = read(backend, 8080);
        assert!(translated.is_translated() && translated.answered);
        assert_eq!((translated.reply.source, translated.reply.ports), (backend.into(), (8080, 40000)));
        assert!(!read(service, 80).is_translated());
        assert!(read(service, 81).is_translated());
        assert_eq!(tracked(&[]), None);
    }

    #[test]
    fn this_namespace_can_be_read() {
        connections().unwrap();
    }
}

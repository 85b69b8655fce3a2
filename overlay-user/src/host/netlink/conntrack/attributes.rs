//! What a netlink message says about a connection: its attributes are written and read here.
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use bytes::BytesMut;
use overlay_common::header::protocol::TCP;

use super::{
    super::raw::{find, nest, put, word},
    connection::{TcpState, Tracked, Tuple},
};
use crate::model::addr::{OtherFamily, ipv4};

// From linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_tcp.h and nf_conntrack_common.h.
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_NAT_SRC: u16 = 6;
const CTA_MARK: u16 = 8;
const CTA_NAT_DST: u16 = 13;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_ZONE: u16 = 3;
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

/// Writes that a connection has been answered, is in this state, and has this time left. It is told, too, that the numbers of TCP's
/// windows are not looked at.
pub(super) fn put_alive(out: &mut BytesMut, protocol: u8, state: TcpState, left: Duration) {
    put(out, CTA_STATUS, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes());
    put(out, CTA_TIMEOUT, &(left.as_secs() as u32).to_be_bytes());
    if protocol == TCP {
        put_tcp(out, Some(state));
    }
}

/// Writes that the numbers of TCP's windows are not looked at.
pub(super) fn put_loose(out: &mut BytesMut) {
    put_tcp(out, None);
}

fn put_tcp(out: &mut BytesMut, state: Option<TcpState>) {
    nest(out, CTA_PROTOINFO, |out| {
        nest(out, CTA_PROTOINFO_TCP, |out| {
            if let Some(TcpState(state)) = state {
                put(out, CTA_PROTOINFO_TCP_STATE, &[state]);
            }
            for direction in [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY] {
                put(out, direction, &[BE_LIBERAL; 2]);
            }
        });
    });
}

/// Writes the mark that rules have put on a connection, if there is one. A kernel without marks refuses the attribute.
pub(super) fn put_mark(out: &mut BytesMut, mark: u32) {
    if mark != 0 {
        put(out, CTA_MARK, &mark.to_be_bytes());
    }
}

/// Writes to which addresses and ports a connection's source and destination are translated.
pub(super) fn put_translation(out: &mut BytesMut, connection: &Tracked) -> Result<(), OtherFamily> {
    let Tracked { original, reply, .. } = connection;
    let source = (reply.destination, reply.ports.1);
    let destination = (reply.source, reply.ports.0);
    if source != (original.source, original.ports.0) {
        put_end(out, CTA_NAT_SRC, ipv4(source.0)?, source.1);
    }
    if destination != (original.destination, original.ports.1) {
        put_end(out, CTA_NAT_DST, ipv4(destination.0)?, destination.1);
    }
    Ok(())
}

fn put_end(out: &mut BytesMut, kind: u16, address: Ipv4Addr, port: u16) {
    nest(out, kind, |out| {
        for end in [CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP] {
            put(out, end, &address.octets());
        }
        nest(out, CTA_NAT_PROTO, |out| {
            for end in [CTA_PROTONAT_PORT_MIN, CTA_PROTONAT_PORT_MAX] {
                put(out, end, &port.to_be_bytes());
            }
        });
    });
}

/// Writes the tuple of a connection. It leaves out ICMP's identifier and type, so the kernel finds no ICMP connection by
/// it.
pub(super) fn put_tuple(out: &mut BytesMut, kind: u16, tuple: &Tuple) -> Result<(), OtherFamily> {
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

/// Reads the attributes of a connection.
pub(super) fn read(attributes: &[u8]) -> Option<Tracked> {
    let number = |kind| find(attributes, kind).and_then(word).map_or(0, u32::from_be);
    let (original, reply) = (find(attributes, CTA_TUPLE_ORIG)?, find(attributes, CTA_TUPLE_REPLY)?);
    let tcp_state = || {
        let tcp = find(find(attributes, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
        Some(TcpState(*find(tcp, CTA_PROTOINFO_TCP_STATE)?.first()?))
    };
    // A zone may count for both directions, or for one of them alone.
    let is_zoned = find(attributes, CTA_ZONE).is_some()
        || [original, reply].into_iter().any(|direction| find(direction, CTA_TUPLE_ZONE).is_some());
    Some(Tracked {
        original: tuple(original)?,
        reply: tuple(reply)?,
        answered: number(CTA_STATUS) & SEEN_REPLY != 0,
        tcp_state: tcp_state().unwrap_or(TcpState::UNTOLD),
        left: Duration::from_secs(number(CTA_TIMEOUT).into()),
        is_zoned,
        mark: number(CTA_MARK),
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
    use super::{super::connection::turned, *};

    #[test]
    fn a_translated_connection_is_told_from_a_plain_one() {
        let (client, service, backend) = ([10, 244, 1, 2], [10, 96, 0, 1], [10, 244, 2, 2]);
        let tuple = |source: [u8; 4], destination: [u8; 4], ports| Tuple {
            source: source.into(),
            destination: destination.into(),
            ports,
            protocol: 6,
        };
        let told = |replies_from, port| {
            let mut message = BytesMut::new();
            put_tuple(&mut message, CTA_TUPLE_ORIG, &tuple(client, service, (40000, 80))).unwrap();
            put_tuple(&mut message, CTA_TUPLE_REPLY, &tuple(replies_from, client, (port, 40000))).unwrap();
            put(&mut message, CTA_STATUS, &0x0e_u32.to_be_bytes());
            read(&message).unwrap()
        };
        let translated = told(backend, 8080);
        assert!(translated.is_translated() && translated.answered);
        assert_eq!((translated.reply.source, translated.reply.ports), (backend.into(), (8080, 40000)));
        assert!(!told(service, 80).is_translated());
        assert!(told(service, 81).is_translated());
        assert_eq!(read(&[]), None);
    }

    fn connection() -> (Tuple, BytesMut) {
        let original = Tuple {
            source: [10, 99, 0, 1].into(),
            destination: [10, 244, 2, 2].into(),
            ports: (40000, 80),
            protocol: TCP,
        };
        let mut message = BytesMut::new();
        put_tuple(&mut message, CTA_TUPLE_ORIG, &original).unwrap();
        put_tuple(&mut message, CTA_TUPLE_REPLY, &turned(&original)).unwrap();
        (original, message)
    }

    #[test]
    fn state_time_and_mark_are_written_as_they_are_read() {
        let (original, mut message) = connection();
        put_alive(&mut message, TCP, TcpState::CLOSE_WAIT, Duration::from_secs(59));
        put_mark(&mut message, 0x4000);
        let expected = Tracked {
            tcp_state: TcpState::CLOSE_WAIT,
            left: Duration::from_secs(59),
            mark: 0x4000,
            ..Tracked::example(original, turned(&original))
        };
        assert_eq!(read(&message), Some(expected));
    }

    #[test]
    fn of_what_a_flowtable_carries_neither_state_nor_time_is_told() {
        let (_, message) = connection();
        let carried = read(&message).unwrap();
        assert_eq!((carried.tcp_state, carried.left), (TcpState::UNTOLD, Duration::ZERO));
    }

    #[test]
    fn a_connection_in_a_zone_is_told_from_others() {
        let (_, mut message) = connection();
        assert!(!read(&message).unwrap().is_zoned);
        put(&mut message, CTA_ZONE, &7_u16.to_be_bytes());
        assert!(read(&message).unwrap().is_zoned);
    }
}

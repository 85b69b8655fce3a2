//! A connection as connection tracking knows it.
use std::{net::IpAddr, time::Duration};

use overlay_common::header::protocol::TCP;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// How far it has come, if it is one of TCP.
    pub tcp_state: TcpState,
    /// When connection tracking forgets it, unless it sees another packet. Zero if a flowtable carries it, which keeps it as
    /// long as packets come.
    pub left: Duration,
    /// Whether rules have put it into a zone (`ct zone`). The same addresses and ports may be another connection in another zone.
    pub is_zoned: bool,
    /// The mark that rules have put on it (`ct mark`), or zero.
    pub mark: u32,
}

/// How far connection tracking has seen a TCP connection come, by its number in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState(pub(super) u8);

impl TcpState {
    /// Connection tracking does not tell it, as of other protocols and of what a flowtable carries, which is established.
    pub const UNTOLD: Self = Self(0);
    /// `TCP_CONNTRACK_SYN_SENT`: only the first packet was seen.
    pub const SYN_SENT: Self = Self(1);
    /// `TCP_CONNTRACK_SYN_RECV`: the first answer was seen, too.
    pub const SYN_RECV: Self = Self(2);
    /// `TCP_CONNTRACK_ESTABLISHED`.
    pub const ESTABLISHED: Self = Self(3);
    /// `TCP_CONNTRACK_FIN_WAIT`: one end has closed its side.
    pub const FIN_WAIT: Self = Self(4);
    /// `TCP_CONNTRACK_CLOSE_WAIT`: the other end knows of it, and may go on sending.
    pub const CLOSE_WAIT: Self = Self(5);
    /// `TCP_CONNTRACK_LAST_ACK`: both ends have closed their sides, and one is to hear of it.
    pub const LAST_ACK: Self = Self(6);
    /// `TCP_CONNTRACK_TIME_WAIT`: nothing is to come any more.
    pub const TIME_WAIT: Self = Self(7);
    /// `TCP_CONNTRACK_CLOSE`: one end has broken it off.
    pub const CLOSE: Self = Self(8);
}

impl Tracked {
    /// A connection for tests: established, answered, and with an hour left.
    #[cfg(test)]
    pub(crate) const fn example(original: Tuple, reply: Tuple) -> Self {
        Self {
            original,
            reply,
            answered: true,
            tcp_state: TcpState::ESTABLISHED,
            left: Duration::from_secs(3600),
            is_zoned: false,
            mark: 0,
        }
    }

    /// Whether both ends know of the connection, and one of them may still send something that belongs to it. One that has ended
    /// must not be taken for a live one, because another may begin with the same addresses and ports.
    pub fn is_alive(&self) -> bool {
        const ALIVE: [TcpState; 5] = [
            TcpState::UNTOLD,
            TcpState::ESTABLISHED,
            TcpState::FIN_WAIT,
            TcpState::CLOSE_WAIT,
            TcpState::LAST_ACK,
        ];
        self.answered && (self.original.protocol != TCP || ALIVE.contains(&self.tcp_state))
    }

    /// Whether connection tracking has seen only a part of the packets with which a TCP connection begins.
    pub fn is_beginning(&self) -> bool {
        self.original.protocol == TCP && [TcpState::SYN_SENT, TcpState::SYN_RECV].contains(&self.tcp_state)
    }

    /// Whether addresses or ports differ between the two sides of this host.
    pub fn is_translated(&self) -> bool {
        let Tuple { source, destination, ports, .. } = self.reply;
        (self.original.source, self.original.destination, self.original.ports)
            != (destination, source, (ports.1, ports.0))
    }
}

/// The direction opposite to this one, without translation.
pub(super) const fn turned(tuple: &Tuple) -> Tuple {
    let Tuple { source, destination, ports: (from, to), protocol } = *tuple;
    Tuple { source: destination, destination: source, ports: (to, from), protocol }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_or_only_begins_is_not_alive() {
        let original = Tuple {
            source: [10, 99, 0, 1].into(),
            destination: [10, 244, 2, 2].into(),
            ports: (40000, 80),
            protocol: TCP,
        };
        let one = Tracked::example(original, turned(&original));
        let numbered = |state| Tracked { tcp_state: TcpState(state), ..one };
        let alive: Vec<u8> = (0..=9).filter(|state| numbered(*state).is_alive()).collect();
        assert_eq!(alive, [0, 3, 4, 5, 6]);
        let beginning: Vec<u8> = (0..=9).filter(|state| numbered(*state).is_beginning()).collect();
        assert_eq!(beginning, [1, 2]);
        assert!(!Tracked { answered: false, ..one }.is_alive());
        let udp = Tuple { protocol: 17, ..original };
        assert!(Tracked { original: udp, tcp_state: TcpState::UNTOLD, ..one }.is_alive());
    }
}

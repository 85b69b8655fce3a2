//! The host's IPsec policies, as the kernel's xfrm has them, and the notification that they changed.
use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use nix::errno::Errno;
use overlay_common::header::protocol::{ICMP, SCTP, TCP, UDP};
use rtnetlink::sys::protocols::NETLINK_XFRM;

use super::{
    changes::Changes,
    error::NetlinkError,
    raw::{NLM_F_DUMP, find, request, word},
};

/// Which packets a policy is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that the host itself receives.
    In,
    /// Those that leave the host, its own and forwarded ones.
    Out,
    /// Those that arrive and are forwarded.
    Forward,
}

/// What becomes of the packets that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They pass; if the policy has templates, only transformed as these say.
    Allow,
    /// They are dropped.
    Block,
}

/// Ports that a policy selects: those that agree with `value` in the bits of `mask`. Both are in the machine's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The bits that a port must have.
    pub value: u16,
    /// The bits that are compared. None stands for every port.
    pub mask: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Self = Self { value: 0, mask: 0 };

    /// Whether the policy selects this port, in the machine's order.
    pub const fn contains(self, port: u16) -> bool {
        (port ^ self.value) & self.mask == 0
    }
}

/// A policy of the host. Its text names it as `ip xfrm policy` does, in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which packets it is asked about.
    pub direction: Direction,
    /// Where they come from.
    pub source: IpNet,
    /// Where they go.
    pub destination: IpNet,
    /// IP protocol number; zero stands for every protocol.
    pub protocol: u8,
    /// The ports they come from.
    pub source_ports: Ports,
    /// The ports they go to.
    pub destination_ports: Ports,
    /// What becomes of them.
    pub action: Action,
    /// Whether they must be transformed: encrypted, authenticated, put into a tunnel.
    pub has_templates: bool,
    /// The packet's mark that it selects, after the packet's has been masked. Packets have none (zero) unless a rule sets one.
    pub mark: u32,
    /// The xfrm interface whose packets alone it selects; zero if it has none.
    pub interface: u32,
    /// Whether it is the host's default for packets that no policy selects.
    pub is_default: bool,
}

// From linux/socket.h and linux/xfrm.h.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
const XFRM_POLICY_BLOCK: u8 = 1;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// `struct xfrm_userpolicy_default`, which a request must have, too.
const NO_DEFAULTS: [u8; 3] = [0; 3];
/// `XFRMNLGRP_POLICY`, as the bit for bind(2) of a netlink socket.
const GROUP: u32 = 1 << (4 - 1);
/// Where the members of `struct xfrm_userpolicy_info` stand, of which `struct xfrm_selector` is the first.
mod at {
    pub(super) const DESTINATION: usize = 0;
    pub(super) const SOURCE: usize = 16;
    pub(super) const DESTINATION_PORTS: usize = 32;
    pub(super) const SOURCE_PORTS: usize = 36;
    pub(super) const FAMILY: usize = 40;
    pub(super) const DESTINATION_LENGTH: usize = 42;
    pub(super) const SOURCE_LENGTH: usize = 43;
    pub(super) const PROTOCOL: usize = 44;
    pub(super) const DIRECTION: usize = 160;
    pub(super) const ACTION: usize = 161;
    pub(super) const ATTRIBUTES: usize = 168;
}

/// The policies of this thread's network namespace, of all families, and its default where that is to block. Policies of single
/// sockets are not the host's, and are left out. A kernel without IPsec has none.
///
/// # Errors
/// When the kernel has IPsec, but does not tell.
pub fn policies() -> Result<Vec<Policy>, NetlinkError> {
    let failed = |error: &io::Error| NetlinkError::io("list IPsec policies", error);
    let mut found: Vec<Policy> = match request(NETLINK_XFRM, XFRM_MSG_GETPOLICY, NLM_F_DUMP, &[]) {
        Ok(answers) => answers.iter().filter_map(|answer| policy(answer)).collect(),
        Err(error) if is_without_ipsec(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
    };
    match request(NETLINK_XFRM, XFRM_MSG_GETDEFAULT, 0, &NO_DEFAULTS) {
        Ok(answers) => found.extend(answers.iter().flat_map(|answer| defaults(answer))),
        // Kernels before 5.14 do not know the request, and accept what no policy selects.
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
        Err(error) => return Err(failed(&error)),
    }
    Ok(found)
}

/// Whether the kernel has no IPsec at all, or none that can be asked by netlink.
fn is_without_ipsec(error: &io::Error) -> bool {
    let why = error.raw_os_error().map(Errno::from_raw);
    matches!(why, Some(Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

/// Reads a message of the list; `None` if it is a socket's policy, or none that is understood.
fn policy(body: &[u8]) -> Option<Policy> {
    let byte = |at: usize| body.get(at).copied();
    let half = |at: usize| Some(u16::from_be_bytes(*body.get(at..)?.first_chunk()?));
    let ports = |at: usize| Some(Ports { value: half(at)?, mask: half(at + 2)? });
    let family = u16::from_ne_bytes(*body.get(at::FAMILY..)?.first_chunk()?);
    let prefix = |address: usize, length: usize| {
        let address = match family {
            AF_INET => Ipv4Addr::from(*body.get(address..)?.first_chunk::<4>()?).into(),
            AF_INET6 => Ipv6Addr::from(*body.get(address..)?.first_chunk::<16>()?).into(),
            _ => return None,
        };
        IpNet::new(address, byte(length)?).ok()
    };
    let attributes = body.get(at::ATTRIBUTES..)?;
    let number = |kind| find(attributes, kind).and_then(word).unwrap_or_default();
    Some(Policy {
        direction: match byte(at::DIRECTION)? {
            0 => Direction::In,
            1 => Direction::Out,
            2 => Direction::Forward,
            // A socket's policy has the same three directions again, from 3 on.
            _ => return None,
        },
        source: prefix(at::SOURCE, at::SOURCE_LENGTH)?,
        destination: prefix(at::DESTINATION, at::DESTINATION_LENGTH)?,
        protocol: byte(at::PROTOCOL)?,
        source_ports: ports(at::SOURCE_PORTS)?,
        destination_ports: ports(at::DESTINATION_PORTS)?,
        action: if byte(at::ACTION)? == XFRM_POLICY_BLOCK { Action::Block } else { Action::Allow },
        has_templates: find(attributes, XFRMA_TMPL).is_some(),
        mark: number(XFRMA_MARK),
        interface: number(XFRMA_IF_ID),
        is_default: false,
    })
}

/// The defaults that block, as policies that select every packet of IPv4.
fn defaults(answer: &[u8]) -> Vec<Policy> {
    let all = IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0);
    let blocking = |direction| Policy {
        direction,
        source: all,
        destination: all,
        protocol: 0,
        source_ports: Ports::ALL,
        destination_ports: Ports::ALL,
        action: Action::Block,
        has_templates: false,
        mark: 0,
        interface: 0,
        is_default: true,
    };
    // The order is that of `struct xfrm_userpolicy_default`.
    let directions = [Direction::In, Direction::Forward, Direction::Out].into_iter().zip(answer);
    directions.filter(|(_, what)| **what == XFRM_USERPOLICY_BLOCK).map(|(which, _)| blocking(which)).collect()
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_default {
            f.write_str("default")?;
        } else {
            write!(f, "src {} dst {}", self.source, self.destination)?;
        }
        match self.protocol {
            0 => {}
            ICMP => f.write_str(" proto icmp")?,
            TCP => f.write_str(" proto tcp")?,
            UDP => f.write_str(" proto udp")?,
            SCTP => f.write_str(" proto sctp")?,
            other => write!(f, " proto {other}")?,
        }
        for (which, Ports { value, mask }) in
            [("sport", self.source_ports), ("dport", self.destination_ports)]
        {
            match mask {
                0 => {}
                u16::MAX => write!(f, " {which} {value}")?,
                mask => write!(f, " {which} {value}/{mask:#x}")?,
            }
        }
        if self.mark != 0 {
            write!(f, " mark {:#x}", self.mark)?;
        }
        if self.interface != 0 {
            write!(f, " if_id {:#x}", self.interface)?;
        }
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
            Direction::Forward => "fwd",
        };
        let action = match self.action {
            Action::Allow => "allow",
            Action::Block => "block",
        };
        write!(f, " dir {direction} action {action}")
    }
}

/// A subscription to changes of the policies and of their default, in this thread's network namespace. It ends when this is
/// dropped. The kernel tells in another group of a policy whose lifetime has ended.
pub struct XfrmEvents(Changes);

impl XfrmEvents {
    /// Subscribes. There is nothing to subscribe to where the kernel has no IPsec.
    ///
    /// # Errors
    /// When the kernel has IPsec, but refuses.
    pub fn listen() -> Result<Option<Self>, NetlinkError> {
        match Changes::listen("IPsec policies", NETLINK_XFRM, GROUP) {
            Ok(changes) => Ok(Some(Self(changes))),
            Err(error) if is_without_ipsec(&error) => Ok(None),
            Err(error) => Err(NetlinkError::io("subscribe to changes of IPsec policies", &error)),
        }
    }

    /// Waits for a change. All notifications that have arrived by then count as one.
    pub async fn next(&mut self) {
        self.0.next().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as Linux 6.18 sent it, in hexadecimal digits: the selector, the lifetimes, and what follows them.
    fn read(selector: &str, rest: &str) -> Option<Policy> {
        // No limits, and the time at which the policy was made.
        let lifetimes = format!("{:f<64}{:0<80}bb820d6b{:0<40}", "", "", "");
        let text = [selector, &lifetimes, rest].concat().replace(' ', "");
        let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        let body: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        policy(&body)
    }

    #[test]
    fn a_policy_is_named_as_ip_names_it() {
        // ip xfrm policy add src 10.99.0.1/32 dst 10.99.0.2/32 proto udp dport 8472 dir out action block
        let tunnel = read(
            "0a630002000000000000000000000000 0a630001000000000000000000000000 2118ffff 00000000 0200 20 20 11000000 \
             00000000 00000000",
            "00000000 01000000 01 01 0000 00000000 0a00100000000000 00000000",
        )
        .unwrap();
        assert_eq!(
            tunnel.to_string(),
            "src 10.99.0.1/32 dst 10.99.0.2/32 proto udp dport 8472 dir out action block"
        );
        assert_eq!((tunnel.protocol, tunnel.source_ports, tunnel.has_templates), (UDP, Ports::ALL, false));
        assert!(tunnel.destination_ports.contains(8472) && !tunnel.destination_ports.contains(8473));
        assert!(tunnel.source_ports.contains(50000));

        // ip xfrm policy add src 10.244.2.0/24 dst 10.244.1.0/24 dir fwd tmpl src 10.99.0.2 dst 10.99.0.1 proto esp mode tunnel
        let inner = read(
            "0af40100000000000000000000000000 0af40200000000000000000000000000 00000000 00000000 0200 18 18 00000000 \
             00000000 00000000",
            "00000000 0a000000 02 00 0000 00000000 44000500 0a630001000000000000000000000000 00000000 32000000 02000000 \
             0a630002000000000000000000000000 00000000 01000000 ffffffff ffffffff ffffffff 0a00100000000000 00000000",
        )
        .unwrap();
        assert_eq!(inner.to_string(), "src 10.244.2.0/24 dst 10.244.1.0/24 dir fwd action allow");
        assert!(inner.has_templates);

        // ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out mark 7 mask 0xff if_id 42 action block
        let elsewhere = read(
            "00000000000000000000000000000000 00000000000000000000000000000000 00000000 00000000 0200 00 00 00000000 \
             00000000 00000000",
            "00000000 19000000 01 01 0000 00000000 0a00100000000000 00000000 0c00150007000000ff000000 08001f002a000000",
        )
        .unwrap();
        assert_eq!(
            elsewhere.to_string(),
            "src 0.0.0.0/0 dst 0.0.0.0/0 mark 0x7 if_id 0x2a dir out action block"
        );
        assert_eq!((elsewhere.mark, elsewhere.interface), (7, 42));

        // ip xfrm policy add src fd00::/64 dst ::/0 dir in action block
        let ipv6 = read(
            "00000000000000000000000000000000 fd000000000000000000000000000000 00000000 00000000 0a00 00 40 00000000 \
             00000000 00000000",
            "00000000 10000000 00 01 0000 00000000 0a00100000000000 00000000",
        )
        .unwrap();
        assert_eq!(ipv6.to_string(), "src fd00::/64 dst ::/0 dir in action block");
    }

    #[test]
    fn a_sockets_policy_is_not_the_hosts_and_a_broken_message_is_none() {
        let selector = "00000000000000000000000000000000 00000000000000000000000000000000 00000000 00000000 0200 00 00 \
                        00000000 00000000 00000000";
        let rest = |direction: &str| {
            format!("00000000 24000000 {direction} 00 0000 00000000 0a00100000000000 00000000")
        };
        assert_eq!(read(selector, &rest("04")), None);
        assert!(read(selector, &rest("01")).is_some());
        assert_eq!(read(selector, "00000000 24000000 01"), None, "cut short");
        assert_eq!(
            read(&selector.replace("0200 00 00", "0200 21 00"), &rest("01")),
            None,
            "33 bits of an address"
        );
        assert_eq!(read(&selector.replace("0200", "1100"), &rest("01")), None, "packets of another family");
        assert_eq!(policy(&[]), None);
    }

    #[test]
    fn a_default_that_blocks_is_a_policy_for_everything() {
        // After `ip xfrm policy setdefault out block fwd block`.
        let names: Vec<String> = defaults(&[2, 1, 1, 0]).iter().map(Policy::to_string).collect();
        assert_eq!(names, ["default dir fwd action block", "default dir out action block"]);
        assert!(
            defaults(&[2, 2, 2, 0]).is_empty() && defaults(&[0; 4]).is_empty() && defaults(&[]).is_empty()
        );
    }

    #[test]
    fn this_namespace_can_be_read() {
        match policies() {
            Ok(_) => {}
            // Whoever runs the test may not be root.
            Err(error) => assert_eq!(error.errno, Errno::EPERM, "{error}"),
        }
    }
}

//! Traffic control: the qdiscs whose filters see every packet of an interface (clsact and ingress), and those filters.
//!
//! The crate rtnetlink is not used here. Its requests are asynchronous. Moreover, it reads every option of every kind of
//! filter: a filter of somebody else that has an option it does not know would hide ours.
use std::{collections::BTreeMap, io};

use bytes::{BufMut, BytesMut};
use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::{
    error::NetlinkError,
    raw::{self, NLM_F_DUMP, find, put, word},
};

/// The direction of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Into the host.
    Ingress,
    /// Out of the host.
    Egress,
}

/// A qdisc that only holds filters. An interface has at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterQdisc {
    /// Filters for both directions.
    Clsact,
    /// The older kind, with filters for ingress alone.
    Ingress,
}

/// A filter of an interface, or the head of a priority (`handle` 0), which names the kind of all filters of that priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Priority. Filters with a lower one see the packet first.
    pub priority: u16,
    /// Number within its priority.
    pub handle: u32,
    /// Ethertype in the machine's order. 3 (`ETH_P_ALL`) stands for all.
    pub protocol: u16,
    /// Chain. Packets start in chain 0.
    pub chain: u32,
    /// Kind of the filter: `bpf`, `flower` and so on.
    pub kind: String,
    /// The name that a bpf filter was given when it was attached.
    pub name: String,
    /// Id of a bpf filter's program.
    pub program: Option<u32>,
}

// From linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h and linux/netlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// Handle and parent of both kinds of qdisc.
const FILTER_QDISC: u32 = 0xffff_0000;
const FILTER_QDISC_PARENT: u32 = 0xffff_fff1;
/// Parent of the queueing discipline at the root of an interface (`TC_H_ROOT`).
const ROOT: u32 = u32::MAX;
/// Length of `tcmsg`.
const TCMSG: usize = 20;
/// How often a list is read again if it changed while it was read.
const TRIES: usize = 10;

impl Direction {
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// The qdiscs of all interfaces, as far as they matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qdiscs {
    /// Those that only hold filters, by the interface's index.
    pub filtering: BTreeMap<u32, FilterQdisc>,
    /// Those that somebody has put at the root of interfaces: their kinds, by the interface's index. What the kernel puts there
    /// itself is nobody's choice, and has no handle; `noqueue` is no queue, whoever chose it.
    pub chosen: BTreeMap<u32, String>,
}

impl Qdiscs {
    /// Lists them.
    pub fn list() -> Result<Self, NetlinkError> {
        let messages = list(RTM_GETQDISC, RTM_NEWQDISC, Tcmsg::default())
            .map_err(|error| NetlinkError::io("list qdiscs", &error))?;
        let mut qdiscs = Self::default();
        for message in &messages {
            qdiscs.filtering.extend(filter_qdisc(message));
            qdiscs.chosen.extend(chosen_root(message));
        }
        Ok(qdiscs)
    }
}

/// The interfaces that have a qdisc which only holds filters, by index.
pub fn filter_qdiscs() -> Result<BTreeMap<u32, FilterQdisc>, NetlinkError> {
    Ok(Qdiscs::list()?.filtering)
}

fn filter_qdisc(message: &[u8]) -> Option<(u32, FilterQdisc)> {
    let (tcmsg, attributes) = Tcmsg::read(message)?;
    let kind = match find(attributes, TCA_KIND).map(text).as_deref() {
        Some("clsact") => FilterQdisc::Clsact,
        Some("ingress") => FilterQdisc::Ingress,
        _ => return None,
    };
    Some((tcmsg.ifindex, kind))
}

fn chosen_root(message: &[u8]) -> Option<(u32, String)> {
    let (tcmsg, attributes) = Tcmsg::read(message)?;
    let kind = find(attributes, TCA_KIND).map(text)?;
    let is_chosen = tcmsg.parent == ROOT && tcmsg.handle != 0 && kind != "noqueue";
    is_chosen.then_some((tcmsg.ifindex, kind))
}

/// The filters of an interface in one direction, in the order in which they see a packet. There are none if the interface
/// has no such qdisc or does not exist any more. The ingress qdisc answers for egress as if it had been asked for ingress.
pub fn filters(ifindex: u32, direction: Direction) -> Result<Vec<Filter>, NetlinkError> {
    let tcmsg = Tcmsg { ifindex, parent: direction.parent(), ..Tcmsg::default() };
    let messages = match list(RTM_GETTFILTER, RTM_NEWTFILTER, tcmsg) {
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(Vec::new()),
        other => other
            .map_err(|error| NetlinkError::io(format!("list the filters of interface {ifindex}"), &error))?,
    };
    Ok(messages.iter().filter_map(|message| Filter::read(message)).collect())
}

/// Removes a filter of all protocols. It is no error if there is no such filter or no such interface.
pub fn remove_filter(
    ifindex: u32,
    direction: Direction,
    priority: u16,
    handle: u32,
) -> Result<(), NetlinkError> {
    // The lower half is `htons(ETH_P_ALL)`.
    let info = u32::from(priority) << 16 | u32::from(3_u16.to_be());
    let tcmsg = Tcmsg { ifindex, handle, parent: direction.parent(), info };
    let action = format!("remove filter {handle:#x} of interface {ifindex}");
    // EINVAL means that the qdisc is gone, too. It is the kernel's answer to whatever is wrong with a request.
    change(action, RTM_DELTFILTER, 0, &tcmsg.bytes(), &[Errno::ENOENT, Errno::ENODEV, Errno::EINVAL])
}

/// Gives an interface a clsact qdisc. The error is EEXIST if it has one, or an ingress qdisc.
pub fn add_clsact(ifindex: u32) -> Result<(), NetlinkError> {
    let tcmsg = Tcmsg { ifindex, handle: FILTER_QDISC, parent: FILTER_QDISC_PARENT, info: 0 };
    let action = format!("add a clsact qdisc to interface {ifindex}");
    change(action, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &clsact(tcmsg), &[])
}

/// Removes the clsact qdisc of an interface, with every filter in it. It is no error if there is none.
pub fn remove_clsact(ifindex: u32) -> Result<(), NetlinkError> {
    let tcmsg = Tcmsg { ifindex, handle: FILTER_QDISC, parent: FILTER_QDISC_PARENT, info: 0 };
    let action = format!("remove the clsact qdisc of interface {ifindex}");
    let fine = [Errno::ENOENT, Errno::ENODEV, Errno::EINVAL];
    change(action, RTM_DELQDISC, 0, &clsact(tcmsg), &fine)
}

/// The numbers of `struct tcmsg` that matter here.
#[derive(Clone, Copy, Debug, Default)]
struct Tcmsg {
    ifindex: u32,
    handle: u32,
    parent: u32,
    /// Priority in the upper half, ethertype in network order in the lower.
    info: u32,
}

impl Tcmsg {
    /// The numbers as bytes, behind AF_UNSPEC and padding.
    fn bytes(self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(TCMSG);
        for word in [0, self.ifindex, self.handle, self.parent, self.info] {
            bytes.put_u32_ne(word);
        }
        bytes
    }

    /// The numbers of a message, and the bytes of the attributes behind them.
    fn read(message: &[u8]) -> Option<(Self, &[u8])> {
        let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
        let tcmsg = Self { ifindex: word(4)?, handle: word(8)?, parent: word(12)?, info: word(16)? };
        Some((tcmsg, message.get(TCMSG..)?))
    }
}

impl Filter {
    fn read(message: &[u8]) -> Option<Self> {
        let (tcmsg, attributes) = Tcmsg::read(message)?;
        let options = find(attributes, TCA_OPTIONS).unwrap_or_default();
        let kind = find(attributes, TCA_KIND).map(text).unwrap_or_default();
        // The attribute numbers below have other meanings in other kinds of filter.
        let bpf = if kind == "bpf" { options } else { &[] };
        Some(Self {
            priority: (tcmsg.info >> 16) as u16,
            handle: tcmsg.handle,
            protocol: u16::from_be(tcmsg.info as u16),
            chain: find(attributes, TCA_CHAIN).and_then(word).unwrap_or(0),
            name: find(bpf, TCA_BPF_NAME).map(text).unwrap_or_default(),
            program: find(bpf, TCA_BPF_ID).and_then(word),
            kind,
        })
    }
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A request about an interface's clsact qdisc.
fn clsact(tcmsg: Tcmsg) -> BytesMut {
    let mut body = tcmsg.bytes();
    put(&mut body, TCA_KIND, b"clsact\0");
    body
}

/// Makes a change. `fine` has the errors by which the kernel says that the change is not needed.
fn change(action: String, kind: u16, flags: u16, body: &[u8], fine: &[Errno]) -> Result<(), NetlinkError> {
    match raw::request(NETLINK_ROUTE, kind, flags, body) {
        Ok(_) => Ok(()),
        Err(error) => match NetlinkError::io(action, &error) {
            error if fine.contains(&error.errno) => Ok(()),
            error => Err(error),
        },
    }
}

/// The bodies of all answers of one kind to a request for a list.
fn list(kind: u16, wanted: u16, tcmsg: Tcmsg) -> io::Result<Vec<Vec<u8>>> {
    for _ in 0..TRIES {
        let answer = raw::ask(NETLINK_ROUTE, kind, NLM_F_DUMP, &tcmsg.bytes())?;
        if !answer.interrupted {
            let messages = answer.messages.into_iter().filter(|message| message.kind == wanted);
            return Ok(messages.map(|message| message.body).collect());
        }
    }
    Err(io::Error::other("the list changed whenever it was read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_whatever_stands_beside_it() {
        // This is what the kernel sends: tcmsg, then TCA_KIND, TCA_CHAIN, and TCA_OPTIONS with TCA_BPF_NAME and TCA_BPF_ID.
        let mut message = BytesMut::new();
        for word in [0, 7, 0x2a01, 0xffff_fff2, 7 << 16 | u32::from(3_u16.to_be())] {
            message.put_u32_ne(word);
        }
        put(&mut message, TCA_KIND, b"bpf\0");
        put(&mut message, TCA_CHAIN, &0_u32.to_ne_bytes());
        // An attribute that a future kernel may send.
        put(&mut message, 99, b"whatever");
        let options =
            [&[18, 0, 7, 0][..], b"overlay_decap\0\0\0", &[8, 0, 11, 0], &761_u32.to_ne_bytes()].concat();
        put(&mut message, TCA_OPTIONS | 1 << 15, &options);
        let read = Filter::read(&message).unwrap();
        let wanted = Filter {
            priority: 7,
            handle: 0x2a01,
            protocol: 3,
            chain: 0,
            kind: "bpf".into(),
            name: "overlay_decap".into(),
            program: Some(761),
        };
        assert_eq!(read, wanted);
        assert_eq!(Filter::read(&message[..19]), None);
    }

    #[test]
    fn only_a_root_that_somebody_chose_counts() {
        let qdisc = |handle: u32, parent: u32, kind: &str| {
            let mut message = BytesMut::new();
            for word in [0, 7, handle, parent, 2] {
                message.put_u32_ne(word);
            }
            put(&mut message, TCA_KIND, &[kind.as_bytes(), &[0]].concat());
            chosen_root(&message)
        };
        assert_eq!(qdisc(0x8001_0000, ROOT, "tbf"), Some((7, "tbf".to_owned())));
        // `tc qdisc show` prints a handle of zero as `0:`.
        for (handle, parent, kind) in [
            (0, ROOT, "fq_codel"),
            (0, ROOT, "noqueue"),
            (0x8002_0000, ROOT, "noqueue"),
            (0x8003_0000, 0x8001_0001, "sfq"),
            (FILTER_QDISC, FILTER_QDISC_PARENT, "clsact"),
        ] {
            assert_eq!(qdisc(handle, parent, kind), None, "{kind}");
        }
    }

    #[test]
    fn this_namespace_can_be_read() {
        Qdiscs::list().unwrap();
        assert_eq!(filters(u32::MAX >> 1, Direction::Ingress).unwrap(), []);
    }
}

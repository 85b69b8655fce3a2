//! Generic netlink: what the kernel tells about an interface's XDP (family `netdev`, Linux 6.3) and its offloads (family
//! `ethtool`, Linux 5.6).
use std::{collections::BTreeMap, io};

use bytes::{BufMut, BytesMut};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_GENERIC};

use super::{
    error::NetlinkError,
    raw::{NLM_F_DUMP, attributes, find, nest, put, request, text, word},
};

// From linux/genetlink.h, linux/netdev.h and linux/ethtool_netlink.h.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;
/// `struct genlmsghdr`: command, version, and two bytes that are reserved.
const GENERIC_HEADER: usize = 4;

/// What an interface can do with XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Whether it runs programs in its driver and lets them redirect.
    pub const fn runs(self) -> bool {
        self.0 & 0b11 == 0b11
    }

    /// Whether it takes frames that programs redirect to it, also such as are in several buffers. A veth does if its other
    /// end, in whatever namespace, has NAPI for them: that is, GRO is on there, or an XDP program of its own is attached
    /// (fccca038f300, Linux 6.3).
    pub const fn receives(self) -> bool {
        const XMIT: u64 = 1 << 2 | 1 << 6;
        self.0 & XMIT == XMIT
    }
}

/// What each interface of this thread's namespace can do. `None` on a kernel before Linux 6.3, which does not tell.
pub fn xdp_features() -> Result<Option<BTreeMap<u32, XdpFeatures>>, NetlinkError> {
    let action = "ask for the XDP features of all interfaces";
    let failed = |error| NetlinkError::io(action, &error);
    let Some(netdev) = Family::find("netdev").map_err(failed)? else { return Ok(None) };
    let answers = netdev.ask(NETDEV_CMD_DEV_GET, NLM_F_DUMP, &[]).map_err(failed)?;
    let device = |answer: &Vec<u8>| {
        let features = find(answer, NETDEV_A_DEV_XDP_FEATURES)?.first_chunk()?;
        Some((word(find(answer, NETDEV_A_DEV_IFINDEX)?)?, XdpFeatures(u64::from_ne_bytes(*features))))
    };
    Ok(Some(answers.iter().filter_map(device).collect()))
}

/// Whether an offload of an interface of this thread's namespace is on. `name` is the kernel's, such as `rx-gro` or
/// `rx-checksum`, and not the one that `ethtool -k` shows.
pub fn offload(ifindex: u32, name: &str) -> Result<bool, NetlinkError> {
    let failed = |error| NetlinkError::io(format!("ask for {name} of interface {ifindex}"), &error);
    let answers = ethtool(ETHTOOL_MSG_FEATURES_GET, ifindex, |_| {}).map_err(failed)?;
    let active = answers.first().and_then(|answer| find(answer, ETHTOOL_A_FEATURES_ACTIVE));
    let bits = active.and_then(|active| find(active, ETHTOOL_A_BITSET_BITS)).unwrap_or_default();
    let mut names = attributes(bits).filter_map(|(_, bit)| find(bit, ETHTOOL_A_BITSET_BIT_NAME).map(text));
    Ok(names.any(|found| found == name.as_bytes()))
}

/// Switches an offload on or off.
pub fn switch(ifindex: u32, name: &str, on: bool) -> Result<(), NetlinkError> {
    let wanted = |request: &mut BytesMut| {
        nest(request, ETHTOOL_A_FEATURES_WANTED, |set| {
            nest(set, ETHTOOL_A_BITSET_BITS, |bits| {
                nest(bits, ETHTOOL_A_BITSET_BITS_BIT, |bit| {
                    put(bit, ETHTOOL_A_BITSET_BIT_NAME, &[name.as_bytes(), &[0]].concat());
                    if on {
                        put(bit, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
                    }
                });
            });
        });
    };
    let done = ethtool(ETHTOOL_MSG_FEATURES_SET, ifindex, wanted);
    done.map(drop).map_err(|error| NetlinkError::io(format!("switch {name} of interface {ifindex}"), &error))
}

fn ethtool(command: u8, ifindex: u32, more: impl FnOnce(&mut BytesMut)) -> io::Result<Vec<Vec<u8>>> {
    let family = Family::find("ethtool")?.ok_or(io::ErrorKind::Unsupported)?;
    let mut request = BytesMut::new();
    nest(&mut request, ETHTOOL_A_FEATURES_HEADER, |header| {
        put(header, ETHTOOL_A_HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
    });
    more(&mut request);
    family.ask(command, 0, &request)
}

/// Tells when [`xdp_features`] may have changed: because an interface came or went, or because it can do other things now.
pub struct XdpEvents {
    socket: TokioSocket,
}

impl XdpEvents {
    /// Subscribes in this thread's namespace. `None` on a kernel before Linux 6.3.
    pub fn open() -> Result<Option<Self>, NetlinkError> {
        let failed = |error| NetlinkError::io("subscribe to the XDP features of interfaces", &error);
        let Some(netdev) = Family::find("netdev").map_err(failed)? else { return Ok(None) };
        let Some(group) = netdev.group("mgmt") else { return Ok(None) };
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().add_membership(group)?;
            Ok(Self { socket })
        };
        open().map(Some).map_err(failed)
    }

    /// Waits for the next notification. If some were lost (ENOBUFS), that counts as one.
    pub async fn next(&mut self) -> io::Result<()> {
        const ENOBUFS: i32 = 105;
        match self.socket.recv_from_full().await {
            Err(error) if error.raw_os_error() != Some(ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    }
}

/// A family of messages, with the number that it has on this kernel.
struct Family {
    id: u16,
    groups: Vec<u8>,
}

impl Family {
    /// `None` if the kernel has no family of that name.
    fn find(name: &str) -> io::Result<Option<Self>> {
        let controller = Self { id: GENL_ID_CTRL, groups: Vec::new() };
        let mut question = BytesMut::new();
        put(&mut question, CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let answers = match controller.ask(CTRL_CMD_GETFAMILY, 0, &question) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            answers => answers?,
        };
        let family = answers.first().and_then(|answer| {
            let id = find(answer, CTRL_ATTR_FAMILY_ID)?.first_chunk()?;
            let groups = find(answer, CTRL_ATTR_MCAST_GROUPS).unwrap_or_default().to_vec();
            Some(Self { id: u16::from_ne_bytes(*id), groups })
        });
        family.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The number of a multicast group.
    fn group(&self, name: &str) -> Option<u32> {
        let named = |group: &&[u8]| {
            find(group, CTRL_ATTR_MCAST_GRP_NAME).is_some_and(|found| text(found) == name.as_bytes())
        };
        let group = attributes(&self.groups).map(|(_, group)| group).find(named)?;
        find(group, CTRL_ATTR_MCAST_GRP_ID).and_then(word)
    }

    /// The attributes of each answer.
    fn ask(&self, command: u8, flags: u16, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut body = BytesMut::with_capacity(GENERIC_HEADER + attributes.len());
        body.put_slice(&[command, 1, 0, 0]);
        body.put_slice(attributes);
        let answers = request(NETLINK_GENERIC, self.id, flags, &body)?;
        Ok(answers
            .into_iter()
            .map(|answer| answer.get(GENERIC_HEADER..).unwrap_or_default().to_vec())
            .collect())
    }
}

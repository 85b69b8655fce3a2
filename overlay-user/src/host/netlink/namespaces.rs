//! The network namespace at the other end of a veth: it is entered to look what is switched on there, or to switch it on.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    thread,
};

use bytes::{BufMut, BytesMut};
use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::{
    error::NetlinkError,
    raw::{find, put, request, word},
};

// From linux/rtnetlink.h, linux/if_link.h and linux/net_namespace.h.
const RTM_GETLINK: u16 = 18;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Where to find each namespace, by the id (`IFLA_LINK_NETNSID`) that it had in the calling thread's namespace when this
/// was read. To read it, the kernel is asked about every process of the host.
#[derive(Debug)]
pub struct Namespaces(BTreeMap<i32, PathBuf>);

impl Namespaces {
    /// Reads the namespaces of all processes, and those that container engines mount. The kernel gives the id of a
    /// namespace, but not the namespace of an id.
    pub fn read() -> Self {
        let engines = ["/run/netns", "/run/docker/netns"].into_iter().flat_map(entries);
        let processes = entries("/proc").into_iter().map(|process| process.join("ns/net"));
        let mut seen = BTreeSet::new();
        let mut found = BTreeMap::new();
        for path in engines.chain(processes) {
            let Ok(file) = File::open(&path) else { continue };
            // Processes share namespaces, so each namespace is asked about only once.
            if file.metadata().is_ok_and(|metadata| seen.insert(metadata.ino()))
                && let Ok(Some(id)) = id_of(&file)
            {
                found.insert(id, path);
            }
        }
        Self(found)
    }

    /// Runs `work` in the namespace with this id, on a thread that ends afterwards. `None` if the namespace was not found, or
    /// does not exist any more.
    pub fn within<T: Send + 'static>(
        &self,
        id: i32,
        work: impl FnOnce() -> Result<T, NetlinkError> + Send + 'static,
    ) -> Result<Option<T>, NetlinkError> {
        let action = || format!("enter network namespace {id}");
        // The process may have ended since, and another one may have its number.
        let is_it = |file: &File| id_of(file).is_ok_and(|found| found == Some(id));
        let Some(namespace) = self.0.get(&id).and_then(|path| File::open(path).ok()).filter(is_it) else {
            return Ok(None);
        };
        let entered = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NetlinkError::io(format!("enter network namespace {id}"), &errno.into()))?;
            work().map(Some)
        });
        entered
            .join()
            .unwrap_or_else(|_| Err(NetlinkError::io(action(), &io::Error::other("a thread panicked"))))
    }
}

/// Whether an interface of this thread's namespace runs an XDP program in its driver.
pub fn runs_xdp(ifindex: u32) -> Result<bool, NetlinkError> {
    // XDP_ATTACHED_DRV, XDP_ATTACHED_MULTI.
    const IN_DRIVER: [u8; 2] = [1, 4];
    let mut body = BytesMut::new();
    // `struct ifinfomsg`: family, padding, type, index, flags, change.
    body.put_u32_ne(0);
    body.put_u32_ne(ifindex);
    body.put_bytes(0, 8);
    let answers = request(NETLINK_ROUTE, RTM_GETLINK, 0, &body).map_err(|error| {
        NetlinkError::io(format!("ask for the XDP program of interface {ifindex}"), &error)
    })?;
    let xdp = answers.first().and_then(|answer| find(answer.get(16..)?, IFLA_XDP));
    let attached = xdp.and_then(|xdp| find(xdp, IFLA_XDP_ATTACHED)).and_then(<[u8]>::first);
    Ok(attached.is_some_and(|attached| IN_DRIVER.contains(attached)))
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

fn id_of(namespace: &File) -> io::Result<Option<i32>> {
    let mut body = BytesMut::new();
    // `struct rtgenmsg`: AF_UNSPEC, padded.
    body.put_u32_ne(0);
    put(&mut body, NETNSA_FD, &namespace.as_raw_fd().to_ne_bytes());
    let answers = request(NETLINK_ROUTE, RTM_GETNSID, 0, &body)?;
    let id = answers.first().and_then(|answer| find(answer.get(4..)?, NETNSA_NSID)).and_then(word);
    Ok(id.map(|id| id as i32))
}

//! The name by which the agents of a network know each other in a network namespace, even if somebody has removed their folders.
//! It is an abstract address, so nobody can remove it by accident. But abstract addresses have no permissions: any process may
//! be there first. So a name that is taken keeps an agent from starting only if its holder may itself be an agent.
use std::{
    fmt, fs, io,
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
    },
    unistd::{Pid, Uid},
};

use crate::host::capabilities;

/// How often a name is tried that is taken and where nobody answers. An agent that is starting listens a moment after it has
/// bound its name, and one that is ending answers no more a moment before the name is free.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// The most connections that are closed at one look, so that a process which keeps connecting does not keep the agent busy.
const AT_ONCE: u32 = 100;

/// A name that this process has.
#[derive(Debug)]
pub(super) struct Name(UnixListener);

/// What becomes of an attempt to have a name.
#[derive(Debug)]
pub(super) enum Claim {
    /// This process has it.
    Ours(Name),
    /// Another agent has it.
    Agents(Holder),
    /// Somebody else has it. Who that is is not known if nobody answers there.
    Strangers(Option<Holder>),
}

/// Who listens at a name, as the kernel tells it whoever connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// As this process's namespace counts; 0 for a process that is not in it.
    pub(super) pid: Pid,
    /// As this user namespace counts.
    pub(super) uid: Uid,
}

impl Name {
    /// Binds the name and listens there, unless another process does.
    ///
    /// # Errors
    /// When the name cannot be bound for another reason, such as its length.
    pub(super) fn claim(name: &str, may_be_agent: impl Fn(&Holder) -> bool) -> io::Result<Claim> {
        let address = SocketAddr::from_abstract_name(name)?;
        for _ in 0..TRIES {
            match UnixListener::bind_addr(&address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => {
                    let listener = bound?;
                    listener.set_nonblocking(true)?;
                    return Ok(Claim::Ours(Self(listener)));
                }
            }
            match holder(name) {
                Ok(holder) if may_be_agent(&holder) => return Ok(Claim::Agents(holder)),
                Ok(holder) => return Ok(Claim::Strangers(Some(holder))),
                // An agent listens there, and closes what connects.
                Err(_) => thread::sleep(PAUSE),
            }
        }
        Ok(Claim::Strangers(None))
    }

    /// Closes the connections of those who have looked who has the name. Otherwise the queue would be full one day, and nobody
    /// could look any more.
    pub(super) fn close_connections(&self) {
        for _ in 0..AT_ONCE {
            if self.0.accept().is_err() {
                return;
            }
        }
    }
}

impl Holder {
    /// Whether this may be an agent, which is root and has all the capabilities that [`capabilities`] asks for. Root in a
    /// container that shares the host's network need not have them.
    pub(super) fn may_be_agent(&self) -> bool {
        self.has_rights(|| fs::read_to_string(format!("/proc/{}/status", self.pid)).ok())
    }

    /// `status` tells what `/proc/<id>/status` says, or nothing if there is no such process.
    fn has_rights(&self, status: impl FnOnce() -> Option<String>) -> bool {
        let is_seen = self.pid.as_raw() != 0;
        // No agent's name outlives the agent: nobody inherits the socket.
        self.uid.is_root()
            && (!is_seen || status().is_some_and(|status| capabilities::missing_in(&status).is_empty()))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid.as_raw() {
            0 => write!(to, "pid unknown, uid {}", self.uid),
            pid => write!(to, "pid {pid}, uid {}", self.uid),
        }
    }
}

/// Asks the kernel who listens at a name. This does not wait, even if nobody ever accepts a connection there.
fn holder(name: &str) -> nix::Result<Holder> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok(Holder { pid: Pid::from_raw(peer.pid()), uid: Uid::from_raw(peer.uid()) })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A name that no other test has, nor another run of this one.
    fn name(test: &str) -> String {
        format!("overlay-test/{}/{test}", std::process::id())
    }

    #[test]
    fn who_has_a_name_is_known_and_only_an_agent_is_minded() {
        let name = name("holder");
        let first = Name::claim(&name, |_| true).unwrap();
        assert!(matches!(first, Claim::Ours(_)), "{first:?}");
        let seen = Cell::new(None);
        let claim = |is_agent| {
            Name::claim(&name, |holder| {
                seen.set(Some(*holder));
                is_agent
            })
        };
        let this = Holder { pid: Pid::this(), uid: Uid::effective() };
        let second = claim(true).unwrap();
        assert!(matches!(second, Claim::Agents(holder) if holder == this), "{second:?}");
        let third = claim(false).unwrap();
        assert!(matches!(third, Claim::Strangers(Some(holder)) if holder == this), "{third:?}");
        assert_eq!(seen.get(), Some(this));
        drop(first);
        assert!(matches!(claim(true).unwrap(), Claim::Ours(_)), "the name is free");
    }

    #[test]
    fn a_name_where_nobody_listens_keeps_no_agent_from_starting() {
        let name = name("silent");
        let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        nix::sys::socket::bind(bound.as_raw_fd(), &address).unwrap();
        let claim = Name::claim(&name, |_| true).unwrap();
        assert!(matches!(claim, Claim::Strangers(None)), "{claim:?}");
    }

    #[test]
    fn whoever_has_looked_takes_no_place_for_ever() {
        let name = name("queue");
        let Claim::Ours(ours) = Name::claim(&name, |_| true).unwrap() else { panic!("the name is taken") };
        holder(&name).unwrap();
        holder(&name).unwrap();
        ours.close_connections();
        let error = ours.0.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_agent_is_root_and_has_an_agents_capabilities() {
        let holder = |pid, uid| Holder { pid: Pid::from_raw(pid), uid: Uid::from_raw(uid) };
        let has = |mask: &'static str| move || Some(format!("Name:\toverlay\nCapEff:\t{mask}\n"));
        let all = "000001ffffffffff";
        assert!(holder(7, 0).has_rights(has(all)));
        assert!(!holder(7, 1000).has_rights(has(all)), "a user");
        // What Docker gives to root in a container by default.
        assert!(!holder(7, 0).has_rights(has("00000000a80425fb")));
        assert!(!holder(7, 0).has_rights(|| None), "a process that has left its socket to another");
        assert!(holder(0, 0).has_rights(|| None), "root that is not seen from this process namespace");
        assert!(!holder(0, 65534).has_rights(|| None), "a user of another user namespace");
        assert_eq!(holder(7, 1000).to_string(), "pid 7, uid 1000");
        assert_eq!(holder(0, 0).to_string(), "pid unknown, uid 0");
    }
}

//! Who has bound a UDP port of this network namespace, as far as it can be seen. The kernel only says that the port is taken.
use std::{fs, path::Path};

/// Who has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// No process that can be seen from here. The kernel's own sockets belong to none: those of a VXLAN device stay in the
    /// namespace where the device was made, wherever the device is moved.
    Unseen,
}

impl Holder {
    /// What is said of it, and what to do.
    pub fn described(&self, port: u16) -> (String, String) {
        match self {
            Self::Process { pid, name } => (
                format!("bound by process {name} (pid {pid})"),
                format!("stop it (`ss -ulnp 'sport = :{port}'` shows it)"),
            ),
            Self::Unseen => (
                "taken, and no process that can be seen from here has bound it".to_owned(),
                format!(
                    "a VXLAN device that was made in this network namespace and moved into another one keeps its port here: \
                     look for it with `ip -d link show type vxlan` in every namespace, those of containers too, and delete \
                     it; or a process in another PID namespace has bound the port: `ss -ulnp 'sport = :{port}'` run outside \
                     of this container names it"
                ),
            ),
        }
    }
}

/// Finds who has the port in the calling thread's network namespace. This takes for granted that somebody has.
pub fn find(port: u16) -> Holder {
    let tables = ["udp", "udp6"]
        .map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default());
    let inodes: Vec<u64> = tables.iter().flat_map(|table| sockets(table, port)).flatten().collect();
    process_of(Path::new("/proc"), &inodes).unwrap_or(Holder::Unseen)
}

/// Whether the text of /proc/net/udp lists a socket that is bound to the port.
pub fn is_bound(table: &str, port: u16) -> bool {
    sockets(table, port).next().is_some()
}

/// The sockets that the text of /proc/net/udp lists at the port, each by its inode. A socket of the kernel's may have none.
fn sockets(table: &str, port: u16) -> impl Iterator<Item = Option<u64>> {
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        (u16::from_str_radix(local, 16).ok()? == port).then_some(())?;
        Some(fields.get(9).and_then(|inode| inode.parse().ok()).filter(|inode| *inode != 0))
    })
}

/// The first process that has one of these sockets open. Processes that may not be looked at, or end meanwhile, are passed over.
fn process_of(proc: &Path, inodes: &[u64]) -> Option<Holder> {
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has_one = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    };
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    processes
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .find(|(_, process)| !sockets.is_empty() && has_one(process))
        .map(|(pid, process)| {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            Holder::Process { pid, name: name.trim().to_owned() }
        })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_process_is_named_and_a_socket_of_nobodys_is_not_called_a_process() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let Holder::Process { pid, .. } = find(port) else { panic!("{:?}", find(port)) };
        assert_eq!(pid, std::process::id());
        // A VXLAN device's socket has the inode 0, or one that no process has open.
        let line = |inode| {
            format!(
                "  sl  local_address rem_address   st\n  1: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 \
                 00000000     0        0 {inode} 2 0000000000000000 0\n"
            )
        };
        let listed = |inode, port| sockets(&line(inode), port).collect::<Vec<_>>();
        assert_eq!(listed(0, 8472), [None]);
        assert_eq!(listed(77, 8472), [Some(77)]);
        assert_eq!(listed(77, 8285), []);
        assert!(is_bound(&line(0), 8472) && !is_bound(&line(0), 8285));
        assert_eq!(process_of(Path::new("/proc"), &[u64::MAX]), None);
        let (what, remedy) = Holder::Unseen.described(8472);
        assert!(what.contains("no process") && remedy.contains("VXLAN device"), "{what}: {remedy}");
    }
}

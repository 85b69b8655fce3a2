//! The lock by which only one agent runs for a network on this host.
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use log::warn;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    error::failed,
    name::{Claim, Holder, Name},
    paths::Paths,
};
use crate::datapath::fnv;

/// The lock of a network on this host. Its one agent has it, and the kernel releases it however the process ends.
#[derive(Debug)]
pub struct Lock {
    paths: Paths,
    file: Mutex<Flock<File>>,
    /// A name in this network namespace, which holds even if somebody removes the file. None if a process that is no agent has
    /// it.
    name: Option<Name>,
}

/// The pause between two looks for the process id of whoever holds the network's name, and how many looks there are.
const NOTED: (Duration, u32) = (Duration::from_millis(50), 20);

/// Whether a process still has its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It has, perhaps in a file that it has made anew.
    Kept,
    /// Somebody removed the file, and another process has the lock in a new one. The text says who.
    Lost(String),
}

impl Paths {
    /// Takes the lock for this process until it is dropped. The folders must exist.
    pub fn lock(&self) -> Result<Lock> {
        // The name comes first. After somebody removed a running agent's folders, this process would otherwise have the new lock
        // file for as long as it takes to be refused the name, and that agent would take itself for replaced.
        let name = self.claim_name()?;
        match self.lock_file()? {
            Taken::Ours(file) => Ok(Lock { paths: self.clone(), file: Mutex::new(file), name }),
            Taken::By(pid) => bail!(self.runs_already(&pid)),
        }
    }

    fn runs_already(&self, pid: &str) -> String {
        format!(
            "another agent (pid {pid}) runs network {} here: it holds {}. Stop it first (`kill {pid}`), or give this one its own \
             --network or --state-dir",
            self.network,
            self.lock_path().display()
        )
    }

    /// Claims the network's name in this network namespace.
    fn claim_name(&self) -> Result<Option<Name>> {
        let root = fs::canonicalize(&self.bpf_root).unwrap_or_else(|_| self.bpf_root.clone());
        let name = format!("overlay/{:08x}/{}", fnv::hash(root.as_os_str().as_encoded_bytes()), self.network);
        let claimed = Name::claim(&name, Holder::may_be_agent);
        match claimed.map_err(|error| failed("claim the name of", &self.state, error))? {
            Claim::Ours(name) => Ok(Some(name)),
            Claim::Agents(holder) if self.is_noted(&holder.pid.to_string()) => {
                bail!(self.runs_already(&holder.pid.to_string()))
            }
            Claim::Agents(holder) => bail!(
                "another agent runs network {} with this --bpf-root in this network namespace, though its folders are not \
                 those in {}, or were removed: it holds the name @{name} ({holder}). Stop it first, or give this one its own \
                 --network",
                self.network,
                self.state.display()
            ),
            Claim::Strangers(holder) => {
                let holder = holder.map_or_else(
                    || format!("nobody answers there; `ss -xap | grep {name}` may say who it is"),
                    |holder| holder.to_string(),
                );
                warn!(
                    "somebody who is no agent holds the name @{name} ({holder}): going on without it. Only the lock in {} \
                     tells of another agent now, until that process ends and this agent is started again",
                    self.state.display()
                );
                Ok(None)
            }
        }
    }

    /// Whether the lock file says that this process has it. One that has just claimed the name is about to write that.
    fn is_noted(&self, pid: &str) -> bool {
        (0..NOTED.1).any(|_| {
            let noted = fs::read_to_string(self.lock_path()).is_ok_and(|text| text.trim() == pid);
            if !noted {
                thread::sleep(NOTED.0);
            }
            noted
        })
    }

    fn lock_file(&self) -> Result<Taken> {
        let path = self.lock_path();
        let refused = |error: io::Error| failed("lock", &path, error);
        loop {
            // Only root may open the file. Whoever can open it can take the lock, and so keep agents from starting.
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(refused)?;
            file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(refused)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    // The process that had the lock before may have removed the file (see `remove`), and another one may have made it anew.
                    if is_at(&lock, &path).map_err(refused)? {
                        lock.set_len(0).map_err(refused)?;
                        lock.rewind().map_err(refused)?;
                        writeln!(*lock, "{}", std::process::id()).map_err(refused)?;
                        return Ok(Taken::Ours(lock));
                    }
                }
                Err((mut file, Errno::EWOULDBLOCK)) => return Ok(Taken::By(holder(&mut file))),
                Err((_, error)) => return Err(refused(error.into())),
            }
        }
    }
}

/// Whose a lock is.
enum Taken {
    Ours(Flock<File>),
    /// The process id of whoever has it.
    By(String),
}

impl Lock {
    /// Makes sure that this process still has the lock. If somebody removed the file, it is made anew, unless another process
    /// was faster.
    ///
    /// # Errors
    /// When the file is gone and cannot be made. Nobody else has it then.
    pub fn keep(&self) -> Result<Ownership> {
        if let Some(name) = &self.name {
            name.close_connections();
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.paths.lock_path();
        let state = &self.paths.state;
        if is_at(&file, &path).map_err(|error| failed("look at", &path, error))? {
            return Ok(Ownership::Kept);
        }
        fs::create_dir_all(state).map_err(|error| failed("create", state, error))?;
        match self.paths.lock_file()? {
            Taken::Ours(new) => {
                warn!("somebody removed {}: made anew and locked again", path.display());
                *file = new;
                Ok(Ownership::Kept)
            }
            Taken::By(pid) => Ok(Ownership::Lost(format!(
                "another agent (pid {pid}) owns network {} on this host now: somebody removed this one's {}, and that agent \
                 has made and locked it anew",
                self.paths.network,
                path.display()
            ))),
        }
    }
}

/// Whether this file is the one at this path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())))
}

/// The process id in the lock file, or `?` if there is none. A process that has just taken the lock writes its id a moment
/// later. Until then, the file has the id of the process before.
fn holder(lock: &mut File) -> String {
    let mut pid = String::new();
    for _ in 0..10 {
        pid.clear();
        // The id only helps the operator, so it does not matter if it cannot be read.
        let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut pid));
        if !pid.trim().is_empty() && Path::new("/proc").join(pid.trim()).exists() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    if pid.trim().is_empty() { "?".to_owned() } else { pid.trim().to_owned() }
}

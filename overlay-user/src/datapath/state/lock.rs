//! The lock by which only one agent runs for a network on this host.
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{error::failed, paths::Paths};

/// The lock of a network on this host. Its one agent has it, and the kernel releases it however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Paths {
    /// Takes the lock for this process until it is dropped. The folders must exist.
    pub fn lock(&self) -> Result<Lock> {
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
                    let locked = lock.metadata().map_err(refused)?.ino();
                    if fs::metadata(&path).is_ok_and(|now| now.ino() == locked) {
                        lock.set_len(0).map_err(refused)?;
                        lock.rewind().map_err(refused)?;
                        writeln!(*lock, "{}", std::process::id()).map_err(refused)?;
                        return Ok(Lock { _file: lock });
                    }
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let (network, pid) = (&self.network, holder(&mut file));
                    bail!(
                        "another agent (pid {pid}) runs network {network} here: it holds {}. Stop it first (`kill {pid}`), or \
                         give this one its own --network or --state-dir",
                        path.display()
                    );
                }
                Err((_, error)) => return Err(refused(error.into())),
            }
        }
    }
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

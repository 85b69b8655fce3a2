//! Tells whether flanneld runs. If it does, a move is refused, because flanneld would restore what the move removes.
use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// The command's name as the kernel shows it. The kernel cuts names off after 15 bytes, which this one does not reach.
const COMMAND: &str = "flanneld";

/// Process ids of flanneld in this network namespace. Under Kubernetes flanneld runs in a container, but in the host's network
/// namespace.
pub fn running() -> io::Result<Vec<u32>> {
    of_command(COMMAND)
}

fn of_command(command: &str) -> io::Result<Vec<u32>> {
    let here = namespace(Path::new("/proc/thread-self"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end meanwhile, and its files with it. It then does not count as running.
        let named = fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == command);
        if named && namespace(&path).is_ok_and(|its| its == here) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Device and inode of a process's network namespace.
fn namespace(process: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(process.join("ns/net")).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_name_and_only_here() {
        // This is the name of the main thread, since the test's own thread bears the test's name.
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(of_command(own.trim_end()).unwrap().contains(&std::process::id()));
        assert_eq!(of_command("no such command").unwrap(), Vec::<u32>::new());
    }
}

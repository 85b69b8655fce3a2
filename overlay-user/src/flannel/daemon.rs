//! Whether flanneld runs. A move is refused then, because flanneld would restore what the move removes.
use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// As the kernel has it, cut off at 15 bytes, which this is not.
const COMMAND: &str = "flanneld";

/// Process ids of flanneld in this network namespace. Under Kubernetes it runs in a container, in the host's namespace.
///
/// # Errors
/// When /proc cannot be read.
pub fn running() -> io::Result<Vec<u32>> {
    of_command(COMMAND)
}

fn of_command(command: &str) -> io::Result<Vec<u32>> {
    let here = namespace(Path::new("/proc/thread-self"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process that ends meanwhile, and its files with it, is none that runs.
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
        // Of the main thread: the test's own bears the test's name.
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(of_command(own.trim_end()).unwrap().contains(&std::process::id()));
        assert_eq!(of_command("no such command").unwrap(), Vec::<u32>::new());
    }
}

//! What a run has left that was killed, and removing a root without touching what is mounted in it.
use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// How folders and control groups of runs begin; the process's id follows.
pub(super) const RUN: &str = "overlay-fresh-";

/// Removes the folders of runs that were killed.
pub(super) fn remove_orphans(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_orphan) {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Whether this is the name of a run whose process is gone.
pub(super) fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix(RUN).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Removes a folder, unless something is mounted below it, which is not ours to remove.
pub(super) fn remove_tree(folder: &Path) -> Result<()> {
    let mounts = mounts_below(folder)?;
    ensure!(mounts.is_empty(), "{} is not removed: {} is mounted", folder.display(), mounts.join(", "));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Mount points below `folder`, as this process sees them.
pub(super) fn mounts_below(folder: &Path) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(points_below(&mounts, folder))
}

fn points_below(mounts: &str, folder: &Path) -> Vec<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // The kernel writes a space as an octal number.
    points
        .map(|point| point.replace("\\040", " "))
        .filter(|point| Path::new(point).starts_with(folder))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_whose_process_is_gone_are_orphans() {
        let own = format!("{RUN}{}", std::process::id());
        // No process id is this large.
        let gone = format!("{RUN}4294967295");
        assert!(is_orphan(&gone));
        for name in [own.as_str(), "base-bookworm", RUN, "overlay-fresh-x"] {
            assert!(!is_orphan(name), "{name}");
        }
    }

    #[test]
    fn mounts_below_a_folder_are_found_with_spaces_in_their_names() {
        let mounts =
            "proc /proc proc rw 0 0\ntmpfs /a\\040b/run/root/dev tmpfs rw 0 0\next4 /a\\040bc ext4 rw 0 0\n";
        assert_eq!(points_below(mounts, Path::new("/a b")), ["/a b/run/root/dev"]);
    }
}

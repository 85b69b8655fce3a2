//! Which bpf file system a folder is on, and how to reach one that another mount covers: what is pinned there goes on carrying
//! packets, although no path leads to it any more.
use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
};

use aya::{
    maps::MapData,
    programs::links::{FdLink, PinnedLink},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::DatapathError;

/// Whether a folder is on a bpf file system, or will be when it is made.
pub(crate) fn is_bpffs(path: &Path) -> bool {
    // If the folder does not exist yet, it will be on the same file system as its parent.
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC))
}

/// The number of the file system that a folder is on, or will be on when it is made. Each bpf file system that is mounted has a
/// number of its own.
pub(super) fn device(path: &Path) -> Option<u64> {
    path.ancestors().find_map(|ancestor| fs::metadata(ancestor).ok()).map(|found| found.dev())
}

/// The folder at `root` as it is on the file system with this number, which other mounts cover. None if it is not there.
///
/// The mounts that cover it are taken off in a mount namespace of a thread's own, so that nobody else sees it.
pub(super) fn covered(root: &Path, device: u64) -> Option<File> {
    let root = root.to_owned();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).ok()?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).ok()?;
        loop {
            if fs::metadata(&root).is_ok_and(|found| found.dev() == device) {
                return File::open(&root).ok();
            }
            // What is not a mount point is refused, and so is the root of all.
            root.ancestors().find(|mounted| umount2(*mounted, MntFlags::MNT_DETACH).is_ok())?;
        }
    })
    .join()
    .ok()?
}

/// The path of what is in an open folder, wherever that is mounted.
pub(super) fn inside(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// Moves what is pinned below one folder to another one, which may be on another bpf file system. What has a pin of the same
/// name there already is only unpinned. Returns how many were moved.
pub(super) fn move_pins(from: &Path, to: &Path) -> Result<usize, DatapathError> {
    let failed = |verb: &str, path: &Path, error: &dyn std::error::Error| {
        DatapathError::failed(format!("{verb} {}", path.display()), error)
    };
    let mut moved = 0;
    fs::create_dir_all(to).map_err(|error| failed("make the folder", to, &error))?;
    for entry in fs::read_dir(from).map_err(|error| failed("read", from, &error))? {
        let entry = entry.map_err(|error| failed("read", from, &error))?;
        let (here, there) = (entry.path(), to.join(entry.file_name()));
        if here.is_dir() {
            moved += move_pins(&here, &there)?;
            continue;
        }
        if !there.exists() {
            pin_again(&here, &there)?;
            moved += 1;
        }
        fs::remove_file(&here).map_err(|error| failed("unpin", &here, &error))?;
    }
    fs::remove_dir(from).map_err(|error| failed("remove", from, &error))?;
    Ok(moved)
}

/// Pins what is pinned at one path at another one as well, be it a link or a map.
fn pin_again(here: &Path, there: &Path) -> Result<(), DatapathError> {
    let failed = |error: &dyn std::error::Error| {
        DatapathError::failed(format!("pin {} at {}", here.display(), there.display()), error)
    };
    let is_link = here.parent().and_then(Path::file_name).is_some_and(|folder| folder == "links");
    if is_link {
        let link = FdLink::from(PinnedLink::from_pin(here).map_err(|error| failed(&error))?);
        link.pin(there).map(drop).map_err(|error| failed(&error))
    } else {
        let map = MapData::from_pin(here).map_err(|error| failed(&error))?;
        map.pin(there).map_err(|error| failed(&error))
    }
}

/// Removes everything in a folder, but not the folder itself.
pub(super) fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

//! Taking over from an agent with an older map layout: our maps are filled with what its maps hold, and only then do our
//! programs take the place of its programs. A file beside this one reads each layout that can be read.
//!
//! If the agent ends in the middle of it, the next agent goes on. Maps are made and filled in a folder of their own, and one
//! `rename` of that folder to `v<ABI>/<network>` is the moment from which the present layout is in force. After it the links are
//! moved, by one rename each; they still run the older programs on the older maps, and the programs are replaced in place, as
//! those of any earlier agent are. Filters without pins (clsact) are found where they are attached. The older pins go last.
mod reader;
#[cfg(not(feature = "next-layout"))]
mod v1;
#[cfg(feature = "next-layout")]
mod v2;

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use log::{info, warn};
use overlay_common::Flow;

use self::reader::{Reader, failed};
use super::{
    DatapathError,
    crash::may_crash,
    links::Attachment,
    tables::{self, Tables},
    xdp::XdpLink,
};

/// What an agent with an older layout pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Older {
    /// Its ABI.
    pub abi: u32,
    /// Its maps, and its links in `links/`.
    pub pins: PathBuf,
}

const READERS: &[Reader] = &[
    #[cfg(not(feature = "next-layout"))]
    v1::READER,
    #[cfg(feature = "next-layout")]
    v2::READER,
];

/// Whether an agent of this program can take over from one with layout `abi`.
pub fn is_readable(abi: u32) -> bool {
    READERS.iter().any(|reader| reader.abi == abi)
}

fn reader(older: &Older) -> Result<&'static Reader, DatapathError> {
    READERS.iter().find(|reader| reader.abi == older.abi).ok_or_else(|| {
        DatapathError::missing(
            format!("take over {}", older.pins.display()),
            "a layout that nobody here reads",
        )
    })
}

/// Whether `pins` holds maps.
pub(super) fn is_filled(pins: &Path) -> Result<bool, DatapathError> {
    let files = fs::read_dir(pins).map_err(|error| failed("read", pins, &error))?;
    Ok(files.flatten().any(|file| !file.path().is_dir()))
}

/// Makes sure that this program knows every pinned link. One that it does not know would go on doing what nobody here answers
/// for.
///
/// # Errors
/// Names the first that is not.
pub(super) fn check_links(pins: &Path) -> Result<(), DatapathError> {
    for name in names(&pins.join("links"))? {
        if !is_known(&name) {
            let what = "this agent knows no such link: a newer agent made it, or somebody else. Start the newer agent, or \
                        remove the network by `overlay down`";
            let action = format!("adopt {}", pins.join("links").join(&name).display());
            return Err(DatapathError::missing(action, what));
        }
    }
    Ok(())
}

/// Names in a folder that may not be there.
fn names(folder: &Path) -> Result<Vec<OsString>, DatapathError> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("read", folder, &error)),
        Ok(files) => {
            let names: io::Result<Vec<_>> = files.map(|file| Ok(file?.file_name())).collect();
            names.map_err(|error| failed("read", folder, &error))
        }
    }
}

/// Whether the present programs have a link of this name: `encap-12`.
fn is_known(name: &OsStr) -> bool {
    let Some((kind, ifindex)) = name.to_str().and_then(|name| name.split_once('-')) else { return false };
    let mut kinds = Attachment::ALL.into_iter().map(Attachment::name).chain([XdpLink::NAME]);
    ifindex.parse::<u32>().is_ok() && kinds.any(|known| known == kind)
}

/// Empties `filling`, and puts the maps that both layouts share there.
pub(super) fn stage(older: &Older, filling: &Path) -> Result<(), DatapathError> {
    let reader = reader(older)?;
    info!("taking over from an agent with map layout {} in {}", older.abi, older.pins.display());
    match fs::remove_dir_all(filling) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("empty", filling, &error));
        }
        _ => {}
    }
    fs::create_dir_all(filling).map_err(|error| failed("make the folder", filling, &error))?;
    let if_there = reader.shared_if_there.iter().filter(|(there, _)| older.pins.join(there).exists());
    for (there, here) in reader.shared.iter().chain(if_there) {
        let from = older.pins.join(there);
        // A second name for the same map (kernel/bpf/inode.c has simple_link).
        fs::hard_link(&from, filling.join(here)).map_err(|error| failed("share", &from, &error))?;
    }
    may_crash("shared");
    // Pins that are taken over must be what they are called, as those of our own layout must.
    tables::check(filling)
}

/// Copies what is not shared.
pub(super) fn fill(older: &Older, tables: &mut Tables) -> Result<(), DatapathError> {
    let wrong =
        |error: &dyn std::error::Error| DatapathError::failed("fill the maps of the present layout", error);
    let reader = reader(older)?;
    for (base, peer, slot) in reader.peers.map_or(Ok(Vec::new()), |read| read(&older.pins))? {
        let entry = tables::peer_entry(&peer, slot).map_err(|error| wrong(&error))?;
        tables.peers.put(base.into(), entry).map_err(|error| wrong(&error))?;
    }
    for (address, endpoint) in reader.endpoints.map_or(Ok(Vec::new()), |read| read(&older.pins))? {
        let entry = tables::endpoint_entry(&endpoint);
        tables.endpoints.put(address.into(), entry).map_err(|error| wrong(&error))?;
    }
    copy_written(older, tables)?;
    may_crash("filled");
    Ok(())
}

/// Copies what the older programs write: stack flows that are newer there than here, and what they have counted. It can be
/// copied any number of times.
fn copy_written(older: &Older, tables: &mut Tables) -> Result<(), DatapathError> {
    let reader = reader(older)?;
    for (key, flow) in reader.stack_flows.map_or(Ok(Vec::new()), |read| read(&older.pins))? {
        let ours = tables.stack_flows.get(&key);
        if ours.is_none_or(|ours| ours.seen_ns < flow.seen_ns) {
            let state = flow.state | ours.map_or(0, |ours| ours.state);
            let copied = tables.stack_flows.insert(key, Flow { state, ..flow });
            copied.map_err(|error| DatapathError::failed("copy a stack flow", &error))?;
        }
    }
    for inherited in reader.counters.map_or(Ok(Vec::new()), |read| read(&older.pins))? {
        tables.inherit(inherited.hook, inherited.reason, inherited.counts)?;
    }
    Ok(())
}

/// Puts the present layout in force: from here on, an agent with the older one refuses to start.
pub(super) fn commit(filling: &Path, pins: &Path) -> Result<(), DatapathError> {
    fs::rename(filling, pins).map_err(|error| failed("rename to its place", filling, &error))?;
    may_crash("committed");
    leave(filling);
    Ok(())
}

/// Removes what has been filled, since it was not finished.
pub(super) fn forget(filling: &Path) {
    if let Err(error) = fs::remove_dir_all(filling)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!("remove {}: {error}", filling.display());
    }
    leave(filling);
}

/// Removes the folder around it if it is empty. Other networks have their folders there.
fn leave(filling: &Path) {
    let _ = filling.parent().map(fs::remove_dir);
}

/// Moves the links, which keep running what they run. What the present layout has no name for stays behind, to go with
/// the older pins when ours are attached.
pub(super) fn move_links(older: &Older, pins: &Path) -> Result<(), DatapathError> {
    let reader = reader(older)?;
    let links = names(&older.pins.join("links"))?.into_iter();
    let links = links.map(|name| ("links", name.clone(), present_name(reader, name)));
    // These folders say which qdiscs are ours.
    let marks = names(&older.pins.join("qdiscs"))?.into_iter().map(|name| ("qdiscs", name.clone(), name));
    for (folder, there, here) in links.filter(|(_, _, here)| is_known(here)).chain(marks) {
        let from = older.pins.join(folder).join(there);
        fs::rename(&from, pins.join(folder).join(here)).map_err(|error| failed("move", &from, &error))?;
        may_crash("one link moved");
    }
    Ok(())
}

/// The name that a link has in the present layout.
fn present_name(reader: &Reader, name: OsString) -> OsString {
    let Some((kind, ifindex)) = name.to_str().and_then(|name| name.split_once('-')) else { return name };
    match reader.renamed_links.iter().find(|(there, _)| *there == kind) {
        Some((_, here)) => format!("{here}-{ifindex}").into(),
        None => name,
    }
}

/// Copies what the older programs have written since the maps were filled, now that none of them runs any more. What cannot
/// be read is left out: the older pins may be half removed already.
pub(super) fn copy_the_rest(older: &Older, tables: &mut Tables) {
    may_crash("replaced");
    if let Err(error) = copy_written(older, tables) {
        info!("{} is no longer complete, and its last moments are left out: {error}", older.pins.display());
    }
}

/// Pins of the tables of peers and of stack flows in an older layout, whose sizes are kept.
pub(super) fn sized(older: &Older) -> Result<[PathBuf; 2], DatapathError> {
    Ok(reader(older)?.sized.map(|pin| older.pins.join(pin)))
}

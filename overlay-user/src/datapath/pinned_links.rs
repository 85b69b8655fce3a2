//! The folder of one network's pinned links, and descriptors of them: a link whose pin somebody removes lives on as long as the
//! agent, which pins it again.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    programs::links::{FdLink, LinkError, PinnedLink},
    sys::SyscallError,
};
use log::warn;

use super::{DatapathError, bpffs::is_bpffs};

/// The links of one network by the names of their pins. Clones share the descriptors, so that a link which one of them removes
/// is gone: it would stay attached for as long as another still held it.
#[derive(Clone, Debug)]
pub(super) struct PinnedLinks {
    folder: PathBuf,
    held: Arc<Mutex<BTreeMap<String, FdLink>>>,
}

impl PinnedLinks {
    /// The links below `pins`. Nothing is made, and no descriptor is held yet.
    pub(super) fn new(pins: &Path) -> Self {
        Self { folder: pins.join("links"), held: Arc::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Names of the links that are pinned or held. A link outlives its interface.
    pub(super) fn names(&self) -> Result<BTreeSet<String>, DatapathError> {
        let mut names: BTreeSet<String> = self.held().keys().cloned().collect();
        let failed = |error| DatapathError::failed("read the folder of pinned links", &error);
        let files = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            files => files.map_err(failed)?,
        };
        for file in files {
            names.extend(file.map_err(failed)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// The link of this name, if there is one. A held one is taken from those that are held: whoever goes on with it gives it
    /// back by [`Self::hold`].
    pub(super) fn take(&self, name: &str) -> Result<Option<FdLink>, DatapathError> {
        match self.held().remove(name) {
            Some(link) => Ok(Some(link)),
            None => self.open(name),
        }
    }

    /// The link that is pinned under this name, if there is one.
    pub(super) fn open(&self, name: &str) -> Result<Option<FdLink>, DatapathError> {
        let path = self.path(name);
        match PinnedLink::from_pin(&path) {
            Ok(pinned) => Ok(Some(FdLink::from(pinned))),
            Err(LinkError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => Err(DatapathError::failed(format!("open {}", path.display()), &error)),
        }
    }

    /// Holds a link that is pinned.
    pub(super) fn hold(&self, name: &str, link: FdLink) {
        self.held().insert(name.to_owned(), link);
    }

    /// Pins a link, which then outlives the agent, and holds it. A link that cannot be pinned because its folder is on no bpffs
    /// is only held, until [`Self::restore`] can pin it.
    pub(super) fn put(&self, name: &str, link: FdLink) -> Result<(), DatapathError> {
        if let Err(error) = self.make_folder() {
            warn!("{error}: {name} is attached, and will be pinned as soon as that is possible");
            self.hold(name, link);
            return Ok(());
        }
        let link = pin(link, &self.path(name))?;
        self.hold(name, link);
        Ok(())
    }

    /// Removes a pin and closes the descriptor. That ends the link, since this agent has no other. It is no error if there is none.
    pub(super) fn remove(&self, name: &str) -> Result<(), DatapathError> {
        let path = self.path(name);
        self.held().remove(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::failed(format!("unpin {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Pins what is held and not pinned any more. Returns how many links that were.
    pub(super) fn restore(&self) -> Result<usize, DatapathError> {
        let missing: Vec<String> =
            self.held().keys().filter(|name| !self.path(name).exists()).cloned().collect();
        if missing.is_empty() {
            return Ok(0);
        }
        // Whatever can be known to fail is asked before, because a link that could not be pinned is closed, and so detached.
        self.make_folder()?;
        for name in &missing {
            let Some(link) = self.held().remove(name) else { continue };
            let link = pin(link, &self.path(name))?;
            self.hold(name, link);
        }
        Ok(missing.len())
    }

    fn make_folder(&self) -> Result<(), DatapathError> {
        let action = || format!("make the folder {}", self.folder.display());
        if !is_bpffs(&self.folder) {
            return Err(DatapathError::missing(action(), "it would not be on a bpf filesystem"));
        }
        fs::create_dir_all(&self.folder).map_err(|error| DatapathError::failed(action(), &error))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, FdLink>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pin(link: FdLink, path: &Path) -> Result<FdLink, DatapathError> {
    let pinned = link.pin(path).map(FdLink::from);
    pinned.map_err(|error| DatapathError::failed(format!("pin {}", path.display()), &error))
}

//! The folder of one network's pinned links. A pin is named after its attachment and the interface's index: `encap-12`.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    programs::links::{FdLink, LinkError, PinnedLink},
    sys::SyscallError,
};

use super::attachment::Attachment;
use crate::datapath::DatapathError;

#[derive(Clone, Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// The links below `pins`. Nothing is made.
    pub(super) fn new(pins: &Path) -> Self {
        Self { folder: pins.join("links") }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, attachment: Attachment, ifindex: u32) -> PathBuf {
        self.folder.join(format!("{}-{ifindex}", attachment.name()))
    }

    /// What is pinned. A pin outlives its interface.
    pub(super) fn list(&self) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        let mut found = Vec::new();
        let failed = |error| DatapathError::failed("read the folder of pinned links", &error);
        let files = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            files => files.map_err(failed)?,
        };
        for file in files {
            let name = file.map_err(failed)?.file_name();
            let Some((kind, ifindex)) = name.to_str().and_then(|name| name.split_once('-')) else {
                continue;
            };
            let mut all = Attachment::ALL.into_iter();
            let attachment = all.find(|attachment| attachment.name() == kind);
            if let (Some(attachment), Ok(ifindex)) = (attachment, ifindex.parse()) {
                found.push((attachment, ifindex));
            }
        }
        Ok(found)
    }

    /// The link that is pinned there, if there is one.
    pub(super) fn open(&self, attachment: Attachment, ifindex: u32) -> Result<Option<FdLink>, DatapathError> {
        let path = self.path(attachment, ifindex);
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

    /// Pins a link, which then outlives us.
    pub(super) fn put(
        &self,
        attachment: Attachment,
        ifindex: u32,
        link: FdLink,
    ) -> Result<(), DatapathError> {
        let path = self.path(attachment, ifindex);
        let pinned = link.pin(&path).map(drop);
        pinned.map_err(|error| DatapathError::failed(format!("pin {}", path.display()), &error))
    }

    /// Removes a pin, and with it the link, which nobody else holds. It is no error if there is none.
    pub(super) fn remove(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.path(attachment, ifindex);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::failed(format!("unpin {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }
}

//! Pinned links by attachment and interface. A pin is named after both: `encap-12`.
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;

use super::attachment::Attachment;
use crate::datapath::{DatapathError, pinned_links::PinnedLinks};

#[derive(Clone, Debug)]
pub(super) struct Pins(PinnedLinks);

impl Pins {
    /// The links below `pins`. Nothing is made.
    pub(super) fn new(pins: &Path) -> Self {
        Self(PinnedLinks::new(pins))
    }

    pub(super) fn folder(&self) -> &Path {
        self.0.folder()
    }

    pub(super) fn path(&self, attachment: Attachment, ifindex: u32) -> PathBuf {
        self.0.path(&name(attachment, ifindex))
    }

    /// What is pinned or held. A link outlives its interface.
    pub(super) fn list(&self) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        let parsed = |name: &String| {
            let (kind, ifindex) = name.split_once('-')?;
            let attachment = Attachment::ALL.into_iter().find(|attachment| attachment.name() == kind)?;
            Some((attachment, ifindex.parse().ok()?))
        };
        Ok(self.0.names()?.iter().filter_map(parsed).collect())
    }

    /// The link that is held or pinned there, if there is one. Whoever goes on with it gives it back by [`Self::hold`].
    pub(super) fn take(&self, attachment: Attachment, ifindex: u32) -> Result<Option<FdLink>, DatapathError> {
        self.0.take(&name(attachment, ifindex))
    }

    /// Holds a link that is pinned.
    pub(super) fn hold(&self, attachment: Attachment, ifindex: u32, link: FdLink) {
        self.0.hold(&name(attachment, ifindex), link);
    }

    /// Pins a link, which then outlives us.
    pub(super) fn put(
        &self,
        attachment: Attachment,
        ifindex: u32,
        link: FdLink,
    ) -> Result<(), DatapathError> {
        self.0.put(&name(attachment, ifindex), link)
    }

    /// Removes the pin, closes the descriptor, and so ends the link. It is no error if there is none.
    pub(super) fn remove(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        self.0.remove(&name(attachment, ifindex))
    }

    /// Pins what is held and not pinned any more.
    pub(super) fn restore(&self) -> Result<usize, DatapathError> {
        self.0.restore()
    }
}

fn name(attachment: Attachment, ifindex: u32) -> String {
    format!("{}-{ifindex}", attachment.name())
}

//! Opens the store that the options name.
use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cli::options::store::{StoreChoice, StoreOptions},
    store::{dir::DirStore, etcd::EtcdStore},
};

/// An opened store of either kind.
pub(super) enum Opened {
    Etcd(Box<EtcdStore>),
    Directory { store: DirStore, path: PathBuf, shared: bool },
}

pub(super) fn open(options: &StoreOptions) -> Result<Opened> {
    Ok(match options.choice()? {
        StoreChoice::Etcd(options) => Opened::Etcd(Box::new(EtcdStore::new(&options)?)),
        StoreChoice::Directory { path, shared } => {
            Opened::Directory { store: DirStore::new(&path), path, shared }
        }
    })
}

//! The store that the options mean, opened.
use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cli::options::store::{Etcd, Store, StoreChoice},
    store::{
        dir::DirStore,
        etcd::{EtcdOptions, EtcdStore},
    },
};

/// Either store, opened.
pub(super) enum Opened {
    Etcd(Box<EtcdStore>),
    Directory { store: DirStore, path: PathBuf, shared: bool },
}

pub(super) fn open(options: &Store) -> Result<Opened> {
    Ok(match options.choice()? {
        StoreChoice::Etcd(Etcd { endpoints, prefix, ca, identity, login }) => {
            let (certfile, keyfile) = identity.unzip();
            let (username, password) = login.unzip();
            let options =
                EtcdOptions { endpoints, prefix, cafile: ca, certfile, keyfile, username, password };
            Opened::Etcd(Box::new(EtcdStore::new(&options)?))
        }
        StoreChoice::Directory { path, shared } => {
            Opened::Directory { store: DirStore::new(&path), path, shared }
        }
    })
}

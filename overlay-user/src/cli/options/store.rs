//! The options that say which store is meant.
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::store::{etcd::EtcdOptions, prefix};

/// Where etcd is looked for when nothing says otherwise.
const ETCD: &str = "http://127.0.0.1:2379";

/// Which store; see [`StoreOptions::choice`].
#[derive(Clone, Debug, Default, Args)]
pub struct StoreOptions {
    /// URLs of etcd's members, with commas between [default: http://127.0.0.1:2379 unless --store-dir is given]
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    pub etcd_endpoints: Vec<String>,
    /// Where etcd's keys of this network begin [default: /coreos.com/network]
    #[arg(long, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// Certificate authority that etcd's certificate is checked against
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Certificate shown to etcd
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// User name for etcd
    #[arg(long, value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// Password for etcd; better given as OVERLAY_ETCD_PASSWORD, which other users cannot see
    #[arg(long, value_name = "PASSWORD", hide_default_value = true)]
    pub etcd_password: Option<String>,
    /// Keeps leases in this folder instead of etcd: for one machine, or for a folder that all hosts share
    #[arg(long, value_name = "DIR")]
    pub store_dir: Option<PathBuf>,
    /// The folder of --store-dir is shared by several hosts
    #[arg(long)]
    pub store_shared: bool,
}

/// Which store is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// etcd.
    Etcd(EtcdOptions),
    /// A folder of lease files.
    Directory {
        /// The folder.
        path: PathBuf,
        /// Several hosts use it.
        shared: bool,
    },
}

impl StoreOptions {
    /// Any etcd option selects etcd, --store-dir the folder, none of them a local etcd. What contradicts itself is an
    /// error of usage.
    pub fn choice(&self) -> Result<StoreChoice> {
        let etcd = self.etcd_options();
        if let Some(path) = &self.store_dir {
            return match etcd.first() {
                None => Ok(StoreChoice::Directory { path: path.clone(), shared: self.store_shared }),
                Some(option) => bail!("--store-dir and {option} name two stores: give one of them"),
            };
        }
        if self.store_shared {
            bail!("--store-shared says something about --store-dir, which is missing");
        }
        if self.etcd_password.is_some() && self.etcd_username.is_none() {
            bail!("--etcd-password needs --etcd-username");
        }
        if self.etcd_certfile.is_some() != self.etcd_keyfile.is_some() {
            bail!("--etcd-certfile and --etcd-keyfile need each other");
        }
        let endpoints = match self.etcd_endpoints.as_slice() {
            [] => vec![ETCD.to_owned()],
            given => given.to_vec(),
        };
        let prefix = self.etcd_prefix.as_deref().unwrap_or("/coreos.com/network");
        Ok(StoreChoice::Etcd(EtcdOptions {
            endpoints,
            prefix: prefix::clean(prefix),
            cafile: self.etcd_cafile.clone(),
            certfile: self.etcd_certfile.clone(),
            keyfile: self.etcd_keyfile.clone(),
            username: self.etcd_username.clone(),
            password: self.etcd_password.clone(),
        }))
    }

    /// Whether any store is named.
    pub fn is_given(&self) -> bool {
        self.store_dir.is_some() || !self.etcd_options().is_empty()
    }

    fn etcd_options(&self) -> Vec<&'static str> {
        let given = [
            ("--etcd-endpoints", !self.etcd_endpoints.is_empty()),
            ("--etcd-prefix", self.etcd_prefix.is_some()),
            ("--etcd-cafile", self.etcd_cafile.is_some()),
            ("--etcd-certfile", self.etcd_certfile.is_some()),
            ("--etcd-keyfile", self.etcd_keyfile.is_some()),
            ("--etcd-username", self.etcd_username.is_some()),
            ("--etcd-password", self.etcd_password.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect()
    }
}

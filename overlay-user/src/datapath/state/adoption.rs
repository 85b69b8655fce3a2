//! Decides whether an agent may take over what is pinned here, before it alters anything.
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Error, Result, anyhow, bail};
use ipnet::IpNet;

use super::{
    error::failed,
    layouts,
    paths::{Paths, RECORD},
    record::Record,
};
use crate::model::network::NetworkConfig;

/// What an agent finds at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// There was nothing of this network, or only what was left from before a reboot and has been removed now.
    Fresh,
    /// There are pins of this very host, to be adopted.
    Adopt,
}

impl Paths {
    /// Decides whether the pins here belong to this host, and writes the record if there was none. The caller must have the
    /// lock, and must not have pinned anything yet, so that there are never pins without a record.
    pub fn adopt(&self, current: &Record) -> Result<Adoption> {
        let foreign = |owner: &str| self.foreign(owner, current);
        match self.record()? {
            Some(found) if found.is_same_host(current) => {
                self.write(current)?;
                return Ok(Adoption::Adopt);
            }
            // Interface indexes and the inodes of namespaces from before a reboot mean nothing now.
            Some(found) if found.boot_id != current.boot_id => self.clear()?,
            Some(found) => return Err(foreign(&found.owner())),
            None if layouts::has_pins(&self.pins) || !self.older()?.is_empty() => {
                return Err(foreign(&format!("a host whose record is not in {}", self.state.display())));
            }
            None => {}
        }
        self.write(current)?;
        Ok(Adoption::Fresh)
    }

    /// Refuses pins that belong to another host, whatever subnet the store will give to this one. It is called before a
    /// subnet is leased, so that none is leased in vain.
    pub fn refuse_foreign(&self, public_ip: IpAddr) -> Result<()> {
        let Some(found) = self.record()? else {
            return Ok(());
        };
        let current = Record::current(public_ip, found.subnet)?;
        if found.is_same_host(&current) || found.boot_id != current.boot_id {
            return Ok(());
        }
        Err(self.foreign(&found.owner(), &current))
    }

    /// Refuses a device that belongs to another network of this host, in this boot and network namespace. Two agents would
    /// undo each other's work again and again.
    pub fn refuse_shared_device(&self, device: &str) -> Result<()> {
        self.refuse_shared(format!("interface {device}"), "--device", |other| {
            other.device.as_deref() == Some(device)
        })
    }

    /// Refuses a subnet.env that another network of this host writes, for the same reason.
    pub fn refuse_shared_file(&self, subnet_file: &Path) -> Result<()> {
        self.refuse_shared(subnet_file.display().to_string(), "--subnet-file", |other| {
            other.subnet_file.as_deref() == Some(subnet_file)
        })
    }

    fn refuse_shared(
        &self,
        what: String,
        option: &'static str,
        has_it: impl Fn(&Record) -> bool,
    ) -> Result<()> {
        match self.others()?.into_iter().find(|(_, record)| has_it(record)) {
            Some((other, _)) => bail!(
                "{what} is network {other}'s on this host: give network {} its own {option}, or end the other with \
                 `overlay down --network {other}`",
                self.network
            ),
            None => Ok(()),
        }
    }

    /// Refuses a config that does not fit to what runs here. Otherwise the agent would give back the lease that containers
    /// here depend on.
    pub fn refuse_moved(&self, public_ip: IpAddr, config: &NetworkConfig) -> Result<()> {
        let Some(found) = self.record()? else { return Ok(()) };
        let is_here = found.is_same_host(&Record::current(public_ip, found.subnet)?);
        if is_here && !config.plan.fits(found.subnet) {
            let (subnet, network) = (found.subnet, &self.network);
            bail!(
                "the network's config has no subnet {subnet} any more, with which network {network} runs on this host: traffic \
                 goes on. Put the config back, or let the host move: `overlay down --network {network}`, then start the agent \
                 again"
            );
        }
        Ok(())
    }

    /// The records of this host's other networks with the same state folder, by name. Only those of this boot and this
    /// network namespace count.
    fn others(&self) -> Result<Vec<(String, Record)>> {
        let folder = self.state.parent().unwrap_or(&self.state);
        let refused = |error| failed("list", folder, error);
        let here = Record::current(Ipv4Addr::UNSPECIFIED.into(), IpNet::default())?;
        let mut others = Vec::new();
        for entry in fs::read_dir(folder).map_err(refused)? {
            let state = entry.map_err(refused)?.path();
            let name = state.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let text = fs::read(state.join(RECORD)).unwrap_or_default();
            // A record that cannot be read is a problem of its own network.
            if let Ok(record) = serde_json::from_slice::<Record>(&text)
                && name != self.network
                && (record.netns, &record.boot_id) == (here.netns, &here.boot_id)
            {
                others.push((name, record));
            }
        }
        Ok(others)
    }

    fn foreign(&self, owner: &str, current: &Record) -> Error {
        let (pins, claimant, network) = (self.pins.display(), current.owner(), &self.network);
        anyhow!(
            "the pins in {pins} belong to {owner}, not to {claimant}: give this host its own --bpf-root and --state-dir, or \
             remove them with `overlay down --network {network}` (same --bpf-root and --state-dir)"
        )
    }
}

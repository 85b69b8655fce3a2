//! Where a run takes place: the members of an etcd, the hosts beside it, and leases that no host of ours has.
use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use ipnet::IpNet;
use overlay_lab::{etcd::Etcd, project};
use overlay_user::store::{Store as _, Written, etcd::EtcdStore};
use tempfile::TempDir;

use crate::{
    door::Door,
    hosts::{self, Host, PREFIX, client},
};

/// A network of 65,534 subnets. The last one is nobody's.
const CONFIG: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMax":"10.255.254.0","Backend":{"Type":"vxlan"}}"#;
/// One host in so many takes the way that can be closed.
const CUT: u32 = 10;
/// How long etcd may take to answer after it was started.
const BACK: Duration = Duration::from_secs(60);

/// A host that was replaced by another one.
pub(crate) struct Replaced {
    /// Its subnet.
    pub(crate) gone: IpNet,
    /// How many peers it had lost since that was last asked.
    pub(crate) lost: usize,
    /// When the other one was started.
    pub(crate) start: Instant,
}

/// An etcd and its hosts.
pub(crate) struct Stage {
    _folder: TempDir,
    pub(crate) members: Vec<Etcd>,
    door: Door,
    pub(crate) hosts: Vec<Host>,
    /// The next host's number.
    next: u32,
    /// Another client, that writes what happens.
    writer: EtcdStore,
    /// Keys of the leases that no host of ours has.
    strangers: Vec<String>,
}

impl Stage {
    /// Starts an etcd of so many members, with an empty network.
    pub(crate) async fn set(members: usize) -> Result<Self> {
        let folder = folder(&project::target().join("scale-etcd"))?;
        let members = match members {
            1 => vec![Etcd::start(folder.path())?],
            more => Etcd::start_members(&folder.path().join("members"), more)?,
        };
        let door = Door::to(&members[0].client_url()).await?;
        let writer = client(members.iter().map(Etcd::client_url).collect())?;
        let mut stage = Self {
            _folder: folder,
            members,
            door,
            hosts: Vec::new(),
            next: 0,
            writer,
            strangers: Vec::new(),
        };
        stage.configure().await?;
        Ok(stage)
    }

    /// Writes the network's config.
    async fn configure(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            // The first request may be made on a connection to an etcd that has ended.
            match self.writer.set_config(Bytes::from_static(CONFIG.as_bytes())).await {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > BACK => return Err(error).context("write the config"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Beside several members, no host does: it would turn to another one.
    fn takes_door(&self, number: u32) -> bool {
        self.members.len() == 1 && number.is_multiple_of(CUT)
    }

    /// The members as a host has them in its options. Each begins with another one, and one in ten takes the door.
    fn endpoints(&self, number: u32) -> Vec<String> {
        if self.takes_door(number) {
            return vec![self.door.url()];
        }
        let mut urls: Vec<_> = self.members.iter().map(Etcd::client_url).collect();
        urls.rotate_left(self.first_member(number));
        urls
    }

    fn first_member(&self, number: u32) -> usize {
        number as usize % self.members.len()
    }

    /// All leases there are: each host should have the others as its peers.
    pub(crate) fn leases(&self) -> Result<BTreeSet<IpNet>> {
        let strangers =
            self.strangers.iter().map(|key| key.replace('-', "/").parse().context("a stranger's subnet"));
        self.hosts.iter().map(|host| Ok(host.subnet)).chain(strangers).collect()
    }

    /// Starts so many hosts, all at once.
    pub(crate) async fn start_hosts(&mut self, count: u32) -> Result<()> {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        let mut started = hosts::start(numbers.clone(), |number| self.endpoints(number)).await?;
        for (host, number) in started.iter_mut().zip(numbers) {
            host.takes_door = self.takes_door(number);
            host.member = self.first_member(number);
        }
        self.hosts.extend(started);
        Ok(())
    }

    /// Ends a host and its lease, as if that had run out, and starts another one.
    pub(crate) async fn replace_host(&mut self, place: usize) -> Result<Replaced> {
        let gone = self.hosts.swap_remove(place);
        let (key, subnet, lost) =
            (format!("{PREFIX}/subnets/{}", gone.key), gone.subnet, hosts::lost([&gone], None));
        gone.stop().await;
        self.members[0].ctl(&["del", &key])?;
        let start = Instant::now();
        self.start_hosts(1).await?;
        Ok(Replaced { gone: subnet, lost, start })
    }

    /// Waits until every host follows, and has every other one as its peer. Returns when each did, counted from `start`.
    pub(crate) async fn until_all_agree(&self, start: Instant, what: &str) -> Result<Vec<Duration>> {
        let leases = self.leases()?;
        hosts::until(self.hosts.iter(), start, what, |host| host.agrees(&leases)).await
    }

    /// Waits until no host follows any more.
    pub(crate) async fn until_none_follows(&self) -> Result<()> {
        hosts::until(self.hosts.iter(), Instant::now(), "notice the outage", |host| !host.follows()).await?;
        Ok(())
    }

    /// The hosts that take the door.
    pub(crate) fn cut(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.takes_door)
    }

    /// Cuts a tenth of the hosts off, and waits until they have noticed.
    pub(crate) async fn close_door(&self) -> Result<()> {
        self.door.close();
        hosts::until(self.cut(), Instant::now(), "notice the partition", |host| !host.follows()).await?;
        Ok(())
    }

    /// Ends the partition, and waits until those hosts agree with the others.
    pub(crate) async fn open_door(&self) -> Result<Vec<Duration>> {
        let (leases, start) = (self.leases()?, Instant::now());
        self.door.open();
        hosts::until(self.cut(), start, "after the partition", |host| host.agrees(&leases)).await
    }

    /// Has another host's lease come, and returns when that was asked for.
    pub(crate) async fn stranger(&mut self) -> Result<Instant> {
        // From the last subnet downwards, since most hosts draw one of the first.
        for number in (1..u16::MAX).rev() {
            let [high, low] = number.to_be_bytes();
            let key = format!("10.{high}.{low}.0-24");
            if self.strangers.contains(&key) {
                continue;
            }
            let start = Instant::now();
            if self.write_stranger(&key).await? != Written::Lost {
                self.strangers.push(key);
                return Ok(start);
            }
        }
        bail!("no subnet is free")
    }

    /// Writes a lease of a host that there is none of.
    async fn write_stranger(&mut self, key: &str) -> Result<Written> {
        let numbers: Vec<u8> = key.split(['.', '-']).filter_map(|number| number.parse().ok()).collect();
        let address = Ipv4Addr::new(198, 18, numbers[1], numbers[2]);
        let value = format!(
            r#"{{"PublicIP":"{address}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{:02x}:{:02x}"}}}}"#,
            numbers[1], numbers[2]
        );
        let start = Instant::now();
        loop {
            match self.writer.claim(key, Bytes::from(value.clone()), None).await {
                Ok(written) => return Ok(written),
                Err(error) if start.elapsed() > BACK => return Err(error).context("write a lease"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Has etcd compact its history up to now.
    pub(crate) fn compact(&self) -> Result<()> {
        self.members[0].compact()
    }

    /// Starts a stopped etcd again that has lost its data, and returns when it did. What was written by hand is written again.
    pub(crate) async fn restart_empty(&mut self) -> Result<Instant> {
        self.members[0].wipe()?;
        let start = Instant::now();
        self.members[0].restart()?;
        self.configure().await?;
        for key in self.strangers.clone() {
            self.write_stranger(&key).await?;
        }
        Ok(start)
    }

    /// The client that writes what happens.
    pub(crate) fn writer(&mut self) -> &mut EtcdStore {
        &mut self.writer
    }
}

/// Makes a folder for etcd's data below this one. It is removed when it is dropped; those of processes that were ended before that
/// are removed now, hence the process ids in their names.
fn folder(below: &Path) -> Result<TempDir> {
    fs::create_dir_all(below).with_context(|| format!("make {}", below.display()))?;
    for left in abandoned(below)? {
        let removed = fs::remove_dir_all(&left);
        // Another run may have removed it at the same time.
        if left.exists() {
            removed.with_context(|| format!("remove {}", left.display()))?;
        }
    }
    let prefix = format!("{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(below).context("make a folder for etcd")
}

/// The folders of processes that have ended.
fn abandoned(below: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(below).with_context(|| format!("read {}", below.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_abandoned = |path: &PathBuf| {
        let pid = path.file_name().and_then(|name| name.to_str()?.split_once('-')?.0.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    Ok(paths.into_iter().filter(is_abandoned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_that_was_killed_left_is_removed_and_nothing_else() {
        let below = tempfile::tempdir().unwrap();
        // The kernel's process ids are smaller.
        let (dead, other) = (below.path().join(format!("{}-x", u32::MAX)), below.path().join("kept"));
        fs::create_dir_all(dead.join("etcd")).unwrap();
        fs::create_dir(&other).unwrap();
        let first = folder(below.path()).unwrap();
        let second = folder(below.path()).unwrap();
        assert!(!dead.exists() && other.exists() && first.path().exists() && second.path().exists());
    }
}

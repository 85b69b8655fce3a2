//! The stand-in for flanneld: a process that handles etcd and the kernel as flannel does (flannel pkg/subnet/etcd,
//! pkg/backend), with flannel's defects, and that shares no code with the agent.
use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use ipnet::Ipv4Net;

use self::{
    backend::{Backend, Underlay, backend},
    config::Config,
    lease::{Lease, SUBNETS, acquire, previous_subnet, subnet_of, write_subnet_env},
};

mod backend;
mod config;
mod lease;

/// This is no test, but the stand-in's process. A test binary has no other way to contain a second program.
#[test]
#[ignore = "the process that stands in for flanneld; tests start it"]
fn flanneld() {
    let Ok(endpoints) = std::env::var("FLANNELD_ETCD_ENDPOINTS") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&endpoints)).unwrap();
}

struct Daemon {
    client: Client,
    public_ip: Ipv4Addr,
    subnet: Ipv4Net,
    backend: Box<dyn Backend>,
    /// The leases for which routes have been made.
    known: BTreeMap<Ipv4Net, Lease>,
}

async fn run(endpoints: &str) -> Result<()> {
    let iface = std::env::var("FLANNELD_IFACE").context("FLANNELD_IFACE")?;
    let subnet_file = std::env::var("FLANNELD_SUBNET_FILE").context("FLANNELD_SUBNET_FILE")?;
    let mut client = Client::connect([endpoints], None).await?;
    let answer = client.get("/coreos.com/network/config", None).await?;
    let config = Config::parse(answer.kvs().first().context("no config")?.value())?;

    let underlay = Underlay::of(&iface)?;
    let public_ip = underlay.address;
    let mut backend = backend(&config, underlay)?;
    let value = format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null{}}}"#, backend.lease_fields());
    let previous = previous_subnet(&subnet_file);
    let subnet = acquire(&mut client, &config, public_ip, value, previous).await?;
    backend.set_up(subnet)?;
    write_subnet_env(&subnet_file, &config, subnet, backend.mtu())?;
    println!("lease {subnet}{}", backend.lease_fields());
    Daemon { client, public_ip, subnet, backend, known: BTreeMap::new() }.follow().await
}

impl Daemon {
    /// Follows the leases until the own key is deleted. It does not recover from compaction, because no test asks that
    /// of flannel.
    async fn follow(mut self) -> Result<()> {
        let leases = self.client.get(SUBNETS, Some(GetOptions::new().with_prefix())).await?;
        let mut next = leases.header().context("no header")?.revision() + 1;
        for lease in leases.kvs() {
            self.put(lease.key_str()?, lease.value());
        }
        let mut pause = Duration::from_millis(100);
        loop {
            match self.watch(&mut next).await {
                Ok(()) => {
                    println!("Lease has been revoked. Shutting down daemon.");
                    return Ok(());
                }
                Err(error) if format!("{error:#}").contains("compacted") => return Err(error),
                Err(error) => println!("watch: {error:#}; again in {pause:?}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn watch(&mut self, next: &mut i64) -> Result<()> {
        let options = WatchOptions::new().with_prefix().with_start_revision(*next);
        let mut stream = self.client.watch(SUBNETS, Some(options)).await?;
        while let Some(answer) = stream.message().await? {
            ensure!(!answer.canceled(), "cancelled: {}", answer.cancel_reason());
            for event in answer.events() {
                let Some(kv) = event.kv() else { continue };
                let key = kv.key_str()?;
                if event.event_type() == EventType::Put {
                    self.put(key, kv.value());
                } else if subnet_of(key) == Some(self.subnet) {
                    return Ok(());
                } else if let Some(subnet) = subnet_of(key) {
                    self.remove(subnet);
                }
            }
            *next = answer.header().context("no header")?.revision() + 1;
        }
        bail!("etcd closed it")
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let (Some(subnet), Some(lease)) = (subnet_of(key), Lease::parse(value)) else { return };
        if subnet == self.subnet || lease.public_ip == self.public_ip {
            return;
        }
        match self.backend.put(subnet, &lease) {
            Ok(false) => return,
            Ok(true) => println!("{key}: done"),
            Err(error) => println!("{key}: {error:#}"),
        }
        self.known.insert(subnet, lease);
    }

    fn remove(&mut self, subnet: Ipv4Net) {
        let Some(lease) = self.known.remove(&subnet) else { return };
        match self.backend.remove(subnet, &lease) {
            Ok(()) => println!("{subnet}: gone"),
            Err(error) => println!("{subnet}: {error:#}"),
        }
    }
}

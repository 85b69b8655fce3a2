//! What stands in for flanneld: a process that knows its etcd and the kernel as flannel does (flannel pkg/subnet/etcd,
//! pkg/backend/vxlan), down to what flannel does badly, and shares no code with the agent.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::{Client, Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use ipnet::Ipv4Net;
use rand::seq::IndexedRandom as _;
use regex::Regex;
use serde_json::Value;
use xtask::{command, lab::FlannelDevice};

const PREFIX: &str = "/coreos.com/network";
const SUBNETS: &str = "/coreos.com/network/subnets";

/// No test: the process itself, for a test binary has no other way to be one more program.
#[test]
#[ignore = "the process that stands in for flanneld; tests start it"]
fn flanneld() {
    let Ok(endpoints) = std::env::var("FLANNELD_ETCD_ENDPOINTS") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&endpoints)).unwrap();
}

/// What flannel reads of the config.
struct Config {
    network: Ipv4Net,
    subnet_len: u8,
    min: Ipv4Addr,
    max: Ipv4Addr,
    vni: u32,
    port: u16,
    mtu: u32,
    direct_routing: bool,
}

/// What a lease says of a vxlan host.
#[derive(Clone, Debug)]
struct Attrs {
    public_ip: Ipv4Addr,
    mac: String,
}

struct Daemon {
    client: Client,
    config: Config,
    iface: String,
    public_ip: Ipv4Addr,
    device: FlannelDevice,
    subnet: Ipv4Net,
    known: BTreeMap<Ipv4Net, Attrs>,
}

async fn run(endpoints: &str) -> Result<()> {
    let iface = std::env::var("FLANNELD_IFACE").context("FLANNELD_IFACE")?;
    let subnet_file = std::env::var("FLANNELD_SUBNET_FILE").context("FLANNELD_SUBNET_FILE")?;
    let mut client = Client::connect([endpoints], None).await?;
    let answer = client.get(format!("{PREFIX}/config"), None).await?;
    let config = Config::parse(answer.kvs().first().context("no config")?.value())?;

    let link = shown(&format!("ip -4 -j address show dev {iface}"))?;
    let public_ip: Ipv4Addr = link[0]["addr_info"][0]["local"].as_str().context("no address")?.parse()?;
    let external = link[0]["mtu"].as_u64().context("no mtu")?.try_into()?;
    let mtu = if config.mtu == 0 { external } else { config.mtu };
    let device = FlannelDevice::new(config.vni, config.port, mtu);

    // A device that is there and fits is kept, with its address; etcd's flannel draws another one for a new device.
    let old = shown(&format!("ip -j link show dev {}", device.name)).ok();
    let mac = match old.as_ref().and_then(|link| link[0]["address"].as_str()) {
        Some(mac) => mac.to_owned(),
        None => random_mac(),
    };
    let previous = fs::read_to_string(&subnet_file).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
        Some(line.parse::<Ipv4Net>().ok()?.trunc())
    });
    let subnet = acquire(&mut client, &config, public_ip, &mac, previous).await?;
    if old.is_none() {
        all(device.make(&mac, public_ip, &iface, &subnet.to_string())?)?;
    }
    write_subnet_env(&subnet_file, &config, subnet, device.mtu)?;
    println!("lease {subnet}, {} with {mac}", device.name);
    Daemon { client, config, iface, public_ip, device, subnet, known: BTreeMap::new() }.follow().await
}

impl Config {
    /// Field names match in any case, as Go matches them.
    fn parse(text: &[u8]) -> Result<Self> {
        fn lower(value: Value) -> Value {
            match value {
                Value::Object(fields) => {
                    fields.into_iter().map(|(name, value)| (name.to_lowercase(), lower(value))).collect()
                }
                other => other,
            }
        }
        let config = lower(serde_json::from_slice(text)?);
        let network: Ipv4Net = config["network"].as_str().context("no Network")?.parse()?;
        let network = network.trunc();
        let backend = &config["backend"];
        let kind = backend["type"].as_str().unwrap_or("udp").to_lowercase();
        ensure!(kind == "vxlan", "this stands in for the vxlan backend alone, not for {kind}");
        let number = |value: &Value, default: u64| value.as_u64().filter(|&n| n != 0).unwrap_or(default);
        let default = if network.prefix_len() <= 22 { 24 } else { network.prefix_len() + 2 };
        let subnet_len = number(&config["subnetlen"], default.into()).try_into()?;
        let size = 1u32 << (32 - subnet_len);
        let bound = |name: &str, default: u32| match config[name].as_str() {
            Some(address) => Ok(address.parse::<Ipv4Addr>()?),
            None => anyhow::Ok(default.into()),
        };
        Ok(Self {
            network,
            subnet_len,
            min: bound("subnetmin", u32::from(network.network()) + size)?,
            max: bound("subnetmax", u32::from(network.broadcast()) + 1 - size)?,
            vni: number(&backend["vni"], 1).try_into()?,
            port: number(&backend["port"], 8472).try_into()?,
            mtu: number(&backend["mtu"], 0).try_into()?,
            direct_routing: backend["directrouting"].as_bool().unwrap_or_default(),
        })
    }

    fn fits(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.subnet_len && (self.min..=self.max).contains(&subnet.network())
    }
}

/// flannel's pattern, which has no anchor at the left.
fn subnet_of(key: &str) -> Option<Ipv4Net> {
    let pattern = Regex::new(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$").ok()?;
    let found = pattern.captures(key)?;
    Ipv4Net::new(found[1].parse().ok()?, found[2].parse().ok()?).ok()
}

fn attrs_of(value: &[u8]) -> Option<(Ipv4Addr, Option<Attrs>)> {
    let lease: Value = serde_json::from_slice(value).ok()?;
    let public_ip = lease["PublicIP"].as_str()?.parse().ok()?;
    let mac = lease["BackendData"]["VtepMAC"].as_str().filter(|_| lease["BackendType"] == "vxlan");
    Some((public_ip, mac.map(|mac| Attrs { public_ip, mac: mac.to_owned() })))
}

/// The own lease again, put without comparing; else the subnet of subnet.env; else one of the first hundred free ones.
async fn acquire(
    client: &mut Client,
    config: &Config,
    public_ip: Ipv4Addr,
    mac: &str,
    previous: Option<Ipv4Net>,
) -> Result<Ipv4Net> {
    let value = format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{},"VtepMAC":"{mac}"}}}}"#,
        config.vni
    );
    let granted = client.lease_grant(24 * 60 * 60, None).await?.id();
    let put = PutOptions::new().with_lease(granted);
    let leases = client.get(SUBNETS, Some(GetOptions::new().with_prefix())).await?;
    let mut taken = BTreeSet::new();
    for lease in leases.kvs() {
        let Some(subnet) = lease.key_str().ok().and_then(subnet_of) else { continue };
        taken.insert(subnet);
        if attrs_of(lease.value()).is_none_or(|(owner, _)| owner != public_ip) {
            continue;
        }
        if config.fits(subnet) {
            client.put(lease.key(), value, Some(put)).await?;
            return Ok(subnet);
        }
        client.delete(lease.key(), None).await?;
        taken.remove(&subnet);
    }
    let free = |subnet: &Ipv4Net| config.fits(*subnet) && !taken.contains(subnet);
    let subnet = match previous.filter(free) {
        Some(subnet) => subnet,
        None => {
            let first: Vec<_> = config.network.subnets(config.subnet_len)?.filter(free).take(100).collect();
            *first.choose(&mut rand::rng()).context("out of subnets")?
        }
    };
    let key = format!("{SUBNETS}/{}", subnet.to_string().replace('/', "-"));
    let absent = Compare::version(key.as_str(), CompareOp::Equal, 0);
    let txn = Txn::new().when([absent]).and_then([TxnOp::put(key, value, Some(put))]);
    // flannel does not try again either.
    ensure!(client.txn(txn).await?.succeeded(), "failed to acquire lease: subnet already exists");
    Ok(subnet)
}

fn write_subnet_env(path: &str, config: &Config, subnet: Ipv4Net, mtu: u32) -> Result<()> {
    let first = Ipv4Addr::from(u32::from(subnet.network()) + 1);
    let draft = format!("{path}.draft");
    let (network, len) = (config.network, config.subnet_len);
    let text = format!(
        "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={first}/{len}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
    );
    fs::write(&draft, text)?;
    Ok(fs::rename(draft, path)?)
}

impl Daemon {
    /// Until the own key is deleted. What was compacted is not caught up with: no test asks that of flannel.
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

    /// Every put is carried out, also one that only renews.
    fn put(&mut self, key: &str, value: &[u8]) {
        let (Some(subnet), Some((_, Some(attrs)))) = (subnet_of(key), attrs_of(value)) else { return };
        if subnet == self.subnet || attrs.public_ip == self.public_ip {
            return;
        }
        let (text, to) = (subnet.to_string(), attrs.public_ip);
        let commands = if self.is_direct(to) {
            Ok(vec![format!("ip route replace {text} via {to} dev {}", self.iface)])
        } else {
            self.device.put_peer(&text, &attrs.mac, to)
        };
        report(key, commands.and_then(all));
        self.known.insert(subnet, attrs);
    }

    fn remove(&mut self, subnet: Ipv4Net) {
        let Some(attrs) = self.known.remove(&subnet) else { return };
        let (text, to) = (subnet.to_string(), attrs.public_ip);
        let commands = if self.is_direct(to) {
            Ok(vec![format!("ip route delete {text} via {to} dev {}", self.iface)])
        } else {
            self.device.remove_peer(&text, &attrs.mac, to)
        };
        report(&text, commands.and_then(all));
    }

    /// `DirectRouting`, and no gateway on the way.
    fn is_direct(&self, to: Ipv4Addr) -> bool {
        let route = || shown(&format!("ip -j route get {to}"));
        self.config.direct_routing && route().is_ok_and(|route| route[0]["gateway"].is_null())
    }
}

fn all(commands: Vec<String>) -> Result<()> {
    commands.iter().try_for_each(|line| command::sh(line).map(drop))
}

fn report(what: &str, done: Result<()>) {
    match done {
        Ok(()) => println!("{what}: done"),
        Err(error) => println!("{what}: {error:#}"),
    }
}

fn shown(line: &str) -> Result<Value> {
    Ok(serde_json::from_str(&command::sh(line)?)?)
}

/// Locally administered, unicast (flannel pkg/mac/mac.go).
fn random_mac() -> String {
    let mut octets: [u8; 6] = rand::random();
    octets[0] = octets[0] & 0xfe | 0x02;
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

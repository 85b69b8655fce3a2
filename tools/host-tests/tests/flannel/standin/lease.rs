//! Leases in etcd as flannel reads, claims and keeps them (flannel pkg/subnet/etcd).
use std::{collections::BTreeSet, fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use ipnet::Ipv4Net;
use rand::seq::IndexedRandom as _;
use regex::Regex;
use serde_json::Value;

use super::config::{Config, lower};

pub(super) const SUBNETS: &str = "/coreos.com/network/subnets";

/// What another host's lease says.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub public_ip: Ipv4Addr,
    /// The backend's type, or empty if the lease has none.
    pub backend: String,
    /// The VtepMAC, which only the vxlan backend writes.
    pub mac: Option<String>,
}

impl Lease {
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let lease = lower(serde_json::from_slice(value).ok()?);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            public_ip: lease["publicip"].as_str()?.parse().ok()?,
            backend: text(&lease["backendtype"]).unwrap_or_default(),
            mac: text(&lease["backenddata"]["vtepmac"]),
        })
    }
}

/// This is flannel's pattern, which has no anchor at the left.
pub(super) fn subnet_of(key: &str) -> Option<Ipv4Net> {
    let pattern = Regex::new(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$").ok()?;
    let found = pattern.captures(key)?;
    Ipv4Net::new(found[1].parse().ok()?, found[2].parse().ok()?).ok()
}

/// Claims a lease whose text is `value`: the own lease again, which is put without comparing; otherwise the subnet in
/// subnet.env; otherwise one of the first hundred free ones.
pub(super) async fn acquire(
    client: &mut Client,
    config: &Config,
    public_ip: Ipv4Addr,
    value: String,
    previous: Option<Ipv4Net>,
) -> Result<Ipv4Net> {
    let granted = client.lease_grant(24 * 60 * 60, None).await?.id();
    let put = PutOptions::new().with_lease(granted);
    let leases = client.get(SUBNETS, Some(GetOptions::new().with_prefix())).await?;
    let mut taken = BTreeSet::new();
    for lease in leases.kvs() {
        let Some(subnet) = lease.key_str().ok().and_then(subnet_of) else { continue };
        taken.insert(subnet);
        if Lease::parse(lease.value()).is_none_or(|lease| lease.public_ip != public_ip) {
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
    // flannel does not try a second time either.
    ensure!(client.txn(txn).await?.succeeded(), "failed to acquire lease: subnet already exists");
    Ok(subnet)
}

/// The subnet in a subnet.env that an earlier run has written.
pub(super) fn previous_subnet(path: &str) -> Option<Ipv4Net> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
    Some(line.parse::<Ipv4Net>().ok()?.trunc())
}

pub(super) fn write_subnet_env(path: &str, config: &Config, subnet: Ipv4Net, mtu: u32) -> Result<()> {
    let first = Ipv4Addr::from(u32::from(subnet.network()) + 1);
    let draft = format!("{path}.draft");
    let (network, len) = (config.network, config.subnet_len);
    let text = format!(
        "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={first}/{len}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
    );
    fs::write(&draft, text)?;
    Ok(fs::rename(draft, path)?)
}

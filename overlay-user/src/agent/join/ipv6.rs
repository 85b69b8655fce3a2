//! What a host needs of IPv6 to join a network of both families, and what becomes of a host that lacks it.
use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use log::{info, warn};
use tokio::time::{Instant, sleep};

use crate::{
    agent::options::Options,
    datapath::state::Paths,
    host::{
        netlink::Netlink,
        subnet_env,
        underlay::{self, Ipv6Underlay, NoIpv6, Underlay},
    },
    model::backend::Backend,
    store::acquire::Ipv6Request,
};

/// How long to wait for an address that the kernel has not confirmed yet: detection of duplicates takes a second or two, and more
/// behind a switch that is slow to forward.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// This host's IPv6 address on the underlay, or why it has none and takes part with IPv4 alone.
///
/// # Errors
/// When what the operator asked for cannot be had.
pub(super) async fn underlay(
    netlink: &Netlink,
    options: &Options,
    underlay: &Underlay,
    backend: Backend,
) -> Result<Result<Ipv6Underlay, String>> {
    let alone = |why: String| {
        warn!("{why}; this host takes part with IPv4 alone until its agent starts again");
        Ok(Err(why))
    };
    if let Some(why) = backend.too_small_for_ipv6(underlay.mtu) {
        return alone(format!("interface {}: {why}", underlay.name));
    }
    let deadline = Instant::now() + CONFIRMED_WITHIN;
    let chosen = loop {
        let error = match underlay::choose_ipv6(netlink, &options.underlay, underlay).await {
            Ok(chosen) => break chosen,
            Err(error) => error,
        };
        match error.downcast_ref() {
            Some(NoIpv6::NotYet(_)) if Instant::now() < deadline => sleep(PAUSE).await,
            Some(NoIpv6::NotYet(why) | NoIpv6::Absent(why)) => return alone(why.clone()),
            _ => return Err(error),
        }
    };
    let Ipv6Underlay { address, public_ip } = chosen;
    if public_ip != address {
        if backend == Backend::HostGw {
            bail!(
                "the network's backend is host-gw, which routes to the hosts' own addresses: --public-ipv6 {public_ip} is none \
                 of this host; leave it out, or use vxlan"
            );
        }
        warn!(
            "--public-ipv6 {public_ip} is on no interface of this host: the other hosts must be led from there to {address}"
        );
    }
    info!("IPv6 on underlay {} with {address}, public address {public_ip}", underlay.name);
    Ok(Ok(chosen))
}

/// What this host asks of IPv6: the subnet that an earlier agent had, by the record or else by subnet.env.
pub(super) fn request(paths: &Paths, subnet_file: &Path, underlay: Ipv6Underlay) -> Result<Ipv6Request> {
    let recorded = paths.record()?.and_then(|record| record.ipv6_subnet);
    let preferred = recorded.or_else(|| subnet_env::read(subnet_file).ipv6_subnet);
    Ok(Ipv6Request { public_ip: underlay.public_ip, preferred })
}

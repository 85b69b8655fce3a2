//! `overlay docker-opts`: the Docker daemon's options, printed and written.
use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::IpNet;

use crate::{
    cli::options,
    host::{
        docker_opts::{DockerOptions, Form},
        netlink::Netlink,
        subnet_env::replace,
    },
};

pub(super) async fn docker_opts(options: &options::DockerOpts) -> Result<()> {
    let opts = read(&options.subnet_file, !options.no_ip_masq)?;
    refuse_routed_elsewhere(opts.bip.trunc()).await?;
    let both = options.individual == options.combined;
    let before = std::env::var(&options.key).unwrap_or_default();
    // A quotation mark would end the quotes around the value, both for systemd and for every shell.
    ensure!(!before.contains('"'), "the variable {} has a quotation mark in it: {before}", options.key);
    let form = Form {
        individual: options.individual || both,
        combined: options.combined || both,
        key: options.key.clone(),
        before,
    };
    let text = opts.text(&form);
    if let Some(path) = &options.docker_env {
        replace(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    }
    if options.json {
        println!("{}", serde_json::to_string(&opts)?);
    } else {
        print!("{text}");
    }
    Ok(())
}

fn read(path: &Path, ip_masq: bool) -> Result<DockerOptions> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "there is no {shown} yet: `overlay agent` writes it as soon as this host has its subnet; start it, or see \
             in `overlay status` and its log what it waits for (--subnet-file names another file)"
        ),
        _ => anyhow!("read {shown}: {error} (--subnet-file names another file)"),
    })?;
    DockerOptions::of(&text, ip_masq).with_context(|| {
        format!("{shown} is not what flannel or `overlay agent` writes; delete it and start the agent again")
    })
}

/// Refuses a subnet that a route sends to a gateway: docker0's address in it would be taken from whoever is behind that
/// gateway.
async fn refuse_routed_elsewhere(subnet: IpNet) -> Result<()> {
    let routes = Netlink::open()?.routes().await?;
    let elsewhere = routes.iter().find(|route| route.destination == subnet && route.gateway.is_some());
    if let Some(gateway) = elsewhere.and_then(|route| route.gateway) {
        bail!(
            "the routing table sends {subnet}, this host's own subnet, to {gateway}: remove that route \
             (`ip route delete {subnet} via {gateway}`), it is another host's or left from before"
        );
    }
    Ok(())
}

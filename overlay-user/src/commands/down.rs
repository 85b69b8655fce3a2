//! `overlay down`: removes every trace of a network from this host.
use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{cli::Down, device, netlink::Netlink, state::StateError};

pub(super) async fn down(options: &Down) -> Result<()> {
    let paths = options.show.place.paths();
    // A running agent would put back what is removed here.
    let lock = match paths.lock() {
        Err(error @ StateError::Locked { .. }) => bail!("{error}; end it first"),
        other => other.ok(),
    };
    let mut failures = Vec::new();
    if let Err(error) = paths.remove() {
        failures.push(error.to_string());
    }
    let removed = async { device::remove(&Netlink::open()?, &options.device).await };
    if let Err(error) = removed.await {
        failures.push(format!("{error:#}"));
    }
    drop(lock);
    if !failures.is_empty() {
        bail!("network {} is not wholly gone: {}", paths.network, failures.join("; "));
    }
    std::fs::remove_dir_all(&paths.state)
        .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .with_context(|| format!("remove {}", paths.state.display()))?;
    if options.show.json {
        println!("{}", json!({ "removed": paths.network }));
    } else {
        println!(
            "network {} is gone from this host: programs, maps, {}, routes. Its lease stays in the store until it ends",
            paths.network, options.device
        );
    }
    Ok(())
}

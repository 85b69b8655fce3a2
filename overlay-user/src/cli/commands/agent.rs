//! `overlay agent`: runs the agent until it is told to end.
use anyhow::{Context as _, Result, anyhow, bail};
use log::{info, warn};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Uid,
};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    dry_run::dry_run,
    opened::{Opened, open},
};
use crate::{
    agent::assembly,
    cli::options::Agent,
    host::{capabilities, firewall},
};

pub(super) async fn agent(options: Agent) -> Result<()> {
    if options.dry_run {
        return dry_run(&options).await;
    }
    if !Uid::effective().is_root() {
        bail!("the agent loads kernel programs and makes devices: run it as root (or with --dry-run)");
    }
    capabilities::require()?;
    if options.ip_masq {
        // This is checked before anything is changed, because a host without the means for it could not do what is asked for.
        firewall::masquerade::usable().await.map_err(|error| anyhow!("--ip-masq: {error:#}"))?;
    }
    allow_descriptors();
    let mut end = EndSignals::new()?;
    let run = async {
        let asked = options.options();
        match open(&options.store)? {
            Opened::Etcd(store) => assembly::run(*store, None, &asked).await,
            Opened::Directory { store, path, shared } => {
                assembly::run(store, (!shared).then_some(path.as_path()), &asked).await
            }
        }
    };
    tokio::select! {
        result = run => result,
        name = end.wait() => {
            info!("{name}: ending; the data path stays and traffic goes on");
            Ok(())
        }
    }
}

/// Allows this process more descriptors than most are allowed: the agent holds two for each container.
fn allow_descriptors() {
    /// More than any host has containers' ports for.
    const ENOUGH: u64 = 1 << 20;
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(now, most)| setrlimit(Resource::RLIMIT_NOFILE, now.max(most.min(ENOUGH)), most));
    if let Err(error) = raised {
        warn!("allow this process more descriptors: {error}");
    }
}

/// Waits for SIGTERM and SIGINT.
struct EndSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl EndSignals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

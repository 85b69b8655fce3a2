//! What so many hosts need of the machine. It is asked for before they are started, since a run that ends for want of it has lost
//! what it had measured.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors beside those for connections.
const DESCRIPTORS: u64 = 200;
/// Memory for what one host knows of another: 2 GiB with 2,000 hosts.
const BYTES_PER_PAIR: u64 = 540;
/// Memory for etcd and for a few hosts.
const BYTES: u64 = 300 << 20;

/// Fails if the machine cannot carry so many hosts, and raises this process's limit of descriptors, which etcd inherits.
pub(crate) fn check(hosts: u32) -> Result<()> {
    let descriptors = u64::from(hosts) * 3 + DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        descriptors <= hard,
        "{hosts} hosts need {descriptors} file descriptors, and {hard} are allowed (ulimit -Hn)"
    );
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    enough(hosts, available(&text).with_context(|| format!("no MemAvailable in {path}"))?)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard), hard).context("raise the limit of descriptors")
}

/// Fails if so many bytes of memory are not enough for so many hosts.
fn enough(hosts: u32, available: u64) -> Result<()> {
    let needed = BYTES + u64::from(hosts).pow(2) * BYTES_PER_PAIR;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    ensure!(
        needed <= available,
        "{hosts} hosts need about {:.1} GiB of memory, and {:.1} GiB are available",
        gib(needed),
        gib(available)
    );
    Ok(())
}

/// The bytes that programs can still get, by the kernel's own estimate.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_hosts_grows_with_their_square() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:  5 kB\nMemAvailable:    4194304 kB\n";
        assert_eq!(available(meminfo), Some(4 << 30));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        enough(2000, 4 << 30).unwrap();
        let error = enough(4000, 4 << 30).unwrap_err();
        assert_eq!(error.to_string(), "4000 hosts need about 8.3 GiB of memory, and 4.0 GiB are available");
    }
}

//! Checks the kernel's version and settings, this process's rights, and bpffs.
use std::{fs, path::Path};

use super::finding::{Finding, Level};
use crate::{datapath::is_bpffs, host::capabilities};

/// The oldest kernel that the overlay is tested on. [`super::features`] tells what it lacks of what newer ones have.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn findings(bpf_root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    vec![
        version(read("/proc/sys/kernel/osrelease").trim()),
        lacking(&capabilities::missing()),
        jit(read("/proc/sys/net/core/bpf_jit_enable").trim()),
        bpffs(bpf_root),
    ]
}

fn version(release: &str) -> Finding {
    let what = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Finding::ok(what, release),
        _ => Finding::new(
            what,
            Level::Fail,
            format!("{release}: older than Linux {}.{}", OLDEST.0, OLDEST.1),
            "run a newer kernel: Debian 12's own is new enough",
        ),
    }
}

fn lacking(missing: &[(&str, &str)]) -> Finding {
    let what = "capabilities";
    if missing.is_empty() {
        return Finding::ok(what, "all there");
    }
    let remedy =
        "run as root, or give the unit these capabilities (AmbientCapabilities=, CapabilityBoundingSet=)";
    let missing: Vec<String> =
        missing.iter().map(|(name, what_for)| format!("{name}, which {what_for}")).collect();
    Finding::new(what, Level::Fail, format!("missing: {}", missing.join("; ")), remedy)
}

fn jit(value: &str) -> Finding {
    // Kernels that can do nothing but JIT (CONFIG_BPF_JIT_ALWAYS_ON) may show 1, or have no such file.
    match value {
        "0" => Finding::new(
            "bpf jit",
            Level::Warn,
            "off: programs are interpreted",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        _ => Finding::ok("bpf jit", "on"),
    }
}

fn bpffs(root: &Path) -> Finding {
    let what = format!("bpffs at {}", root.display());
    // A folder that is still to be made is on the file system of the one above it.
    if is_bpffs(root) {
        return Finding::ok(&what, "mounted");
    }
    Finding::new(&what, Level::Fail, "not a bpf filesystem", "mount -t bpf bpf /sys/fs/bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, level) in [
            ("6.1.0-41-amd64", Level::Ok),
            ("6.6.0", Level::Ok),
            ("6.18.44-fc", Level::Ok),
            ("10.0", Level::Ok),
            ("6.0.12", Level::Fail),
            ("5.19", Level::Fail),
            ("", Level::Fail),
        ] {
            assert_eq!(version(release).level, level, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(lacking(&[]).level, Level::Ok);
        let found = lacking(&[("CAP_A", "does this"), ("CAP_B", "does that")]);
        assert_eq!(
            (found.level, &*found.detail),
            (Level::Fail, "missing: CAP_A, which does this; CAP_B, which does that")
        );
    }
}

//! Which capabilities the agent needs, and which of them this process lacks.
use std::fs;

/// Numbers of capabilities, from linux/capability.h, their names, and what each is needed for. CAP_SYS_ADMIN stands for CAP_BPF
/// and CAP_PERFMON as well; those alone are not enough.
const NEEDED: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "makes devices, routes and rules, and attaches programs"),
    (
        13,
        "CAP_NET_RAW",
        "hears by ARP who takes an address over, and asks containers whether they still have theirs",
    ),
    (
        21,
        "CAP_SYS_ADMIN",
        "lets the agent ask the kernel which programs are attached (BPF_PROG_GET_FD_BY_ID; CAP_BPF does not), and enter containers' \
         network namespaces",
    ),
];

/// The capabilities that this process needs as an agent and does not have, each with what it is needed for.
pub fn missing() -> Vec<(&'static str, &'static str)> {
    missing_in(&fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
}

/// Refuses to go on without them, before anything is half made.
///
/// # Errors
/// Names each that is missing, and what it is needed for.
pub fn require() -> anyhow::Result<()> {
    let missing: Vec<String> =
        missing().iter().map(|(name, what_for)| format!("{name}, which {what_for}")).collect();
    if !missing.is_empty() {
        anyhow::bail!(
            "this process lacks {}: give it that (AmbientCapabilities=, CapabilityBoundingSet=)",
            missing.join("; ")
        );
    }
    Ok(())
}

/// Those that a process lacks that has this text in `/proc/<id>/status`.
pub(crate) fn missing_in(status: &str) -> Vec<(&'static str, &'static str)> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let lacks = NEEDED.iter().filter(|(number, ..)| effective & (1 << number) == 0);
    lacks.map(|(_, name, what_for)| (*name, *what_for)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_bpf_is_not_enough() {
        let with = |mask: u64| -> Vec<&str> {
            let found = missing_in(&format!("Name:\toverlay\nCapEff:\t{mask:016x}\n"));
            found.into_iter().map(|(name, _)| name).collect()
        };
        assert!(with(u64::MAX).is_empty());
        assert!(with(1 << 12 | 1 << 13 | 1 << 21).is_empty());
        // CAP_BPF is 39, CAP_PERFMON is 38.
        assert_eq!(with(1 << 12 | 1 << 13 | 1 << 38 | 1 << 39), ["CAP_SYS_ADMIN"]);
        assert_eq!(with(1 << 21), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }
}

//! The older variant of ebtables, whose rules are not part of nftables. Nobody here follows them; whether there are any is all
//! that is asked.
use std::fs;

use crate::host::command::run;

/// Says why the older ebtables could refuse something: it has rules, which are not followed. The kernel does not list which
/// network namespaces have rules in which table, and to ask for a table that is not loaded would load it.
pub(super) async fn legacy() -> Option<String> {
    const LEGACY: &str = "ebtables-legacy";
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    for table in ["filter", "nat", "broute"] {
        if !modules.lines().any(|line| line.starts_with(&format!("ebtable_{table} "))) {
            continue;
        }
        let listed = match run(LEGACY, &["-t", table, "-L"], "").await {
            Ok(listed) => listed,
            Err(error) => return Some(format!("the rules of {LEGACY} cannot be read: {error}")),
        };
        let is_empty = |line: &str| line.contains("entries: 0,") && line.ends_with("policy: ACCEPT");
        if let Some(chain) = listed.lines().find(|line| line.contains("entries: ") && !is_empty(line)) {
            return Some(format!("{LEGACY} has rules, which are not followed (ebtables-nft's are): {chain}"));
        }
    }
    None
}

//! iptables in both its variants. A packet must pass the chains of both, so rules are looked for in both.
//!
//! The commands `-save` and `-restore` are used, because no library works with both variants.
use std::{fs, io::ErrorKind};

use super::command::{self, Failed};

/// The older variant, with tables of its own in the kernel.
pub const LEGACY: &str = "iptables-legacy";
/// Both variants. Plain `iptables` is one of them.
const VARIANTS: [&str; 2] = ["iptables-nft", LEGACY];
/// The name on hosts where the variants have no names of their own.
const PLAIN: [&str; 1] = ["iptables"];
/// The file that lists the tables of the older variant that are in use in the calling thread's network namespace. Only
/// root may read it. To ask for a table that is not in use would load its kernel module.
const IN_USE: &str = "/proc/thread-self/net/ip_tables_names";

/// The variants that are installed, as the names that `-save` and `-restore` are appended to.
pub fn variants() -> Vec<&'static str> {
    let installed = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|name| command::find(&format!("{name}-save")).is_some()).collect()
    };
    let variants = installed(&VARIANTS);
    if variants.is_empty() { installed(&PLAIN) } else { variants }
}

/// Whether any table of the older variant is in use.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn is_legacy_in_use() -> Result<bool, Failed> {
    match fs::read_to_string(IN_USE) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failed::Other(format!("{IN_USE}: {error}"))),
    }
}

/// Lists all tables that are in use. To name a table would create it. The list is empty on a kernel without this
/// variant.
///
/// # Errors
/// When the tables cannot be listed.
pub async fn save(variant: &str) -> Result<String, Failed> {
    if variant == LEGACY && !is_legacy_in_use()? {
        return Ok(String::new());
    }
    match command::run(&format!("{variant}-save"), &[], "").await {
        Err(Failed::Unsupported(said)) => {
            log::debug!("{said}");
            Ok(String::new())
        }
        saved => saved,
    }
}

/// Carries out a script: each of its tables whole or not at all. What the script does not name stays as it is.
///
/// # Errors
/// What the command said.
pub async fn restore(variant: &str, script: &str) -> Result<(), Failed> {
    command::run(&format!("{variant}-restore"), &["--noflush", "--wait", "5"], script).await.map(drop)
}

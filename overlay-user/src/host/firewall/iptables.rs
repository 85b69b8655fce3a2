//! iptables in both its variants: a packet must pass the chains of either, so whoever looks looks at both.
//!
//! By `-save` and `-restore`: no library speaks with both.
use std::{fs, io::ErrorKind};

use super::command::{self, Failed};

/// The older variant, with tables of its own in the kernel.
pub const LEGACY: &str = "iptables-legacy";
/// Whatever plain `iptables` is, it is one of these.
const VARIANTS: [&str; 2] = ["iptables-nft", LEGACY];
/// Where they have no names of their own.
const PLAIN: [&str; 1] = ["iptables"];
/// The tables of the older variant that are in use, of the calling thread's network namespace; for root alone. Asking for
/// another would load its kernel module.
const IN_USE: &str = "/proc/thread-self/net/ip_tables_names";

/// What is installed of them: what `-save` and `-restore` are appended to.
pub fn variants() -> Vec<&'static str> {
    let installed = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|name| command::find(&format!("{name}-save")).is_some()).collect()
    };
    let variants = installed(&VARIANTS);
    if variants.is_empty() { installed(&PLAIN) } else { variants }
}

/// Whether somebody uses tables of the older variant.
///
/// # Errors
/// When the kernel does not say.
pub fn is_legacy_in_use() -> Result<bool, Failed> {
    match fs::read_to_string(IN_USE) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failed::Other(format!("{IN_USE}: {error}"))),
    }
}

/// All tables in use; naming one would bring it into being. Nothing on a kernel without this variant.
///
/// # Errors
/// When they are not known.
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

/// Takes each table of a script whole or not at all, and leaves alone what it does not name.
///
/// # Errors
/// What it said.
pub async fn restore(variant: &str, script: &str) -> Result<(), Failed> {
    command::run(&format!("{variant}-restore"), &["--noflush", "--wait", "5"], script).await.map(drop)
}

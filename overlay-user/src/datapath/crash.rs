//! Where the tests of upgrades can have the agent end, as a crash would end it.
#[cfg(feature = "next-layout")]
use std::{fs, path::Path};

/// For the tests of upgrades: ends the agent here, as a crash would, if they say so.
#[cfg(feature = "next-layout")]
pub(super) fn may_crash(place: &str) {
    if std::env::var("CRASH_AT").is_ok_and(|at| at == place) {
        std::process::abort();
    }
}

/// The same, halfway through the removal of older pins.
#[cfg(feature = "next-layout")]
pub(super) fn may_crash_removing(pins: &Path) {
    if std::env::var_os("CRASH_AT").is_some() {
        let _ = fs::remove_file(pins.join("stack_flows"));
    }
    may_crash("half removed");
}

/// Nothing, in every other agent.
#[cfg(not(feature = "next-layout"))]
pub(super) const fn may_crash(_place: &str) {}

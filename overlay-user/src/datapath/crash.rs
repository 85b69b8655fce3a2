//! Places where the tests of upgrades make the agent end as a crash would end it.
#[cfg(feature = "next-layout")]
use std::{fs, path::Path};

/// Ends the agent here, as a crash would, if a test of upgrades asks for it.
#[cfg(feature = "next-layout")]
pub(super) fn may_crash(place: &str) {
    if std::env::var("CRASH_AT").is_ok_and(|at| at == place) {
        std::process::abort();
    }
}

/// Ends the agent halfway through the removal of older pins, if a test of upgrades asks for it.
#[cfg(feature = "next-layout")]
pub(super) fn may_crash_removing(pins: &Path) {
    if std::env::var_os("CRASH_AT").is_some() {
        let _ = fs::remove_file(pins.join("stack_flows"));
    }
    may_crash("half removed");
}

/// Does nothing: only agents that are built for the tests of upgrades end here.
#[cfg(not(feature = "next-layout"))]
pub(super) const fn may_crash(_place: &str) {}

//! An agent that is expected to refuse, and what it must leave alone.
use std::fs;

use overlay_host_tests::hosts::overlay;
use overlay_lab::Host;

/// Runs an agent that is expected to end by itself.
#[track_caller]
pub fn refuses(host: &Host, arguments: &[&str], words: &[&str]) {
    overlay(host, &[&["agent"], arguments].concat()).is(1, words);
}

/// The names of all pins of the network, whichever host they belong to.
pub fn pins(host: &Host) -> Vec<String> {
    let files = fs::read_dir(overlay_host_tests::pins(host)).into_iter().flatten().flatten();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

//! The agent as it will be once its programs have changed: built by the tests of upgrades alone.
use std::process::ExitCode;

#[path = "../src/main.rs"]
mod overlay;

fn main() -> ExitCode {
    overlay::main()
}

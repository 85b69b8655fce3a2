//! The `overlay` binary: parse, log, dispatch, exit code.
fn main() {}

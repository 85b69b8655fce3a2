//! What a store may hold or do that an agent cannot use. The agent names it and shows it in the status, and nothing
//! that is in force is lost.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]
#[expect(unreachable_pub, reason = "helpers shared by the modules beside them")]
mod bad_input_store {
    mod bed;
    mod leases;
    mod trouble;
}

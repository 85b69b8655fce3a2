//! What is in an agent's way on its own host. The agent names each such thing with the remedy, and leaves it as it was
//! found.
#[expect(unreachable_pub, reason = "helpers shared by the modules beside them")]
mod bad_input_host {
    mod agents;
    mod bed;
    mod folders;
    mod interfaces;
}

//! Paths of different MTUs between whole hosts: who is told the MTU, what is fragmented, and that nothing is lost which
//! flannel's device would carry. These tests need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "a bed shared by the modules beside it")]
mod path_mtu {
    mod bed;
    mod datagrams;
    mod sizes;
    mod streams;
}

//! Whole hosts as network namespaces, with agents, containers and real packets between them. These tests need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#[expect(unreachable_pub, reason = "a bed shared by the modules beside it")]
mod cluster {
    mod accounts;
    mod bed;
    mod checked;
    mod clsact;
    mod containers;
    mod corrupt;
    mod down;
    mod figures;
    mod foreign;
    mod foreign_program;
    mod in_front;
    mod ingress;
    mod ipsec;
    mod layout_1;
    mod peers;
    mod ports;
    mod race;
    mod restart;
    mod same_host;
    mod store;
    mod storm;
    mod tc;
    mod underlay;
    mod upgrade;
}

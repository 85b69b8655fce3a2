//! The lab: hosts as network namespaces on one machine, with an underlay between them, bridges, containers, and a real etcd.
//!
//! ```text
//!   container      container        container      container     ov<pid>n<lab>-h1-a, ...
//!        \            /                  \            /
//!   h1:   br0 10.244.1.1/24         h2:   br0 10.244.2.1/24      ov<pid>n<lab>-h1, -h2, ...
//!         eth0 10.99.0.1                  eth0 10.99.0.2
//!            \_______________ br0 _______________/               ov<pid>n<lab>-switch
//!                              |
//!   h3: eth0 10.99.3.3 --- two routers                         ov<pid>n<lab>-h3-near, -h3-far; Options::behind_routers
//! ```
//!
//! Everything a lab makes carries its name: namespaces, one folder with a bpffs mounted inside, the control groups of
//! containers, and the environment of every process. Cleaning up is therefore one function ([`sweep()`]) that needs no list of what was made, used by
//! `Drop` (a panic unwinds through it), by Ctrl-C, and by `cargo xtask lab down` for what a killed process left.
pub use overlay_project::{command, cpu, line, project, random};

pub use self::{
    agent::Agent,
    capture::Capture,
    container::{Container, Ping, PingOptions},
    counters::{Carried, Counters},
    docker::{Docker, DockerContainer, Tools as DockerTools},
    flannel::{FlannelDevice, Flanneld},
    foreign::ForeignVxlan,
    host::Host,
    interrupt::interrupted,
    lab::Lab,
    latency::{Latency, latency},
    ledger::{Accounts, Ledger, Traffic},
    member::{Backend, DIRECT_VXLAN, Member, Store, configure, populate, populate_some, populate_with},
    namespace::{Namespace, Running, join},
    numbered::{Numbered, NumberedReport, queue_overflows},
    options::Options,
    path::RoutedPath,
    relay::Relay,
    steady::{Steady, SteadyReport},
    stream::{Transfer, iperf3, transfer, transfer_by},
    sweep::{leaks, orphans, sweep},
    visitor::Guesthouse,
    wait::wait_until,
};

mod agent;
mod capture;
mod container;
mod counters;
mod direct;
mod docker;
pub mod endurance;
pub mod etcd;
mod flannel;
mod foreign;
mod host;
pub mod http;
mod interrupt;
mod lab;
mod latency;
mod ledger;
mod member;
mod names;
mod namespace;
mod numbered;
mod options;
mod path;
mod relay;
mod steady;
mod stream;
mod subnet;
mod sweep;
mod visitor;
mod wait;

//! The command `cargo xtask scale`, which builds this program and hands its arguments over, hence the name in the usage.
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use overlay_lab::command::exit_code;
use overlay_scale::{ScaleOptions, scale};

/// Measures the control plane with very many hosts.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the control loops of very many hosts beside a real etcd: what they cost it, and how soon all agree.
    ///
    /// Each host is what the agent's binary runs to follow the store: the same client of etcd, with a connection of its own, the
    /// same acquisition of a lease, the same loop with its guard, schedule and pauses. Only the data path is one in memory, and all
    /// hosts share this process. etcd is a real one, on this machine, first with one member, then with three.
    ///
    /// With each number of hosts, this happens: all start at once on an empty store; nothing happens for a while; leases come, one
    /// at a time; etcd is stopped, and started again. With the largest number, each minute one host in a hundred goes and another
    /// comes; a tenth of the hosts is cut off; etcd is restarted and compacted; etcd is wiped. With three members, the leader
    /// changes, a member is restarted, and all are.
    ///
    /// For each of these: after which time half of the hosts, 99 of 100 and all agree with the store; CPU time and memory of etcd
    /// and of the hosts; requests, bytes and events of watches; and how many routes were lost, which must be none. From the numbers
    /// of hosts it draws straight lines through what grows with it, and says what they give for 10,000 and 100,000 hosts. That is an
    /// extrapolation, and is called one.
    ///
    /// Nothing else should run on the machine. Memory grows with the square of the number of hosts, since each knows all others:
    /// about 2 GiB with 2,000.
    Scale(ScaleOptions),
}

fn main() -> ExitCode {
    let Command::Scale(options) = Arguments::parse().command;
    exit_code(scale(&options))
}

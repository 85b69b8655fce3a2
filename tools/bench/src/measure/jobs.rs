//! What is measured: each job is one run over one network, and returns one or more figures.
use std::{path::Path, time::Duration};

use anyhow::Result;
use clap::ValueEnum;

use super::{
    exchange::{Protocol, connections, exchanges},
    first::{New, first},
    network::{Case, Network},
    packets::{Load, Part, Until, send, send_both_ways},
    programs::nanoseconds,
    streams::{both_ways, streams},
};

/// Jobs that belong together. `--only` selects groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Group {
    /// Packets per second by live XDP frames.
    Packets,
    /// Nanoseconds per run of each program.
    Programs,
    /// Request and response.
    Exchange,
    /// Connect, request, response.
    Connect,
    /// TCP streams, and CPU seconds per gigabyte.
    Streams,
    /// Throughput of a TCP stream one of whose ends is a new container, and the part of it that the fast path carries.
    First,
    /// Packets and TCP request/response between two containers of one host, beside one veth between them.
    SameHost,
    /// Packets, and TCP streams, in both directions at once on two CPUs.
    BothWays,
    /// Packets per second by the number of connections.
    Flows,
    /// Packets per second by the number of peers.
    Peers,
    /// The agent with 10,000 peers: start, changes, memory, CPU.
    Agent,
}

/// A single job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Packets per second over this part of the path, in frames of this size.
    Packets(Part, usize),
    /// The programs' run time, under frames of 64 bytes.
    Programs,
    /// Request and response by this protocol, with so many connections at once.
    Exchange(Protocol, u32),
    /// TCP request and response between containers of one host, with so many connections at once.
    NearExchange(u32),
    /// Connections one after the other.
    Connect,
    /// So many TCP streams at once.
    Streams(u32),
    /// Packets per second in both directions at once, in frames of 64 bytes.
    PacketsBothWays,
    /// Two TCP streams at once, one in each direction.
    StreamsBothWays,
    /// A TCP stream of which this end is a new container.
    First(New),
}

/// One quantity in one sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// Name of the quantity.
    pub(super) name: String,
    /// Unit of the value.
    pub(super) unit: &'static str,
    /// Whether more is better.
    pub(super) more_is_better: bool,
    /// The value.
    pub(super) value: f64,
}

impl Job {
    /// All jobs of a group, of which `--quick` leaves out some.
    pub(super) fn of(group: Group, quick: bool) -> Vec<Self> {
        let some = |all: &[u32], few: &[u32]| if quick { few.to_vec() } else { all.to_vec() };
        match group {
            Group::Packets => {
                let mut jobs = vec![
                    Self::Packets(Part::Whole, 64),
                    Self::Packets(Part::Out, 64),
                    Self::Packets(Part::In, 64),
                    Self::Packets(Part::Whole, 1400),
                ];
                if !quick {
                    jobs.push(Self::Packets(Part::Out, 1400));
                    jobs.push(Self::Packets(Part::In, 1400));
                }
                jobs
            }
            Group::Programs => vec![Self::Programs],
            Group::Exchange => [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .flat_map(|protocol| {
                    some(&[1, 8, 32, 64], &[1, 32])
                        .into_iter()
                        .map(move |flows| Self::Exchange(protocol, flows))
                })
                .collect(),
            Group::Connect => vec![Self::Connect],
            Group::Streams => some(&[1, 4, 16], &[1, 4]).into_iter().map(Self::Streams).collect(),
            Group::First if quick => vec![Self::First(New::Client)],
            Group::First => vec![Self::First(New::Client), Self::First(New::Server)],
            Group::SameHost => {
                let exchanges = some(&[1, 32], &[1]).into_iter().map(Self::NearExchange);
                [Self::Packets(Part::Near, 64)].into_iter().chain(exchanges).collect()
            }
            Group::BothWays => vec![Self::PacketsBothWays, Self::StreamsBothWays],
            // These groups are compared with themselves, or with nothing.
            Group::Flows | Group::Peers | Group::Agent => Vec::new(),
        }
    }

    /// Name of the job in the progress and in errors.
    pub(super) fn name(self) -> String {
        match self {
            Self::Packets(part, size) => format!("packets of {size} bytes, {}", part.name()),
            Self::Programs => "programs".to_owned(),
            Self::Exchange(protocol, flows) => {
                let protocol = match protocol {
                    Protocol::Tcp => "TCP",
                    Protocol::Udp => "UDP",
                };
                format!("{protocol} request/response, {}", counted(flows, "flow"))
            }
            Self::NearExchange(flows) => {
                format!("TCP request/response, {}, {}", counted(flows, "flow"), Part::Near.name())
            }
            Self::Connect => "TCP connect/request/response".to_owned(),
            Self::Streams(count) => counted(count, "TCP stream"),
            Self::PacketsBothWays => "packets of 64 bytes, both ways at once".to_owned(),
            Self::StreamsBothWays => "TCP streams, one each way at once".to_owned(),
            Self::First(new) => new.name().to_owned(),
        }
    }

    /// Whether the job can run on this case.
    pub(super) fn is_of(self, case: Case) -> bool {
        match self {
            Self::Packets(part, ..) => part.is_of(case),
            Self::Programs => (case.is_ours() || case == Case::Floor) && Part::Whole.is_of(case),
            // Nobody attaches the floor's programs to a new container.
            Self::First(_) => !matches!(case, Case::Direct | Case::DirectAgain | Case::Floor | Case::Stack),
            Self::NearExchange(_) => Part::Near.is_of(case),
            Self::PacketsBothWays => Part::Whole.is_of(case),
            Self::Exchange(..) | Self::Connect | Self::Streams(_) | Self::StreamsBothWays => {
                case != Case::DirectAgain
            }
        }
    }

    /// Whether the job is about two containers of one host.
    pub(super) fn is_near(self) -> bool {
        matches!(self, Self::NearExchange(_) | Self::Packets(Part::Near, _))
    }

    /// Whether the job hands frames to drivers.
    pub(super) fn takes_frames_from_drivers(self) -> bool {
        matches!(self, Self::Packets(Part::In, ..))
    }

    /// The figures that the job returns: name, unit, and whether more is better. The names of the programs are known
    /// only after they have run.
    pub(super) fn figures(self) -> Vec<(String, &'static str, bool)> {
        let name = self.name();
        match self {
            Self::Packets(..) | Self::PacketsBothWays => vec![(name, "10^3/s", true)],
            Self::Programs => vec![(name, "ns", false)],
            Self::Exchange(..) | Self::NearExchange(_) | Self::Connect => {
                vec![(format!("{name}, p50"), "us", false), (format!("{name}, p99"), "us", false)]
            }
            Self::Streams(_) | Self::StreamsBothWays => {
                vec![(name.clone(), "Mbit/s", true), (format!("{name}, CPU"), "s/GB", false)]
            }
            Self::First(_) => {
                // The last one is of our cases alone.
                vec![
                    (name.clone(), "Mbit/s", true),
                    (format!("{name}, lost"), "segments", false),
                    (format!("{name}, fast path"), "%", true),
                ]
            }
        }
    }

    /// Takes one sample.
    pub(super) fn run(self, network: &Network, program: &Path, time: Duration) -> Result<Vec<Figure>> {
        let load =
            |size, statistics| Load { size, flows: 1, peers: None, until: Until::Time(time), statistics };
        let values = match self {
            Self::Packets(part, size) => {
                vec![send(network, program, part, load(size, false))?.rate() / 1e3]
            }
            Self::Programs => {
                let work = || send(network, program, Part::Whole, load(64, true)).map(|sent| sent.rate());
                let sample = nanoseconds(network, work)?.into_iter();
                let figure = |(name, value)| Figure {
                    name: format!("one run of {name}"),
                    unit: "ns",
                    more_is_better: false,
                    value,
                };
                return Ok(sample.map(figure).collect());
            }
            Self::Exchange(protocol, flows) => {
                let sample = exchanges(network.ends(), protocol, flows, time)?;
                vec![sample.p50_us, sample.p99_us]
            }
            Self::NearExchange(flows) => {
                let sample = exchanges(network.near_ends()?, Protocol::Tcp, flows, time)?;
                vec![sample.p50_us, sample.p99_us]
            }
            Self::Connect => {
                let sample = connections(network.ends(), time)?;
                vec![sample.p50_us, sample.p99_us]
            }
            Self::Streams(count) => {
                let sample = streams(network, count, time * STREAMS_TAKE)?;
                vec![sample.megabits_per_second, sample.cpu_seconds_per_gigabyte]
            }
            Self::PacketsBothWays => vec![send_both_ways(network, program, load(64, false))? / 1e3],
            Self::StreamsBothWays => {
                let sample = both_ways(network, time * STREAMS_TAKE)?;
                vec![sample.megabits_per_second, sample.cpu_seconds_per_gigabyte]
            }
            Self::First(new) => {
                let sample = first(network, new)?;
                let all = [Some(sample.megabits_per_second), Some(sample.lost as f64), sample.fast_percent];
                all.into_iter().flatten().collect()
            }
        };
        let figures = self.figures().into_iter().zip(values);
        let figure = |((name, unit, more_is_better), value)| Figure { name, unit, more_is_better, value };
        Ok(figures.map(figure).collect())
    }
}

/// By how much samples of streams are longer than others. TCP needs time to find its window, and CPU time is counted in
/// hundredths of a second.
const STREAMS_TAKE: u32 = 3;

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

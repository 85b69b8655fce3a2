//! The disruption that a move causes: the time without a tunnel device, and the packets lost in that time.
//!
//! While neither device holds the port, the fast path goes on, but what needs the kernel's stack is lost. The programs count
//! each packet that they leave to the stack. The difference over that time is therefore the most that was lost of containers'
//! and peers' packets: those at its very beginning and end may have got through. Of what the host's own processes send meanwhile,
//! the kernel counts what found no route, and what the device dropped that was on its way down.
use std::{
    fmt::{self, Write as _},
    fs,
    time::Duration,
};

use overlay_common::{Hook, Reason, Verdict};
use serde::Serialize;

use crate::{
    datapath::{DatapathError, tables::Tables},
    host::netlink::DeviceLosses,
};

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Packets of containers that were left to the stack.
    from_containers: u64,
    /// Packets of peers that were left to the stack.
    from_peers: u64,
    /// UDP packets to this host that found no socket, whoever sent them.
    without_socket: u64,
    /// Packets of this host's own processes for which there was no route, wherever they were sent.
    without_route: u64,
    /// Packets that the programs dropped or answered.
    refused: u64,
}

/// What a move did to traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Disruption {
    /// Microseconds between the old device's end and the new one's route.
    pub interruption_us: u64,
    /// Packets of containers here that may be lost.
    pub from_containers: u64,
    /// Packets of other hosts that may be lost.
    pub from_peers: u64,
    /// Packets of this host's own processes that may be lost. What the old device dropped of containers' packets is among them a
    /// second time.
    pub from_host: u64,
    /// The sum of the three.
    pub lost_at_most: u64,
    /// Packets that the programs' checks refused during the whole move.
    pub refused: u64,
    /// What devices lost during the whole move, whoever sent it.
    pub devices: Vec<DeviceLoss>,
}

/// A device's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceLoss {
    /// Name of the device.
    pub device: String,
    /// The counter's name as in `ip -s link`, or `queue_drops`.
    pub counter: &'static str,
    /// How many packets the counter counted during the move.
    pub packets: u64,
}

impl Meter {
    /// Reads the counters.
    pub fn read(tables: &Tables) -> Result<Self, DatapathError> {
        let sum = |hooks: &[Hook], wanted: &[Verdict]| -> Result<u64, DatapathError> {
            let mut packets = 0;
            for &hook in hooks {
                for &reason in Reason::ALL.iter().filter(|it| wanted.contains(&it.verdict_at(hook))) {
                    packets += tables.counter(hook, reason)?.packets;
                }
            }
            Ok(packets)
        };
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
        Ok(Self {
            from_containers: sum(&[Hook::Encap], &[Verdict::Stack])?,
            from_peers: sum(&[Hook::Decap], &[Verdict::Stack])?,
            without_socket: counter(&snmp, "Udp: ", "NoPorts").unwrap_or_default(),
            without_route: counter(&snmp, "Ip: ", "OutNoRoutes").unwrap_or_default(),
            refused: sum(&[Hook::Encap, Hook::Decap], &[Verdict::Drop, Verdict::Answered])?,
        })
    }
}

impl Disruption {
    /// The disruption in `interruption`, between `before` and `after`. A peer's packet that the programs do not see, because it
    /// comes in outer fragments or through another NIC, shows as one that found no socket.
    pub fn new(interruption: Duration, before: Meter, after: Meter) -> Self {
        let since = |now: u64, then: u64| now.saturating_sub(then);
        let from_containers = since(after.from_containers, before.from_containers);
        let from_peers = since(after.from_peers, before.from_peers)
            .max(since(after.without_socket, before.without_socket));
        let from_host = since(after.without_route, before.without_route);
        Self {
            interruption_us: interruption.as_micros().try_into().unwrap_or(u64::MAX),
            from_containers,
            from_peers,
            from_host,
            lost_at_most: from_containers + from_peers + from_host,
            refused: 0,
            devices: Vec::new(),
        }
    }

    /// Adds what was lost elsewhere since the move began. `old` is the index of the device that went down.
    pub fn with_whole_move(
        mut self,
        begun: Meter,
        ended: Meter,
        before: &[DeviceLosses],
        after: &[DeviceLosses],
        old: Option<u32>,
    ) -> Self {
        self.refused = ended.refused.saturating_sub(begun.refused);
        for now in after {
            let then = before.iter().find(|then| then.index == now.index).cloned().unwrap_or_default();
            if Some(now.index) == old {
                let dropped = now.tx_dropped.saturating_sub(then.tx_dropped);
                self.from_host += dropped;
                self.lost_at_most += dropped;
            }
            for (counter, now_lost, then_lost) in [
                ("rx_errors", now.rx_errors, then.rx_errors),
                ("rx_dropped", now.rx_dropped, then.rx_dropped),
                ("rx_missed", now.rx_missed, then.rx_missed),
                ("tx_errors", now.tx_errors, then.tx_errors),
                ("tx_dropped", now.tx_dropped, then.tx_dropped),
                ("queue_drops", now.queue_drops, then.queue_drops),
            ] {
                if now_lost > then_lost {
                    let (device, packets) = (now.name.clone(), now_lost - then_lost);
                    self.devices.push(DeviceLoss { device, counter, packets });
                }
            }
        }
        self
    }
}

impl fmt::Display for Disruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut devices = String::new();
        for DeviceLoss { device, counter, packets } in &self.devices {
            write!(devices, "{}{device} {counter} {packets}", if devices.is_empty() { "" } else { ", " })?;
        }
        let devices = if devices.is_empty() { "none" } else { &devices };
        write!(
            f,
            "interruption  {}.{:03} ms for what the kernel's stack carries; none for the fast path\n\
             packets lost  at most {}: {} from containers here, {} from other hosts, {} from this host itself\n\
             refused       {} by the programs' checks\n\
             device losses {devices}",
            self.interruption_us / 1000,
            self.interruption_us % 1000,
            self.lost_at_most,
            self.from_containers,
            self.from_peers,
            self.from_host,
            self.refused,
        )
    }
}

/// Reads a counter from the text of /proc/net/snmp, which has a line of names and a line of numbers for each protocol. Both lines
/// begin with the protocol's name.
fn counter(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let at = lines.next()?.split(' ').position(|it| it == name)?;
    lines.next()?.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_to_the_stack_meanwhile_is_what_may_be_lost() {
        let before =
            Meter { from_containers: 5, from_peers: 10, without_socket: 0, without_route: 1, refused: 1 };
        let after =
            Meter { from_containers: 7, from_peers: 13, without_socket: 4, without_route: 2, refused: 2 };
        let device = |name: &str, dropped| DeviceLosses {
            index: 3,
            name: name.into(),
            tx_dropped: dropped,
            ..DeviceLosses::default()
        };
        let disruption = Disruption::new(Duration::from_micros(1234), before, after).with_whole_move(
            Meter::default(),
            after,
            &[device("va", 2)],
            &[device("va", 5)],
            Some(3),
        );
        let &Disruption { from_containers, from_peers, from_host, lost_at_most, refused, .. } = &disruption;
        assert_eq!((from_containers, from_peers, from_host, lost_at_most, refused), (2, 4, 4, 10, 2));
        assert_eq!(
            disruption.to_string(),
            "interruption  1.234 ms for what the kernel's stack carries; none for the fast path\n\
             packets lost  at most 10: 2 from containers here, 4 from other hosts, 4 from this host itself\n\
             refused       2 by the programs' checks\n\
             device losses va tx_dropped 3"
        );
    }

    #[test]
    fn the_kernels_table_is_understood() {
        let text = "Icmp: InMsgs\nIcmp: 3\nUdp: InDatagrams NoPorts InErrors\nUdp: 12 34 0\nUdpLite: InDatagrams NoPorts\nUdpLite: 0 9\n";
        let no_ports = |text: &str| counter(text, "Udp: ", "NoPorts");
        assert_eq!(no_ports(text), Some(34));
        assert_eq!(no_ports("Udp: InDatagrams\n"), None);
        let here = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        assert!(no_ports(&here).is_some() && counter(&here, "Ip: ", "OutNoRoutes").is_some());
    }
}

//! Packets that are lost after the programs have passed them on: counters of devices, of their queues and of the CPUs, with
//! an explanation of each.
//!
//! A program counts a packet as carried when it redirects it. It does not see what happens to the packet afterwards: a queue
//! or a container's XDP ring may be full, or a device may be down. The kernel counts most of that, for each device.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::links::{Attachment, Links},
    host::netlink::{DeviceLosses, Netlink},
    model::entries::PortKind,
};

/// What the overlay uses a device for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The device by which peers are reached.
    Underlay,
    /// The tunnel device, overlay0.
    Tunnel,
    /// A bridge of containers.
    Bridge,
    /// The host side of a container's veth.
    Endpoint,
    /// Not a device, but the queues between devices. There is one for each CPU of the machine, for all network namespaces.
    Cpu,
}

/// The value of one counter in the kernel at some moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Name of the device, or `cpus` for the CPUs' queues.
    pub device: String,
    /// Interface index of the device, or zero for the CPUs' queues.
    pub ifindex: u32,
    /// What the device is used for.
    pub role: Role,
    /// Name of the counter: `rx_dropped`, `tx_dropped` and so on as in `ip -s link`, `queue_drops` as in `tc -s qdisc`,
    /// `backlog_dropped` for the CPUs, and `no_carrier`, which stands for losses that nobody counts.
    pub counter: String,
    /// Packets since the device was made or the machine was started. `None` if packets are lost and nobody counts them.
    pub packets: Option<u64>,
}

/// A counter that is not zero, with what that means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The counter.
    #[serde(flatten)]
    pub reading: Reading,
    /// Packets since the agent started, or since the device got its programs if that was later. `None` if no agent runs, or
    /// if nobody counts the packets.
    pub since_start: Option<u64>,
    /// What happened to the packets.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// Reads the counters that are not zero: those of the CPUs, and those of all devices with programs of the network that is
/// pinned below `pins`.
///
/// # Errors
/// When the kernel does not list devices or queues, or it is not known which programs are attached.
pub async fn read(netlink: &Netlink, pins: &Path) -> Result<Vec<Reading>> {
    let roles: BTreeMap<u32, Role> =
        Links::of(pins)?.iter().filter_map(|(at, ifindex)| Some((*ifindex, role(*at)?))).collect();
    let mut readings = Vec::new();
    for device in netlink.losses().await? {
        if let Some(role) = roles.get(&device.index) {
            of_device(&device, *role, &mut readings);
        }
    }
    // Without this file, the devices' counters still tell most: rx_dropped of the receiving device counts a full queue, too.
    let dropped = fs::read_to_string("/proc/net/softnet_stat").map_or(0, |text| backlog_dropped(&text));
    if dropped > 0 {
        readings.push(Reading {
            device: "cpus".into(),
            ifindex: 0,
            role: Role::Cpu,
            counter: "backlog_dropped".into(),
            packets: Some(dropped),
        });
    }
    readings.sort_by(|a, b| (a.role, &a.device, &a.counter).cmp(&(b.role, &b.device, &b.counter)));
    Ok(readings)
}

/// Puts words to readings. `before` are those of the agent's start; a counter that was not there then was zero, or is of
/// a device made since.
pub fn assess(now: Vec<Reading>, before: Option<&[Reading]>) -> Vec<Loss> {
    now.into_iter()
        .map(|reading| {
            let same = |then: &&Reading| {
                (then.ifindex, &then.device, &then.counter)
                    == (reading.ifindex, &reading.device, &reading.counter)
            };
            let since_start = before.zip(reading.packets).map(|(before, packets)| {
                let then = before.iter().find(same).and_then(|then| then.packets);
                // If the counter is smaller now, this is another device with the same name and index, or a queue was replaced.
                then.filter(|then| *then <= packets).map_or(packets, |then| packets - then)
            });
            let (meaning, remedy) = words(reading.role, &reading.counter);
            Loss { reading, since_start, meaning, remedy }
        })
        .collect()
}

fn role(attachment: Attachment) -> Option<Role> {
    let kinds = [
        (PortKind::Underlay, Role::Underlay),
        (PortKind::Device, Role::Tunnel),
        (PortKind::Bridge, Role::Bridge),
        (PortKind::Veth, Role::Endpoint),
    ];
    let of = |kind: &PortKind| Attachment::of_port(*kind).contains(&attachment);
    kinds.into_iter().find(|(kind, _)| of(kind)).map(|(_, role)| role)
}

fn of_device(device: &DeviceLosses, role: Role, readings: &mut Vec<Reading>) {
    let counters = [
        ("rx_errors", device.rx_errors),
        ("rx_dropped", device.rx_dropped),
        ("rx_missed", device.rx_missed),
        ("tx_errors", device.tx_errors),
        ("tx_dropped", device.tx_dropped),
        ("queue_drops", device.queue_drops),
    ];
    let mut push = |counter: &str, packets| {
        readings.push(Reading {
            device: device.name.clone(),
            ifindex: device.index,
            role,
            counter: counter.to_owned(),
            packets,
        });
    };
    for (counter, packets) in counters.into_iter().filter(|(_, packets)| *packets > 0) {
        push(counter, Some(packets));
    }
    // skb_do_redirect drops packets for a device that is down, without counting them (net/core/filter.c). A bridge
    // without ports has no carrier either, but it cannot lose anything.
    if device.no_carrier && matches!(role, Role::Endpoint | Role::Underlay) {
        push("no_carrier", None);
    }
}

/// Sum of the second column of /proc/net/softnet_stat, which has a line for each CPU and is hexadecimal. It counts
/// packets that were dropped because the CPU's queue was full (net/core/net-procfs.c writes the file, and
/// Documentation/networking/scaling.rst describes the queue).
fn backlog_dropped(softnet_stat: &str) -> u64 {
    let of_cpu = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    softnet_stat.lines().filter_map(of_cpu).sum()
}

fn words(role: Role, counter: &str) -> (&'static str, &'static str) {
    match (role, counter) {
        (Role::Underlay, "no_carrier") => ("no cable, or the other end is down", "see to the link"),
        // A packet that the container's side refused is counted at the host's side: see veth_get_stats64 and
        // veth_ndo_xdp_xmit in drivers/net/veth.c.
        (Role::Endpoint, "tx_dropped") => (
            "to the container: its side was down, or (XDP) its ring was full or not there",
            "`ip link` in the container; for XDP `ethtool -K eth0 gro on` in it",
        ),
        (Role::Endpoint, "rx_dropped") => (
            "from the container: the queue of the CPU it ran on was full",
            "raise net.core.netdev_max_backlog",
        ),
        (Role::Endpoint, "no_carrier") => (
            "the container's side is down: what is delivered to it is lost, and counted as carried",
            "`ip link set eth0 up` in the container, or remove it",
        ),
        (Role::Tunnel, "tx_errors" | "tx_dropped") => (
            "the stack had no route to the peer, or the packet was not IPv4",
            "`ip route get` the peer's address",
        ),
        (Role::Tunnel, "rx_dropped") => {
            ("decapsulated by the kernel; the queue of the CPU was full", "raise net.core.netdev_max_backlog")
        }
        (Role::Tunnel, "rx_errors") => ("not VXLAN as the kernel wants it", "capture at the underlay device"),
        (Role::Bridge, "tx_dropped") => {
            ("the bridge found no port for it, or the port was down", "`bridge link`, `bridge fdb`")
        }
        (_, "queue_drops") => (
            "the device's queue was full, or its rule was to drop",
            "`tc -s qdisc show dev` the device: a longer queue, a higher rate",
        ),
        (_, "tx_dropped") => (
            "the driver had no room, or the device was down",
            "`ethtool -S` the device; a longer ring (`ethtool -G`)",
        ),
        (_, "tx_errors") => ("the device could not send it", "`ethtool -S` the device: cable, driver"),
        (_, "rx_dropped") => (
            "a CPU's queue was full, XDP could not redirect, or nobody wanted the protocol",
            "`ethtool -S` the device; net.core.netdev_max_backlog",
        ),
        (_, "rx_errors") => ("arrived broken", "`ethtool -S` the device: cable, other end"),
        (_, "rx_missed") => {
            ("no room in the device's ring", "a longer ring (`ethtool -G`), more CPUs (`ethtool -L`)")
        }
        (Role::Cpu, _) => (
            "a queue between two devices was full, in any namespace of this machine",
            "raise net.core.netdev_max_backlog; spread the load (RPS)",
        ),
        _ => ("lost", "`ip -s -s link show` the device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(counter: &str, packets: u64) -> Reading {
        let (device, role) = ("eth0".into(), Role::Underlay);
        Reading { device, ifindex: 3, role, counter: counter.into(), packets: Some(packets) }
    }

    #[test]
    fn what_was_lost_before_the_agent_is_told_apart() {
        let before = [reading("tx_dropped", 5), reading("rx_errors", 7)];
        let now = vec![reading("tx_dropped", 8), reading("rx_dropped", 2), reading("rx_errors", 1)];
        let since: Vec<_> = assess(now.clone(), Some(&before)).iter().map(|loss| loss.since_start).collect();
        assert_eq!(since, [Some(3), Some(2), Some(1)]);
        assert!(assess(now, None).iter().all(|loss| loss.since_start.is_none()));
    }

    #[test]
    fn devices_without_losses_say_nothing() {
        let mut device = DeviceLosses { index: 3, name: "eth0".into(), ..DeviceLosses::default() };
        let mut readings = Vec::new();
        of_device(&device, Role::Underlay, &mut readings);
        assert_eq!(readings, []);
        device.queue_drops = 4;
        of_device(&device, Role::Underlay, &mut readings);
        assert_eq!(readings, [reading("queue_drops", 4)]);
        device.no_carrier = true;
        of_device(&device, Role::Bridge, &mut readings);
        assert_eq!(readings.len(), 2);
    }

    #[test]
    fn every_cpus_dropped_packets_are_added_up() {
        let text = "0000a1b2 00000002 00000003\n000000ff 0000000a 00000000\n";
        assert_eq!(backlog_dropped(text), 12);
        assert_eq!(backlog_dropped(""), 0);
    }

    #[test]
    fn every_attachment_has_a_role() {
        assert!(Attachment::ALL.into_iter().all(|attachment| role(attachment).is_some()));
    }
}

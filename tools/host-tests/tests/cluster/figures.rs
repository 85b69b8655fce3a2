//! Figures that must agree: those of bpftool, those of the command line, and what was really sent.
use std::{collections::BTreeMap, net::Ipv4Addr, thread, time::Duration};

use overlay_common::{Hook, Reason, Verdict, reason::REASONS};
use overlay_lab::{Container, Counters, Numbered, NumberedReport, Options, transfer};
use serde_json::Value;

use super::bed::{Bed, Kind, assert_reaches, bpftool, json, peers, pins, wait_for};

/// Rows of a map as bpftool shows them by BTF: key and value, or key and the values of all CPUs.
fn dump(bed: &Bed, host: usize, map: &str) -> Vec<(Value, Vec<Value>)> {
    let rows = bpftool(&["map", "dump"], &pins(&bed[host]).join(map));
    let row = |row: &Value| {
        let row = row.get("formatted").unwrap_or_else(|| panic!("not readable: {row}")).clone();
        let values = match row["values"].as_array() {
            Some(cpus) => cpus.iter().map(|cpu| cpu["value"].clone()).collect(),
            None => vec![row["value"].clone()],
        };
        (row["key"].clone(), values)
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    let byte = |value: &Value| match value {
        Value::String(hex) => u8::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap(),
        other => u8::try_from(other.as_u64().unwrap()).unwrap(),
    };
    let all: Vec<u8> =
        value.as_array().unwrap_or_else(|| panic!("no bytes: {value}")).iter().map(byte).collect();
    all.try_into().unwrap()
}

fn address(value: &Value) -> String {
    Ipv4Addr::from(bytes::<4>(&value["octets"])).to_string()
}

fn mac(value: &Value) -> String {
    bytes::<6>(value).map(|byte| format!("{byte:02x}")).join(":")
}

fn sum(values: &[Value], field: impl Fn(&Value) -> &Value) -> u64 {
    values.iter().map(|value| field(value).as_u64().unwrap()).sum()
}

#[test]
fn bpftool_alone_answers_what_the_commands_do() {
    let mut bed = Bed::new(Kind::Folder, 3);
    bed.learn_all();
    transfer(&bed[0].containers[0], &bed[2].containers[1], 1 << 20).unwrap();
    let agents = bed.members.iter_mut();
    agents.for_each(|member| member.kill_agent().unwrap());

    let mut shown = Vec::new();
    let traffic: BTreeMap<u64, Vec<Value>> = dump(&bed, 0, "peer_counters")
        .into_iter()
        .map(|(key, values)| (key.as_u64().unwrap(), values))
        .collect();
    for (subnet, peer) in dump(&bed, 0, "peers") {
        let peer = &peer[0];
        let counts = &traffic[&peer["slot"].as_u64().unwrap()];
        shown.push(serde_json::json!({
            "subnet": address(&subnet),
            "public_ip": address(&peer["outer"]),
            "vtep_mac": mac(&peer["vtep_mac"]),
            "installed": "yes",
            "sent_packets": sum(counts, |count| &count["sent"]["packets"]),
            "sent_bytes": sum(counts, |count| &count["sent"]["bytes"]),
            "received_packets": sum(counts, |count| &count["received"]["packets"]),
            "received_bytes": sum(counts, |count| &count["received"]["bytes"]),
        }));
    }
    shown.sort_by_key(|row| row["subnet"].as_str().unwrap().parse::<Ipv4Addr>().unwrap());
    assert_eq!(Value::Array(shown.clone()), json(&bed[0], &["peers"]));
    assert_eq!(shown.len(), 2);
    assert!(shown.iter().all(|row| row["sent_packets"].as_u64() > Some(0)), "{shown:?}");

    let shown: BTreeMap<String, (u64, String)> = dump(&bed, 0, "endpoints")
        .into_iter()
        .map(|(key, value)| (address(&key), (value[0]["ifindex"].as_u64().unwrap(), mac(&value[0]["mac"]))))
        .collect();
    let rows = json(&bed[0], &["endpoints"]);
    let row = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        (text("address"), (row["ifindex"].as_u64().unwrap(), text("mac")))
    };
    assert_eq!(shown, rows.as_array().unwrap().iter().map(row).collect());
    assert_eq!(shown.len(), 2);

    let counters = bed[0].counters().unwrap();
    let shown: BTreeMap<u64, u64> = dump(&bed, 0, "counters")
        .into_iter()
        .map(|(key, values)| (key.as_u64().unwrap(), sum(&values, |count| &count["packets"])))
        .filter(|(_, packets)| *packets > 0)
        .collect();
    let index = |hook: Hook, reason: Reason| u64::from(hook as u32 * REASONS + reason as u32);
    let expected = counters.all().iter().map(|(hook, reason, packets, _)| (index(*hook, *reason), *packets));
    assert_eq!(shown, expected.collect());
    assert!(shown.contains_key(&index(Hook::Decap, Reason::Carried)));
}

#[test]
fn without_the_fast_path_the_stack_carries_everything() {
    let bed = Bed::with(Kind::Folder, Options::default(), &["--fast-path", "off"]);
    bed.learn_all();
    let (a, b) = bed.pair();
    transfer(a, b, 20 << 20).unwrap();
    transfer(b, a, 20 << 20).unwrap();
    for member in &bed.members {
        let counters = member.counters().unwrap();
        let carried = counters.carried();
        assert_eq!((carried.fast_out, carried.fast_in, carried.dropped), (0, 0, 0), "{counters:?}");
        let segments = (20 << 20) / 1400;
        assert!(carried.stack_out > segments && carried.stack_in > segments, "{carried:?}");
        let tier = json(member, &["status"])["tiers"][1].clone();
        assert_eq!((&tier["name"], &tier["in_use"]), (&"tc".into(), &false.into()), "{tier}");
    }
}

/// What one host counted between two moments, by hook and reason.
struct Delta(Counters, Counters);

impl Delta {
    fn of(&self, hook: Hook, reason: Reason) -> u64 {
        self.1.packets(hook, reason) - self.0.packets(hook, reason)
    }

    /// Packets that ended at `hook` under another reason than being carried.
    fn not_carried(&self, hook: Hook) -> u64 {
        let stays = |verdict| !matches!(verdict, Verdict::Carried | Verdict::Event);
        let reasons = Reason::ALL.iter().filter(|reason| stays(reason.verdict()));
        reasons.map(|reason| self.of(hook, *reason)).sum()
    }

    fn dropped(&self, hook: Hook) -> u64 {
        let ends = |verdict| matches!(verdict, Verdict::Drop | Verdict::Answered);
        let reasons = Reason::ALL.iter().filter(|reason| ends(reason.verdict()));
        reasons.map(|reason| self.of(hook, *reason)).sum()
    }
}

/// Sends numbered packets from `from` to `to`, and returns what the first two hosts counted meanwhile.
fn counted(bed: &Bed, from: &Container, to: &Container) -> (NumberedReport, [Delta; 2]) {
    let counters = || [0, 1].map(|host| bed[host].counters().unwrap());
    let before = counters();
    let stream = Numbered::start(from, to, 5000).unwrap();
    thread::sleep(Duration::from_secs(1));
    let report = stream.finish().unwrap();
    let [a, b] = counters();
    let [c, d] = before;
    (report, [Delta(c, a), Delta(d, b)])
}

#[test]
fn every_packet_sent_is_accounted_for() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    let (a, b) = (a.clone(), b.clone());
    let check = |bed: &Bed, what: &str| {
        let (report, [sender, receiver]) = counted(bed, &a, &b);
        println!("{what}: {report:?}");
        let sent = report.sent;
        // At the sending container's port each packet is encapsulated, left to the stack, or dropped.
        assert_eq!(sent, sender.of(Hook::Encap, Reason::Carried) + sender.not_carried(Hook::Encap), "{what}");
        let left = sender.of(Hook::Encap, Reason::Carried) + sender.of(Hook::Send, Reason::Carried);
        let ended = sender.dropped(Hook::Encap) + sender.dropped(Hook::Send);
        assert_eq!(sent, left + ended, "{what}");
        // At the other host each packet is delivered by one of the tiers, or dropped.
        let delivered =
            receiver.of(Hook::Decap, Reason::Carried) + receiver.of(Hook::Receive, Reason::Carried);
        let lost = receiver.dropped(Hook::Decap) + receiver.dropped(Hook::Receive);
        assert_eq!(left, delivered + lost, "{what}");
        assert_eq!((report.received, report.lost), (delivered, ended + lost), "{what}");
        // What most packets must have in common: how many can be sent is the machine's business.
        (sent / 5 * 4, [sender, receiver])
    };

    let (most, [sender, receiver]) = check(&bed, "fast path");
    let (out, inwards) = (sender.of(Hook::Encap, Reason::Carried), receiver.of(Hook::Decap, Reason::Carried));
    assert!(out > most && out == inwards, "{out} {inwards}");

    // The destination is no longer in the receiving host's map of endpoints, so the stack delivers.
    bed[1].kill_agent().unwrap();
    let [.., number] = b.address().octets();
    forget(&bed, "endpoint_index", number, 20);
    let (most, [_, receiver]) = check(&bed, "receiver not learned");
    let stack = receiver.of(Hook::Receive, Reason::Carried);
    assert!(stack > most && stack == receiver.of(Hook::Decap, Reason::Unlearned), "{stack}");

    // The receiving host does not know the sender, so it drops the packets.
    let pin = pins(&bed[1]).join("vteps");
    let vteps = bed[0].host.address().octets().map(|octet| octet.to_string()).join(" ");
    overlay_lab::command::sh(&format!("bpftool map delete pinned {} key {vteps}", pin.display())).unwrap();
    let base: Ipv4Addr = bed[0].subnet.trim_end_matches("/24").parse().unwrap();
    let [_, _, number, _] = base.octets();
    forget(&bed, "peer_index", number, 16);
    let (most, [_, receiver]) = check(&bed, "sender not known");
    assert!(receiver.of(Hook::Decap, Reason::UnknownPeer) > most);

    // The sending host knows no peer for the destination, so it answers.
    let key = super::bed::lease_key(&bed[1].subnet);
    bed.etcd().ctl(&["del", &key]).unwrap();
    wait_for("no peer", || peers(&bed[0]).is_empty());
    let (most, [sender, _]) = check(&bed, "no peer");
    assert!(sender.of(Hook::Encap, Reason::NoPeer) > most);

    // A new agent repairs all of it.
    bed[1].restart_agent().unwrap();
    bed.wait_for_peers(1);
    assert_reaches(&a, b.address());
}

/// Makes the second host's programs find nothing at this number of an index.
fn forget(bed: &Bed, index: &str, number: u8, length: usize) {
    let (pin, zeros) = (pins(&bed[1]).join(index), vec!["0"; length].join(" "));
    let update = format!("map update pinned {} key {number} 0 0 0 value {zeros}", pin.display());
    overlay_lab::command::sh(&format!("bpftool {update}")).unwrap();
}

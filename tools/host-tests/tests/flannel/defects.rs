//! Defects of flannel on a single host, which our agent must not have.
use overlay_lab::Numbered;
use serde_json::Value;

use super::bed::{Bed, Mode, cases, lease_key, wait_for};

fn index(bed: &Bed) -> Option<u64> {
    let link = bed.ours[0].host.exec("ip -j link show dev overlay0").ok()?;
    serde_json::from_str::<Value>(&link).ok()?[0]["ifindex"].as_u64()
}

#[test]
fn d3_a_tunnel_device_that_is_deleted_comes_back_as_it_was() {
    for (flannel, mode) in cases(&Mode::ALL) {
        let mut bed = Bed::of(mode, &flannel, 1, 1);
        bed.learn_all();
        let (a, b) = bed.pair();
        let streams = [(a, b), (b, a)].map(|(from, to)| Numbered::start(from, to, 1000).unwrap());
        let (mac, old) = (bed.our_mac(), index(&bed));
        let key = lease_key(&bed.ours[0].subnet);
        let lease = bed.get(&key);
        // The hosts themselves are no ports, so their packets go through the device.
        let hosts_talk = |bed: &Bed| {
            let (ours, theirs) = (&bed.ours[0], &bed.flannel[0]);
            let ping = |host: &overlay_lab::Host, to| host.exec(&format!("ping -n -c 1 -W 0.5 {to}")).is_ok();
            ping(&ours.host, theirs.container.address()) && ping(&theirs.host, ours.containers[0].address())
        };
        assert!(hosts_talk(&bed));

        bed.ours[0].host.namespace().ip("link delete overlay0").unwrap();
        wait_for("another overlay0", || index(&bed).is_some() && index(&bed) != old);
        wait_for("the hosts' own packets", || hosts_talk(&bed));
        assert_eq!(bed.our_mac(), mac);
        assert_eq!(bed.get(&key), lease, "nobody has to be told anything");
        for stream in streams {
            bed.assert_none_lost(&stream.finish().unwrap());
        }
    }
}

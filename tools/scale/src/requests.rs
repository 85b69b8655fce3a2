//! What single requests cost etcd. Hosts make most of them so seldom that no run is long enough to see them.
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use overlay_user::store::{Store as _, Written};

use crate::{
    cost::Meter,
    results::{Request, Results},
    stage::Stage,
};

pub(crate) const COUNT: &str = "own key, newest key, number of keys";
pub(crate) const ALL: &str = "all keys";
pub(crate) const RENEWAL: &str = "renewal of a lease (three requests)";

/// How many counts there are for one reading of all keys.
const READINGS: u32 = 25;

/// Makes so many requests of each kind, one after the other, and puts into the results what they cost.
pub(crate) async fn measure(stage: &mut Stage, count: u32, results: &mut Results) -> Result<()> {
    eprintln!("{} hosts: what single requests cost", stage.hosts.len());
    let (key, day) = ("10.255.255.0-24", Some(Duration::from_secs(24 * 60 * 60)));
    let Written::At(modified) = stage.writer().claim(key, Bytes::from_static(b"{}"), day).await? else {
        anyhow::bail!("{key} is there already");
    };
    let leases = stage.writer().snapshot().await?.entries.len();
    for (name, count) in [(COUNT, count), (ALL, (count / READINGS).max(1)), (RENEWAL, count)] {
        let meter = Meter::start(&stage.members)?;
        for _ in 0..count {
            let store = stage.writer();
            match name {
                COUNT => drop(store.tally(&[key, key]).await?),
                ALL => drop(store.cheap_snapshot().await?),
                _ => ensure!(store.prolong(key, modified, day).await? == Written::At(modified), "no renewal"),
            }
        }
        let cpu_s = meter.read(&stage.members)?.etcd_cpu_s / f64::from(count);
        results.requests.push(Request { name: name.to_owned(), cpu_s, leases });
    }
    ensure!(stage.writer().release(key, modified).await? != Written::Lost, "the key was altered");
    Ok(())
}

//! What a host's own kernel counted about the frames that our programs left to it.
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use overlay_lab::Namespace;

/// Counters by name: `Ip.InHdrErrors`, `eth0.rx_packets`, ...
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelCounters(BTreeMap<String, i64>);

impl KernelCounters {
    pub(crate) fn read(namespace: &Namespace) -> Result<Self> {
        let mut counters = BTreeMap::new();
        for file in ["/proc/net/snmp", "/proc/net/netstat"] {
            // The file shows the counters of the calling thread's namespace.
            let text = namespace
                .enter(move || Ok(std::fs::read_to_string(file.replace("/proc/", "/proc/thread-self/"))?))?;
            let lines: Vec<_> = text.lines().collect();
            for pair in lines.chunks(2) {
                let (names, values) = (pair[0], pair.get(1).context("a line of values")?);
                let protocol = names.split(':').next().unwrap_or_default();
                for (name, value) in names.split(' ').zip(values.split(' ')).skip(1) {
                    counters.insert(format!("{protocol}.{name}"), value.parse()?);
                }
            }
        }
        let links: serde_json::Value = serde_json::from_str(&namespace.exec("ip -j -s -s link show")?)?;
        for link in links.as_array().context("no links")? {
            let device = link["ifname"].as_str().context("a link without a name")?;
            for (name, value) in link["stats64"]["rx"].as_object().context("no counters")? {
                counters.insert(format!("{device}.rx_{name}"), value.as_i64().unwrap_or_default());
            }
        }
        Ok(Self(counters))
    }

    /// What changed since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let changed = self.0.iter().filter_map(|(name, now)| {
            let difference = now - before.get(name);
            (difference != 0).then(|| (name.clone(), difference))
        });
        Self(changed.collect())
    }

    /// The value of a counter, or zero if there is none of this name.
    pub(crate) fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// All of them.
    pub(crate) fn all(&self) -> &BTreeMap<String, i64> {
        &self.0
    }
}

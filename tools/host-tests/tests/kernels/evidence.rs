//! How a host is set up in fact, according to the kernel. What the agent says about it must be the same.
use aya::programs::{SchedClassifier, TcAttachType};
use overlay_lab::Member;
use serde_json::Value;

/// What was found on one host.
#[derive(Debug, PartialEq, Eq)]
pub struct Evidence {
    containers: String,
    underlay: String,
    /// Features that not every kernel has: name, and whether this kernel has it.
    features: Vec<(String, String)>,
}

pub fn of(member: &Member) -> Evidence {
    let at_tc = |interface, program| at_tc(member, interface, program);
    let xdp = match json(member, "ip -j link show dev eth0")[0]["xdp"]["mode"].as_u64() {
        // XDP_ATTACHED_DRV and XDP_ATTACHED_SKB of linux/if_link.h.
        Some(1) => Some("native XDP".to_owned()),
        Some(2) => Some("generic XDP".to_owned()),
        Some(mode) => Some(format!("XDP in mode {mode}")),
        None => None,
    };
    let status: Value = serde_json::from_str(&member.overlay(&["status", "--json"]).unwrap()).unwrap();
    let containers = at_tc(member.containers[0].port(), "overlay_encap").unwrap();
    assert_eq!(status["attached_by"], containers.to_lowercase().as_str(), "{status:#}");
    let underlay: Vec<_> = xdp.into_iter().chain(at_tc("eth0", "overlay_decap")).collect();
    Evidence { containers, underlay: underlay.join(", then "), features: features(member, &status) }
}

/// Major and minor number of the kernel that runs.
pub fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

impl Evidence {
    /// The host's rows in its section of docs/kernels.md.
    pub fn facts(&self) -> [(&str, &str); 2] {
        [("attached at containers by", &self.containers), ("attached at the underlay by", &self.underlay)]
    }

    /// The rows that are the same for every setup.
    pub fn features(&self) -> impl Iterator<Item = (&str, &str)> {
        self.features.iter().map(|(name, how)| (name.as_str(), how.as_str()))
    }
}

/// What `overlay status` says about the kernel. Where the kernel can be asked by other means, the answers must agree.
fn features(member: &Member, status: &Value) -> Vec<(String, String)> {
    let overlay0 = json(member, "ip -j -d link show dev overlay0");
    let kind = &overlay0[0]["linkinfo"]["info_kind"];
    let seen = |name: &str| match name {
        "TCX" => Some(tcx(member, "eth0").is_some()),
        // Only a VXLAN device shows this.
        "vnifilter" => (kind == "vxlan").then(|| overlay0[0]["linkinfo"]["info_data"]["vnifilter"] == true),
        _ => None,
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let feature = |feature: &Value| {
        let (name, present) = (text(&feature["name"]), feature["present"].as_bool());
        assert!(seen(&name).is_none_or(|seen| Some(seen) == present), "{name} is not {present:?}");
        let how = match present {
            Some(true) => "yes".to_owned(),
            Some(false) => format!("no; instead: {}", text(&feature["instead"])),
            None => "the kernel does not say".to_owned(),
        };
        (name, how)
    };
    // A feature that this backend does not use is shown by another test.
    let says = |feature: &&Value| kind == "vxlan" || feature["name"] != "vnifilter";
    status["features"].as_array().unwrap().iter().filter(says).map(feature).collect()
}

/// How a program is attached at the ingress of an interface, if it is.
fn at_tc(member: &Member, interface: &str, program: &str) -> Option<String> {
    // The kernel cuts a program's name to 15 bytes.
    let by_tcx =
        tcx(member, interface).is_some_and(|names| names.iter().any(|name| program.starts_with(name)));
    let filters = member.host.exec(&format!("tc filter show dev {interface} ingress")).unwrap();
    match (by_tcx, filters.contains(program)) {
        (true, false) => Some("TCX".to_owned()),
        (false, true) => Some("clsact".to_owned()),
        (false, false) => None,
        (true, true) => panic!("{program} hangs at {interface} twice: {filters}"),
    }
}

/// Names of the programs at the TCX hook of an interface's ingress. There are none on a kernel without TCX, which
/// returns an error.
fn tcx(member: &Member, interface: &str) -> Option<Vec<String>> {
    let name = interface.to_owned();
    let asked = member.host.namespace().enter(move || {
        let answer = SchedClassifier::query_tcx(&name, TcAttachType::Ingress);
        let name =
            |program: &aya::programs::ProgramInfo| program.name_as_str().unwrap_or_default().to_owned();
        Ok(answer.ok().map(|(_, programs)| programs.iter().map(name).collect()))
    });
    asked.unwrap()
}

fn json(member: &Member, line: &str) -> Value {
    let text = member.host.exec(line).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

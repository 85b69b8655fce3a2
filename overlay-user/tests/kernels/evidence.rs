//! How a host is set up in fact, as the kernel tells it and not the agent.
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::Value;
use xtask::lab::Member;

/// What was found on one host.
#[derive(Debug, PartialEq, Eq)]
pub struct Evidence {
    attached: String,
    underlay: String,
    vnifilter: String,
}

pub fn of(member: &Member) -> Evidence {
    let port = member.containers[0].port();
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let overlay0 = json(member, "ip -j -d link show dev overlay0");
    Evidence {
        attached: attached(member, port, "overlay_encap"),
        underlay: match json(member, "ip -j link show dev eth0")[0]["xdp"]["mode"].as_u64() {
            // XDP_ATTACHED_DRV and XDP_ATTACHED_SKB of linux/if_link.h.
            Some(1) => "native XDP".to_owned(),
            Some(2) => "generic XDP".to_owned(),
            Some(other) => format!("XDP in mode {other}"),
            None => attached(member, "eth0", "overlay_decap"),
        },
        vnifilter: yes(overlay0[0]["linkinfo"]["info_data"]["vnifilter"] == true),
    }
}

impl Evidence {
    /// Its rows in docs/kernels.md.
    pub fn facts(&self) -> [(&str, &str); 3] {
        [
            ("attached at containers by", &self.attached),
            ("attached at the underlay by", &self.underlay),
            ("vnifilter on overlay0", &self.vnifilter),
        ]
    }
}

/// How a program hangs at the ingress of an interface.
fn attached(member: &Member, interface: &str, program: &str) -> String {
    let (name, wanted) = (interface.to_owned(), program.to_owned());
    // The kernel cuts a program's name to 15 bytes.
    let by_tcx = member.host.namespace().enter(move || {
        // Kernels before 6.6 refuse the question.
        let Ok((_, programs)) = SchedClassifier::query_tcx(&name, TcAttachType::Ingress) else {
            return Ok(false);
        };
        Ok(programs.iter().any(|found| found.name_as_str().is_some_and(|name| wanted.starts_with(name))))
    });
    let filters = member.host.exec(&format!("tc filter show dev {interface} ingress")).unwrap();
    let by_filter = filters.contains(program);
    match (by_tcx.unwrap(), by_filter) {
        (true, false) => "TCX".to_owned(),
        (false, true) => "clsact".to_owned(),
        (tcx, filter) => panic!("{program} at {interface}: by TCX {tcx}, by clsact {filter}: {filters}"),
    }
}

fn json(member: &Member, line: &str) -> Value {
    let text = member.host.exec(line).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

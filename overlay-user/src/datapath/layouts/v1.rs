//! Map layout 1: 32 reasons for each hook, and names that have changed since.
//!
//! Peers, VTEPs, endpoints, stack flows and their marks, XDP targets and the counters of peers are what they are today, some
//! under another name. The counters by hook and reason are an array of 6 rows and 32 columns.
use super::reader::{Reader, old_counters};

pub(super) const READER: Reader = Reader {
    abi: 1,
    shared: &[
        ("peers", "peers"),
        ("vteps", "vteps"),
        ("endpoints", "endpoints"),
        ("flows", "stack_flows"),
        ("peer_counters", "peer_counters"),
    ],
    shared_if_there: &[
        ("noted", "flow_marks"),
        ("noted_half", "flow_marks_half"),
        ("receivers", "xdp_targets"),
    ],
    sized: ["peers", "flows"],
    renamed_links: &[("note", "track")],
    peers: None,
    endpoints: None,
    stack_flows: None,
    counters: Some(|folder| old_counters(folder, "counters", 6, 32)),
};

//! The headline: four quantities that say most, of ours beside what a reader may use today.
use super::{
    super::{
        options::Underlay,
        results::{BASIS, Results},
    },
    panel::Panel,
};

/// Measures, and what they are called for who has not read how they are taken.
const PANELS: [(&str, &str); 4] = [
    ("packets of 64 bytes, container to container", "small packets per second"),
    ("TCP request/response, 1 flow, p50", "time of a TCP request and response"),
    ("1 TCP stream", "throughput of one TCP stream"),
    ("TCP connect/request/response, p50", "time of a TCP connection with one request"),
];

/// Cases, and what they are called.
const CASES: [(&str, &str); 5] = [
    (BASIS, "plain route, no overlay"),
    ("kernel VXLAN", "the kernel's VXLAN device"),
    ("userspace relay", "relay as in flannel's UDP mode"),
    ("vxlan", "this overlay, VXLAN"),
    ("udp", "this overlay, UDP"),
];

/// Title and panels, of the underlay that is most like a real one. None if nothing of it was measured.
pub(super) fn headline(results: &Results) -> Option<(String, Vec<Panel>)> {
    let of = |underlay: Underlay| {
        let panel = |(name, title): &(&str, &str)| {
            let same = results
                .measures
                .iter()
                .find(|measured| measured.underlay == underlay.name() && measured.name == *name);
            Some(Panel::of_cases(same?, title, &CASES)).filter(|panel| !panel.is_empty())
        };
        let panels: Vec<_> = PANELS.iter().filter_map(panel).collect();
        (!panels.is_empty()).then_some((underlay, panels))
    };
    let (underlay, panels) = of(Underlay::WireLike).or_else(|| of(Underlay::Veth))?;
    let wire = match underlay {
        Underlay::WireLike => "a link that behaves like a real one",
        Underlay::Veth => "a virtual link",
    };
    Some((format!("Between containers of two hosts, over {wire}: ratios to a plain route"), panels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_shown_of_the_underlay_that_is_most_real() {
        let mut results = Results::default();
        assert!(headline(&results).is_none());
        for (underlay, name) in [("veth", PANELS[0].0), ("veth", PANELS[2].0), ("veth", "something else")] {
            let measured = results.measured(underlay, name, "1/s", true);
            for case in [BASIS, "vxlan", "host-gw"] {
                measured.add(case, Ok(2.0));
            }
            measured.conclude();
        }
        let (title, panels) = headline(&results).unwrap();
        assert!(title.contains("a virtual link"), "{title}");
        assert_eq!(panels.len(), 2);
        let measured = results.measured("wire-like", PANELS[1].0, "us", false);
        measured.add(BASIS, Ok(1.0));
        measured.conclude();
        let (title, panels) = headline(&results).unwrap();
        assert!(title.contains("like a real one"), "{title}");
        assert_eq!(panels.len(), 1);
    }
}

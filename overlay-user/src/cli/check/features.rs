//! Features that the overlay uses and this kernel lacks, which is found out by trying, and what takes their place.
use serde::Serialize;

use super::finding::{Finding, Level};
use crate::{
    datapath::links::AttachMethod,
    host::netlink::{Link, LinkKind},
};

/// A kernel feature that the overlay uses, and that some of the kernels on which it runs lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// The feature's name.
    pub name: &'static str,
    /// Whether this kernel has the feature; `None` if that cannot be found out.
    pub present: Option<bool>,
    /// What takes its place where it is missing.
    pub instead: &'static str,
    /// Whether the overlay loses a function without this feature.
    #[serde(skip)]
    lossy: bool,
}

/// All features that are looked for. For some of them only the tunnel device tells whether the kernel has them.
pub fn features(device: Option<&Link>) -> Vec<Feature> {
    vec![tcx(AttachMethod::best().ok()), vnifilter(device)]
}

/// TCX came with commit e420bed02507 (Linux 6.6).
fn tcx(best: Option<AttachMethod>) -> Feature {
    Feature {
        name: "TCX",
        present: best.map(|way| way == AttachMethod::Tcx),
        instead: "clsact filters",
        lossy: false,
    }
}

/// vnifilter came with commit f9c4bb0b245c (Linux 5.18). Older kernels make the device and ignore the wish, so that only the
/// device itself tells.
fn vnifilter(device: Option<&Link>) -> Feature {
    Feature {
        name: "vnifilter",
        present: device.and_then(|link| match link.kind {
            LinkKind::Vxlan(vxlan) => Some(vxlan.vnifilter),
            _ => None,
        }),
        instead: "the program at the tunnel device drops and counts foreign VNIs; no other network can share the UDP port",
        lossy: true,
    }
}

pub(super) fn findings(features: &[Feature]) -> Vec<Finding> {
    let finding = |feature: &Feature| match feature.present {
        Some(true) => Some(Finding::ok(feature.name, "the kernel has it")),
        Some(false) => {
            let level = if feature.lossy { Level::Warn } else { Level::Ok };
            Some(Finding::new(
                feature.name,
                level,
                format!("not in this kernel; instead: {}", feature.instead),
                "",
            ))
        }
        None => None,
    };
    features.iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_replacement() {
        let found = findings(&[tcx(Some(AttachMethod::Clsact))]);
        assert_eq!((found[0].what.as_str(), found[0].level), ("TCX", Level::Ok));
        assert_eq!(found[0].detail, "not in this kernel; instead: clsact filters");
        assert_eq!(findings(&[tcx(Some(AttachMethod::Tcx))])[0].detail, "the kernel has it");
        // There is neither the right nor a device to find out with, so nothing is claimed.
        assert_eq!(findings(&[tcx(None), vnifilter(None)]), []);
    }

    #[test]
    fn a_device_that_does_not_filter_is_found() {
        let device = |vnifilter| {
            let vxlan = crate::host::netlink::Vxlan { vni: 0, port: 8472, collect_metadata: true, vnifilter };
            vnifilter_of(LinkKind::Vxlan(vxlan))
        };
        assert_eq!(device(true)[0].level, Level::Ok);
        let found = device(false);
        assert_eq!(found[0].level, Level::Warn);
        assert!(found[0].detail.contains("drops and counts foreign VNIs"), "{found:?}");
    }

    fn vnifilter_of(kind: LinkKind) -> Vec<Finding> {
        findings(&[vnifilter(Some(&Link::example(1, "overlay0", kind)))])
    }
}

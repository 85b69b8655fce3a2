//! Whose a bar is, by its colour: ours has one hue, all others have blue or grey. The two differ for those who do not see colours,
//! too, and in print.
use plotters::style::RGBColor;

use super::super::{network::Case, results::Measured};

const OURS: RGBColor = RGBColor(222, 110, 18);
const OTHERS: RGBColor = RGBColor(96, 134, 180);
const BASIS: RGBColor = RGBColor(165, 165, 165);

/// What the colours mean.
pub(super) const LEGEND: [(RGBColor, &str); 3] =
    [(OURS, "this overlay"), (OTHERS, "other networks"), (BASIS, "what the ratios are taken to")];

/// The colour of the bar of a case.
pub(super) fn colour(measured: &Measured, case: &str) -> RGBColor {
    if measured.is_basis(case) {
        BASIS
    } else if is_ours(measured, case) {
        OURS
    } else {
        OTHERS
    }
}

/// Cases are networks, or numbers of flows or peers in one network, which the measure is then named after. Only ours has peers.
fn is_ours(measured: &Measured, case: &str) -> bool {
    let network = match measured.name.split_once(" by flows, ") {
        Some((_, network)) => network,
        None if measured.name.contains(" by peers") => return true,
        None => case,
    };
    Case::is_called_ours(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::results::{BASIS as BARE, Results, TWIN};

    #[test]
    fn ours_is_told_from_others() {
        let mut results = Results::default();
        let packets = results.measured("veth", "packets of 64 bytes", "1/s", true).clone();
        for case in ["vxlan", "vxlan, xdp-strip", "vxlan, other build", "udp", "host-gw"] {
            assert_eq!(colour(&packets, case), OURS, "{case}");
        }
        for case in ["kernel VXLAN", "userspace relay", "direct veth", "floor"] {
            assert_eq!(colour(&packets, case), OTHERS, "{case}");
        }
        assert_eq!([BARE, TWIN].map(|case| colour(&packets, case)), [BASIS; 2]);
        let mut of = |name: &str, basis: &str| {
            let measured = results.measured("veth", name, "1/s", true);
            measured.basis = basis.to_owned();
            measured.clone()
        };
        let flows = of("packets of 64 bytes by flows, vxlan, xdp", "1 flow");
        assert_eq!(["1 flow", "8 flows"].map(|case| colour(&flows, case)), [BASIS, OURS]);
        let flows = of("packets of 64 bytes by flows, kernel VXLAN", "1 flow");
        assert_eq!(colour(&flows, "8 flows"), OTHERS);
        let peers = of("packets of 64 bytes by peers, encapsulation alone", "1 peer");
        assert_eq!(colour(&peers, "100000 peers"), OURS);
    }
}

//! The results as pictures: a headline of four panels, and for each underlay all panels as an annex. Every panel has ratios as
//! bars, ours in one colour and everybody else in others.
use std::path::Path;

use anyhow::Result;

use self::{headline::headline, panel::Panel};
use super::results::{Measured, Results};
use crate::picture::{Picture, read_font};

mod headline;
mod panel;
mod whose;

/// In the annex.
const COLUMNS: usize = 3;

/// Writes `headline` and `<underlay>` into `folder`, each as SVG and PNG.
pub(super) fn draw(results: &Results, folder: &Path) -> Result<()> {
    read_font()?;
    if let Some((title, panels)) = headline(results) {
        Picture { title: &title, legend: &whose::LEGEND, columns: 2, panels }.write(folder, "headline")?;
    }
    let mut underlays: Vec<&str> =
        results.measures.iter().map(|measured| measured.underlay.as_str()).collect();
    underlays.dedup();
    for underlay in underlays {
        let of = |measured: &&Measured| {
            measured.underlay == underlay && measured.cases.iter().any(|case| case.ratio.is_some())
        };
        let panels: Vec<_> = results.measures.iter().filter(of).map(Panel::of).collect();
        if !panels.is_empty() {
            let title = format!("All measures on the underlay {underlay}, as ratios with their quartiles");
            Picture { title: &title, legend: &whose::LEGEND, columns: COLUMNS, panels }
                .write(folder, underlay)?;
        }
    }
    Ok(())
}

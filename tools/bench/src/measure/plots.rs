//! The results as pictures: a headline of four panels, and for each underlay all panels as an annex. Every panel has ratios as
//! bars, ours in one colour and everybody else in others.
use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

use self::{
    headline::headline,
    panel::{Panel, said},
};
use super::results::{Measured, Results};

mod headline;
mod panel;
mod whose;

/// The font is in Debian's package fonts-dejavu-core.
const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const PANEL: (u32, u32) = (560, 320);
/// In the annex.
const COLUMNS: usize = 3;

/// Writes `headline` and `<underlay>` into `folder`, each as SVG and PNG.
pub(super) fn draw(results: &Results, folder: &Path) -> Result<()> {
    let font = fs::read(FONT).with_context(|| format!("read {FONT} (Debian's fonts-dejavu-core)"))?;
    // The font is kept for the rest of the process, which is about to end.
    register_font("sans-serif", FontStyle::Normal, font.leak()).map_err(|_| anyhow!("{FONT} is no font"))?;
    if let Some((title, panels)) = headline(results) {
        Sheet { title: &title, columns: 2, panels }.write(folder, "headline")?;
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
            Sheet { title: &title, columns: COLUMNS, panels }.write(folder, underlay)?;
        }
    }
    Ok(())
}

/// A picture.
struct Sheet<'a> {
    title: &'a str,
    columns: usize,
    panels: Vec<Panel>,
}

/// Height of the title and of what the colours mean.
const HEAD: u32 = 60;

impl Sheet<'_> {
    fn write(&self, folder: &Path, name: &str) -> Result<()> {
        let rows = self.panels.len().div_ceil(self.columns);
        let size = (PANEL.0 * u32::try_from(self.columns)?, HEAD + PANEL.1 * u32::try_from(rows)?);
        let path = |end: &str| folder.join(format!("{name}.{end}"));
        let (svg, png) = (path("svg"), path("png"));
        self.draw(&SVGBackend::new(&svg, size).into_drawing_area(), rows)
            .with_context(|| format!("draw {}", svg.display()))?;
        self.draw(&BitMapBackend::new(&png, size).into_drawing_area(), rows)
            .with_context(|| format!("draw {}", png.display()))
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, rows: usize) -> Result<()> {
        area.fill(&WHITE).map_err(said)?;
        let (head, body) = area.split_vertically(HEAD);
        head.draw(&Text::new(self.title.to_owned(), (12, 10), ("sans-serif", 18))).map_err(said)?;
        let mut left = 12;
        for (colour, meaning) in whose::LEGEND {
            head.draw(&Rectangle::new([(left, 38), (left + 14, 50)], colour.filled())).map_err(said)?;
            head.draw(&Text::new(meaning, (left + 20, 38), ("sans-serif", 13))).map_err(said)?;
            left += 280;
        }
        for (part, panel) in body.split_evenly((rows, self.columns)).iter().zip(&self.panels) {
            panel.draw(part)?;
        }
        area.present().map_err(said)
    }
}

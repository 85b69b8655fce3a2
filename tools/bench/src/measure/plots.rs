//! The results as pictures: one sheet for each underlay, a panel for each quantity, ratios as bars with their quartiles.
use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

use super::results::{Measured, Results};

/// In Debian's fonts-dejavu-core.
const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const PANEL: (u32, u32) = (560, 320);
const COLUMNS: usize = 3;
/// A bar that is longer ends here, and only its number says how long it is: a relay's CPU time, or a veth's packets, would
/// make all others look the same.
const LONGEST: f64 = 4.0;

/// Writes `<folder>/<underlay>.svg` and `.png`.
pub(super) fn draw(results: &Results, folder: &Path) -> Result<()> {
    let font = fs::read(FONT).with_context(|| format!("read {FONT} (Debian's fonts-dejavu-core)"))?;
    // For the rest of the process, which is about to end.
    register_font("sans-serif", FontStyle::Normal, font.leak()).map_err(|_| anyhow!("{FONT} is no font"))?;
    let mut underlays: Vec<&str> =
        results.measures.iter().map(|measured| measured.underlay.as_str()).collect();
    underlays.dedup();
    for underlay in underlays {
        let of = |measured: &&Measured| {
            measured.underlay == underlay && measured.cases.iter().any(|case| case.ratio.is_some())
        };
        let measures: Vec<_> = results.measures.iter().filter(of).collect();
        if measures.is_empty() {
            continue;
        }
        let rows = measures.len().div_ceil(COLUMNS);
        let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * u32::try_from(rows)?);
        let path = |end: &str| folder.join(format!("{underlay}.{end}"));
        let (svg, png) = (path("svg"), path("png"));
        sheet(&SVGBackend::new(&svg, size).into_drawing_area(), rows, &measures)
            .with_context(|| format!("draw {}", svg.display()))?;
        sheet(&BitMapBackend::new(&png, size).into_drawing_area(), rows, &measures)
            .with_context(|| format!("draw {}", png.display()))?;
    }
    Ok(())
}

/// The backends' errors borrow from nothing, but their type differs.
fn said<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("{error}")
}

fn sheet<B: DrawingBackend>(area: &DrawingArea<B, Shift>, rows: usize, measures: &[&Measured]) -> Result<()> {
    area.fill(&WHITE).map_err(said)?;
    for (panel, measured) in area.split_evenly((rows, COLUMNS)).iter().zip(measures) {
        bars(panel, measured)?;
    }
    area.present().map_err(said)
}

fn bars<B: DrawingBackend>(area: &DrawingArea<B, Shift>, measured: &Measured) -> Result<()> {
    let cases: Vec<_> =
        measured.cases.iter().filter_map(|case| Some((case.case.as_str(), case.ratio?))).collect();
    let most = cases
        .iter()
        .map(|(_, ratio)| ratio.upper_quartile.max(ratio.median))
        .fold(1.0, f64::max)
        .min(LONGEST);
    let sign = if measured.more_is_better { "more is better" } else { "less is better" };
    let title = format!("{} ({sign})", measured.name);
    let last = cases.len().saturating_sub(1);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(140)
        .build_cartesian_2d(0.0..most * 1.15, (0..last).into_segmented())
        .map_err(said)?;
    // From above in the table's order.
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) | SegmentValue::Exact(index) => last
            .checked_sub(*index)
            .and_then(|index| cases.get(index))
            .map_or("", |(name, _)| name)
            .to_owned(),
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(cases.len())
        .y_label_formatter(&name)
        .x_labels(6)
        .label_style(("sans-serif", 12))
        .draw()
        .map_err(said)?;
    for (index, (name, ratio)) in cases.iter().enumerate() {
        let index = last - index;
        let colour = if measured.is_basis(name) { RGBColor(150, 150, 150) } else { RGBColor(70, 120, 180) };
        let (below, above) = (SegmentValue::Exact(index), SegmentValue::Exact(index + 1));
        let mut bar = Rectangle::new([(0.0, below), (ratio.median.min(LONGEST), above)], colour.filled());
        bar.set_margin(4, 4, 0, 0);
        let middle = SegmentValue::CenterOf(index);
        let half = [ratio.lower_quartile, ratio.upper_quartile].map(|end| (end.min(LONGEST), middle.clone()));
        let text = Text::new(
            format!(" {:.2}", ratio.median),
            (ratio.upper_quartile.max(ratio.median).min(LONGEST), middle),
            ("sans-serif", 12),
        );
        let plot = chart.plotting_area();
        plot.draw(&bar).map_err(said)?;
        plot.draw(&PathElement::new(half, BLACK.stroke_width(2))).map_err(said)?;
        plot.draw(&text).map_err(said)?;
    }
    let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Last)];
    chart.plotting_area().draw(&PathElement::new(one, RED)).map_err(said)
}

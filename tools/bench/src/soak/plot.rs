//! The samples as a picture: a panel for each measure, a line for each host.
use std::path::Path;

use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

use super::report::{Report, Row};
use crate::picture::{read_font, said};

const PANEL: (u32, u32) = (420, 240);
const COLUMNS: usize = 3;
const HEAD: u32 = 34;
const COLOURS: [RGBColor; 3] = [RGBColor(0, 90, 160), RGBColor(200, 90, 0), RGBColor(120, 120, 120)];

/// Draws all measures into an SVG.
pub(super) fn draw(report: &Report, file: &Path) -> Result<()> {
    read_font()?;
    let panels: Vec<&[Row]> = report.rows.chunk_by(|one, other| one.measure == other.measure).collect();
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (PANEL.0 * COLUMNS as u32, HEAD + PANEL.1 * u32::try_from(rows)?);
    let area = SVGBackend::new(file, size).into_drawing_area();
    area.fill(&WHITE).map_err(said)?;
    let (head, body) = area.split_vertically(HEAD);
    let title = format!("A soak of {} minutes (seed {}); minutes across", report.minutes, report.seed);
    head.draw(&Text::new(title, (12, 10), ("sans-serif", 16))).map_err(said)?;
    for (area, panel) in body.split_evenly((rows.max(1), COLUMNS)).iter().zip(panels) {
        draw_panel(area, panel, report.minutes)?;
    }
    area.present().map_err(said)
}

fn draw_panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, rows: &[Row], minutes: f64) -> Result<()> {
    let values = || rows.iter().flat_map(|row| row.samples.iter().map(|(_, value)| *value));
    let most = values().fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(rows[0].measure, ("sans-serif", 13))
        .margin(6)
        .x_label_area_size(20)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..minutes, 0.0..most * 1.1)
        .map_err(said)?;
    chart
        .configure_mesh()
        .x_max_light_lines(1)
        .y_max_light_lines(1)
        .x_labels(7)
        .y_labels(5)
        .label_style(("sans-serif", 11))
        .draw()
        .map_err(said)?;
    for (row, colour) in rows.iter().zip(COLOURS.into_iter().cycle()) {
        let points = row.samples.iter().map(|(seconds, value)| (seconds / 60.0, *value));
        chart
            .draw_series(LineSeries::new(points, colour))
            .map_err(said)?
            .label(row.host.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 12, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.7))
        .label_font(("sans-serif", 11))
        .draw()
        .map_err(said)
}

//! The results as pictures: each quantity over the number of hosts, with the straight line through it where it has one.
use std::path::Path;

use anyhow::Result;
use overlay_bench::picture::{self, Picture, read_font, said};
use plotters::{coord::Shift, prelude::*};

use crate::{
    fit::Line,
    forecast::{idle_mean, idle_percent},
    results::{Outcome, Results},
    scenarios::{CHANGE, COLD, IDLE, RESTART},
};

const HALF: RGBColor = RGBColor(96, 134, 180);
const MOST: RGBColor = RGBColor(222, 110, 18);
const ALL: RGBColor = RGBColor(120, 60, 20);

/// What the colours mean.
const LEGEND: [(RGBColor, &str); 3] =
    [(HALF, "half of the hosts"), (MOST, "99 of 100 hosts, or the quantity"), (ALL, "the last host")];

/// One quantity.
struct Curve {
    colour: RGBColor,
    points: Vec<(f64, f64)>,
    line: Option<Line>,
}

impl Curve {
    /// The line's two ends: from no hosts on, or from where it is no longer below zero, up to the largest number measured.
    fn ends(&self) -> Vec<(f64, f64)> {
        let right = self.points.iter().map(|point| point.0).fold(0.0, f64::max);
        let ends = |line: &Line| {
            let left = if line.base < 0.0 && line.slope > 0.0 { -line.base / line.slope } else { 0.0 };
            [left, right].map(|hosts| (hosts, line.at(hosts).max(0.0))).to_vec()
        };
        self.line.as_ref().map_or(Vec::new(), ends)
    }
}

/// A quantity, or several, over the number of hosts.
struct Curves {
    title: &'static str,
    curves: Vec<Curve>,
}

/// Writes `scale.svg` and `scale.png` into `folder`.
pub(crate) fn draw(results: &Results, folder: &Path) -> Result<()> {
    read_font()?;
    let points = |scenario, of: fn(&Outcome) -> Option<f64>| {
        let found = results.of(1, scenario);
        found.filter_map(|outcome| Some((outcome.hosts as f64, of(outcome)?))).collect::<Vec<_>>()
    };
    let times = |scenario, title, has_line: bool| {
        let of = |colour, time: fn(&Outcome) -> Option<f64>| {
            let points = points(scenario, time);
            let line = Line::through(&points).filter(|_| has_line);
            Curve { colour, points, line }
        };
        let half = of(HALF, |outcome| Some(outcome.times?.p50));
        let most = of(MOST, |outcome| Some(outcome.times?.p99));
        let all = of(ALL, |outcome| Some(outcome.times?.all));
        Curves { title, curves: vec![half, most, all] }
    };
    let one = |title, points: Vec<_>| {
        let line = Line::through(&points);
        Curves { title, curves: vec![Curve { colour: MOST, points, line }] }
    };
    let mut idle = one(
        "etcd's CPU while nothing happens, % of a core; the mean",
        points(IDLE, |outcome| Some(idle_percent(outcome))),
    );
    // It does not grow with the number of hosts.
    idle.curves[0].line = idle_mean(results).map(Line::level);
    let panels = vec![
        idle,
        one("etcd's memory, MiB", points(IDLE, |outcome| Some(outcome.cost.etcd_mib))),
        times(CHANGE, "one lease until hosts have it, s", true),
        // The pauses between tries grow between two limits, and those are most of it.
        times(RESTART, "restart of etcd until hosts follow, s", false),
        one("requests for a restart of etcd", points(RESTART, |outcome| Some(outcome.cost.requests))),
        // What grows with the square of the number of hosts is a part of it.
        times(COLD, "cold start of all until hosts agree, s", false),
    ];
    let title = "Control loops beside an etcd of one member, over the number of hosts";
    Picture { title, legend: &LEGEND, columns: 2, panels }.write(folder, "scale")
}

impl picture::Panel for Curves {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()> {
        let all = || self.curves.iter().flat_map(|curve| curve.points.iter().copied().chain(curve.ends()));
        let most = |of: fn((f64, f64)) -> f64| all().map(of).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..most(|point| point.0), 0.0..most(|point| point.1))
            .map_err(said)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(6)
            .y_labels(6)
            .label_style(("sans-serif", 12))
            .draw()
            .map_err(said)?;
        for curve in &self.curves {
            let colour = curve.colour;
            chart.draw_series(LineSeries::new(curve.ends(), colour.stroke_width(2))).map_err(said)?;
            let marks = curve.points.iter().map(|&point| Circle::new(point, 4, colour.filled()));
            chart.draw_series(marks).map_err(said)?;
        }
        Ok(())
    }
}

//! One quantity: a bar for each case, as long as its ratio, with the quartiles.
use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

use super::{
    super::{
        results::{Measured, Samples},
        statistics::Summary,
    },
    whose::colour,
};
use crate::picture::{self, said};

/// A bar that is longer ends here, and only its number says how long it is: a relay's CPU time, or a veth's packets, would
/// make all others look the same.
const LONGEST: f64 = 4.0;

/// What is drawn.
#[derive(Debug)]
pub(super) struct Panel {
    title: String,
    /// The bars, counted from above.
    bars: Vec<Bar>,
    /// Width of the cases' names.
    names: u32,
}

#[derive(Debug)]
struct Bar {
    name: String,
    ratio: Summary,
    colour: RGBColor,
}

impl Panel {
    /// A panel with all cases of a measure, named as in the tables.
    pub(super) fn of(measured: &Measured) -> Self {
        let bars = measured.cases.iter().filter_map(|case| Bar::of(measured, case, &case.case)).collect();
        Self { title: titled(measured, &measured.name), bars, names: 140 }
    }

    /// A panel with these cases of a measure, and these names for it and for them.
    pub(super) fn of_cases(measured: &Measured, title: &str, cases: &[(&str, &str)]) -> Self {
        let bar = |(case, name): &(&str, &str)| Bar::of(measured, measured.case(case)?, name);
        Self { title: titled(measured, title), bars: cases.iter().filter_map(bar).collect(), names: 190 }
    }

    /// Whether there is nothing to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.bars.is_empty()
    }
}

impl picture::Panel for Panel {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()> {
        let ends = self.bars.iter().map(|bar| bar.ratio.upper_quartile.max(bar.ratio.median));
        let most = ends.fold(1.0, f64::max).min(LONGEST);
        let last = self.bars.len().saturating_sub(1);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(self.names)
            .build_cartesian_2d(0.0..most * 1.2, (0..last).into_segmented())
            .map_err(said)?;
        // The bars are in the table's order, counted from above.
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(index) | SegmentValue::Exact(index) => last
                .checked_sub(*index)
                .and_then(|index| self.bars.get(index))
                .map_or(String::new(), |bar| bar.name.clone()),
            SegmentValue::Last => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_max_light_lines(1)
            .y_labels(self.bars.len())
            .y_label_formatter(&name)
            .x_labels(6)
            .label_style(("sans-serif", 12))
            .draw()
            .map_err(said)?;
        // Below the bars and their numbers, which would not be legible under it.
        let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Last)];
        chart.plotting_area().draw(&PathElement::new(one, BLACK)).map_err(said)?;
        for (index, bar) in self.bars.iter().enumerate() {
            bar.draw(chart.plotting_area(), last - index)?;
        }
        Ok(())
    }
}

fn titled(measured: &Measured, name: &str) -> String {
    format!("{name} ({} is better)", if measured.more_is_better { "more" } else { "less" })
}

/// Where a bar is drawn.
type Plot<B> = DrawingArea<
    B,
    Cartesian2d<
        plotters::coord::types::RangedCoordf64,
        plotters::coord::ranged1d::SegmentedCoord<plotters::coord::types::RangedCoordusize>,
    >,
>;

impl Bar {
    fn of(measured: &Measured, case: &Samples, name: &str) -> Option<Self> {
        let colour = colour(measured, &case.case);
        Some(Self { name: name.to_owned(), ratio: case.ratio?, colour })
    }

    fn draw<B: DrawingBackend>(&self, plot: &Plot<B>, index: usize) -> Result<()> {
        let Summary { lower_quartile, median, upper_quartile, .. } = self.ratio;
        let (below, above) = (SegmentValue::Exact(index), SegmentValue::Exact(index + 1));
        let mut bar = Rectangle::new([(0.0, below), (median.min(LONGEST), above)], self.colour.filled());
        bar.set_margin(4, 4, 0, 0);
        let middle = SegmentValue::CenterOf(index);
        let half = [lower_quartile, upper_quartile].map(|end| (end.min(LONGEST), middle.clone()));
        let end = upper_quartile.max(median).min(LONGEST);
        let cut = if median > LONGEST { " (cut)" } else { "" };
        let text = Text::new(format!(" {median:.2}{cut}"), (end, middle), ("sans-serif", 12));
        plot.draw(&bar).map_err(said)?;
        plot.draw(&PathElement::new(half, BLACK.stroke_width(2))).map_err(said)?;
        plot.draw(&text).map_err(said)
    }
}

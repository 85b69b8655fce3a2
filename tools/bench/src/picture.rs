//! A picture with a title and panels below it, as SVG and PNG.
use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

/// The font is in Debian's package fonts-dejavu-core.
const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const PANEL: (u32, u32) = (560, 320);
/// Height of the title and of what the colours mean.
const HEAD: u32 = 60;

/// A part of a picture, with a frame and a title of its own.
pub trait Panel {
    /// Draws it.
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>;
}

/// A picture.
#[derive(Debug)]
pub struct Picture<'a, P> {
    /// What it shows.
    pub title: &'a str,
    /// What the colours mean.
    pub legend: &'a [(RGBColor, &'a str)],
    /// How many panels are side by side.
    pub columns: usize,
    /// The panels, line by line.
    pub panels: Vec<P>,
}

/// Reads the font, which must be done before a picture is drawn. It is kept for the rest of the process.
pub fn read_font() -> Result<()> {
    let font = fs::read(FONT).with_context(|| format!("read {FONT} (Debian's fonts-dejavu-core)"))?;
    register_font("sans-serif", FontStyle::Normal, font.leak()).map_err(|_| anyhow!("{FONT} is no font"))
}

/// The backends' errors borrow from nothing, but their type differs.
pub fn said<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("{error}")
}

impl<P: Panel> Picture<'_, P> {
    /// Writes it into a folder, as `name.svg` and `name.png`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
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
        for &(colour, meaning) in self.legend {
            head.draw(&Rectangle::new([(left, 38), (left + 14, 50)], colour.filled())).map_err(said)?;
            head.draw(&Text::new(meaning.to_owned(), (left + 20, 38), ("sans-serif", 13))).map_err(said)?;
            left += 280;
        }
        for (part, panel) in body.split_evenly((rows, self.columns)).iter().zip(&self.panels) {
            panel.draw(part)?;
        }
        area.present().map_err(said)
    }
}

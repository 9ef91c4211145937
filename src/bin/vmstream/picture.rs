//! Pictures for people, as SVG: what all of them have in common.
//!
//! A picture is a *sheet* with a title that says what it is of, and on it *panels*: planes with labelled axes. Colours are
//! those of Okabe and Ito (2008), which people tell apart who see colours differently, and shares of something go from
//! light to dark, so they survive grey printing. Plotters makes the SVG; its coordinates are whole pixels and it asks no
//! clock and no font, so the same input gives the same bytes.

pub mod calibration;
pub mod curve;
mod flow;
mod heat;
pub mod hold;
pub mod model;
mod places;
mod raster;
pub mod run;
pub mod session;
mod stages;
mod timeline;
pub mod watch;

use std::io;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use vmstream::error::{Error, Result, errno};

/// A part of a sheet; its unit is the pixel.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The part of a panel between its axes; its units are those of the axes.
pub type Plane<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
/// What drawing ends with.
pub type Drawn<T = ()> = std::result::Result<T, DrawingAreaErrorKind<io::Error>>;

/// Text and axes.
pub const INK: RGBColor = RGBColor(51, 51, 51);
/// What stands behind.
pub const FAINT: RGBColor = RGBColor(228, 228, 228);
/// Lines that are only a comparison.
pub const GREY: RGBColor = RGBColor(140, 140, 140);
/// Okabe and Ito's blue.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
/// Their sky blue.
pub const SKY: RGBColor = RGBColor(86, 180, 233);
/// Their orange.
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
/// Their vermillion.
pub const VERMILLION: RGBColor = RGBColor(213, 94, 0);
/// Their bluish green.
pub const GREEN: RGBColor = RGBColor(0, 158, 115);

/// Height of most text, in pixels as plotters counts them.
pub const TEXT: i32 = 15;
/// Height of a title.
const TITLE: i32 = 24;
/// Free space at the edge of a sheet, in pixels.
const MARGIN: i32 = 20;
/// Room for the title and the line below it.
const HEAD: i32 = 82;
/// Most characters of a name in a title: longer ones would run out of the sheet.
const NAME_CHARS_MAX: usize = 60;

/// Draws a sheet of `size` pixels: a title, a line that says more, and what `paint` puts below them.
pub fn sheet(size: (u32, u32), title: &str, more: &str, paint: impl FnOnce(&Area) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        text(&area, (MARGIN, MARGIN), TITLE, HPos::Left, title)?;
        text(&area, (MARGIN, MARGIN + 28), TEXT, HPos::Left, more)?;
        paint(&area.clone().shrink((0, HEAD), (size.0, size.1.saturating_sub(HEAD as u32))))?;
        area.present()
    })();
    drawn.map_err(|e| Error::new(errno::EIO, format!("cannot draw the picture: {e}")))?;
    Ok(svg)
}

/// A name from outside as it may stand in a picture: XML has no control characters, and a title has an end.
pub fn name(from: &str) -> String {
    let clean = |c: char| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '?' } else { c };
    let mut short: String = from.chars().take(NAME_CHARS_MAX).map(clean).collect();
    if from.chars().nth(NAME_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Writes one line, its upper edge at `at`, which is its left end, middle or right end as `side` says.
pub fn text(area: &Area, at: (i32, i32), height: i32, side: HPos, line: &str) -> Drawn {
    area.draw(&Text::new(line, at, style(height, side, VPos::Top)))
}

/// How text of that height stands around its point.
pub fn style<'a>(height: i32, side: HPos, level: VPos) -> TextStyle<'a> {
    ("sans-serif", height).into_font().color(&INK).pos(Pos::new(side, level))
}

/// About how wide a line of text is, in pixels: the reader's font is not known here.
pub fn width(height: i32, line: &str) -> i32 {
    (line.chars().count() as f64 * f64::from(height) * 0.47) as i32
}

/// Draws squares of colours and what they mean in one line that begins at `at`.
pub fn legend(area: &Area, at: (i32, i32), entries: &[(RGBColor, &str)]) -> Drawn {
    let (mut x, y) = at;
    for (colour, meaning) in entries {
        area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled()))?;
        text(area, (x + 18, y - 1), TEXT, HPos::Left, meaning)?;
        x += 18 + width(TEXT, meaning) + 22;
    }
    Ok(())
}

/// An axis of a panel.
pub struct Axis<'a> {
    /// What it shows, with its unit.
    pub name: &'a str,
    /// From where to where.
    pub range: Range<f64>,
    /// About so many labels.
    pub labels: usize,
    /// The text of a label.
    pub label: &'a dyn Fn(f64) -> String,
}

/// Room around a plane for axes and labels, in pixels.
pub struct Room {
    /// On the left, for the upright axis.
    pub left: i32,
    /// On the right, for labels of lines.
    pub right: i32,
    /// Above, for a caption and a legend.
    pub top: i32,
}

/// Room below a plane for its level axis, in pixels.
const BELOW: i32 = 45;
/// Room before the name of an upright axis, of which plotters would lose half.
const EDGE: i32 = 12;

/// Draws a panel's caption and axes.
pub fn panel<'a>(area: &Area<'a>, caption: &str, room: &Room, x: &Axis, y: &Axis) -> Drawn<Plane<'a>> {
    text(area, (room.left, 0), TEXT + 3, HPos::Left, caption)?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(room.top)
        .margin_right(room.right)
        .margin_left(EDGE)
        .set_label_area_size(LabelAreaPosition::Left, room.left - EDGE)
        .set_label_area_size(LabelAreaPosition::Bottom, BELOW)
        .build_cartesian_2d(x.range.clone(), y.range.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(GREY)
        .x_labels(x.labels)
        .y_labels(y.labels)
        .x_desc(x.name)
        .y_desc(y.name)
        .x_label_formatter(&|value| (x.label)(*value))
        .y_label_formatter(&|value| (y.label)(*value))
        .label_style(style(TEXT, HPos::Left, VPos::Top))
        .draw()?;
    Ok(chart.plotting_area().clone())
}

/// A number with as many digits as a label needs.
pub fn plain(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Steps of shares, from 0 to 1, and their colours from light to dark.
pub const SHARES: [(f64, RGBColor, &str); 5] = [
    (0.1, RGBColor(198, 224, 180), "up to 10 %"),
    (0.25, RGBColor(122, 198, 190), "to 25 %"),
    (0.5, RGBColor(56, 150, 190), "to 50 %"),
    (0.75, RGBColor(36, 92, 160), "to 75 %"),
    (1.0, RGBColor(32, 30, 90), "to 100 % of the sessions"),
];

/// The step that a share falls into: an index of [`SHARES`].
pub fn share_step(share: f64) -> usize {
    // What is computed from weights may miss the end of a step by a rounding error.
    SHARES.iter().position(|step| share <= step.0 + 1e-6).unwrap_or(SHARES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_freed_of_what_xml_cannot_hold() {
        assert_eq!(name("B03"), "B03");
        assert_eq!(name("a\u{0}b\tc\u{ffff}"), "a?b?c?");
        assert_eq!(name(&"x".repeat(61)), format!("{}…", "x".repeat(60)));
    }

    #[test]
    fn a_share_belongs_to_the_lowest_step_that_holds_it() {
        let shares = [0.0, 0.1, 0.11, 0.5, 0.75, 0.76, 1.0, 1.000_000_1, 2.0];
        assert_eq!(shares.map(share_step), [0, 0, 1, 2, 3, 4, 4, 4, 4]);
    }

    #[test]
    fn numbers_have_no_more_digits_than_they_need() {
        assert_eq!([0.0, 100.0, 0.25, 1.5, 20.004].map(plain), ["0", "100", "0.25", "1.5", "20"]);
    }
}

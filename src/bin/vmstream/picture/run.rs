//! A machine that was held and then brought on-line: what was said of it while it went, and how long its clients waited.
//!
//! To the right is time. Above is the risk that the forecast said, and how much of the image was here; below a line for each
//! answer, as high as the client waited for it, at the moment when it asked. Upright lines are the moments at which the
//! machine was let go and its origin ended.

use plotters::prelude::*;
use vmstream::error::Result;

use super::{Area, Axis, BLUE, Drawn, GREEN, GREY, INK, Plane, Room, VERMILLION, legend, name, panel, plain, sheet};
use crate::inspect::run::{Run, Said};

/// Width and height of the sheet, in pixels.
const SIZE: (u32, u32) = (1480, 720);
/// Height of the legend above the panels.
const LEGEND: u32 = 32;
/// Height of the panel of the forecast, in pixels.
const ABOVE: u32 = 320;
/// Room around each plane.
const ROOM: Room = Room { left: 75, right: 40, top: 32 };
/// What the axes show beyond the greatest value.
const BEYOND: f64 = 1.04;
/// Radius of the point of an answer, in pixels.
const RADIUS: i32 = 2;

/// Draws what is in `run`, which is read of a file called `file`.
pub fn draw(run: &Run, file: &str) -> Result<String> {
    let longest = run.answers.iter().map(|answer| answer.1).fold(0.0, f64::max);
    let more = match (run.online_s, run.answers.first()) {
        (Some(online_s), Some(first)) => format!(
            "on-line after {online_s:.0} s; the first of {} answers took {:.2} s, the longest {longest:.2} s",
            run.answers.len(),
            first.1
        ),
        _ => "nobody asked it anything".to_owned(),
    };
    sheet(SIZE, &format!("A machine that was held: {}", name(file)), &more, |area| {
        let entries = [
            (BLUE, "risk that the forecast said"),
            (GREY, "how much of the image is here"),
            (VERMILLION, "answers"),
            (GREEN, "on-line"),
            (INK, "the origin is ended"),
        ];
        legend(area, (ROOM.left, 2), &entries)?;
        let (_, below) = area.split_vertically(LEGEND);
        let (upper, lower) = below.split_vertically(ABOVE);
        let end_s = run.end_s().max(1.0);
        let plane = plane(&upper, "Forecast: the risk of a stall within 30 s", "%", 100.0, end_s)?;
        moments(&plane, run, 100.0)?;
        line(&plane, run, GREY, |said| said.resident)?;
        line(&plane, run, BLUE, |said| said.risk)?;
        let top = longest.max(1.0);
        let plane = self::plane(&lower, "Reality: how long clients waited for their answers", "seconds", top, end_s)?;
        moments(&plane, run, top)?;
        run.answers.iter().try_for_each(|&(at_s, waited_s)| {
            plane.draw(&PathElement::new([(at_s, 0.0), (at_s, waited_s)], VERMILLION.stroke_width(1)))?;
            plane.draw(&Circle::new((at_s, waited_s), RADIUS, VERMILLION.filled()))
        })
    })
}

fn plane<'a>(area: &Area<'a>, caption: &str, unit: &str, top: f64, end_s: f64) -> Drawn<Plane<'a>> {
    let x = Axis { name: "seconds since the link was followed", range: 0.0..end_s, labels: 12, label: &plain };
    panel(area, caption, &ROOM, &x, &Axis { name: unit, range: 0.0..top * BEYOND, labels: 6, label: &plain })
}

/// When it was let go, and when its origin was ended.
fn moments(plane: &Plane, run: &Run, top: f64) -> Drawn {
    for (at_s, colour) in [(run.online_s, GREEN), (run.origin_ended_s, INK)] {
        if let Some(at_s) = at_s {
            plane.draw(&PathElement::new([(at_s, 0.0), (at_s, top)], colour.stroke_width(2)))?;
        }
    }
    Ok(())
}

/// A share of what was said, in percent.
fn line(plane: &Plane, run: &Run, colour: RGBColor, what: impl Fn(&Said) -> f64) -> Drawn {
    let points: Vec<_> = run.said.iter().map(|said| (said.at_s, what(said) * 100.0)).collect();
    plane.draw(&PathElement::new(points, colour.stroke_width(2)))
}

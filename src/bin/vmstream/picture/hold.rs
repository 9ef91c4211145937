//! Guests that were held back: what the forecast said before each began, and what became of them, by the time of the hold.
//!
//! To the right is how long the guests were held; on the left the risk of a stall, on the right the time of waiting. Where
//! both lines are one the forecast was right. A share of few guests is mostly chance, so each has its 95 % interval.

use std::time::Duration;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use vmstream::error::Result;
use vmstream::replay::LinkModel;

use super::calibration::wilson;
use super::{Area, Axis, BLUE, Drawn, GREEN, Plane, Room, TEXT, VERMILLION, legend, panel, plain, sheet, text};
use crate::progress::rate;
use crate::replay::hold::{Factor, Row};

/// Width and height of the sheet, in pixels.
const SIZE: (u32, u32) = (1480, 560);
/// Height of the legend above the panels.
const LEGEND: u32 = 32;
/// Room around each plane.
const ROOM: Room = Room { left: 75, right: 24, top: 32 };
/// Radius of a point, in pixels.
const RADIUS: i32 = 4;
/// What an axis shows beyond its ends, as a share of it, so that a point there is seen whole.
const BEYOND: f64 = 0.04;
/// Holds up to this are shown in seconds, longer ones in minutes.
const SECONDS_MAX: f64 = 300.0;

/// What a picture is of.
pub struct Scene<'a> {
    /// Name of the policy.
    pub policy: &'a str,
    /// The link.
    pub link: LinkModel,
    /// How far the forecast looked ahead.
    pub horizon: Duration,
    /// Risk at which a guest is let go, from 0 to 1.
    pub risk: f64,
    /// The hold by which half of the guests are let go, in seconds.
    pub let_go_s: Option<f64>,
    /// What was said over what happened: of the risk and of the wait.
    pub factors: (Option<Factor>, Option<Factor>),
    /// The holds, the shortest first. There may be none.
    pub rows: &'a [Row],
}

/// Draws both panels.
pub fn draw(scene: &Scene) -> Result<String> {
    let horizon = plain(scene.horizon.as_secs_f64());
    let guests = scene.rows.iter().map(|row| row.guests).max().unwrap_or(0);
    let title = format!("What was said of {guests} guests that were held, and what happened");
    let more = format!(
        "policy {}, link of {} and {} ms; each guest is watched for {horizon} s after it begins",
        scene.policy,
        rate(scene.link.rate as u64),
        plain(scene.link.round_trip.as_secs_f64() * 1e3)
    );
    sheet(SIZE, &title, &more, |area| {
        let risk = plain(scene.risk * 100.0);
        let let_go = match scene.let_go_s {
            Some(_) => format!("from here on the risk said is {risk} % or less for half of the guests"),
            None => format!("the risk said was never {risk} % or less for half of the guests"),
        };
        let entries = [
            (BLUE, "said before they began, mean"),
            (VERMILLION, "happened, with the 95 % interval of a share"),
            (GREEN, let_go.as_str()),
        ];
        legend(area, (ROOM.left, 2), &entries)?;
        let (_, below) = area.split_vertically(LEGEND);
        let (left, right) = below.split_horizontally((SIZE.0 / 2) as i32);
        let caption = caption(&format!("Risk of a stall within {horizon} s"), scene.factors.0);
        let plane = plane(&left, &caption, "%", 100.0, scene)?;
        line(&plane, scene, BLUE, |row| row.risk * 100.0)?;
        line(&plane, scene, VERMILLION, |row| row.stalled * 100.0)?;
        for row in scene.rows {
            let (low, high) = wilson(row.stalled, row.guests);
            let x = scene.x(row.held_s);
            plane.draw(&PathElement::new([(x, low * 100.0), (x, high * 100.0)], VERMILLION.stroke_width(1)))?;
        }
        let caption = self::caption(&format!("Time waited within {horizon} s"), scene.factors.1);
        let plane = self::plane(&right, &caption, "seconds", scene.horizon.as_secs_f64(), scene)?;
        line(&plane, scene, BLUE, |row| row.expected_stall_s)?;
        line(&plane, scene, VERMILLION, |row| row.stall_s)
    })
}

fn caption(what: &str, factor: Option<Factor>) -> String {
    match factor {
        Some(factor) => format!("{what}: said / happened = {:.2}, where 5 to 95 % happened", factor.said_over_happened),
        None => format!("{what}; at no hold 5 to 95 % happened"),
    }
}

impl Scene<'_> {
    /// The longest hold, in seconds.
    fn longest_s(&self) -> f64 {
        self.rows.last().map_or(0.0, |row| row.held_s)
    }

    /// A hold in the unit of the axis.
    fn x(&self, held_s: f64) -> f64 {
        if self.longest_s() > SECONDS_MAX { held_s / 60.0 } else { held_s }
    }
}

/// The axes of a panel whose values go up to `top`, and when guests are let go.
fn plane<'a>(area: &Area<'a>, caption: &str, unit: &str, top: f64, scene: &Scene) -> Drawn<Plane<'a>> {
    let right = scene.x(scene.longest_s()).max(1.0);
    let name = if scene.longest_s() > SECONDS_MAX { "held for so many minutes" } else { "held for so many seconds" };
    let range = |end: f64| -end * BEYOND..end * (1.0 + BEYOND);
    let x = Axis { name, range: range(right), labels: 10, label: &plain };
    let y = Axis { name: unit, range: range(top), labels: 6, label: &plain };
    let plane = panel(area, caption, &ROOM, &x, &y)?;
    if scene.rows.is_empty() {
        let pixels = plane.strip_coord_spec();
        let (wide, tall) = pixels.dim_in_pixel();
        text(&pixels, (wide as i32 / 2, tall as i32 / 2), TEXT, HPos::Center, "no guest does anything")?;
    }
    if let Some(held_s) = scene.let_go_s {
        let x = scene.x(held_s);
        plane.draw(&PathElement::new([(x, 0.0), (x, top)], GREEN.stroke_width(2)))?;
    }
    Ok(plane)
}

fn line(plane: &Plane, scene: &Scene, colour: RGBColor, what: impl Fn(&Row) -> f64) -> Drawn {
    let points: Vec<_> = scene.rows.iter().map(|row| (scene.x(row.held_s), what(row))).collect();
    plane.draw(&PathElement::new(points.clone(), colour.stroke_width(2)))?;
    points.into_iter().try_for_each(|point| plane.draw(&Circle::new(point, RADIUS, colour.filled())))
}

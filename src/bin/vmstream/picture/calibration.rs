//! The reliability diagram: the risk that forecasts said against how often a stall followed, a panel for each horizon.
//!
//! A point is a class of answers, to the right the mean of what they said, upwards the share that a stall followed. On the
//! diagonal a risk means what it says; above it stalls are more often than said, below it less. A share of few answers is
//! mostly chance, so each point has its 95 % interval and says of how many answers it is. The interval takes answers for
//! independent, which those of one session are not quite: it is rather too short.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use vmstream::error::Result;
use vmstream::replay::LinkModel;

use super::{Area, Axis, BLUE, Drawn, GREY, INK, Plane, Room, TEXT, legend, panel, plain, sheet, style, text, width};
use crate::progress::rate;

/// Width of the sheet, in pixels: three planes side by side.
const WIDTH: u32 = 1480;
/// Height of the sheet: the planes come out square.
const HEIGHT: u32 = 590;
/// Height of the legend above the panels.
const LEGEND: u32 = 32;
/// Room around each plane.
const ROOM: Room = Room { left: 75, right: 24, top: 32 };
/// What the axes show beyond 0 and 100 %, so that a point there is seen whole.
const BEYOND: f64 = 4.0;
/// Radius of the point with the most answers on the sheet, in pixels; areas go with answers.
const RADIUS_MAX: f64 = 15.0;
/// Radius of a point at least: it must be seen.
const RADIUS_MIN: f64 = 2.0;
/// Half the width of what ends an interval, in pixels.
const SERIF: i32 = 4;
/// Free space around a label, in pixels.
const GAP: i32 = 4;
/// Quantile of the normal distribution for an interval of 95 %.
const Z: f64 = 1.959_964;

/// What a picture is of.
pub struct Scene<'a> {
    /// How many sessions were replayed.
    pub sessions: usize,
    /// Name of the policy.
    pub policy: &'a str,
    /// The link.
    pub link: LinkModel,
    /// The panels from left to right.
    pub horizons: &'a [Horizon],
}

/// What was said about a horizon.
pub struct Horizon {
    /// How far it is, in seconds.
    pub seconds: u64,
    /// The classes, by rising risk. There may be none.
    pub classes: Vec<Class>,
}

/// Answers that said about the same.
pub struct Class {
    /// How many they are; at least one.
    pub answers: usize,
    /// Mean of the risks that they said, from 0 to 1.
    pub said: f64,
    /// Share of them that a stall followed.
    pub happened: f64,
}

/// Draws the diagram.
pub fn draw(scene: &Scene) -> Result<String> {
    let replays = if scene.sessions == 1 { "replay" } else { "replays" };
    let title = format!("Stalls said and happened in {} {replays}, policy {}", scene.sessions, scene.policy);
    let more = format!(
        "link of {} and {} ms; a forecast once a second, and a stall is a wait of more than 0.1 s on end",
        rate(scene.link.rate as u64),
        plain(scene.link.round_trip.as_secs_f64() * 1e3)
    );
    sheet((WIDTH, HEIGHT), &title, &more, |area| {
        let entries = [
            (BLUE, "forecasts that said about the same, the greater the more (n), with the 95 % interval of the share"),
            (GREY, "where a risk means what it says; above it stalls are more often, below it less"),
        ];
        legend(area, (ROOM.left, 2), &entries)?;
        let (_, below) = area.split_vertically(LEGEND);
        let most = scene.horizons.iter().flat_map(|horizon| &horizon.classes).map(|class| class.answers).max();
        let parts = below.split_evenly((1, scene.horizons.len().max(1)));
        for (part, horizon) in parts.iter().zip(scene.horizons) {
            draw_horizon(part, horizon, most.unwrap_or(1))?;
        }
        Ok(())
    })
}

/// Draws one panel; `most` answers have the greatest point.
fn draw_horizon(area: &Area, horizon: &Horizon, most: usize) -> Drawn {
    let answers: usize = horizon.classes.iter().map(|class| class.answers).sum();
    let caption = format!("A stall within {} s, {answers} forecasts", horizon.seconds);
    let axis = |name| Axis { name, range: -BEYOND..100.0 + BEYOND, labels: 6, label: &plain };
    let plane = panel(area, &caption, &ROOM, &axis("said: risk in %"), &axis("happened: % of the forecasts"))?;
    plane.draw(&PathElement::new([(0.0, 0.0), (100.0, 100.0)], GREY.stroke_width(1)))?;
    let pixels = plane.strip_coord_spec();
    if answers == 0 {
        let (wide, tall) = pixels.dim_in_pixel();
        return text(&pixels, (wide as i32 / 2, tall as i32 / 4), TEXT, HPos::Center, "nothing was asked");
    }
    let marks: Vec<_> = horizon.classes.iter().map(|class| Mark::new(&plane, class, most)).collect();
    for mark in &marks {
        let point = |style: ShapeStyle| Circle::new((mark.x, mark.y), mark.radius, style);
        pixels.draw(&point(BLUE.mix(0.65).filled()))?;
        pixels.draw(&point(BLUE.stroke_width(1)))?;
        for line in [
            [(mark.x, mark.top), (mark.x, mark.bottom)],
            [(mark.x - SERIF, mark.top), (mark.x + SERIF, mark.top)],
            [(mark.x - SERIF, mark.bottom), (mark.x + SERIF, mark.bottom)],
        ] {
            pixels.draw(&PathElement::new(line, INK.stroke_width(1)))?;
        }
    }
    let (wide, tall) = pixels.dim_in_pixel();
    for (mark, at) in marks.iter().zip(place(&marks, (wide as i32, tall as i32))) {
        // A label that had to go elsewhere hangs on a thread.
        if at.lower < mark.top {
            pixels.draw(&PathElement::new([(mark.x, at.upper), (mark.x, mark.top)], GREY.stroke_width(1)))?;
        } else if at.upper > mark.bottom {
            pixels.draw(&PathElement::new([(mark.x, mark.bottom), (mark.x, at.lower)], GREY.stroke_width(1)))?;
        }
        pixels.draw(&Rectangle::new([(at.left, at.upper), (at.right, at.lower)], WHITE.mix(0.75).filled()))?;
        let line = (at.left + 1, (at.upper + at.lower) / 2);
        pixels.draw(&Text::new(mark.label.as_str(), line, style(TEXT, HPos::Left, VPos::Center)))?;
    }
    Ok(())
}

/// A class on its plane, in pixels.
struct Mark {
    x: i32,
    y: i32,
    radius: i32,
    /// The interval, which is upright.
    top: i32,
    bottom: i32,
    label: String,
}

impl Mark {
    fn new(plane: &Plane, class: &Class, most: usize) -> Self {
        // `map_coordinate` counts from the sheet's corner.
        let base = plane.get_base_pixel();
        let pixel = |x: f64, y: f64| {
            let at = plane.map_coordinate(&(x * 100.0, y * 100.0));
            (at.0 - base.0, at.1 - base.1)
        };
        let (low, high) = wilson(class.happened, class.answers);
        let (x, y) = pixel(class.said, class.happened);
        let radius = (RADIUS_MAX * (class.answers as f64 / most as f64).sqrt()).max(RADIUS_MIN).round() as i32;
        let (top, bottom) = (pixel(class.said, high).1, pixel(class.said, low).1);
        Self { x, y, radius, top, bottom, label: format!("n={}", class.answers) }
    }

    /// What it covers: the point, and the interval.
    fn covers(&self) -> [Spot; 2] {
        let Self { x, y, radius, .. } = *self;
        [
            Spot { left: x - radius, right: x + radius, upper: y - radius, lower: y + radius },
            Spot { left: x - SERIF, right: x + SERIF, upper: self.top, lower: self.bottom },
        ]
    }
}

/// A rectangle on a plane, in pixels.
#[derive(Clone, Copy, Debug)]
struct Spot {
    left: i32,
    right: i32,
    upper: i32,
    lower: i32,
}

impl Spot {
    fn meets(&self, other: &Spot) -> bool {
        self.left <= other.right && other.left <= self.right && self.upper <= other.lower && other.upper <= self.lower
    }
}

/// A place for the label of each mark on a plane so wide and tall: right of its point, else above it or below, as far as
/// it takes. From the right to the left, so that the thread of a label passes those that are already there.
fn place(marks: &[Mark], (wide, tall): (i32, i32)) -> Vec<Spot> {
    let mut taken: Vec<Spot> = marks.iter().flat_map(Mark::covers).collect();
    let mut spots = Vec::with_capacity(marks.len());
    for mark in marks.iter().rev() {
        let spot = |left: i32, upper: i32| Spot {
            left,
            right: left + width(TEXT, &mark.label) + 4,
            upper,
            lower: upper + TEXT,
        };
        let beside = spot(mark.x + mark.radius.max(SERIF) + 2, mark.y - TEXT / 2);
        let far = (0..tall).step_by(GAP as usize);
        let above = far.clone().map(|away| spot(mark.x + 1, mark.top.min(mark.y - mark.radius) - GAP - TEXT - away));
        let below = far.map(|away| spot(mark.x + 1, mark.bottom.max(mark.y + mark.radius) + GAP + away));
        let fits = |at: &Spot| {
            let inside = at.upper >= 0 && at.lower <= tall && at.right <= wide + ROOM.right;
            inside && !taken.iter().any(|other| other.meets(at))
        };
        let at = std::iter::once(beside).chain(above).chain(below).find(fits).unwrap_or(beside);
        taken.push(at);
        spots.push(at);
    }
    spots.reverse();
    spots
}

/// Wilson's interval of 95 % for a share of so many: unlike the usual one it is sound for few, and near 0 and 1.
pub fn wilson(share: f64, of: usize) -> (f64, f64) {
    let n = of as f64;
    let scale = 1.0 + Z * Z / n;
    let centre = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
    ((centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        let near = |(low, high): (f64, f64), expected: (f64, f64)| {
            assert!((low - expected.0).abs() < 5e-4 && (high - expected.1).abs() < 5e-4, "{low} {high}");
        };
        near(wilson(0.0, 10), (0.0, 0.2775));
        near(wilson(1.0, 10), (0.7225, 1.0));
        near(wilson(0.5, 100), (0.4038, 0.5962));
        near(wilson(1.0, 1), (0.2065, 1.0));
    }

    #[test]
    fn labels_of_crowded_points_stand_apart() {
        // As most are: many classes of small risks, where hardly any stall follows.
        let mark = |x: i32| Mark { x, y: 370, radius: 3, top: 360, bottom: 375, label: "n=12345".to_owned() };
        let marks: Vec<_> = [14, 18, 25, 40, 90, 395].map(mark).into();
        let spots = place(&marks, (400, 390));
        for (at, spot) in spots.iter().enumerate() {
            assert!(spots[at + 1..].iter().all(|other| !spot.meets(other)), "{spots:?}");
            assert!(marks.iter().flat_map(Mark::covers).all(|other| !spot.meets(&other)), "{spots:?}");
        }
    }
}

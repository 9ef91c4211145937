//! The main ways of guests through a model: its stages as boxes over time, and arrows between them.
//!
//! A box reaches from the mean time of its first use to that of its last, its height goes with its bytes, its colour with
//! the share of sessions. Boxes stand in lanes: the stage that most sessions go through takes the highest one in which
//! it and its label have room, so what all do is on top and what few do below. Only the greatest stages and the most
//! taken steps are drawn, and the caption says what is not.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use vmstream::model::Model;

use super::stages::{self, Stage, Stages, Step};
use super::{Area, Axis, Drawn, GREY, Plane, Room, SHARES, TEXT, legend, panel, plain, share_step, style, width};

/// Most boxes: more cannot be told apart on a sheet.
const STAGES_MAX: usize = 40;
/// Most arrows.
const STEPS_MAX: usize = 40;
/// Least share of a step that is drawn: of the sessions that go through the stage it leaves, or that it leads to.
const STEP_MIN: f64 = 0.4;
/// Most lanes, as many as have room on the sheet.
const LANES_MAX: usize = 9;
/// Height of a box, in lanes, at most; the rest is for its label.
const BOX_MAX: f64 = 0.6;
/// Height of a box at least: it must be seen.
const BOX_MIN: f64 = 0.08;
/// Narrowest box, in pixels.
const NARROW: f64 = 6.0;
/// Free space between boxes of a lane, in pixels.
const BETWEEN: f64 = 10.0;
/// How far an arrow runs straight before it turns, in pixels, at most.
const BEND_MAX: f64 = 40.0;

/// Where a box stands, in units of the plane: time, and lanes from the top.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// Draws the stages.
pub fn draw(area: &Area, model: &Model) -> Drawn {
    let found = stages::find(model, STAGES_MAX);
    let end = found.stages.iter().map(|stage| stage.ends_s).fold(1.0, f64::max) * 1.06;
    let wide = f64::from(area.dim_in_pixel().0) - 160.0;
    let spots = place(&found.stages, wide / end);
    let lanes = spots.iter().flatten().map(|spot| spot.bottom.ceil()).fold(1.0, f64::max);
    let drawn: u64 =
        found.stages.iter().zip(&spots).filter(|(_, spot)| spot.is_some()).map(|(stage, _)| stage.bytes).sum();
    let left_out = found.left_out_bytes + found.stages.iter().map(|stage| stage.bytes).sum::<u64>() - drawn;
    let caption = format!(
        "Main ways through it: stages of work by mean time, with MB and share of the sessions; \
         arrows for what {:.0} % do next or did before",
        STEP_MIN * 100.0
    );
    let room = Room { left: 100, right: 60, top: 60 };
    let axis = Axis { name: "guest's time from the start, in seconds", range: 0.0..end, labels: 14, label: &plain };
    let lane = Axis { name: "", range: lanes..0.0, labels: 0, label: &|_| String::new() };
    let plane = panel(area, &caption, &room, &axis, &lane)?;
    let mut entries = SHARES.map(|(_, colour, meaning)| (colour, meaning)).to_vec();
    let not_drawn = format!("not drawn: {} MB in smaller or rarer stages", megabytes(left_out));
    entries.push((WHITE, &not_drawn));
    legend(area, (room.left, 28), &entries)?;
    arrows(&plane, &found, &spots)?;
    for (stage, spot) in found.stages.iter().zip(&spots) {
        let Some(spot) = spot else { continue };
        let corners = [(spot.left, spot.top), (spot.right, spot.bottom)];
        plane.draw(&Rectangle::new(corners, SHARES[share_step(stage.share)].1.filled()))?;
        let label = label(stage);
        // Arrows run behind it.
        let pixel = plane.map_coordinate(&(spot.left, spot.top));
        let base = plane.get_base_pixel();
        let corner = (pixel.0 - base.0, pixel.1 - base.1);
        let ground = [(corner.0, corner.1 - TEXT), (corner.0 + width(TEXT, &label), corner.1 - 1)];
        plane.strip_coord_spec().draw(&Rectangle::new(ground, WHITE.mix(0.8).filled()))?;
        plane.draw(&Text::new(label, (spot.left, spot.top), style(TEXT, HPos::Left, VPos::Bottom)))?;
    }
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    let digits = if megabytes < 0.995 { 2 } else { usize::from(megabytes < 9.95) };
    format!("{megabytes:.digits$}")
}

fn label(stage: &Stage) -> String {
    format!("{} MB, {:.0} %", megabytes(stage.bytes), stage.share * 100.0)
}

/// A place for each stage; none where all lanes are taken. `scale` is in pixels a second.
fn place(stages: &[Stage], scale: f64) -> Vec<Option<Spot>> {
    let most = stages.iter().map(|stage| stage.bytes).max().unwrap_or(1) as f64;
    let mut order: Vec<usize> = (0..stages.len()).collect();
    order.sort_by(|&a, &b| stages[b].share.total_cmp(&stages[a].share).then(a.cmp(&b)));
    let mut lanes: Vec<Vec<(f64, f64)>> = vec![Vec::new(); LANES_MAX];
    let mut spots = vec![None; stages.len()];
    for at in order {
        let stage = &stages[at];
        let left = stage.begins_s;
        let right = stage.ends_s.max(left + NARROW / scale);
        let taken = (left, right.max(left + f64::from(width(TEXT, &label(stage))) / scale) + BETWEEN / scale);
        let free = |lane: &Vec<(f64, f64)>| lane.iter().all(|other| other.1 <= taken.0 || taken.1 <= other.0);
        let Some(lane) = lanes.iter().position(free) else { continue };
        lanes[lane].push(taken);
        let bottom = lane as f64 + 0.95;
        let top = bottom - (stage.bytes as f64 / most * BOX_MAX).max(BOX_MIN);
        spots[at] = Some(Spot { left, right, top, bottom });
    }
    spots
}

/// Draws the arrows, the most taken last and so on top.
fn arrows(plane: &Plane, found: &Stages, spots: &[Option<Spot>]) -> Drawn {
    let main = |step: &&Step| {
        let ends = found.stages[step.from].share.min(found.stages[step.to].share);
        step.share >= STEP_MIN * ends
    };
    let steps: Vec<_> = found.steps.iter().filter(main).take(STEPS_MAX).collect();
    for step in steps.into_iter().rev() {
        let (Some(from), Some(to)) = (spots[step.from], spots[step.to]) else { continue };
        arrow(plane, from, to, step.share)?;
    }
    Ok(())
}

/// An arrow from a box to the left side of another; its width says the share. It leaves on the right, or, if the other
/// box begins earlier than this one ends, above or below.
fn arrow(plane: &Plane, from: Spot, to: Spot, share: f64) -> Drawn {
    let pixels = plane.strip_coord_spec();
    // `map_coordinate` counts from the sheet's corner.
    let base = pixels.get_base_pixel();
    let pixel = |x: f64, y: f64| {
        let at = plane.map_coordinate(&(x, y));
        (f64::from(at.0 - base.0), f64::from(at.1 - base.1))
    };
    let end = pixel(to.left, (to.top + to.bottom) / 2.0);
    let left = pixel(from.left, from.bottom).0;
    let right = pixel(from.right, (from.top + from.bottom) / 2.0);
    let (start, handle) = if right.0 + BETWEEN <= end.0 {
        let bend = ((end.0 - right.0) / 2.0).min(BEND_MAX);
        (right, (right.0 + bend, right.1))
    } else {
        let x = (end.0 - BEND_MAX / 2.0).clamp(left, right.0);
        let (edge, out) = if to.bottom > from.bottom { (from.bottom, BEND_MAX) } else { (from.top, -BEND_MAX) };
        let start = (x, pixel(from.left, edge).1);
        (start, (x, start.1 + out))
    };
    let goal = (end.0 - BEND_MAX / 2.0, end.1);
    // A cubic Bézier curve, as plotters has only straight lines.
    let curve = |t: f64| {
        let s = 1.0 - t;
        let mix =
            |a: f64, b: f64, c: f64, d: f64| s * s * s * a + 3.0 * s * s * t * b + 3.0 * s * t * t * c + t * t * t * d;
        round((mix(start.0, handle.0, goal.0, end.0), mix(start.1, handle.1, goal.1, end.1)))
    };
    let line: Vec<_> = (0..=16).map(|part| curve(f64::from(part) / 16.0)).collect();
    pixels.draw(&PathElement::new(line, GREY.mix(0.7).stroke_width((share * 6.0).ceil() as u32)))?;
    let head = 4.0 + share * 4.0;
    let tip = [end, (end.0 - head * 1.5, end.1 - head), (end.0 - head * 1.5, end.1 + head)];
    pixels.draw(&Polygon::new(tip.map(round), GREY.filled()))
}

fn round(at: (f64, f64)) -> (i32, i32) {
    (at.0.round() as i32, at.1.round() as i32)
}

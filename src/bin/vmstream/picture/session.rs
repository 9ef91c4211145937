//! The picture of a replay: three panels over one axis of time.
//!
//! *Blocks*: when which place of the image came, and when the guest touched it; the distance between the two is the
//! lead that foresight had. What is here already is shaded, by quarters of what a row of pixels ever gets. *Bytes*:
//! what the guest needed so far and what came, beside what the link could have brought. *Waiting*: each time the
//! guest stood still, and how full the link was meanwhile.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use vmstream::block::{BlockRange, Geometry};
use vmstream::error::Result;
use vmstream::planner::Class;
use vmstream::replay::oracle::Bound;
use vmstream::replay::{Figures, LinkModel};

use super::places::Places;
use super::raster::Raster;
use super::timeline::Timeline;
use super::watch::Watch;
use super::{
    Area, Axis, BLUE, Drawn, FAINT, GREEN, GREY, INK, ORANGE, Plane, Room, SKY, TEXT, VERMILLION, legend, name, panel,
    plain, sheet, style,
};
use crate::progress::{rate, size};

/// Width and height of the sheet, in pixels.
const SIZE: (u32, u32) = (1480, 1312);
/// Height of the panel of blocks, in pixels.
const BLOCKS: u32 = 640;
/// Height of the panel of bytes.
const BYTES: u32 = 300;
/// Room around each plane: the same for all, so that the same time stands below itself.
const ROOM: Room = Room { left: 110, right: 170, top: 55 };
/// Side of a mark in the panel of blocks, in pixels.
const CELL: i32 = 2;
/// A guest that waits longer than this, in seconds, stutters visibly.
const LONG_S: f64 = 0.1;

/// What a picture is of.
pub struct Scene<'a> {
    /// Name of the session.
    pub trace: &'a str,
    /// Name of the policy.
    pub policy: &'a str,
    /// The image.
    pub geometry: Geometry,
    /// The link.
    pub link: LinkModel,
    /// What came of it.
    pub figures: &'a Figures,
    /// What could have come of it at best.
    pub bound: &'a Bound,
    /// What was seen.
    pub watch: &'a Watch<'a>,
}

/// Draws the replay.
pub fn draw(scene: &Scene) -> Result<String> {
    let figures = scene.figures;
    let title = format!("Replay of {}, policy {}", name(scene.trace), scene.policy);
    let more = format!(
        "image of {}, link of {} and {} ms; {:.1} s in all, of which the guest waits {:.1} s in {} stalls, {} of them over \
         0.1 s; at best {:.1} s in all",
        size(scene.geometry.size()),
        rate(scene.link.rate as u64),
        plain(scene.link.round_trip.as_secs_f64() * 1e3),
        figures.total.as_secs_f64(),
        figures.stalled.as_secs_f64(),
        figures.stalls,
        figures.long_stalls,
        scene.bound.total().as_secs_f64(),
    );
    sheet(SIZE, &title, &more, |area| {
        let (above, rest) = area.split_vertically(BLOCKS);
        let (middle, below) = rest.split_vertically(BYTES);
        // A session of no length still has an axis.
        let end = figures.total.as_secs_f64().max(0.01);
        blocks(&above, scene, end)?;
        bytes(&middle, scene, end)?;
        waiting(&below, scene, end)
    })
}

/// The axis of time; only the lowest of the panels names it.
fn time(name: &str, end: f64) -> Axis<'_> {
    Axis { name, range: 0.0..end, labels: 14, label: &plain }
}

/// Marks of the panel of blocks: a cell shows the highest of its own.
const MARKS: [(RGBColor, &str); 5] = [
    (GREEN, "arrives to fill the image"),
    (SKY, "arrives ahead"),
    (ORANGE, "arrives on demand"),
    (INK, "guest touches what is here"),
    (VERMILLION, "guest waits"),
];
/// What a row looks like of which a quarter is here, half, three quarters, and all.
const QUARTERS: [RGBColor; 4] =
    [RGBColor(245, 245, 245), RGBColor(237, 237, 237), RGBColor(229, 229, 229), RGBColor(220, 220, 220)];

fn blocks(area: &Area, scene: &Scene, end: f64) -> Drawn {
    let watch = scene.watch;
    let ranges = watch.touches.iter().map(|touch| touch.range).chain(watch.arrivals.iter().map(|a| a.range));
    let places = Places::new(ranges);
    let top = places.blocks().max(1) as f64;
    let offset = |position: f64| {
        let block = places.block(position.max(0.0) as u64);
        size(scene.geometry.offset(BlockRange::one(block)))
    };
    let y =
        Axis { name: "place in the image; what is not used is left out", range: 0.0..top, labels: 10, label: &offset };
    let plane = panel(area, "Blocks: what comes, and what the guest does", &ROOM, &time("", end), &y)?;
    let mut entries = vec![(QUARTERS[3], "here already")];
    entries.extend(MARKS);
    legend(area, (ROOM.left, 28), &entries)?;

    let pixels = plane.strip_coord_spec();
    let (wide, tall) = pixels.dim_in_pixel();
    let (columns, rows) = ((wide as i32 / CELL).max(1) as usize, (tall as i32 / CELL).max(1) as usize);
    let column = |at: f64| (at / end * columns as f64) as usize;
    // Rows from the top, as pixels are counted.
    let row = |position: u64| rows - 1 - ((position as f64 / top * rows as f64) as usize).min(rows - 1);
    let span = |range: BlockRange| {
        let first = places.position(range.start);
        row(first + range.len().saturating_sub(1))..=row(first)
    };
    shade(&pixels, scene, columns, rows, &column, &span)?;
    let mut raster = Raster::new(columns, rows);
    for arrival in &watch.arrivals {
        let mark = match arrival.class {
            Class::Fill => 1,
            Class::Prefetch => 2,
            Class::Demand => 3,
        };
        span(arrival.range).for_each(|row| raster.set(column(arrival.at), row, mark));
    }
    for touch in watch.touches.iter().filter(|touch| !touch.range.is_empty()) {
        span(touch.range).for_each(|row| raster.set(column(touch.at), row, if touch.missed { 5 } else { 4 }));
    }
    for run in raster.runs() {
        cells(&pixels, (run.from, run.to), run.row, MARKS[usize::from(run.mark) - 1].0.filled())?;
    }
    Ok(())
}

fn cells(pixels: &Area, columns: (usize, usize), row: usize, style: ShapeStyle) -> Drawn {
    let (from, to, row) = (columns.0 as i32 * CELL, columns.1 as i32 * CELL, row as i32 * CELL);
    pixels.draw(&Rectangle::new([(from, row), (to, row + CELL)], style))
}

/// Shades each row from the times on at which a quarter, half, three quarters and all of what ever comes to it is here.
fn shade(
    pixels: &Area,
    scene: &Scene,
    columns: usize,
    rows: usize,
    column: &dyn Fn(f64) -> usize,
    span: &dyn Fn(BlockRange) -> std::ops::RangeInclusive<usize>,
) -> Drawn {
    let mut arrivals: Vec<Vec<(f64, f64)>> = vec![Vec::new(); rows];
    for arrival in &scene.watch.arrivals {
        let span = span(arrival.range);
        let part = arrival.bytes as f64 / span.clone().count() as f64;
        span.for_each(|row| arrivals[row].push((arrival.at, part)));
    }
    for (row, arrivals) in arrivals.iter().enumerate() {
        let all: f64 = arrivals.iter().map(|arrival| arrival.1).sum();
        let mut sum = 0.0;
        // Where each quarter begins, and the end.
        let mut edges = [columns; QUARTERS.len() + 1];
        let mut quarter = 0;
        for (at, part) in arrivals {
            sum += part;
            // Half a byte is for rounding.
            while quarter < QUARTERS.len() && sum + 0.5 >= all * (quarter + 1) as f64 / QUARTERS.len() as f64 {
                edges[quarter] = column(*at).min(columns);
                quarter += 1;
            }
        }
        for (pair, colour) in edges.windows(2).zip(QUARTERS) {
            if pair[0] < pair[1] {
                cells(pixels, (pair[0], pair[1]), row, colour.filled())?;
            }
        }
    }
    Ok(())
}

/// A line of the panel of bytes: its points, its colour, what it is, and its width in pixels: those drawn first are wider,
/// so that they show where another one lies on them.
type Line = (Vec<(f64, f64)>, RGBColor, &'static str, u32);

fn bytes(area: &Area, scene: &Scene, end: f64) -> Drawn {
    let watch = scene.watch;
    let sums = |wanted: &dyn Fn(Class) -> bool| {
        let mut sum = 0;
        let mut points = vec![(0.0, 0.0)];
        for arrival in watch.arrivals.iter().filter(|arrival| wanted(arrival.class)) {
            sum += arrival.bytes;
            points.push((arrival.at, sum as f64 / 1e6));
        }
        points
    };
    let mut needed = vec![(0.0, 0.0)];
    needed.extend(watch.needed.iter().map(|&(at, bytes)| (at, bytes as f64 / 1e6)));
    let lines: [Line; 5] = [
        (sums(&|_| true), INK, "all that came", 4),
        (sums(&|class| class == Class::Prefetch), BLUE, "ahead", 2),
        (sums(&|class| class == Class::Demand), ORANGE, "on demand", 2),
        (sums(&|class| class == Class::Fill), GREEN, "fill", 2),
        (needed, VERMILLION, "needed", 2),
    ];
    let top = lines.iter().filter_map(|line| line.0.last()).map(|point| point.1).fold(0.1, f64::max) * 1.05;
    let y = Axis { name: "MB since the start", range: 0.0..top, labels: 6, label: &plain };
    let plane = panel(area, "Bytes: what the guest needed, and what came", &ROOM, &time("", end), &y)?;

    // What the link can carry; it leaves the panel at the top or on the right.
    let full = (top / (scene.link.rate / 1e6)).min(end);
    let carried = full * scene.link.rate / 1e6;
    plane.draw(&PathElement::new([(0.0, 0.0), (full, carried)], GREY.stroke_width(2)))?;
    let side = if full > end * 0.8 { HPos::Right } else { HPos::Left };
    plane.draw(&Text::new("what the link can carry", (full, top), style(TEXT, side, VPos::Bottom)))?;

    let mut labels = Vec::new();
    for (points, colour, meaning, width) in lines {
        let Some(&(_, last)) = points.last() else { continue };
        // What never came needs no line.
        if last == 0.0 {
            continue;
        }
        let thin = thinned(&plane, &points, end);
        plane.draw(&PathElement::new(thin, colour.stroke_width(width)))?;
        labels.push((plane.map_coordinate(&(end, last)), colour, format!("{meaning}, {last:.1} MB")));
    }
    beside(area, labels)
}

/// The steps of a line that grows, in pixels, without those that no pixel shows.
fn thinned(plane: &Plane, points: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let mut thin: Vec<(f64, f64)> = Vec::new();
    for &point in points {
        let (x, y) = plane.map_coordinate(&point);
        let last = thin.last().map(|last| (*last, plane.map_coordinate(last)));
        match last {
            Some((_, pixel)) if pixel == (x, y) => {}
            Some((last, pixel)) => {
                // Level until it grows.
                if pixel.0 != x && pixel.1 != y {
                    thin.push((point.0, last.1));
                }
                thin.push(point);
            }
            None => thin.push(point),
        }
    }
    thin.extend(points.last().map(|last| (end, last.1)));
    thin
}

/// Writes what lines are at their right ends, moved apart where they are too near each other.
fn beside(area: &Area, mut labels: Vec<((i32, i32), RGBColor, String)>) -> Drawn {
    // `map_coordinate` counts from the sheet's corner.
    let (left, top) = area.get_base_pixel();
    labels.sort_by_key(|label| label.0.1);
    // From the lowest up, so that none is pushed out below.
    let mut limit = i32::MAX;
    for ((x, y), colour, label) in labels.into_iter().rev() {
        let y = y.min(limit);
        limit = y - TEXT - 2;
        let style = style(TEXT, HPos::Left, VPos::Center).color(&colour);
        area.draw(&Text::new(label, (x - left + 8, y - top), style))?;
    }
    Ok(())
}

fn waiting(area: &Area, scene: &Scene, end: f64) -> Drawn {
    let mut link = Timeline::new(end);
    for arrival in &scene.watch.arrivals {
        let bytes = arrival.bytes as f64;
        // It was on the link for as long as it takes.
        link.add((arrival.at - bytes / scene.link.rate).max(0.0), arrival.at, bytes);
    }
    let caption = format!(
        "Waiting: when the guest stands still, and how much of the link blocks take, per {} s",
        plain(link.piece_s)
    );
    // The spans stand in a strip above the bars.
    let percent = |value: f64| if value > 100.5 { String::new() } else { plain(value) };
    let y = Axis { name: "% of the link", range: 0.0..135.0, labels: 7, label: &percent };
    let plane = panel(area, &caption, &ROOM, &time("time since the start, in seconds", end), &y)?;
    let entries = [(SKY, "link in use"), (ORANGE, "guest waits"), (VERMILLION, "for more than 0.1 s")];
    legend(area, (ROOM.left, 28), &entries)?;
    for (at, sum) in link.sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        let from = at as f64 * link.piece_s;
        let to = (from + link.piece_s).min(end);
        let used = (sum / (scene.link.rate * (to - from)) * 100.0).min(100.0);
        plane.draw(&Rectangle::new([(from, 0.0), (to, used)], SKY.filled()))?;
    }
    let pixels = plane.strip_coord_spec();
    let columns = pixels.dim_in_pixel().0.max(1) as usize;
    let mut raster = Raster::new(columns, 1);
    for (from, to) in &scene.watch.stalls {
        let column = |at: f64| (at / end * columns as f64) as usize;
        let mark = if to - from > LONG_S { 2 } else { 1 };
        (column(*from)..=column(*to)).for_each(|column| raster.set(column, 0, mark));
    }
    let base = plane.get_base_pixel();
    let strip = [130.0, 108.0].map(|level| plane.map_coordinate(&(0.0, level)).1 - base.1);
    pixels.draw(&Rectangle::new([(0, strip[0]), (columns as i32, strip[1])], FAINT.filled()))?;
    for run in raster.runs() {
        let colour = if run.mark == 2 { VERMILLION } else { ORANGE };
        let corners = [(run.from as i32, strip[0]), (run.to as i32, strip[1])];
        pixels.draw(&Rectangle::new(corners, colour.filled()))?;
    }
    Ok(())
}

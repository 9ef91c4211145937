//! The learning curve: how long guests waited, by the number of sessions that were learnt before them.
//!
//! A point is a lesson: the mean of the sessions that it was about to learn, with the model as it was before, and without any.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use vmstream::error::Result;

use super::{Axis, BLUE, GREY, Plane, Room, TEXT, legend, name, panel, plain, sheet, text};

/// Width and height of the sheet, in pixels.
const SIZE: (u32, u32) = (1480, 520);
/// Height of the legend, in pixels.
const LEGEND: u32 = 32;
/// Room around the plane.
const ROOM: Room = Room { left: 75, right: 40, top: 32 };
/// Radius of a point, in pixels.
const RADIUS: i32 = 4;
/// What an axis shows beyond the greatest value, so that a point there is seen whole.
const BEYOND: f64 = 1.08;

/// A lesson.
#[derive(Clone, Copy, Debug)]
pub struct Lesson {
    /// Sessions that were learnt before.
    pub sessions: u64,
    /// Mean wait with the model, in seconds.
    pub waited_s: f64,
    /// And without.
    pub plain_s: f64,
}

/// Draws the curve of an image. There may be no lessons.
pub fn draw(lessons: &[Lesson], image: &str, link: &str) -> Result<String> {
    let more = format!("new sessions, replayed over {link} before they were learnt; the mean of each lesson");
    sheet(SIZE, &format!("How long guests of {} wait", name(image)), &more, |area| {
        let entries = [(BLUE, "with what was learnt until then"), (GREY, "without a model")];
        legend(area, (ROOM.left, 2), &entries)?;
        let (_, below) = area.split_vertically(LEGEND);
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let right = most(&mut lessons.iter().map(|l| l.sessions as f64)).max(1.0) * BEYOND;
        let top = most(&mut lessons.iter().map(|l| l.waited_s.max(l.plain_s))).max(0.1) * BEYOND;
        let x = Axis { name: "sessions learnt before", range: 0.0..right, labels: 10, label: &plain };
        let y = Axis { name: "seconds waited", range: 0.0..top, labels: 6, label: &plain };
        let plane = panel(&below, "", &ROOM, &x, &y)?;
        if lessons.is_empty() {
            let pixels = plane.strip_coord_spec();
            let (wide, tall) = pixels.dim_in_pixel();
            let line = "no session was collected and learnt yet";
            return text(&pixels, (wide as i32 / 2, tall as i32 / 2), TEXT, HPos::Center, line);
        }
        line(&plane, lessons, GREY, |lesson| lesson.plain_s)?;
        line(&plane, lessons, BLUE, |lesson| lesson.waited_s)
    })
}

fn line(plane: &Plane, lessons: &[Lesson], colour: RGBColor, what: impl Fn(&Lesson) -> f64) -> super::Drawn {
    let points: Vec<(f64, f64)> = lessons.iter().map(|lesson| (lesson.sessions as f64, what(lesson))).collect();
    plane.draw(&PathElement::new(points.clone(), colour.stroke_width(2)))?;
    points.into_iter().try_for_each(|point| plane.draw(&Circle::new(point, RADIUS, colour.filled())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lesson_is_two_points() {
        let lesson = |n: u64| Lesson { sessions: n * 16, waited_s: 9.0 / (n + 1) as f64, plain_s: 9.0 };
        let svg = draw(&(0..5).map(lesson).collect::<Vec<_>>(), "disk <1>", "25 Mbit/s").unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(document.descendants().filter(|node| node.has_tag_name("circle")).count(), 10);
        assert!(draw(&[], "disk", "25 Mbit/s").unwrap().contains("no session was collected"));
    }
}

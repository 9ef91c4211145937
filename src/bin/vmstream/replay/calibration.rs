//! What the forecast said in replays beside what happened: the table, the file and the picture of
//! `vmstream replay --calibration`.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use vmstream::error::{Error, Result};
use vmstream::replay::calibration::{Answer, Questions};

use crate::picture::calibration as picture;

/// Time between two questions: longer than the planner takes to change its mind, and some hundred answers a session.
const EVERY: Duration = Duration::from_secs(1);
/// How far the forecasts look ahead, in seconds: the next click, the next command, the next programs.
const HORIZONS_S: [u64; 3] = [1, 5, 30];
/// Where the classes of said risk end.
const CLASSES: [f64; 9] = [0.01, 0.03, 0.08, 0.15, 0.3, 0.5, 0.7, 0.9, 1.0];

/// What is asked in each replay.
pub fn questions() -> Questions {
    Questions { every: EVERY, horizons: HORIZONS_S.iter().copied().map(Duration::from_secs).collect() }
}

/// One answer. Times are in seconds.
#[derive(Serialize)]
struct Point {
    trace: String,
    at_s: f64,
    horizon_s: f64,
    risk: f64,
    stalled: bool,
    expected_stall_s: f64,
    stall_s: f64,
    calm_in_s: Option<f64>,
    foreseen: bool,
}

/// One class of answers.
#[derive(Serialize)]
struct Class {
    horizon_s: f64,
    /// The risk that was said is above the first and up to the second.
    above: f64,
    up_to: f64,
    answers: usize,
    /// Mean of what was said, and share of the answers that a stall followed.
    said: f64,
    happened: f64,
}

/// The file: its keys are added to, never renamed.
#[derive(Serialize)]
struct File<'a> {
    classes: Vec<Class>,
    answers: &'a [Point],
}

/// The answers of all replays.
#[derive(Default)]
pub struct Calibration {
    points: Vec<Point>,
}

impl Calibration {
    /// Takes in the answers given during the replay of one session.
    pub fn add(&mut self, trace: &str, answers: &[Answer]) {
        self.points.extend(answers.iter().map(|answer| Point {
            trace: trace.to_owned(),
            at_s: answer.at.as_secs_f64(),
            horizon_s: answer.horizon.as_secs_f64(),
            risk: answer.said.stall_risk,
            stalled: answer.stalled,
            expected_stall_s: answer.said.expected_stall.as_secs_f64(),
            stall_s: answer.waited.as_secs_f64(),
            calm_in_s: answer.said.calm_in.map(|time| time.as_secs_f64()),
            foreseen: answer.said.foreseen,
        }));
    }

    /// All answers and their classes, as a JSON object.
    pub fn json(&self) -> Result<String> {
        let classes = HORIZONS_S.iter().flat_map(|&horizon_s| self.classes(horizon_s as f64)).collect();
        let json = serde_json::to_string(&File { classes, answers: &self.points });
        Ok(json.map_err(|e| Error::io("cannot write the calibration", e.into()))? + "\n")
    }

    /// The classes as the picture has them.
    pub fn horizons(&self) -> [picture::Horizon; HORIZONS_S.len()] {
        let point =
            |class: &Class| picture::Class { answers: class.answers, said: class.said, happened: class.happened };
        HORIZONS_S.map(|seconds| picture::Horizon {
            seconds,
            classes: self.classes(seconds as f64).iter().map(point).collect(),
        })
    }

    /// The answers about one horizon, by what was said. Classes without any are left out.
    fn classes(&self, horizon_s: f64) -> Vec<Class> {
        let mut classes = Vec::new();
        let mut above = 0.0;
        for up_to in CLASSES {
            // The first class begins with 0 itself.
            let mine = |p: &&Point| p.horizon_s == horizon_s && p.risk <= up_to && (p.risk > above || above == 0.0);
            let (mut answers, mut said, mut stalled) = (0, 0.0, 0);
            for point in self.points.iter().filter(mine) {
                answers += 1;
                said += point.risk;
                stalled += usize::from(point.stalled);
            }
            if answers > 0 {
                let all = answers as f64;
                classes.push(Class {
                    horizon_s,
                    above,
                    up_to,
                    answers,
                    said: said / all,
                    happened: stalled as f64 / all,
                });
            }
            above = up_to;
        }
        classes
    }

    /// The classes as a table, and beneath each horizon the expected and the actual time of waiting.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for horizon_s in HORIZONS_S.map(|seconds| seconds as f64) {
            let _ = writeln!(text, "stall within {horizon_s} s   answers   said %  happened %");
            for class in self.classes(horizon_s) {
                let _ = writeln!(
                    text,
                    "  {:>3.0} - {:>3.0} %       {:>7}   {:>6.1}  {:>10.1}",
                    class.above * 100.0,
                    class.up_to * 100.0,
                    class.answers,
                    class.said * 100.0,
                    class.happened * 100.0
                );
            }
            let mine: Vec<_> = self.points.iter().filter(|point| point.horizon_s == horizon_s).collect();
            if mine.is_empty() {
                text += "  no answers: every session was shorter\n";
                continue;
            }
            let mean = |f: fn(&Point) -> f64| mine.iter().map(|point| f(point)).sum::<f64>() / mine.len() as f64;
            let score = mean(|p| (p.risk - f64::from(u8::from(p.stalled))).powi(2));
            let _ = writeln!(
                text,
                "  wait: expected {:.3} s, happened {:.3} s; mean square error of the risk {score:.4}",
                mean(|p| p.expected_stall_s),
                mean(|p| p.stall_s)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_horizon_without_answers_has_no_figures() {
        let table = Calibration::default().table();
        assert_eq!(table.matches("no answers").count(), HORIZONS_S.len(), "{table}");
        assert!(!table.contains("0.000"), "{table}");
    }
}

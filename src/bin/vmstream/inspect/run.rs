//! The record of a machine that was run: what its status said from time to time, and what its clients met with.
//!
//! A line is a JSON object with the key `at_s`, seconds since the link was followed, and one more: `status`, an object as
//! `--json-status` writes it; `answer_s`, how long a client waited that asked then; `event`, which is "online" or
//! "origin stopped". Lines without any of these are for others.

use std::path::Path;

use serde::Deserialize;
use vmstream::error::{Error, Result, errno};

use crate::files;

/// Longest record that is read, in bytes: a day at a kilobyte a second.
const BYTES_MAX: u64 = 100 << 20;
/// Latest moment that is believed, in seconds: an axis must have an end.
const AT_MAX_S: f64 = 1e7;

/// What the status said at a moment. Shares and risks are from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said {
    /// When.
    pub at_s: f64,
    /// Risk of a stall within 30 s.
    pub risk: f64,
    /// Share of the image that was here.
    pub resident: f64,
}

/// What is in a record.
#[derive(Debug, Default, PartialEq)]
pub struct Run {
    /// What was said, in the order of the file.
    pub said: Vec<Said>,
    /// When a client asked, and how long it waited, both in seconds.
    pub answers: Vec<(f64, f64)>,
    /// When the machine was let go.
    pub online_s: Option<f64>,
    /// When its origin was ended.
    pub origin_ended_s: Option<f64>,
}

#[derive(Deserialize)]
struct Line {
    at_s: f64,
    status: Option<Status>,
    answer_s: Option<f64>,
    event: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    size: u64,
    resident_bytes: u64,
    stall_risk: f64,
}

impl Run {
    /// Reads a record.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let bytes = files::read(path, BYTES_MAX)?;
        let bytes =
            bytes.ok_or_else(|| Error::new(errno::ENOENT, format!("cannot read {name}: there is no such file")))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::new(errno::EINVAL, format!("{name} is not a text")))?;
        Self::parse(&text).map_err(|(line, why)| Error::new(errno::EINVAL, format!("{name}, line {line}: {why}")))
    }

    /// Reads the text of a record; or answers which line is wrong, and why.
    fn parse(text: &str) -> std::result::Result<Self, (usize, String)> {
        let mut run = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let Line { at_s, status, answer_s, event } =
                serde_json::from_str(line).map_err(|error| (number, error.to_string()))?;
            if !(0.0..=AT_MAX_S).contains(&at_s)
                || answer_s.is_some_and(|waited_s| !(0.0..=AT_MAX_S).contains(&waited_s))
            {
                return Err((number, format!("a time must be from 0 to {AT_MAX_S} s")));
            }
            if let Some(Status { size, resident_bytes, stall_risk }) = status {
                let resident = (resident_bytes as f64 / size.max(1) as f64).min(1.0);
                run.said.push(Said { at_s, risk: stall_risk.clamp(0.0, 1.0), resident });
            }
            run.answers.extend(answer_s.map(|waited_s| (at_s, waited_s)));
            match event.as_deref() {
                Some("online") => run.online_s = Some(at_s),
                Some("origin stopped") => run.origin_ended_s = Some(at_s),
                _ => {}
            }
        }
        Ok(run)
    }

    /// The last moment that is told of, in seconds.
    pub fn end_s(&self) -> f64 {
        let said = self.said.iter().map(|said| said.at_s);
        let answers = self.answers.iter().map(|answer| answer.0 + answer.1);
        said.chain(answers).chain(self.online_s).chain(self.origin_ended_s).fold(0.0, f64::max)
    }

    /// What is in it, for a person.
    pub fn lines(&self) -> String {
        let moment = |at_s: Option<f64>| at_s.map_or("never".to_owned(), |at_s| format!("after {at_s:.1} s"));
        let risk = |at_s: Option<f64>| {
            let before = self.said.iter().rev().find(|said| at_s.is_some_and(|at_s| said.at_s <= at_s));
            before.map_or("unknown".to_owned(), |said| format!("{:.1} %", said.risk * 100.0))
        };
        let longest = self.answers.iter().map(|answer| answer.1).fold(0.0, f64::max);
        let slow = self.answers.iter().filter(|answer| answer.1 > 1.0).count();
        format!(
            "on-line    {}; the risk said last was {}\nanswers    {}, the longest after {longest:.2} s, {slow} after more than a second\norigin     ended {}; the risk said last was {}\n",
            moment(self.online_s),
            risk(self.online_s),
            self.answers.len(),
            moment(self.origin_ended_s),
            risk(self.origin_ended_s),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_and_summed_up() {
        let text = r#"{"at_s": 0.5, "status": {"size": 100, "resident_bytes": 25, "stall_risk": 0.9, "model": "x"}}
{"at_s": 9, "event": "online"}
{"at_s": 9.1, "answer_s": 1.5}
{"at_s": 11, "event": "of another kind"}
{"at_s": 12, "event": "origin stopped"}
"#;
        let run = Run::parse(text).unwrap();
        assert_eq!(run.said, [Said { at_s: 0.5, risk: 0.9, resident: 0.25 }]);
        assert_eq!((run.answers.as_slice(), run.end_s()), (&[(9.1, 1.5)][..], 12.0));
        assert!(run.lines().contains("after 9.0 s; the risk said last was 90.0 %"), "{}", run.lines());
        assert_eq!(Run::parse("").unwrap(), Run::default());
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_line() {
        for (text, line) in [
            ("no JSON", 1),
            ("{\"at_s\": 1}\n{}", 2),
            ("{\"at_s\": -1}", 1),
            ("{\"at_s\": 1e300}", 1),
            ("{\"at_s\": 1, \"answer_s\": -3}", 1),
            ("{\"at_s\": 1, \"status\": {\"size\": 1}}", 1),
        ] {
            assert_eq!(Run::parse(text).unwrap_err().0, line, "{text}");
        }
    }
}

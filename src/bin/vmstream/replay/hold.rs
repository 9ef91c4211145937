//! What came of guests that were held back: the table, the file and the picture of `vmstream replay --hold`.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use vmstream::config::parse_duration;
use vmstream::error::{Error, Result};
use vmstream::replay::hold::{Plan, Trial};

/// How far the forecast looks ahead unless `for` says otherwise: what `--wait` goes by.
const FOR: Duration = Duration::from_secs(30);
/// Holds that are tried unless `every` says otherwise, beside the one of no time.
const HOLDS: u32 = 20;
/// Most holds that may be asked for: each is a replay of every session.
const HOLDS_MAX: u128 = 10_000;
/// The risk at which `--wait` lets go unless `risk` says otherwise.
const RISK: f64 = 0.05;
/// Shares of stalls between which a factor says something: beyond them few guests decide.
const TELLING: std::ops::RangeInclusive<f64> = 0.05..=0.95;

/// What `--hold` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hold {
    /// The trials.
    pub plan: Plan,
    /// Risk, from 0 to 1, at which a guest would be let go.
    pub risk: f64,
}

impl Hold {
    /// Reads `up-to=30m[,every=90s][,for=30s][,risk=5%]`; for clap.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let (mut up_to, mut every, mut horizon, mut risk) = (None, None, FOR, RISK);
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("'{part}': must be up-to=, every=, for= or risk= and a value"))?;
            let time = || {
                let time = parse_duration(key, value).map_err(|error| error.to_string())?;
                if time.is_zero() { Err(format!("{key}={value}: must be longer than nothing")) } else { Ok(time) }
            };
            match key {
                "up-to" => up_to = Some(time()?),
                "every" => every = Some(time()?),
                "for" => horizon = time()?,
                "risk" => {
                    let percent = value.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
                    let percent = percent.filter(|percent| (1.0..=99.0).contains(percent));
                    risk = percent.ok_or_else(|| format!("risk={value}: must be from 1% to 99%"))? / 100.0;
                }
                _ => return Err(format!("'{key}': only up-to, every, for and risk are known")),
            }
        }
        let up_to = up_to.ok_or("up-to= is missing, such as up-to=30m")?;
        let every = every.unwrap_or((up_to / HOLDS).max(Duration::from_millis(1)));
        if up_to.as_nanos() / every.as_nanos() > HOLDS_MAX {
            return Err(format!("more than {HOLDS_MAX} holds: say a longer every="));
        }
        Ok(Self { plan: Plan { every, up_to, horizon }, risk })
    }
}

/// All guests that were held for the same time. Times are in seconds, risks and shares from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// For how long.
    pub held_s: f64,
    /// How many guests.
    pub guests: usize,
    /// Mean of the risks said.
    pub risk: f64,
    /// Share of the guests that stalled.
    pub stalled: f64,
    /// Mean of the stalls expected.
    pub expected_stall_s: f64,
    /// Mean of what the guests waited.
    pub stall_s: f64,
    /// How many guests `--wait` would have let go by then.
    pub let_go: usize,
}

/// What was said, over what happened, over all rows in which that says something.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Factor {
    /// Sum of what was said over the sum of what happened.
    pub said_over_happened: f64,
    /// Guests and holds that it comes from.
    pub trials: usize,
}

/// A guest that `--wait` let go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct LetGo {
    held_s: f64,
    stalled: bool,
}

/// The file: its keys are added to, never renamed.
#[derive(Serialize)]
struct File<'a> {
    for_s: f64,
    wait_risk: f64,
    risk: Option<Factor>,
    stall: Option<Factor>,
    let_go: usize,
    let_go_stalled: usize,
    holds: Vec<Row>,
    trials: &'a [Point],
}

/// One trial.
#[derive(Serialize)]
struct Point {
    trace: String,
    held_s: f64,
    risk: f64,
    stalled: bool,
    expected_stall_s: f64,
    stall_s: f64,
}

/// The trials of all guests.
pub struct Holds {
    hold: Hold,
    points: Vec<Point>,
    let_go: Vec<LetGo>,
}

impl Holds {
    /// None yet.
    pub fn new(hold: Hold) -> Self {
        Self { hold, points: Vec::new(), let_go: Vec::new() }
    }

    /// Takes in the trials of one guest.
    pub fn add(&mut self, trace: &str, trials: &[Trial]) {
        let first = trials.iter().find(|trial| trial.said.stall_risk <= self.hold.risk);
        self.let_go.extend(first.map(|trial| LetGo { held_s: trial.held.as_secs_f64(), stalled: trial.stalled }));
        self.points.extend(trials.iter().map(|trial| Point {
            trace: trace.to_owned(),
            held_s: trial.held.as_secs_f64(),
            risk: trial.said.stall_risk,
            stalled: trial.stalled,
            expected_stall_s: trial.said.expected_stall.as_secs_f64(),
            stall_s: trial.waited.as_secs_f64(),
        }));
    }

    /// A row for each hold, the shortest first.
    pub fn rows(&self) -> Vec<Row> {
        let mut held: Vec<f64> = self.points.iter().map(|point| point.held_s).collect();
        held.sort_by(f64::total_cmp);
        held.dedup();
        held.iter().map(|&held_s| self.row(held_s)).collect()
    }

    fn row(&self, held_s: f64) -> Row {
        let mine: Vec<_> = self.points.iter().filter(|point| point.held_s == held_s).collect();
        let mean = |f: fn(&Point) -> f64| mine.iter().map(|point| f(point)).sum::<f64>() / mine.len() as f64;
        Row {
            held_s,
            guests: mine.len(),
            risk: mean(|p| p.risk),
            stalled: mean(|p| f64::from(u8::from(p.stalled))),
            expected_stall_s: mean(|p| p.expected_stall_s),
            stall_s: mean(|p| p.stall_s),
            let_go: self.let_go.iter().filter(|guest| guest.held_s <= held_s).count(),
        }
    }

    /// How far the risk is right on the whole.
    pub fn risk_factor(&self) -> Option<Factor> {
        factor(&self.rows(), |row| row.stalled, |row| (row.risk, row.stalled))
    }

    /// How far the expected stall is.
    pub fn stall_factor(&self) -> Option<Factor> {
        let horizon_s = self.hold.plan.horizon.as_secs_f64();
        factor(&self.rows(), |row| row.stall_s / horizon_s, |row| (row.expected_stall_s, row.stall_s))
    }

    /// Guests that `--wait` would have let go, and those of them that stalled.
    fn let_go(&self) -> (usize, usize) {
        (self.let_go.len(), self.let_go.iter().filter(|guest| guest.stalled).count())
    }

    /// The hold by which `--wait` would have let half of the guests go.
    pub fn let_go_s(&self) -> Option<f64> {
        self.rows().iter().find(|row| row.let_go * 2 >= row.guests).map(|row| row.held_s)
    }

    /// All trials and their rows, as a JSON object.
    pub fn json(&self) -> Result<String> {
        let (let_go, let_go_stalled) = self.let_go();
        let file = File {
            for_s: self.hold.plan.horizon.as_secs_f64(),
            wait_risk: self.hold.risk,
            risk: self.risk_factor(),
            stall: self.stall_factor(),
            let_go,
            let_go_stalled,
            holds: self.rows(),
            trials: &self.points,
        };
        let json = serde_json::to_string(&file);
        Ok(json.map_err(|e| Error::io("cannot write the trials", e.into()))? + "\n")
    }

    /// The rows as a table, and beneath it the factors and what `--wait` would have come to.
    pub fn table(&self) -> String {
        let horizon_s = self.hold.plan.horizon.as_secs_f64();
        let mut text =
            format!("  held s  guests  risk of a stall in {horizon_s} s: said %  happened %  wait s: said  happened\n");
        for row in self.rows() {
            let _ = writeln!(
                text,
                "{:>8.1}  {:>6}  {:>32.1}  {:>10.1}  {:>12.2}  {:>8.2}",
                row.held_s,
                row.guests,
                row.risk * 100.0,
                row.stalled * 100.0,
                row.expected_stall_s,
                row.stall_s
            );
        }
        for (what, factor) in [("risk", self.risk_factor()), ("wait", self.stall_factor())] {
            match factor {
                Some(Factor { said_over_happened, trials }) => {
                    let _ = writeln!(
                        text,
                        "{what}: said / happened {said_over_happened:.2}, where 5 to 95 % happened ({trials} trials)"
                    );
                }
                None => {
                    let _ = writeln!(text, "{what}: at no hold 5 to 95 % happened");
                }
            }
        }
        let (let_go, stalled) = self.let_go();
        let guests = self.rows().first().map_or(0, |row| row.guests);
        let percent = self.hold.risk * 100.0;
        let _ = writeln!(text, "--wait risk={percent}%: {let_go} of {guests} guests let go, {stalled} of them stalled");
        text
    }
}

/// Of the rows whose `share` says something.
fn factor(rows: &[Row], share: impl Fn(&Row) -> f64, of: impl Fn(&Row) -> (f64, f64)) -> Option<Factor> {
    let (mut said, mut happened, mut trials) = (0.0, 0.0, 0);
    for row in rows.iter().filter(|row| TELLING.contains(&share(row))) {
        let (s, h) = of(row);
        said += s * row.guests as f64;
        happened += h * row.guests as f64;
        trials += row.guests;
    }
    (trials > 0).then(|| Factor { said_over_happened: said / happened, trials })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmstream::stats::Forecast;

    #[test]
    fn what_to_try_is_read() {
        let seconds = Duration::from_secs;
        let hold = |every, up_to, horizon, risk| {
            let (every, up_to, horizon) = (seconds(every), seconds(up_to), seconds(horizon));
            Ok(Hold { plan: Plan { every, up_to, horizon }, risk })
        };
        assert_eq!(Hold::parse("up-to=20m"), hold(60, 1200, 30, 0.05));
        assert_eq!(Hold::parse("risk=10%,for=5s,up-to=30s,every=7s"), hold(7, 30, 5, 0.1));
        for (text, part) in [
            ("every=1s", "up-to= is missing"),
            ("up-to=0s", "longer than nothing"),
            ("up-to=5s,risk=5", "from 1% to 99%"),
            ("up-to=24m,every=1ms", "longer every="),
            ("up-to=5s,max=1s", "'max'"),
            ("", "must be up-to="),
        ] {
            let error = Hold::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn trial(held: u64, risk: f64, stalled: bool) -> Trial {
        let said = Forecast {
            stall_risk: risk,
            expected_stall: Duration::from_secs(2),
            calm_in: None,
            foreseen: true,
            complete_in: None,
            missing_bytes: 1,
        };
        Trial { held: Duration::from_secs(held), said, stalled, waited: Duration::from_secs(4) }
    }

    #[test]
    fn factors_are_of_the_holds_that_tell_and_each_guest_is_let_go_once() {
        let mut holds = Holds::new(Hold::parse("up-to=20s,every=10s,risk=20%").unwrap());
        holds.add("a", &[trial(0, 1.0, true), trial(10, 0.2, true), trial(20, 0.1, false)]);
        holds.add("b", &[trial(0, 1.0, true), trial(10, 0.4, false), trial(20, 0.3, false)]);
        // At 0 s everybody stalls and at 20 s nobody.
        let factor = holds.risk_factor().unwrap();
        assert!((factor.said_over_happened - 0.6).abs() < 1e-9 && factor.trials == 2, "{factor:?}");
        let factor = holds.stall_factor().unwrap();
        assert!((factor.said_over_happened - 0.5).abs() < 1e-9 && factor.trials == 6, "{factor:?}");
        let rows = holds.rows();
        assert_eq!(rows.iter().map(|row| row.let_go).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!((holds.let_go(), holds.let_go_s()), ((1, 1), Some(10.0)));
        assert!(
            holds.table().contains("--wait risk=20%: 1 of 2 guests let go, 1 of them stalled"),
            "{}",
            holds.table()
        );
    }

    #[test]
    fn without_guests_there_is_nothing_to_say() {
        let holds = Holds::new(Hold::parse("up-to=1s").unwrap());
        assert_eq!((holds.rows().len(), holds.risk_factor(), holds.let_go_s()), (0, None, None));
        assert!(holds.table().contains("0 of 0 guests"), "{}", holds.table());
    }
}

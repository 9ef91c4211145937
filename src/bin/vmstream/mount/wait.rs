//! `--wait`: holding a guest back until it will most likely not stall.
//!
//! The mount point appears only when this is over, and a restored machine goes on only then, so whoever uses it waits in
//! front instead of in the middle of the work. Meanwhile the image streams what earlier sessions touched at their start. Waiting costs little: as long
//! as the link is the limit, what the guest waits in front it does not wait later.

use std::time::{Duration, Instant};

use vmstream::Image;
use vmstream::config::parse_duration;
use vmstream::stats::{CALM_RISK, Forecast};

use crate::report::{FORECAST, REPORT_EVERY, Reporter};

/// Time between two forecasts: short beside what is waited for, long beside the milliseconds that one takes.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Forecast time unless `for` says otherwise: most machines are up by then.
const FOR: Duration = Duration::from_secs(30);
/// Longest wait unless `max` says otherwise: more than a person waits for a machine without asking why.
const MAX: Duration = Duration::from_secs(60);
/// Risks that can be asked for, in percent. The forecast never claims to know it better.
const RISK_PERCENT: std::ops::RangeInclusive<f64> = 1.0..=99.0;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    /// Risk of a stall, from 0 to 1, at which the wait ends.
    risk: f64,
    /// Within this time.
    horizon: Duration,
    /// At most so long.
    max: Duration,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest may begin.
    Over,
    /// This signal came.
    Stopped(i32),
}

impl Wait {
    /// Reads `risk=5%[,for=30s][,max=60s]`; for clap.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut risk = None;
        let mut wait = Self { risk: 0.0, horizon: FOR, max: MAX };
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("'{part}': must be risk=, for= or max= and a value"))?;
            let time = || parse_duration(key, value).map_err(|error| error.to_string());
            match key {
                "risk" => {
                    let percent = value.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
                    let percent = percent.filter(|percent| RISK_PERCENT.contains(percent));
                    let percent = percent.ok_or_else(|| format!("risk={value}: must be from 1% to 99%"))?;
                    risk = Some(percent / 100.0);
                }
                "for" => wait.horizon = time()?,
                "max" => wait.max = time()?,
                _ => return Err(format!("'{key}': only risk, for and max are known")),
            }
        }
        wait.risk = risk.ok_or("risk= is missing, such as risk=5%")?;
        Ok(wait)
    }

    /// Waits, showing on standard error what for. `pause` passes so much time and answers the signal that asks for the end,
    /// if one came.
    pub fn hold(
        &self,
        image: &Image,
        reporter: &mut Reporter,
        pause: &mut dyn FnMut(Duration, &mut Reporter) -> Option<i32>,
    ) -> End {
        let began = Instant::now();
        let mut renewed = began;
        loop {
            // Before the forecast, which then knows the model that was found last.
            let settled = image.model().settled;
            let forecast = image.forecast_held(self.horizon, self.risk);
            if forecast.stall_risk <= self.risk && (forecast.foreseen || forecast.missing_bytes == 0) {
                log::info!(
                    "the guest may begin after {:.1} s: {}",
                    began.elapsed().as_secs_f64(),
                    self.line(&forecast)
                );
                return End::Over;
            }
            if !image.fetches_ahead() {
                log::warn!("--wait would be in vain, as nothing is fetched ahead: both prefetch and fill are off");
                return End::Over;
            }
            if !forecast.foreseen && settled {
                log::warn!("--wait has nothing to go by, as no model foretells the guest: give --option model=FILE");
                return End::Over;
            }
            if began.elapsed() >= self.max {
                log::warn!("the guest begins although it may stall: {}", self.line(&forecast));
                return End::Over;
            }
            reporter.announce(&self.line(&forecast));
            if renewed.elapsed() >= REPORT_EVERY {
                renewed = Instant::now();
                reporter.renew(image, &image.forecast_held(FORECAST, CALM_RISK));
            }
            if let Some(signal) = pause(LOOK_EVERY.min(self.max.saturating_sub(began.elapsed())), reporter) {
                return End::Stopped(signal);
            }
        }
    }

    /// The forecast in a line of the progress meter's width.
    fn line(&self, forecast: &Forecast) -> String {
        let calm = match forecast.calm_in {
            Some(Duration::ZERO) => String::new(),
            Some(time) => format!(", low in about {:.0} s", time.as_secs_f64().ceil()),
            None => ", low at an unknown time".to_owned(),
        };
        let percent = forecast.stall_risk * 100.0;
        format!("risk of a stall in {} s: {percent:.0} %{calm}", self.horizon.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::COLUMNS_MAX;

    #[test]
    fn what_to_wait_for_is_read() {
        let seconds = Duration::from_secs;
        let wait = |risk, horizon, max| Ok(Wait { risk, horizon: seconds(horizon), max: seconds(max) });
        assert_eq!(Wait::parse("risk=5%"), wait(0.05, 30, 60));
        assert_eq!(Wait::parse("max=2m,risk=12.5%,for=5s"), wait(0.125, 5, 120));
        for (text, part) in [
            ("for=5s", "risk= is missing"),
            ("risk=5", "from 1% to 99%"),
            ("risk=0%", "from 1% to 99%"),
            ("risk=NaN%", "from 1% to 99%"),
            ("risk=5%,for=ever", "duration"),
            ("risk=5%,until=noon", "'until'"),
            ("", "risk=, for= or max="),
        ] {
            let error = Wait::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_line_fits_and_tells_what_is_waited_for() {
        let wait = Wait { risk: 0.05, horizon: Duration::from_secs(30), max: Duration::from_secs(60) };
        let forecast = Forecast {
            stall_risk: 0.43,
            expected_stall: Duration::ZERO,
            calm_in: Some(Duration::from_millis(11_200)),
            foreseen: true,
            complete_in: None,
            missing_bytes: 1,
        };
        assert_eq!(wait.line(&forecast), "risk of a stall in 30 s: 43 %, low in about 12 s");
        let longest = Wait { horizon: Duration::from_millis(123_456_789), ..wait };
        assert!(longest.line(&Forecast { calm_in: None, ..forecast }).len() <= COLUMNS_MAX);
    }
}

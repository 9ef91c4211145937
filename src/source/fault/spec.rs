//! The rules of a fault specification, and the plan they make for one request.

use std::time::Duration;

use crate::config::{parse_duration, parse_rate};
use crate::error::Error;
use crate::source::pattern::mix;

/// The rules of `fault=SPEC`; the grammar is in [`crate::source`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultSpec {
    seed: u64,
    /// Chances from 0 to 1.
    error: f64,
    cut: f64,
    short: f64,
    corrupt: f64,
    stall: (f64, Duration),
    fatal_after: Option<u64>,
    pub(super) delay: Duration,
    pub(super) rtt: Duration,
    /// Bytes per second of the link that all requests share.
    pub(super) rate_bytes_s: Option<u64>,
    /// Times after opening during which nothing gets through.
    pub(super) dead: Vec<(Duration, Duration)>,
}

/// What happens to one request. Places are absolute offsets in the image.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub error: bool,
    pub fatal: bool,
    pub stall: Option<(u64, Duration)>,
    pub cut: Option<u64>,
    pub short: Option<u64>,
    /// The byte that is spoiled, and which of its bits.
    pub corrupt: Option<(u64, u32)>,
}

impl FaultSpec {
    /// Reads rules separated by commas.
    pub fn parse(spec: &str) -> Result<Self, Error> {
        let mut rules = Self::default();
        for rule in spec.split(',').map(str::trim).filter(|rule| !rule.is_empty()) {
            let bad = |reason: &str| Error::option("fault", rule, reason);
            let (key, value) = rule.split_once('=').ok_or_else(|| bad("rules have the form name=value"))?;
            let whole = || value.parse().map_err(|_| bad("must be a whole number"));
            match key {
                "seed" => rules.seed = whole()?,
                "error" => rules.error = chance(rule, value)?,
                "cut" => rules.cut = chance(rule, value)?,
                "short" => rules.short = chance(rule, value)?,
                "corrupt" => rules.corrupt = chance(rule, value)?,
                "stall" => {
                    let (share, pause) = value.split_once(':').ok_or_else(|| bad("must be PERCENT:DURATION"))?;
                    rules.stall = (chance(rule, share)?, parse_duration("fault", pause)?);
                }
                "delay" => rules.delay = parse_duration("fault", value)?,
                "rtt" => rules.rtt = parse_duration("fault", value)?,
                "rate" => rules.rate_bytes_s = Some(parse_rate("fault", value)?),
                "fatal-after" => rules.fatal_after = Some(whole()?),
                "dead" => {
                    let (from, to) = value.split_once("..").ok_or_else(|| bad("must be FROM..TO, such as 10s..40s"))?;
                    let (from, to) = (parse_duration("fault", from)?, parse_duration("fault", to)?);
                    if from >= to {
                        return Err(bad("must end after it begins"));
                    }
                    rules.dead.push((from, to));
                }
                _ => {
                    return Err(bad(
                        "no such rule; known are seed, error, stall, delay, cut, short, corrupt, fatal-after, rate, \
                         rtt and dead",
                    ));
                }
            }
        }
        Ok(rules)
    }

    /// What happens to request `number`, counted from 0, for `length` bytes from `offset`.
    pub(super) fn plan(&self, number: u64, offset: u64, length: u64) -> Plan {
        // Each rule throws dice of its own, so that adding one rule leaves the others' victims the same.
        let dice = |rule: u64, share: f64| {
            let hash = mix(mix(self.seed, rule), number);
            // 53 bits are what a double holds exactly.
            ((hash >> 11) as f64 / (1u64 << 53) as f64) < share
        };
        let place = |rule: u64| offset + mix(mix(self.seed, rule + 100), number) % length.max(1);
        Plan {
            error: dice(1, self.error),
            fatal: self.fatal_after.is_some_and(|after| number >= after),
            stall: dice(2, self.stall.0).then(|| (place(2), self.stall.1)),
            cut: dice(3, self.cut).then(|| place(3)),
            short: dice(4, self.short).then(|| place(4)),
            corrupt: dice(5, self.corrupt).then(|| (place(5), (mix(self.seed, number) % 8) as u32)),
        }
    }
}

fn chance(rule: &str, value: &str) -> Result<f64, Error> {
    let percent = value.strip_suffix('%').and_then(|n| n.parse::<f64>().ok()).filter(|n| (0.0..=100.0).contains(n));
    percent.map(|n| n / 100.0).ok_or_else(|| Error::option("fault", rule, "must be a percentage such as 2% or 0.5%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rules_are_read() {
        let spec = "seed=7,error=5%,stall=1%:200ms,delay=500us,cut=2%,short=3%,corrupt=0%,fatal-after=1000,\
                    rate=25mbit,rtt=50ms,dead=10s..40s";
        let rules = FaultSpec::parse(spec).unwrap();
        assert_eq!((rules.seed, rules.error, rules.cut, rules.short, rules.corrupt), (7, 0.05, 0.02, 0.03, 0.0));
        assert_eq!(rules.stall, (0.01, Duration::from_millis(200)));
        assert_eq!((rules.delay, rules.rtt), (Duration::from_micros(500), Duration::from_millis(50)));
        assert_eq!((rules.fatal_after, rules.rate_bytes_s), (Some(1000), Some(3_125_000)));
        assert_eq!(rules.dead, [(Duration::from_secs(10), Duration::from_secs(40))]);
    }

    #[test]
    fn bad_rules_are_named() {
        for rule in ["error=5", "error=101%", "stall=1%", "dead=4s", "dead=4s..1s", "luck=3", "seed", "rate=fast"] {
            let text = FaultSpec::parse(rule).unwrap_err().to_string();
            assert!(text.contains("fault"), "{rule}: {text}");
        }
    }

    #[test]
    fn places_lie_within_the_request_and_rules_do_not_disturb_each_other() {
        let one = FaultSpec::parse("seed=3,cut=50%").unwrap();
        let two = FaultSpec::parse("seed=3,cut=50%,error=50%,corrupt=100%").unwrap();
        for number in 0..1000 {
            let (a, b) = (one.plan(number, 100, 10), two.plan(number, 100, 10));
            assert_eq!(a.cut, b.cut);
            assert!(b.cut.is_none_or(|at| (100..110).contains(&at)));
            assert!(b.corrupt.is_some_and(|(at, bit)| (100..110).contains(&at) && bit < 8));
        }
    }
}

//! What the command line of `vmstream replay` says.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use vmstream::config::{parse_duration, parse_rate};
use vmstream::replay::Policy;

use super::hold::Hold;
use crate::parse_with;

/// Replay recorded sessions on a modelled link, and say how long the guests would wait
///
/// Virtual time: the figures are the same on every machine. The planner is the one that streams real images. With --live
/// the guests live through it in real time, over HTTP from an origin on this machine behind a link of that kind.
#[derive(Args)]
pub struct ReplayArgs {
    /// The model that follows the guests; "none" for none
    #[arg(long, value_name = "MODEL", default_value = NO_MODEL, conflicts_with = "leave_one_out")]
    pub model: PathBuf,

    /// Sessions to replay, each on an image of which nothing is here
    #[arg(long, required = true, num_args = 1.., value_name = "SESSION")]
    pub trace: Vec<PathBuf>,

    /// Bandwidth of the link, such as 25mbit
    #[arg(long, value_name = "RATE", default_value = "25mbit", value_parser = |s: &str| parse_with(s, parse_rate))]
    pub rate: u64,

    /// Round trip of the link, such as 50ms
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = |s: &str| parse_with(s, parse_duration))]
    pub rtt: Duration,

    /// The guests' pauses are multiplied by this, then cut at 2 s
    #[arg(long, value_name = "FACTOR", default_value_t = 0.4, value_parser = factor)]
    pub think: f64,

    /// Who decides what comes ahead
    #[arg(long, value_name = "POLICY", default_value = "planner")]
    pub policy: PolicyArg,

    /// Replay each session with a model of all the others
    #[arg(long)]
    pub leave_one_out: bool,

    /// More sessions for those models to learn, which are not replayed
    #[arg(long, requires = "leave_one_out", num_args = 1.., value_name = "SESSION")]
    pub also_learn: Vec<PathBuf>,

    /// Most sessions that those models remember
    #[arg(long, requires = "leave_one_out", value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub remember: u32,

    /// Let what is left of the link fill the image
    #[arg(long, conflicts_with = "live")]
    pub fill: bool,

    /// The origin also has packs of the model, in which blocks shrink to one part in RATIO, such as 2.66
    #[arg(long, conflicts_with = "live", value_name = "RATIO", value_parser = ratio)]
    pub packs: Option<f64>,

    /// Replay in real time with the engine itself, and compare with virtual time
    #[arg(long)]
    pub live: bool,

    /// Replay in real time on the image at URL, over whatever link leads there
    #[arg(long, value_name = "URL", conflicts_with_all = ["live", "fill", "leave_one_out", "model", "policy", "svg", "calibration", "calibration_svg"])]
    pub on: Option<String>,

    /// An option of the image at URL, such as cacert=FILE or model=off; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE", requires = "on")]
    pub options: Vec<String>,

    /// Write the figures to FILE, as a JSON array with one object for each session
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draw the replay into FILE, as SVG; of several sessions each into a FILE with its name before the ending
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Ask for the forecast once a second of the replay, show what was said beside what happened, and write it to FILE
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,

    /// Ask in the same way, show it, and draw what was said against what happened into FILE, as SVG
    #[arg(long, value_name = "FILE")]
    pub calibration_svg: Option<PathBuf>,

    /// Hold each guest back for 0 s, and each time longer, before it begins, and show the risk said then beside what happened
    #[arg(long, value_name = "up-to=30m[,every=90s][,for=30s][,risk=5%]", value_parser = Hold::parse,
        conflicts_with_all = ["live", "on", "json", "svg", "calibration", "calibration_svg"])]
    pub hold: Option<Hold>,

    /// Write what came of these trials to FILE, as a JSON object
    #[arg(long, value_name = "FILE", requires = "hold")]
    pub hold_json: Option<PathBuf>,

    /// Draw what came of these trials into FILE, as SVG
    #[arg(long, value_name = "FILE", requires = "hold")]
    pub hold_svg: Option<PathBuf>,
}

impl ReplayArgs {
    /// Whether the forecast is asked on the way.
    pub fn asks(&self) -> bool {
        self.calibration.is_some() || self.calibration_svg.is_some()
    }
}

/// The name that stands for no model.
pub const NO_MODEL: &str = "none";

/// A policy as clap reads it.
#[derive(Clone, Copy)]
pub struct PolicyArg(pub Policy);

impl ValueEnum for PolicyArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [PolicyArg; Policy::ALL.len()] = {
            let mut all = [PolicyArg(Policy::Planner); Policy::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = PolicyArg(Policy::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

fn factor(value: &str) -> std::result::Result<f64, String> {
    let factor = value.parse().unwrap_or(f64::NAN);
    if (0.0..=1000.0).contains(&factor) { Ok(factor) } else { Err("must be a number from 0 to 1000".to_owned()) }
}

fn ratio(value: &str) -> std::result::Result<f64, String> {
    let ratio = value.parse().unwrap_or(f64::NAN);
    if (1.0..=1000.0).contains(&ratio) { Ok(ratio) } else { Err("must be a number from 1 to 1000".to_owned()) }
}

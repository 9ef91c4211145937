//! What this library promises about speed, measured: `cargo bench`, or `cargo bench -- miss fetch` for some parts.
//!
//! Every part runs in a process of its own, so that the memory, the threads and the allocations of one do not show in
//! another, and prints one table. A figure stands beside its baseline from the same run wherever there is one, because
//! absolute times say little on a machine that others use too: look at the ratios. `min` and `max` over the repetitions
//! show how noisy the machine was. `cargo bench -- --quick` has the long parts do a fraction of their work.
//!
//! | part | question |
//! |---|---|
//! | [`gate`] | what does the driver pay for a block that is here? |
//! | [`miss`] | what does the library add to a fetch that costs nothing? |
//! | [`demand_http`] | and to a bare GET of the same range? |
//! | [`fetch`] | is a whole image as fast as `curl`, and is a slow link full? |
//! | [`sparse`] | does a huge image cost only what is used of it? |
//! | [`model`] | what does training cost, and how soon is a model there? |
//! | [`follow`] | what does foresight cost while a guest runs? |
//! | [`learning::branching`] | what is a model worth when known tasks come in new orders? |
//! | [`learning::drift`] | how soon does it follow a change of the work? |
//! | [`learning::retention`] | what does a small model keep of a rare kind of work? |
//! | [`learning::poison`] | and does it take harm from sessions that are no work? |
//! | [`crowd`] | do five hundred clients of one server get fair shares? |
//! | [`demand_under_fill`] | how long does a guest wait behind the fill? |

mod allocations;
mod crowd;
mod demand_http;
mod demand_under_fill;
mod dice;
mod fetch;
mod follow;
mod gate;
mod guests;
mod learning;
mod miss;
mod model;
mod origin;
mod processor;
mod samples;
mod sparse;
mod switches;
mod table;

use std::process::{Command, ExitCode};

/// The parts in the order in which they run, the short ones first.
const PARTS: [(&str, fn()); 13] = [
    ("gate", gate::run),
    ("miss", miss::run),
    ("sparse", sparse::run),
    ("follow", follow::run),
    ("model", model::run),
    ("branching", learning::branching),
    ("drift", learning::drift),
    ("retention", learning::retention),
    ("poison", learning::poison),
    ("demand_http", demand_http::run),
    ("demand_under_fill", demand_under_fill::run),
    ("crowd", crowd::run),
    ("fetch", fetch::run),
];

/// Set in the processes that run one part.
const PART: &str = "VMSTREAM_BENCH_PART";

/// Set when a fraction of the work is to do.
const QUICK: &str = "VMSTREAM_BENCH_QUICK";

fn main() -> ExitCode {
    if let Ok(part) = std::env::var(PART) {
        if part == gate::FILTERED {
            return gate::run_filtered();
        }
        let Some((_, run)) = PARTS.iter().find(|(name, _)| *name == part) else { return ExitCode::FAILURE };
        run();
        return ExitCode::SUCCESS;
    }
    // Cargo adds options such as --bench; what is no option is the name of a part.
    let quick = std::env::args().any(|arg| arg == "--quick");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let Some(unknown) = wanted.iter().find(|wanted| PARTS.iter().all(|(name, _)| name != wanted)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("no part is called {unknown}; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let mut good = true;
    for (name, _) in PARTS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name)) {
        let mut part = part(name);
        if quick {
            part.env(QUICK, "1");
        }
        good &= part.status().is_ok_and(|status| status.success());
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// True when a fraction of the work is to do.
fn quick() -> bool {
    std::env::var_os(QUICK).is_some()
}

/// This program again, to run one part.
fn part(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()));
    command.env(PART, name);
    command
}

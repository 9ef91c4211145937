//! The command-line tool: `vmstream mount`, `serve`, `fetch`, `publish`, `rehearse`, `snapshot`, `run`, `verify`, `status`,
//! `sessions`, `trace`, `train`, `inspect` and `replay`.
//!
//! Each subcommand is a file that holds its arguments (a clap struct) and one function `run`. This file only picks
//! the subcommand and turns its result into an exit code:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; for `mount` and `serve` also: stopped because a signal asked for it |
//! | 1 | failed; one line on standard error says what, where and what to do |
//! | 2 | the command line is wrong; nothing was touched |
//! | other | that of the command that `rehearse`, or of the QEMU that `run`, has run |
//! | 128 + N | signal N came before the work was done (`fetch`), or a second one forced the end |
//!
//! 128 + N is what a shell reports for a process that a signal killed, so scripts need one rule for both.

mod bucket;
mod fetch;
mod files;
mod inspect;
mod link;
mod local;
mod logger;
mod mount;
mod picture;
mod point;
mod progress;
mod publish;
mod published;
mod rehearse;
mod replay;
mod report;
mod run;
mod serve;
mod sessions;
mod signals;
mod snapshot;
mod status;
mod trace;
mod traces;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use vmstream::error::Result;

/// The command line did not make sense; clap's own number for it too.
const EXIT_USAGE: u8 = 2;

/// Where the help of a subcommand puts the options that all of them have.
const MESSAGES: &str = "Messages";

#[derive(Parser)]
#[command(name = "vmstream", version, about, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 128+N ended early by signal N.")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say more on standard error; repeat for more still
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = MESSAGES)]
    verbose: u8,

    /// Say errors only; given twice, nothing at all
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose", help_heading = MESSAGES)]
    quiet: u8,
}

#[derive(Subcommand)]
enum Command {
    Mount(mount::MountArgs),
    Serve(serve::ServeArgs),
    Fetch(fetch::FetchArgs),
    Publish(publish::PublishArgs),
    Rehearse(rehearse::RehearseArgs),
    Snapshot(snapshot::SnapshotArgs),
    Run(run::RunArgs),
    Verify(verify::VerifyArgs),
    Status(status::StatusArgs),
    Sessions(sessions::SessionsArgs),
    Trace(trace::TraceArgs),
    Train(train::TrainArgs),
    Inspect(inspect::InspectArgs),
    Replay(replay::ReplayArgs),
}

/// How a subcommand that did not fail came to its end.
enum Outcome {
    /// All that was asked for is done.
    Done,
    /// This signal ended it before its work was done; what was done so far is kept.
    Interrupted(i32),
    /// What it was to run ended with this exit code.
    Ended(u8),
}

impl Outcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Interrupted(signal) => signals::exit_code(*signal),
            Self::Ended(code) => *code,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    logger::install(logger::level(cli.verbose, cli.quiet));
    match run(&cli.command) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<Outcome> {
    match command {
        Command::Mount(args) => mount::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Publish(args) => publish::run(args),
        Command::Rehearse(args) => rehearse::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Run(args) => run::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Status(args) => status::run(args),
        Command::Sessions(args) => sessions::run(args),
        Command::Trace(args) => trace::run(args),
        Command::Train(args) => train::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Replay(args) => replay::run(args),
    }
}

/// Prints help and version as clap made them, and anything else as one line like every other error.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe (`vmstream --help | head -1`) is no reason to fail.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("vmstream: {}", one_line(&error.to_string()));
    ExitCode::from(EXIT_USAGE)
}

/// The first paragraph of one of clap's messages as one line, and where to read more.
fn one_line(message: &str) -> String {
    let paragraph = message.split("\n\n").next().unwrap_or_default();
    let words = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = words.strip_prefix("error: ").unwrap_or(&words);
    if text.starts_with("Usage:") || !message.starts_with("error: ") {
        // No arguments at all: clap answers with the whole help.
        return "no command given; 'vmstream --help' lists them".to_owned();
    }
    format!("{text}; see 'vmstream --help'")
}

/// For clap: a parser of [`vmstream::config`] as a value parser, without the name of the option, which clap adds.
fn parse_with<T>(value: &str, parse: fn(&str, &str) -> Result<T>) -> std::result::Result<T, String> {
    parse("", value).map_err(|error| {
        let text = error.to_string();
        text.strip_prefix(&format!("option ={value}: ")).unwrap_or(&text).to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_become_one_line() {
        let error = |args: &[&str]| match Cli::try_parse_from(args) {
            Ok(_) => panic!("{args:?} was accepted"),
            Err(error) => one_line(&error.to_string()),
        };
        assert_eq!(error(&["vmstream"]), "no command given; 'vmstream --help' lists them");
        let missing = error(&["vmstream", "mount"]);
        assert!(missing.contains("required") && missing.contains("<URL>") && missing.contains("<DIR>"), "{missing}");
        let bad = error(&["vmstream", "serve", ".", "--rate", "fast"]);
        assert!(bad.contains("'fast'") && bad.contains("must be a rate such as"), "{bad}");
        assert!(!bad.contains('\n') && !bad.contains("option ="), "{bad}");
    }

    #[test]
    fn help_is_no_error() {
        let kind = Cli::try_parse_from(["vmstream", "serve", "--help"]).map(|_| ()).map_err(|e| e.kind());
        assert_eq!(kind, Err(ErrorKind::DisplayHelp));
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Outcome::Done.exit_code(), 0);
        assert_eq!(Outcome::Interrupted(15).exit_code(), 143);
    }
}

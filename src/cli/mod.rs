//! What people type: commands, their output, their exit codes.
//!
//! Results go to standard output, as text or with `--json` as JSON; progress,
//! notices and errors go to standard error. A command checks all it can before
//! it begins, so that a typo costs seconds and not the night.

mod args;
mod calibrate;
mod grad;
mod info;
mod plan;
mod progress;
mod train;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;
use sstep::Error;

/// Train neural networks end to end on images of any size under a memory cap.
///
/// A training step is compiled for a memory budget: cut into tiles, with every
/// tensor kept, recomputed or moved to host memory as the plan decides. Loss and
/// gradients are those of the whole image, up to rounding.
#[derive(Debug, Parser)]
#[command(name = "sstep", version, after_long_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Amounts of memory are written 512MiB, 8GiB, 1.5GB or in plain bytes; image sizes as \
width x height (x depth): 65536x65536.

Exit codes:
  0  done
  1  something failed on the way: a diverged loss, a read or write error
  2  wrong input: arguments, configuration, files, shapes, an output that cannot be written
  3  no plan fits the budget; the message names the smallest budget that would do

RAYON_NUM_THREADS limits the number of threads.";

#[derive(Debug, Subcommand)]
enum Command {
    Plan(plan::Args),
    Train(train::Args),
    Grad(grad::Args),
    Info(info::Args),
    Calibrate(calibrate::Args),
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Plan(args) => plan::run(&args),
        Command::Train(args) => train::run(args),
        Command::Grad(args) => grad::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            notice(&format!("error: {}", chain(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

/// An error and what caused it, without saying anything twice.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = c.source();
    }
    text
}

/// Writes a line to standard output. A reader that has gone away (`| head`) is
/// no failure: there is nobody left to write for.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
    if let Err(error) = written {
        let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !gone {
            notice(&format!("error: standard output: {error}"));
        }
        std::process::exit(if gone { 0 } else { 1 });
    }
}

/// Writes a line to standard error, if anyone is there.
fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes a value as JSON: one line per call, so that output can be read line by
/// line while a command runs.
fn say_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => say(&text),
        Err(error) => notice(&format!("error: JSON: {error}")),
    }
}

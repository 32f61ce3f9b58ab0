//! What sstep does, as tables: one subcommand per question, each with text for
//! people and `--json` for machines.
//!
//! A subcommand is a file with `pub struct Args` and `pub fn run`; it measures,
//! fills a [`table::Table`] and prints it. Inputs are files that the caller
//! names, so that any instance can be run.

#![forbid(unsafe_code)]

mod breakdown;
mod cases;
mod chart;
mod extract;
mod layers;
mod megapixel;
mod pack;
mod planning;
mod profile;
mod rewrites;
mod step;
mod strategies;
mod table;
mod torch;
mod trial;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// How a subcommand ends.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Measures sstep and prints tables.
#[derive(Debug, Parser)]
#[command(name = "sstep-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Layers(layers::Args),
    Megapixel(megapixel::Args),
    Pack(pack::Args),
    Planning(planning::Args),
    Profile(profile::Args),
    Rewrites(rewrites::Args),
    Strategies(strategies::Args),
    Extract(extract::Args),
    Step(step::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Layers(args) => layers::run(&args),
        Command::Megapixel(args) => megapixel::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Planning(args) => planning::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Rewrites(args) => rewrites::run(&args),
        Command::Strategies(args) => strategies::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Step(args) => step::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

//! Long correctness campaigns, one subcommand each; README.md here says what each proves and what it found.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod planted;

#[derive(Parser)]
#[command(about = "Long correctness campaigns for stillframe")]
struct Arguments {
    #[command(subcommand)]
    campaign: Campaign,
}

#[derive(Subcommand)]
enum Campaign {
    /// Builds with planted bugs and runs, for each, the test that must catch it.
    Planted(planted::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().campaign {
        Campaign::Planted(options) => planted::run(&options),
    }
}

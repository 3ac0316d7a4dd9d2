//! Long correctness campaigns, one subcommand each; README.md here says what each proves and what it found.
#![expect(clippy::cast_possible_truncation, reason = "campaigns make small numbers of random ones")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod allocator;
mod canonical;
mod corrupt;
mod damage;
mod forge;
mod golden;
mod planted;
mod read;
mod seeds;

#[derive(Parser)]
#[command(about = "Long correctness campaigns for stillframe")]
struct Arguments {
    #[command(subcommand)]
    campaign: Campaign,
}

#[derive(Subcommand)]
enum Campaign {
    /// Damages a snapshot file in every way and reads it in every way: each change must be found.
    Corrupt(corrupt::Options),
    /// One process of `corrupt`; started by it.
    #[command(hide = true)]
    CorruptPart(corrupt::Part),
    /// Writes the golden files of the present format, once.
    Golden(golden::Options),
    /// Writes the files and blocks that fuzzing begins with.
    Seeds(seeds::Options),
    /// Builds with planted bugs and runs, for each, the test that must catch it.
    Planted(planted::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().campaign {
        Campaign::Corrupt(options) => corrupt::run(&options),
        Campaign::CorruptPart(part) => part.run().map(|()| ExitCode::SUCCESS),
        Campaign::Golden(options) => golden::run(&options).map(|()| ExitCode::SUCCESS),
        Campaign::Seeds(options) => seeds::run(&options).map(|()| ExitCode::SUCCESS),
        Campaign::Planted(options) => planted::run(&options),
    }
}

//! Long correctness campaigns, one subcommand each; README.md here says what each proves and what it found.
#![expect(clippy::cast_possible_truncation, reason = "campaigns make small numbers of random ones")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod allocator;
mod canonical;
mod corrupt;
mod crash;
mod cuts;
mod damage;
mod forge;
mod golden;
mod io_errors;
mod kill;
mod planted;
mod read;
mod replicate;
mod seeds;
mod serialize;
mod trace;

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
    /// Cuts the power at every operation of the disk, lays out what it may leave, and recovers that.
    Crash(crash::Options),
    /// Cuts connections of replicas after every single byte, and does worse to them.
    Cuts(cuts::Options),
    /// Fails every call to the disk, once and for ever, in every way.
    IoErrors(io_errors::Options),
    /// Kills a process that writes to the real disk: at any time, at each system call, at each instruction of an append; cuts the power.
    Kill(kill::Options),
    /// One process of `kill`; started by it.
    #[command(hide = true)]
    KillPart(kill::Part),
    /// Writes the golden files of the present format, once.
    Golden(golden::Options),
    /// Writes the files and blocks that fuzzing begins with.
    Seeds(seeds::Options),
    /// Nodes that replicate over links that lose and delay, in virtual time: all have what was committed, and become the same.
    Replicate(replicate::Options),
    /// Transactions at random, in turns and on threads: all is as if they had been done one after the other.
    Serialize(serialize::Options),
    /// Builds with planted bugs and runs, for each, the test that must catch it.
    Planted(planted::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().campaign {
        Campaign::Corrupt(options) => corrupt::run(&options),
        Campaign::CorruptPart(part) => part.run().map(|()| ExitCode::SUCCESS),
        Campaign::Crash(options) => crash::run(&options),
        Campaign::Cuts(options) => cuts::run(&options),
        Campaign::IoErrors(options) => io_errors::run(&options),
        Campaign::Kill(options) => kill::run(&options),
        Campaign::KillPart(part) => part.run(),
        Campaign::Golden(options) => golden::run(&options).map(|()| ExitCode::SUCCESS),
        Campaign::Seeds(options) => seeds::run(&options).map(|()| ExitCode::SUCCESS),
        Campaign::Replicate(options) => replicate::run(&options),
        Campaign::Serialize(options) => serialize::run(&options),
        Campaign::Planted(options) => planted::run(&options),
    }
}

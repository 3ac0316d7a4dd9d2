//! The `stillframe` command: looks into snapshot files and logs, makes files from plain data and back, copies and restores
//! databases, serves and follows them, and shows on real input what the engine does.
//!
//! Results go to standard output, everything else to standard error. One place, [`main`], turns
//! what a command returned into an exit code; [`EXIT_CODES`] is the promise it keeps.

mod backup;
mod demo;
mod diff;
mod export;
mod follow;
mod import;
mod inspect;
mod interrupt;
mod key;
mod link;
mod live;
mod log;
mod metrics;
mod open;
mod promote;
mod read;
mod save;
mod serve;
mod snapshot;
mod status;
mod text;
mod top;
mod tree;
mod ui;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stillframe::Error;

/// The allocator that the project's figures are measured with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a script can rely on; shown by every `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the answer is no: the key is not there, the files differ, the fingerprints differ, something is lost, a primary
       is one already
  2    wrong usage, or something failed; standard error says what
  3    a file is damaged; standard error names it and the offset
  130  interrupted by Ctrl-C or SIGTERM; serve and follow end with 0";

/// Exit code of an answer that is no.
const NO: u8 = 1;
/// Exit code of a failure; clap uses the same for wrong usage.
const FAILED: u8 = 2;
/// Exit code when the bytes of a file are wrong.
const DAMAGED: u8 = 3;
/// Exit code after Ctrl-C or SIGTERM: what a shell reports for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Look into Stillframe databases and snapshot files, make them from plain data, and see the engine at work.
#[derive(Parser)]
#[command(name = "stillframe", version, after_help = EXIT_CODES)]
struct Arguments {
    /// Write results as JSON to standard output, and errors as JSON to standard error
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Import(import::Import),
    Export(export::Export),
    Inspect(inspect::Inspect),
    Verify(inspect::Verify),
    Get(read::Get),
    Scan(read::Scan),
    Diff(diff::Diff),
    Open(open::Open),
    Log(log::Log),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Serve(serve::Serve),
    Follow(follow::Follow),
    Promote(promote::Promote),
    Status(status::Status),
    Top(top::Top),
    Key(key::Key),
    Demo(demo::Demo),
}

/// What a command that ran to its end has to say.
enum Answer {
    Yes,
    No,
}

fn main() -> ExitCode {
    let Arguments { json, command } = Arguments::parse();
    let result = match command {
        Command::Import(import) => import.run(json),
        Command::Export(export) => export.run(json),
        Command::Inspect(inspect) => inspect.run(json),
        Command::Verify(verify) => verify.run(json),
        Command::Get(get) => get.run(json),
        Command::Scan(scan) => scan.run(json),
        Command::Diff(diff) => diff.run(json),
        Command::Open(open) => open.run(json),
        Command::Log(log) => log.run(json),
        Command::Backup(backup) => backup.run(json),
        Command::Restore(restore) => restore.run(json),
        Command::Serve(serve) => serve.run(json),
        Command::Follow(follow) => follow.run(json),
        Command::Promote(promote) => promote.run(json),
        Command::Status(status) => status.run(json),
        Command::Top(top) => top.run(json),
        Command::Key(key) => key.run(json),
        Command::Demo(demo) => demo.run(json),
    };
    match result {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(NO),
        Err(error) => report(&error, json),
    }
}

/// Says what went wrong on standard error and picks the exit code.
fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // who read our output has seen enough
    }
    let damage = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(Error::Corrupt { file, offset, .. }) => Some((file.as_path(), *offset)),
        _ => None,
    });
    let message = message(error);
    if json {
        let file = damage.map(|(file, _)| Path::to_string_lossy(file));
        let offset = damage.map(|(_, offset)| offset);
        eprintln!("{}", serde_json::json!({ "error": message, "file": file, "offset": offset }));
    } else {
        eprintln!("stillframe: {message}");
    }
    ExitCode::from(match damage {
        Some(_) => DAMAGED,
        None if error.is::<interrupt::Interrupted>() => INTERRUPTED,
        None => FAILED,
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The chain of causes as one line; a cause that its consequence already quotes isn't said twice.
fn message(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_cause_is_not_said_twice() {
        let source = io::Error::other("disk on fire");
        let error = Error::Io { op: "open", path: "a.still".into(), source };
        let error = anyhow::Error::from(error).context("importing");
        assert_eq!(message(&error), "importing: open a.still: disk on fire");
    }
}

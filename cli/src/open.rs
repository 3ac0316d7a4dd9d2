//! `stillframe open`: recovers a database as any program would, and says what was found.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use stillframe::{Builder, Database, LogReader, LostRange, OpenPhase, OpenReport, RecoveryMode};

use crate::{Answer, EXIT_CODES, ui};

/// Open the database in a directory, as a program that uses it would, and say what was found
///
/// What a crash left behind the last whole batch is cut off. The exit code is 1 if anything was lost, which only happens with
/// --salvage.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Open {
    /// The database's directory
    directory: PathBuf,
    /// Take nothing that a crash left: an unfinished batch at the end is an error
    #[arg(long, conflicts_with = "salvage")]
    strict: bool,
    /// Take whatever can be proven of damaged files, save that anew, list what is lost, and move the old files to the folder `salvaged`
    #[arg(long)]
    salvage: bool,
}

#[derive(Serialize)]
struct Opened {
    directory: String,
    history: String,
    seq: u64,
    snapshot_seq: Option<u64>,
    damaged_snapshots: Vec<String>,
    segments: u64,
    log_bytes: u64,
    batches: u64,
    torn_bytes: u64,
    records: u64,
    raw_bytes: u64,
    keyspaces: Vec<KeyspaceContents>,
    lost: Vec<LostEntry>,
    seconds: f64,
}

#[derive(Serialize)]
struct KeyspaceContents {
    name: String,
    records: u64,
}

#[derive(Serialize)]
struct LostEntry {
    file: String,
    offset: u64,
    bytes: u64,
    fault: String,
    lost: String,
}

/// Fails for what is no database: to open it would make one.
pub(crate) fn check_is_database(directory: &Path) -> anyhow::Result<()> {
    LogReader::open(directory)?;
    Ok(())
}

/// Fails for a directory that holds nothing of ours: its identity may be damaged or missing.
fn check_was_database(directory: &Path) -> anyhow::Result<()> {
    for entry in directory.read_dir().with_context(|| format!("open {}", directory.display()))? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|end| end == "log" || end == "snap");
        if is_ours || path.ends_with("identity") {
            return Ok(());
        }
    }
    bail!("{}: there is nothing of a database in it", directory.display())
}

/// Opens the database in a directory, or makes one there, as any program would; shows how far that is.
pub(crate) fn database(directory: &Path) -> stillframe::Result<Database> {
    with_progress(Database::builder(), directory)
}

fn with_progress(builder: Builder, directory: &Path) -> stillframe::Result<Database> {
    let bar = ui::byte_bar(0, "loading");
    let shown = bar.clone();
    let builder = builder.on_open_progress(move |progress| {
        show(&shown, progress.phase, progress.done, progress.total);
    });
    let database = builder.open(directory);
    bar.finish_and_clear();
    database
}

impl Open {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let mode = match (self.strict, self.salvage) {
            (true, _) => RecoveryMode::Strict,
            (_, true) => RecoveryMode::Salvage,
            _ => RecoveryMode::TolerateTail,
        };
        if mode == RecoveryMode::Salvage {
            check_was_database(&self.directory)?;
        } else {
            check_is_database(&self.directory)?;
        }
        let builder = Database::builder().recovery(mode).save_when_log_exceeds(None);
        let database = with_progress(builder, &self.directory)?;
        let opened = self.opened(&database);
        let is_whole = opened.lost.is_empty();
        if json {
            ui::print_json(&opened)?;
        } else {
            print(&opened)?;
        }
        database.close()?;
        Ok(if is_whole { Answer::Yes } else { Answer::No })
    }

    fn opened(&self, database: &Database) -> Opened {
        let report = database.open_report().expect("it was opened in a directory");
        let OpenReport { position, snapshot, segments, log_bytes, batches, torn_bytes, .. } =
            *report;
        let stats = database.stats();
        let keyspaces = stats.keyspaces.into_iter();
        let damaged = report.damaged_snapshots.iter();
        Opened {
            directory: self.directory.to_string_lossy().into_owned(),
            history: position.history.to_string(),
            seq: position.seq.0,
            snapshot_seq: snapshot.map(|position| position.seq.0),
            damaged_snapshots: damaged
                .map(|(path, fault)| format!("{}: {fault}", path.display()))
                .collect(),
            segments,
            log_bytes,
            batches,
            torn_bytes,
            records: stats.records,
            raw_bytes: stats.raw_bytes,
            keyspaces: keyspaces
                .map(|keyspace| KeyspaceContents { name: keyspace.name, records: keyspace.records })
                .collect(),
            lost: report.lost.iter().map(LostEntry::of).collect(),
            seconds: report.elapsed.as_secs_f64(),
        }
    }
}

fn show(bar: &ProgressBar, phase: OpenPhase, done: u64, total: u64) {
    bar.set_message(match phase {
        OpenPhase::Loading => "loading",
        OpenPhase::Replaying => "replaying",
        _ => "salvaging",
    });
    bar.set_length(total);
    bar.set_position(done);
}

impl LostEntry {
    fn of(range: &LostRange) -> Self {
        LostEntry {
            file: range.path.to_string_lossy().into_owned(),
            offset: range.offset,
            bytes: range.bytes,
            fault: range.fault.to_string(),
            lost: range.what.to_string(),
        }
    }
}

fn print(opened: &Opened) -> anyhow::Result<()> {
    let mut out = ui::stdout();
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12} {text}");
    line("directory", opened.directory.clone())?;
    line("position", format!("{} in history {}", ui::count(opened.seq), opened.history))?;
    match opened.snapshot_seq {
        Some(seq) => line("snapshot", format!("as of {}", ui::count(seq)))?,
        None => line("snapshot", "none".to_owned())?,
    }
    for damaged in &opened.damaged_snapshots {
        line("passed over", damaged.clone())?;
    }
    let (batches, segments) = (ui::batches(opened.batches), ui::plural(opened.segments, "segment"));
    let bytes = ui::bytes(opened.log_bytes);
    line("log", format!("{batches} replayed, {segments}, {bytes}"))?;
    if opened.torn_bytes > 0 {
        line("cut off", format!("{} of an unfinished batch", ui::bytes(opened.torn_bytes)))?;
    }
    line("records", ui::count(opened.records))?;
    line("raw", ui::bytes(opened.raw_bytes))?;
    for keyspace in &opened.keyspaces {
        let records = ui::plural(keyspace.records, "record");
        line("keyspace", format!("{}: {records}", keyspace.name.escape_debug()))?;
    }
    line("took", ui::micros(opened.seconds * 1e6))?;
    for lost in &opened.lost {
        let LostEntry { file, offset, bytes, fault, lost } = lost;
        line("LOST", format!("{lost}: {file} at byte {offset}, {bytes} bytes: {fault}"))?;
    }
    Ok(out.flush()?)
}

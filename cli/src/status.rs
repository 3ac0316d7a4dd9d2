//! `stillframe status`: what a directory says of itself, whoever has it open.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use stillframe::{DirectoryInfo, HistorySpan, Role};

use crate::inspect::date;
use crate::text::hex;
use crate::{Answer, EXIT_CODES, serve, ui};

/// So many histories are shown to people.
const SHOWN_HISTORIES: usize = 8;

/// Show what a database's directory says of itself, open or not: role, position, lineage, files; nothing is changed
///
/// Reads the log, and of snapshots the ends.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Status {
    /// The database's directory
    directory: PathBuf,
}

#[derive(Serialize)]
struct Told {
    directory: String,
    role: &'static str,
    history: String,
    seq: u64,
    time_ms: Option<u64>,
    term: u64,
    node: String,
    dataset: String,
    lineage: Vec<History>,
    snapshot_seq: Option<u64>,
    batches: u64,
    torn_bytes: u64,
    segments: Files,
    snapshots: Files,
}

#[derive(Serialize)]
struct History {
    history: String,
    term: u64,
    writer: String,
    start: u64,
    end: u64,
}

/// Files of a kind.
#[derive(Default, Serialize)]
struct Files {
    files: u64,
    bytes: u64,
}

impl Status {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let reading = ui::spinner("reading");
        let info = DirectoryInfo::read(&self.directory);
        reading.finish_and_clear();
        let told = self.told(&info?)?;
        if json {
            ui::print_json(&told)?;
        } else {
            print(&told)?;
        }
        Ok(Answer::Yes)
    }

    fn told(&self, info: &DirectoryInfo) -> anyhow::Result<Told> {
        let of = |span: &HistorySpan| History {
            history: span.history.to_string(),
            term: span.term,
            writer: hex(&span.writer),
            start: span.start.0,
            end: span.end.0,
        };
        Ok(Told {
            directory: self.directory.to_string_lossy().into_owned(),
            role: serve::role(info.role),
            history: info.position.history.to_string(),
            seq: info.position.seq.0,
            time_ms: (info.position.seq.0 > 0).then_some(info.time_ms),
            term: info.lineage.iter().map(|span| span.term).max().unwrap_or(0),
            node: hex(&info.node),
            dataset: hex(&info.dataset),
            lineage: info.lineage.iter().map(of).collect(),
            snapshot_seq: info.snapshot.map(|snapshot| snapshot.seq.0),
            batches: info.batches,
            torn_bytes: info.torn_bytes,
            segments: files(&self.directory, "log")?,
            snapshots: files(&self.directory, "snap")?,
        })
    }
}

/// The files of a directory whose names end so.
fn files(directory: &Path, end: &str) -> anyhow::Result<Files> {
    let mut all = Files::default();
    for entry in directory.read_dir().with_context(|| format!("open {}", directory.display()))? {
        let entry = entry?;
        // One that whoever has it open has just removed is not there.
        if entry.path().extension().is_some_and(|extension| extension == end)
            && let Ok(metadata) = entry.metadata()
        {
            all.files += 1;
            all.bytes += metadata.len();
        }
    }
    Ok(all)
}

fn print(told: &Told) -> anyhow::Result<()> {
    let mut out = ui::stdout();
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12} {text}");
    line("directory", told.directory.clone())?;
    line(
        "role",
        match told.role == serve::role(Role::Replica) {
            true => format!("{}, takes no writes until it is promoted", told.role),
            false => told.role.to_owned(),
        },
    )?;
    match told.time_ms {
        None => line("position", "nothing was written to it".to_owned())?,
        Some(ms) => {
            line("position", format!("{} in history {}", ui::count(told.seq), told.history))?;
            line("written at", date(ms))?;
        }
    }
    line("term", told.term.to_string())?;
    line("data set", told.dataset.clone())?;
    line("node", told.node.clone())?;
    let older = told.lineage.len().saturating_sub(SHOWN_HISTORIES);
    if older > 0 {
        line("history", format!("{} before these", ui::count(older as u64)))?;
    }
    for History { history, term, writer, start, end } in &told.lineage[older..] {
        let by = if *writer == told.node { "this node" } else { writer };
        let (start, end) = (ui::count(*start), ui::count(*end));
        line("history", format!("{history}, term {term}, batches {start} to {end}, by {by}"))?;
    }
    let snapshots = format!(
        "{}, {}",
        ui::plural(told.snapshots.files, "file"),
        ui::bytes(told.snapshots.bytes)
    );
    match told.snapshot_seq {
        Some(seq) => line("snapshot", format!("as of {}, {snapshots}", ui::count(seq)))?,
        None => line("snapshot", "none".to_owned())?,
    }
    let segments = ui::plural(told.segments.files, "segment");
    let (batches, bytes) = (ui::batches(told.batches), ui::bytes(told.segments.bytes));
    line("log", format!("{batches} behind it, {segments}, {bytes}"))?;
    if told.torn_bytes > 0 {
        let torn = ui::bytes(told.torn_bytes);
        line("unfinished", format!("{torn} of a batch: of a crash, or being written"))?;
    }
    Ok(out.flush()?)
}

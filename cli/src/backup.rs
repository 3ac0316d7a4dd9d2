//! `stillframe backup` and `stillframe restore`: a copy of a directory, and a directory as of any batch in it.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use serde_json::json;
use stillframe::{Database, PointInTime, Seq};

use crate::inspect::date;
use crate::{Answer, EXIT_CODES, ui};

/// Copy a database, open or not, to a new directory
///
/// Whoever has it open goes on meanwhile. The copy can be opened as it is, or restored to any batch in its log.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Backup {
    /// The database's directory
    directory: PathBuf,
    /// The directory to make: one that is not there, or empty
    target: PathBuf,
}

/// Make a new directory from a backup, a snapshot file, or a database that is not open, as of any batch that was kept
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Restore {
    /// A backup, a snapshot file, or the directory of a database that is not open
    source: PathBuf,
    /// The directory to make: one that is not there, or empty
    target: PathBuf,
    /// As it was after this batch [default: the last]
    #[arg(long, value_name = "SEQ", conflicts_with = "time")]
    seq: Option<u64>,
    /// As it was at this time: 2026-11-23T12:00:00Z, or milliseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    time: Option<u64>,
}

fn time_ms(text: &str) -> anyhow::Result<u64> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    let time = humantime::parse_rfc3339_weak(text).context("no time like 2026-11-23T12:00:00Z")?;
    let since = time.duration_since(UNIX_EPOCH).context("before 1970")?;
    // A second that is named without its fraction is meant to its end.
    let whole = if text.contains('.') { 0 } else { 999 };
    Ok(u64::try_from(since.as_millis())?.saturating_add(whole))
}

impl Backup {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let copying = ui::spinner("copying");
        let report = Database::builder().backup(&self.directory, &self.target);
        copying.finish_and_clear();
        let report = report?;
        let seq = report.position.seq.0;
        if json {
            ui::print_json(&json!({
                "target": self.target.to_string_lossy(), "seq": seq,
                "history": report.position.history.to_string(), "files": report.files,
                "bytes": report.bytes, "seconds": report.elapsed.as_secs_f64(),
            }))?;
        } else {
            let (seq, files) = (ui::count(seq), ui::plural(report.files, "file"));
            let (bytes, took) =
                (ui::bytes(report.bytes), ui::micros(report.elapsed.as_secs_f64() * 1e6));
            let mut out = ui::stdout();
            let target = self.target.display();
            writeln!(out, "{target}: as of {seq}, {files}, {bytes}, in {took}")?;
            out.flush()?;
        }
        Ok(Answer::Yes)
    }
}

impl Restore {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let point = match (self.seq, self.time) {
            (Some(seq), _) => PointInTime::Seq(Seq(seq)),
            (_, Some(time_ms)) => PointInTime::Time(time_ms),
            _ => PointInTime::Latest,
        };
        let bar = ui::byte_bar(0, "reading");
        let shown = bar.clone();
        let builder = Database::builder().on_open_progress(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        });
        let report = match self.source.is_file() {
            false => builder.restore(&self.source, &self.target, point),
            true if point != PointInTime::Latest => {
                anyhow::bail!("{}: a snapshot file has one state only", self.source.display());
            }
            true => {
                let file = File::open(&self.source)
                    .with_context(|| format!("open {}", self.source.display()))?;
                builder.restore_from(file, &self.target)
            }
        };
        bar.finish_and_clear();
        let report = report?;
        let seq = report.position.seq.0;
        if json {
            ui::print_json(&json!({
                "target": self.target.to_string_lossy(), "seq": seq,
                "history": report.position.history.to_string(), "time_ms": report.time_ms,
                "records": report.records, "bytes": report.bytes,
                "seconds": report.elapsed.as_secs_f64(),
            }))?;
        } else {
            let (seq, time) = (ui::count(seq), date(report.time_ms));
            let (records, target) = (ui::plural(report.records, "record"), self.target.display());
            let mut out = ui::stdout();
            writeln!(out, "{target}: as of {seq} of {time}, {records}")?;
            out.flush()?;
        }
        Ok(Answer::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::time_ms;

    #[test]
    fn times_are_read_in_two_ways() {
        assert_eq!(time_ms("1790000000123").unwrap(), 1_790_000_000_123);
        assert_eq!(time_ms("2026-09-21T14:13:20.123Z").unwrap(), 1_790_000_000_123);
        assert_eq!(time_ms("2026-09-21T14:13:20Z").unwrap(), 1_790_000_000_999);
        assert_eq!(time_ms("2026-09-21 14:13:20").unwrap(), 1_790_000_000_999);
        assert!(time_ms("yesterday").is_err());
    }
}

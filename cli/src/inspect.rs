//! `stillframe inspect` and `stillframe verify`: what a snapshot file says of itself, and whether
//! every byte of it bears that out.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::Serialize;
use stillframe::{Compression, SnapshotFile, SnapshotInfo};

use crate::text::hex;
use crate::{Answer, EXIT_CODES, ui};

/// Show what a snapshot file says of itself, without reading its records
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Inspect {
    /// The snapshot file
    file: PathBuf,
}

/// Read a whole snapshot file and check every byte of it
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Verify {
    /// The snapshot file
    file: PathBuf,
}

#[derive(Serialize)]
struct Contents {
    file: String,
    version: u32,
    file_id: String,
    history: String,
    seq: u64,
    time_ms: u64,
    records: u64,
    raw_bytes: u64,
    file_bytes: u64,
    blocks: u64,
    compression: &'static str,
    fingerprint: String,
    keyspaces: Vec<KeyspaceContents>,
}

#[derive(Serialize)]
struct KeyspaceContents {
    name: String,
    records: u64,
}

#[derive(Serialize)]
struct Verified {
    file: String,
    records: u64,
    raw_bytes: u64,
    file_bytes: u64,
    blocks: u64,
    fingerprint: String,
    seconds: f64,
}

impl Inspect {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let file = SnapshotFile::open(&self.file)?;
        let contents = self.contents(&file)?;
        if json {
            ui::print_json(&contents)?;
        } else {
            print(&contents, file.info())?;
        }
        Ok(Answer::Yes)
    }

    fn contents(&self, file: &SnapshotFile) -> anyhow::Result<Contents> {
        let keyspaces = file.keyspaces()?.into_iter().map(|name| {
            let records = file.keyspace(&name)?.len()?;
            Ok(KeyspaceContents { name, records })
        });
        let keyspaces = keyspaces.collect::<anyhow::Result<Vec<_>>>()?;
        let info = file.info();
        Ok(Contents {
            file: self.file.to_string_lossy().into_owned(),
            version: info.version,
            file_id: hex(&info.file_id),
            history: info.position.history.to_string(),
            seq: info.position.seq.0,
            time_ms: info.time_ms,
            records: keyspaces.iter().map(|keyspace| keyspace.records).sum(),
            raw_bytes: info.raw_bytes,
            file_bytes: info.file_bytes,
            blocks: info.blocks,
            compression: match info.compression {
                Compression::Lz4 => "lz4",
                Compression::Raw => "raw",
                _ => "other",
            },
            fingerprint: format!("{:016x}", info.fingerprint),
            keyspaces,
        })
    }
}

fn print(contents: &Contents, info: &SnapshotInfo) -> anyhow::Result<()> {
    let mut out = ui::stdout();
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12} {text}");
    line("file", contents.file.clone())?;
    line("format", format!("version {}, {}", contents.version, contents.compression))?;
    line("file id", contents.file_id.clone())?;
    line("position", format!("{} in history {}", ui::count(contents.seq), contents.history))?;
    line("cut at", date(info.time_ms))?;
    line("records", ui::count(contents.records))?;
    line("raw", ui::bytes(contents.raw_bytes))?;
    line("on disk", format!("{}{}", ui::bytes(contents.file_bytes), ratio(contents)))?;
    line("blocks", ui::count(contents.blocks))?;
    line("fingerprint", contents.fingerprint.clone())?;
    for keyspace in &contents.keyspaces {
        let records = ui::plural(keyspace.records, "record");
        line("keyspace", format!("{}: {records}", keyspace.name.escape_debug()))?;
    }
    Ok(out.flush()?)
}

/// Size on disk over raw size, where there is something to compare.
fn ratio(contents: &Contents) -> String {
    if contents.raw_bytes == 0 {
        return String::new();
    }
    format!(", {:.2} of raw", contents.file_bytes as f64 / contents.raw_bytes as f64)
}

/// RFC 3339 in UTC; the number itself where no calendar reaches.
pub(crate) fn date(unix_ms: u64) -> String {
    const YEAR_9999_MS: u64 = 253_402_300_799_999;
    if unix_ms > YEAR_9999_MS {
        return format!("{unix_ms} ms");
    }
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

impl Verify {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let began = Instant::now();
        let file = SnapshotFile::open(&self.file)?;
        let verifying = ui::spinner("verifying");
        let report = file.verify()?;
        verifying.finish_and_clear();
        let verified = Verified {
            file: self.file.to_string_lossy().into_owned(),
            records: report.entries - report.keyspaces, // the catalogue has an entry for each
            raw_bytes: report.raw_bytes,
            file_bytes: report.file_bytes,
            blocks: report.blocks,
            fingerprint: format!("{:016x}", report.fingerprint),
            seconds: began.elapsed().as_secs_f64(),
        };
        if json {
            ui::print_json(&verified)?;
        } else {
            let mut out = ui::stdout();
            writeln!(
                out,
                "{}: whole, {} in {}, fingerprint {}",
                verified.file,
                ui::plural(verified.records, "record"),
                ui::plural(verified.blocks, "block"),
                verified.fingerprint
            )?;
            out.flush()?;
        }
        Ok(Answer::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn a_cut_has_a_date_as_far_as_the_calendar_goes() {
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
        assert_eq!(date(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(date(u64::MAX), "18446744073709551615 ms");
    }
}

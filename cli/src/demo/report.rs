//! What the demo found, as an object for machines and a table for people.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use stillframe::SaveReport;

use super::histogram::Histogram;
use super::writer::Recorded;
use super::{Loaded, Reopened, Watched};
use crate::ui;

/// How each figure was measured; printed with the figures.
const METHOD: &str = "\
raw: keys plus values. memory: growth of the resident set, beside it the library's own account, which
counts large values as the allocator rounds them. cut: of 1,000 stills taken while the writer
writes. writer: one thread that overwrites random existing records without pause, with values
made before; 3 s idle, then from the still to the end of its save. extra memory: growth of the
resident set during that save, sampled every 5 ms. rates: raw bytes over time, sync included. open in
place: open and first get. fingerprints: of the still, the saved file, the file as verified, and the
database loaded from it.";

/// All figures; the field names of the JSON object are part of what the command promises.
#[derive(Serialize)]
pub(crate) struct Report {
    source: String,
    records: u64,
    raw_bytes: u64,
    memory_bytes_per_record: Option<f64>,
    account_bytes_per_record: f64,
    cut_us: f64,
    cut_p99_us: f64,
    idle: Latencies,
    saving: Latencies,
    extra_memory_bytes: Option<u64>,
    extra_account_bytes: u64,
    save_mb_per_s: f64,
    save_idle_mb_per_s: f64,
    file_bytes: u64,
    open_in_place_ms: f64,
    load_mb_per_s: f64,
    pub(crate) fingerprints_equal: bool,
}

/// What the writer's operations took during one phase.
#[derive(Serialize)]
struct Latencies {
    ops_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl Latencies {
    fn of(histogram: &Histogram) -> Self {
        Latencies {
            // Latencies follow each other without a gap, so their sum is the time that passed.
            ops_per_s: ratio(histogram.count() as f64, histogram.sum().as_secs_f64()).round(),
            p50_us: micros(histogram.quantile(500)),
            p99_us: micros(histogram.quantile(990)),
            p999_us: micros(histogram.quantile(999)),
            max_us: micros(histogram.max()),
        }
    }
}

impl Report {
    pub(super) fn new(
        source: String,
        loaded: &Loaded,
        watched: &Watched,
        recorded: &Recorded,
        saved_idle: &SaveReport,
        reopened: &Reopened,
    ) -> Self {
        let per_record = |bytes: u64| round(ratio(bytes as f64, loaded.records as f64));
        let rate = |took: Duration| round(ratio(loaded.raw_bytes as f64 / 1e6, took.as_secs_f64()));
        Report {
            source,
            records: loaded.records,
            raw_bytes: loaded.raw_bytes,
            memory_bytes_per_record: loaded.memory_bytes.map(per_record),
            account_bytes_per_record: per_record(loaded.account_bytes),
            cut_us: micros(watched.cuts.median),
            cut_p99_us: micros(watched.cuts.p99),
            idle: Latencies::of(&recorded.idle),
            saving: Latencies::of(&recorded.saving),
            extra_memory_bytes: watched.extra_memory_bytes,
            extra_account_bytes: watched.extra_account_bytes,
            save_mb_per_s: rate(watched.saved.elapsed),
            save_idle_mb_per_s: rate(saved_idle.elapsed),
            file_bytes: watched.saved.file_bytes,
            open_in_place_ms: round(reopened.open_in_place.as_secs_f64() * 1e3),
            load_mb_per_s: rate(reopened.load),
            fingerprints_equal: reopened.fingerprints_equal,
        }
    }

    /// The table, on standard output.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let mut out = ui::stdout();
        let raw = self.raw_bytes as f64;
        writeln!(out, "{}\n", self.source)?;
        let mut line = |name: &str, text: String| writeln!(out, "{name:<16} {text}");
        line("records", ui::count(self.records))?;
        line("raw", ui::bytes(self.raw_bytes))?;
        line(
            "memory",
            format!(
                "{} bytes a record, {:.1} raw; own account {:.1}",
                self.memory_bytes_per_record.map_or("?".into(), |bytes| format!("{bytes:.1}")),
                raw / self.records as f64,
                self.account_bytes_per_record
            ),
        )?;
        line("cut", format!("{}, p99 {}", ui::micros(self.cut_us), ui::micros(self.cut_p99_us)))?;
        line("writer", Latencies::heading())?;
        line("  idle", self.idle.row())?;
        line("  during save", self.saving.row())?;
        line(
            "extra memory",
            format!(
                "{} at its peak; own account {}",
                self.extra_memory_bytes.map_or("?".into(), |bytes| {
                    format!("{}, {:.1} % of raw", ui::bytes(bytes), bytes as f64 / raw * 100.0)
                }),
                ui::bytes(self.extra_account_bytes)
            ),
        )?;
        line(
            "save",
            format!(
                "{:.0} MB/s beside the writer, {:.0} MB/s idle",
                self.save_mb_per_s, self.save_idle_mb_per_s
            ),
        )?;
        let of_raw = self.file_bytes as f64 / raw;
        line("file", format!("{}, {of_raw:.2} of raw", ui::bytes(self.file_bytes)))?;
        line("open in place", ui::micros(self.open_in_place_ms * 1e3))?;
        line("load", format!("{:.0} MB/s", self.load_mb_per_s))?;
        let equal = if self.fingerprints_equal { "equal" } else { "DIFFERENT" };
        line("fingerprints", equal.to_owned())?;
        writeln!(out, "\n{METHOD}")?;
        Ok(out.flush()?)
    }
}

impl Latencies {
    fn heading() -> String {
        Self::columns(["ops/s", "p50", "p99", "p99.9", "max"].map(str::to_owned))
    }

    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    fn row(&self) -> String {
        let [p50, p99, p999, max] =
            [self.p50_us, self.p99_us, self.p999_us, self.max_us].map(ui::micros);
        Self::columns([ui::count(self.ops_per_s as u64), p50, p99, p999, max])
    }

    fn columns(cells: [String; 5]) -> String {
        cells.map(|cell| format!("{cell:>10}")).join(" ")
    }
}

fn micros(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e6)
}

/// To three digits after the point: what is measured is not finer.
fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Zero instead of what JSON can't say.
fn ratio(number: f64, by: f64) -> f64 {
    if by > 0.0 { number / by } else { 0.0 }
}

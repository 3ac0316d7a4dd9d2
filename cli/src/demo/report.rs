//! What the demo found, as an object for machines and a table for people.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use stillframe::SaveReport;

use super::histogram::Histogram;
use super::writer::Recorded;
use super::{Loaded, Reopened, Replicated, Watched};
use crate::ui;

/// How each figure was measured; printed with the figures.
const METHOD: &str = "\
raw: keys plus values. memory: growth of the resident set, beside it the library's own account, which
counts large values as the allocator rounds them. cut: of 1,000 stills taken while the writer
writes. writer: one thread that overwrites random existing records without pause, with values
made before; 3 s idle, then from the still to the end of its save. extra memory: growth of the
resident set during that save, sampled every 5 ms. rates: raw bytes over time, sync included. open in
place: open and first get. fingerprints: of the still, the saved file, the file as verified, and the
database loaded from it. replica: `stillframe follow` in a process of its own, in a directory, over
TCP with a key; the writer writes 10 MB/s meanwhile. full sync: from the start of that process to its
first whole state. killed: by SIGKILL, and started again 0.5 s later; from then until it was in step
again. lag: from a batch to the replica's word that it can be read there.";

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
    fingerprints_equal: bool,
    replica: Replica,
}

/// What the replica did.
#[derive(Serialize)]
struct Replica {
    full_sync_ms: f64,
    full_sync_bytes: u64,
    missed: u64,
    restart_ms: f64,
    restart_caught_up: String,
    restart_full_syncs: u64,
    lag_us: f64,
    lag_p99_us: f64,
    writes_per_s: f64,
    equal: bool,
}

impl Replica {
    fn of(replicated: &Replicated) -> Self {
        let ms = |duration: Duration| round(duration.as_secs_f64() * 1e3);
        Replica {
            full_sync_ms: ms(replicated.full_sync),
            full_sync_bytes: replicated.full_sync_bytes,
            missed: replicated.missed,
            restart_ms: ms(replicated.restart),
            restart_caught_up: replicated.caught_up.clone(),
            restart_full_syncs: replicated.full_syncs_after_restart,
            lag_us: micros(replicated.lag),
            lag_p99_us: micros(replicated.lag_p99),
            writes_per_s: replicated.writes_per_s,
            equal: replicated.equal,
        }
    }
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
            ops_per_s: histogram.per_s(),
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
        replicated: &Replicated,
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
            replica: Replica::of(replicated),
        }
    }

    /// Whether all that was to be equal is.
    pub(crate) fn all_equal(&self) -> bool {
        self.fingerprints_equal && self.replica.equal
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
        self.replica.lines().try_for_each(|(name, text)| line(name, text))?;
        writeln!(out, "\n{METHOD}")?;
        Ok(out.flush()?)
    }
}

impl Replica {
    fn lines(&self) -> impl Iterator<Item = (&'static str, String)> {
        let took = |ms: f64| ui::micros(ms * 1e3);
        let (rate, bytes) = (ui::rate(self.writes_per_s), ui::bytes(self.full_sync_bytes));
        let how = match self.restart_caught_up.as_str() {
            _ if self.restart_full_syncs > 0 => "IN FULL",
            "partial" => "by records, not in full",
            "delta" => "by changed leaves, not in full",
            _ => "in another way",
        };
        let missed = ui::batches(self.missed);
        let equal = if self.equal { "its position and fingerprint equal" } else { "DIFFERENT" };
        [
            ("replica", format!("another process, over TCP, beside {rate} writes/s")),
            ("  full sync", format!("{}, {bytes}", took(self.full_sync_ms))),
            ("  killed", format!("{missed} missed, caught up {how}, {}", took(self.restart_ms))),
            ("  lag", format!("{}, p99 {}", ui::micros(self.lag_us), ui::micros(self.lag_p99_us))),
            ("  at the end", equal.to_owned()),
        ]
        .into_iter()
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

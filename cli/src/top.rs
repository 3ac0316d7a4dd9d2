//! `stillframe top`: a running `serve` or `follow`, seen from another terminal.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::live::{self, Look, Pace};
use crate::{Answer, EXIT_CODES, interrupt, metrics, ui};

/// Watch a database that `serve` or `follow` has open with `--metrics`: rates, latencies, memory, log
///
/// Goes on until Ctrl-C or SIGTERM, or until the database is served no more, which is a failure.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Top {
    /// The database's directory, or the address that `--metrics` was given
    #[arg(value_name = "DIR|ADDRESS")]
    target: String,
    #[command(flatten)]
    pace: Pace,
}

/// Figures by name; of histograms, the buckets' limits as well.
type Figures = BTreeMap<String, f64>;

#[derive(Serialize)]
struct Seen {
    address: String,
    seq: u64,
    commits_per_s: f64,
    transactions_per_s: f64,
    conflicts_per_s: f64,
    expired_per_s: f64,
    /// Of what was committed since the look before, in microseconds, as limits of buckets.
    commit_p50_us: Option<f64>,
    commit_p99_us: Option<f64>,
    sync_p99_us: Option<f64>,
    records: u64,
    live_bytes: u64,
    retained_bytes: u64,
    stills: u64,
    oldest_still_s: f64,
    log_bytes: Option<u64>,
    not_durable: Option<u64>,
    not_saved: Option<u64>,
    is_primary: bool,
    replicas: u64,
    /// Batches that the replica which is farthest behind lacks.
    most_behind: Option<u64>,
    /// Of a replica: whether its source's batches come.
    is_streaming: Option<bool>,
    lag: Option<u64>,
    lag_s: Option<f64>,
    keyspaces: Vec<Space>,
}

#[derive(Serialize)]
struct Space {
    name: String,
    records: u64,
    raw_bytes: u64,
}

impl Top {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        interrupt::install()?;
        let address = metrics::address_of(&self.target)?;
        let mut before = (Instant::now(), parse(&metrics::fetch(&address)?));
        let mut shown = None;
        live::watch(&self.pace, json, || {
            let now = (Instant::now(), parse(&metrics::fetch(&address)?));
            // Rates over a second at the least.
            if shown.is_none() || now.0.duration_since(before.0).as_secs_f64() >= 1.0 {
                shown = Some(std::mem::replace(&mut before, now.clone()));
            }
            Ok(Seen::of(&address, shown.as_ref().unwrap_or(&before), &now))
        })?;
        Ok(Answer::Yes)
    }
}

/// Lines of the text format, by all that stands before the value.
fn parse(text: &str) -> Figures {
    let figure = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(figure).collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
fn whole(value: f64) -> u64 {
    value as u64
}

impl Seen {
    fn of(
        address: &str,
        (then, before): &(Instant, Figures),
        (at, now): &(Instant, Figures),
    ) -> Self {
        let value = |name: &str| now.get(name).copied();
        let count = |name: &str| whole(value(name).unwrap_or(0.0));
        let elapsed = at.duration_since(*then).as_secs_f64().max(1e-3);
        let per_s = |name: &str| {
            let was = before.get(name).copied().unwrap_or(0.0);
            ((value(name).unwrap_or(0.0) - was).max(0.0) / elapsed).round()
        };
        let behind = |name: &str| {
            value(name).map(|reached| count("stillframe_seq").saturating_sub(whole(reached)))
        };
        let in_keyspace = |name: &str, space: &str| {
            whole(value(&format!("{name}{{keyspace=\"{space}\"}}")).unwrap_or(0.0))
        };
        let spaces = now.keys().filter_map(|name| {
            name.strip_prefix("stillframe_keyspace_records{keyspace=\"")?.strip_suffix("\"}")
        });
        let keyspaces = spaces.map(|space| Space {
            name: space.to_owned(),
            records: in_keyspace("stillframe_keyspace_records", space),
            raw_bytes: in_keyspace("stillframe_keyspace_raw_bytes", space),
        });
        Seen {
            address: address.to_owned(),
            seq: count("stillframe_seq"),
            commits_per_s: per_s("stillframe_seq"),
            transactions_per_s: per_s("stillframe_transactions_total"),
            conflicts_per_s: per_s("stillframe_conflicts_total"),
            expired_per_s: per_s("stillframe_expired_total"),
            commit_p50_us: quantile("stillframe_commit_seconds", 0.5, before, now),
            commit_p99_us: quantile("stillframe_commit_seconds", 0.99, before, now),
            sync_p99_us: quantile("stillframe_sync_seconds", 0.99, before, now),
            records: count("stillframe_records"),
            live_bytes: count("stillframe_live_bytes"),
            retained_bytes: count("stillframe_retained_bytes"),
            stills: count("stillframe_stills"),
            oldest_still_s: value("stillframe_oldest_still_seconds").unwrap_or(0.0),
            log_bytes: value("stillframe_log_bytes").map(whole),
            not_durable: behind("stillframe_log_durable_seq"),
            not_saved: behind("stillframe_log_saved_seq"),
            is_primary: value("stillframe_primary") == Some(1.0),
            replicas: count("stillframe_replicas"),
            most_behind: now
                .iter()
                .filter(|(name, _)| name.starts_with("stillframe_replica_lag_batches{"))
                .map(|(_, lag)| whole(*lag))
                .max(),
            is_streaming: value("stillframe_streaming").map(|value| value == 1.0),
            lag: value("stillframe_lag_batches").map(whole),
            lag_s: value("stillframe_lag_seconds"),
            keyspaces: keyspaces.collect(),
        }
    }
}

/// The limit of the bucket in which the quantile lies, in microseconds; `None` if nothing came between the two looks.
fn quantile(name: &str, q: f64, before: &Figures, now: &Figures) -> Option<f64> {
    let head = format!("{name}_bucket{{le=\"");
    let of = |figures: &Figures| -> Vec<(f64, f64)> {
        let limit = |(name, count): (&String, &f64)| {
            let le = name.strip_prefix(&head)?.strip_suffix("\"}")?;
            Some((if le == "+Inf" { f64::INFINITY } else { le.parse().ok()? }, *count))
        };
        let mut all: Vec<_> = figures.iter().filter_map(limit).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all
    };
    let new: Vec<_> =
        of(now).into_iter().zip(of(before)).map(|(now, was)| (now.0, now.1 - was.1)).collect();
    let (_, total) = *new.last()?;
    let found = new.iter().find(|(_, below)| total > 0.0 && *below >= q * total)?;
    found.0.is_finite().then_some((found.0 * 1e8).round() / 100.0)
}

impl Seen {
    /// What there is to say of sources and replicas.
    fn replication(&self) -> Option<String> {
        let source = self.is_streaming.map(|is_streaming| {
            let state = if is_streaming { "follows its source" } else { "out of touch" };
            let age = self.lag_s.map_or(String::new(), |s| format!(", {s:.1} s old"));
            format!("{state}, {} behind{age}", ui::batches(self.lag.unwrap_or(0)))
        });
        let replicas = self.most_behind.map(|lag| {
            let replicas = ui::plural(self.replicas, "replica");
            format!("{replicas}, at most {} behind", ui::batches(lag))
        });
        let said: Vec<_> = source.into_iter().chain(replicas).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

impl Look for Seen {
    fn lines(&self) -> Vec<String> {
        let us = |limit: Option<f64>| limit.map_or("-".to_owned(), |us| format!("<{us} us"));
        let mut lines = vec![format!(
            "batch {}, {} commits/s (median {}, p99 {}), {} transactions/s, {} conflicts/s, {} expired/s",
            ui::count(self.seq),
            ui::rate(self.commits_per_s),
            us(self.commit_p50_us),
            us(self.commit_p99_us),
            ui::rate(self.transactions_per_s),
            ui::rate(self.conflicts_per_s),
            ui::rate(self.expired_per_s),
        )];
        lines.push(format!(
            "{}, {} live, {} kept for {}, the oldest of {:.0} s",
            ui::plural(self.records, "record"),
            ui::bytes(self.live_bytes),
            ui::bytes(self.retained_bytes),
            ui::plural(self.stills, "still"),
            self.oldest_still_s,
        ));
        if let (Some(bytes), Some(not_durable), Some(not_saved)) =
            (self.log_bytes, self.not_durable, self.not_saved)
        {
            lines.push(format!(
                "log of {}, {} not durable, {} not in a snapshot, sync p99 {}",
                ui::bytes(bytes),
                ui::batches(not_durable),
                ui::batches(not_saved),
                us(self.sync_p99_us),
            ));
        }
        lines.extend(self.replication());
        let space = |space: &Space| {
            let Space { name, records, raw_bytes } = space;
            format!("  {name}: {}, {}", ui::plural(*records, "record"), ui::bytes(*raw_bytes))
        };
        lines.extend(self.keyspaces.iter().map(space));
        lines
    }

    fn news(&self) -> impl PartialEq + 'static {
        self.keyspaces.len()
    }
}

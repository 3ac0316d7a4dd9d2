//! Statistics for monitoring systems: one list of figures, as Prometheus reads them and for the `metrics` facade.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::Stats;
use crate::commit::Role;
use crate::follow::ReplicaState;
use crate::meters::Histogram;
use crate::serve::hub::SyncCounts;

/// Limits of the buckets that are told, in bits of nanoseconds: 256 ns to 69 s, each four times the one before.
const LIMITS: std::ops::RangeInclusive<u32> = 8..=36;

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only grows while the process lives.
    Counter,
    Gauge,
}

/// A number with a name.
struct Figure {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    label: Option<(&'static str, String)>,
    value: f64,
}

impl Stats {
    /// All figures in the text format that Prometheus and OpenMetrics collectors read (version 0.0.4), to be served as `text/plain; version=0.0.4`. Names begin with
    /// `stillframe_`; durations are in seconds.
    ///
    /// ```
    /// let db = stillframe::Database::in_memory();
    /// db.keyspace("data")?.insert("k", "v")?;
    /// assert!(db.stats().to_prometheus().contains("stillframe_records 1\n"));
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn to_prometheus(&self) -> String {
        let mut out = String::new();
        let mut last = "";
        for Figure { name, help, kind, label, value } in self.figures() {
            let kind = if kind == Kind::Counter { "counter" } else { "gauge" };
            if name != last {
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
                last = name;
            }
            let _ = match label {
                Some((label, of)) => {
                    writeln!(out, "{name}{{{label}=\"{}\"}} {value}", escaped(&of))
                }
                None => writeln!(out, "{name} {value}"),
            };
        }
        for (name, help, histogram) in self.histograms() {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            for bits in LIMITS.step_by(2) {
                let limit = Duration::from_nanos(1 << bits);
                let (le, below) = (limit.as_secs_f64(), histogram.below(limit));
                let _ = writeln!(out, "{name}_bucket{{le=\"{le}\"}} {below}");
            }
            let (count, total) = (histogram.count(), histogram.total().as_secs_f64());
            let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum {total}\n{name}_count {count}");
        }
        out
    }

    /// Hands all figures to the recorder of the `metrics` facade, under the names of [`to_prometheus`](Self::to_prometheus); of durations the count, the sum and
    /// the quantiles 0.5, 0.99 and 0.999. To be called now and then.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// db.stats().publish();
    /// ```
    #[cfg(feature = "metrics")]
    pub fn publish(&self) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts are whole"
        )]
        let absolute = |value: f64| value as u64;
        for Figure { name, help, kind, label, value } in self.figures() {
            let labels: Vec<_> =
                label.into_iter().map(|(name, of)| metrics::Label::new(name, of)).collect();
            match kind {
                Kind::Counter => {
                    metrics::describe_counter!(name, help);
                    metrics::counter!(name, labels).absolute(absolute(value));
                }
                Kind::Gauge => {
                    metrics::describe_gauge!(name, help);
                    metrics::gauge!(name, labels).set(value);
                }
            }
        }
        for (name, help, histogram) in self.histograms() {
            metrics::describe_gauge!(name, metrics::Unit::Seconds, help);
            for (q, text) in [(0.5, "0.5"), (0.99, "0.99"), (0.999, "0.999")] {
                if let Some(took) = histogram.quantile(q) {
                    metrics::gauge!(name, "quantile" => text).set(took.as_secs_f64());
                }
            }
            metrics::counter!(format!("{name}_count")).absolute(histogram.count());
            metrics::gauge!(format!("{name}_sum")).set(histogram.total().as_secs_f64());
        }
    }

    fn histograms(&self) -> [(&'static str, &'static str, &Histogram); 4] {
        [
            ("stillframe_commit_seconds", "Commits, from the call to its return.", &self.commits),
            ("stillframe_sync_seconds", "Syncs of the log.", &self.syncs),
            (
                "stillframe_cut_seconds",
                "Cuts, as snapshots, saves and ranges take them.",
                &self.cuts,
            ),
            ("stillframe_save_seconds", "Saves, from the cut to the last sync.", &self.saves),
        ]
    }

    fn figures(&self) -> Vec<Figure> {
        let mut all = Vec::new();
        let mut add = |kind, name, help, value: u64| {
            all.push(Figure { name, help, kind, label: None, value: value as f64 });
        };
        let (counter, gauge) = (Kind::Counter, Kind::Gauge);
        add(gauge, "stillframe_seq", "Number of the last batch.", self.position.seq.0);
        add(gauge, "stillframe_records", "Entries stored.", self.records);
        add(gauge, "stillframe_raw_bytes", "Keys plus values.", self.raw_bytes);
        add(gauge, "stillframe_live_bytes", "Memory of live data.", self.live_bytes);
        add(
            gauge,
            "stillframe_retained_bytes",
            "Memory that only stills need.",
            self.retained_bytes,
        );
        add(
            gauge,
            "stillframe_directory_bytes",
            "Memory of the directory of leaves.",
            self.directory_bytes,
        );
        add(gauge, "stillframe_leaves", "Leaves alive.", self.leaves);
        add(gauge, "stillframe_stills", "Stills alive.", self.stills.len() as u64);
        add(
            counter,
            "stillframe_expired_total",
            "Entries removed because their time was past.",
            self.expired,
        );
        add(
            counter,
            "stillframe_transactions_total",
            "Transactions that committed.",
            self.transactions,
        );
        add(
            counter,
            "stillframe_conflicts_total",
            "Transactions run again or given up.",
            self.conflicts,
        );
        if let Some(log) = &self.log {
            add(
                gauge,
                "stillframe_log_written_seq",
                "Last batch that has left the process.",
                log.written.0,
            );
            add(gauge, "stillframe_log_durable_seq", "Last batch on the disk.", log.durable.0);
            add(
                gauge,
                "stillframe_log_saved_seq",
                "Last batch in the newest snapshot.",
                log.saved.0,
            );
            add(gauge, "stillframe_log_segments", "Segments of the log.", log.segments);
            add(gauge, "stillframe_log_bytes", "Bytes of the log.", log.bytes);
        }
        add(
            gauge,
            "stillframe_primary",
            "1 if it takes writes, 0 for a replica.",
            u64::from(self.role == Role::Primary),
        );
        add(
            gauge,
            "stillframe_replicas",
            "Replicas that are connected.",
            self.replicas.len() as u64,
        );
        if let Some(following) = &self.following {
            let is_streaming = following.state == ReplicaState::Streaming;
            add(
                gauge,
                "stillframe_streaming",
                "1 if its source's batches come as they are written.",
                u64::from(is_streaming),
            );
            add(gauge, "stillframe_lag_batches", "Batches behind its source.", following.lag);
            add(counter, "stillframe_links_total", "Links to its source.", following.links);
        }
        if let Some(ms) = self.following.as_ref().and_then(|following| following.lag_ms) {
            all.push(Figure {
                name: "stillframe_lag_seconds",
                help: "Age of what it has, against its source.",
                kind: gauge,
                label: None,
                value: Duration::from_millis(ms).as_secs_f64(),
            });
        }
        let oldest = self.stills.iter().map(|still| still.age).max().unwrap_or_default();
        all.push(Figure {
            name: "stillframe_oldest_still_seconds",
            help: "Age of the oldest still alive.",
            kind: gauge,
            label: None,
            value: oldest.as_secs_f64(),
        });
        let by_keyspace = [
            ("stillframe_keyspace_records", "Entries of a keyspace."),
            ("stillframe_keyspace_raw_bytes", "Keys plus values of a keyspace."),
        ];
        for (at, (name, help)) in by_keyspace.into_iter().enumerate() {
            for keyspace in &self.keyspaces {
                let value = [keyspace.records, keyspace.raw_bytes][at] as f64;
                let label = Some(("keyspace", keyspace.name.clone()));
                all.push(Figure { name, help, kind: gauge, label, value });
            }
        }
        // A node that came back may have two links for a moment, of which one is dead.
        let replicas: BTreeMap<_, _> =
            self.replicas.iter().map(|replica| (replica.node, replica)).collect();
        let by_replica = [
            ("stillframe_replica_lag_batches", "Batches that a replica has not applied."),
            ("stillframe_replica_lag_bytes", "Bytes of the log not sent to a replica."),
        ];
        for (at, (name, help)) in by_replica.into_iter().enumerate() {
            for (node, replica) in &replicas {
                let value = [replica.lag, replica.lag_bytes][at] as f64;
                let [a, b, c, d, ..] = node;
                let of = format!("{} {a:02x}{b:02x}{c:02x}{d:02x}", replica.name);
                let label = Some(("replica", of));
                all.push(Figure { name, help, kind: gauge, label, value });
            }
        }
        let SyncCounts { partial, delta, rewind, full, repair } = self.replica_syncs;
        for (of, count) in [
            ("partial", partial),
            ("delta", delta),
            ("rewind", rewind),
            ("full", full),
            ("repair", repair),
        ] {
            let name = "stillframe_replica_syncs_total";
            let help = "Times that a replica caught up, by what it was sent.";
            let label = Some(("kind", of.to_owned()));
            all.push(Figure { name, help, kind: counter, label, value: count as f64 });
        }
        all
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

//! `stillframe serve`: the database of a directory, for replicas to follow.

use std::path::PathBuf;

use serde::Serialize;
use stillframe::{Database, Role};

use crate::link::{Address, Connected, Counts, NodeOptions, Serving};
use crate::live::{self, Look, Rate};
use crate::metrics::Metrics;
use crate::{Answer, EXIT_CODES, interrupt, open, ui};

/// Serve a database to replicas, and show how they do
///
/// Goes on until Ctrl-C or SIGTERM, which are no failure. A directory that was a replica's is served as it is.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Serve {
    /// The database's directory
    directory: PathBuf,
    /// Listen here: host:port, where port 0 lets the system choose, or unix:PATH; may be given again
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<Address>,
    /// Serve figures here over HTTP, as Prometheus reads them; `stillframe top` shows them
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    #[command(flatten)]
    node: NodeOptions,
}

#[derive(Serialize)]
struct Served<'a> {
    directory: String,
    listening: &'a [String],
    metrics: Option<&'a str>,
    role: &'static str,
    history: String,
    seq: u64,
    fingerprint: String,
    writes_per_s: f64,
    replicas: Vec<Connected>,
    counts: Counts,
}

impl Serve {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let key = self.node.key()?;
        open::check_is_database(&self.directory)?;
        interrupt::install()?;
        let database = open::database(&self.directory)?;
        let name = self.node.name(&self.directory);
        let serving = Serving::start(&database, &self.listen, key, name, !json)?;
        let serving = serving.expect("an address is required");
        let metrics = Metrics::start(&database, &self.directory, self.metrics.as_deref())?;
        let metrics_at = metrics.as_ref().map(|metrics| metrics.address.to_string());
        let mut rate = Rate::new(database.seq().0);
        live::watch(&self.node.pace, json, || {
            self.served(&database, &serving, metrics_at.as_deref(), &mut rate)
        })?;
        drop(metrics);
        serving.primary.shutdown();
        database.close()?;
        Ok(Answer::Yes)
    }

    fn served<'a>(
        &self,
        database: &Database,
        serving: &'a Serving,
        metrics: Option<&'a str>,
        rate: &mut Rate,
    ) -> anyhow::Result<Served<'a>> {
        let still = database.snapshot()?;
        let position = still.position();
        Ok(Served {
            directory: self.directory.to_string_lossy().into_owned(),
            listening: &serving.listening,
            metrics,
            role: role(database.role()),
            history: position.history.to_string(),
            seq: position.seq.0,
            fingerprint: format!("{:016x}", still.fingerprint()),
            writes_per_s: rate.per_s(position.seq.0),
            replicas: serving.replicas(),
            counts: Counts::of(serving.primary.counts()),
        })
    }
}

/// The word of JSON, and of people.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
        _ => "other",
    }
}

impl Look for Served<'_> {
    fn lines(&self) -> Vec<String> {
        let (role, seq) = (self.role, ui::count(self.seq));
        let replicas = ui::plural(self.replicas.len() as u64, "replica");
        let first =
            format!("{role} at batch {seq}, {} writes/s, {replicas}", ui::rate(self.writes_per_s));
        std::iter::once(first).chain(self.replicas.iter().map(Connected::line)).collect()
    }

    fn news(&self) -> impl PartialEq + 'static {
        self.replicas.iter().map(Connected::news).collect::<Vec<_>>()
    }
}

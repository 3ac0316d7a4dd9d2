//! `stillframe follow`: a directory becomes what another node has, and stays it.

use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;
use stillframe::{
    Database, LinkLost, Replica, ReplicaSource, ReplicaState, ReplicaStatus, SyncCounts,
};

use crate::link::{self, Address, Connected, Counts, NodeOptions, Serving};
use crate::live::{self, Look};
use crate::metrics::Metrics;
use crate::{Answer, EXIT_CODES, interrupt, open, ui};

/// Follow a node that serves its database: the directory becomes what that has, and stays it
///
/// Goes on until Ctrl-C or SIGTERM, which are no failure. What the directory has and the source lacks is given up only where it
/// is clear which of the two is right; else it says why it does not follow, and waits.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Follow {
    /// The replica's directory; is made if it is not there
    directory: PathBuf,
    /// Where the source listens: host:port, or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    from: Address,
    /// Pass on what comes to replicas of this one, and listen for them here; may be given again
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// Give up, once, what is here and the source lacks
    #[arg(long)]
    resync: bool,
    /// Serve figures here over HTTP, as Prometheus reads them; `stillframe top` shows them
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    #[command(flatten)]
    node: NodeOptions,
}

#[derive(Serialize)]
struct Followed<'a> {
    directory: String,
    source: String,
    state: &'static str,
    history: String,
    seq: u64,
    fingerprint: String,
    source_seq: u64,
    lag: u64,
    lag_ms: Option<u64>,
    caught_up: Option<&'static str>,
    counts: Counts,
    links: u64,
    last_end: Option<String>,
    refused: Option<String>,
    received_bytes: u64,
    listening: &'a [String],
    metrics: Option<&'a str>,
    replicas: Vec<Connected>,
}

impl Follow {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let key = self.node.key()?;
        interrupt::install()?;
        let database = open::database(&self.directory)?;
        let name = self.node.name(&self.directory);
        let serving = Serving::start(&database, &self.listen, key.clone(), name.clone(), !json)?;
        let source = key.into_iter().fold(self.from.source().name(name), ReplicaSource::key);
        let replica = database.follow(source)?;
        if self.resync {
            replica.resync();
        }
        let metrics = Metrics::start(&database, &self.directory, self.metrics.as_deref())?;
        let metrics_at = metrics.as_ref().map(|metrics| metrics.address.to_string());
        live::watch(&self.node.pace, json, || {
            self.followed(&database, &replica, serving.as_ref(), metrics_at.as_deref())
        })?;
        drop(metrics);
        replica.stop();
        if let Some(serving) = serving {
            serving.primary.shutdown();
        }
        database.close()?;
        Ok(Answer::Yes)
    }

    fn followed<'a>(
        &self,
        database: &Database,
        replica: &Replica,
        serving: Option<&'a Serving>,
        metrics: Option<&'a str>,
    ) -> anyhow::Result<Followed<'a>> {
        let status = replica.status();
        let ReplicaStatus { state, source_seq, lag, lag_ms, links, received_bytes, .. } = status;
        let last_end = status.last_end.as_ref();
        if state == ReplicaState::Stopped {
            match last_end {
                Some(why) => bail!("it follows no more: {why}"),
                None => bail!("it follows no more"),
            }
        }
        let refused = match last_end {
            Some(LinkLost::Refused(why)) if state == ReplicaState::Refused => Some(why.to_string()),
            _ => None,
        };
        let still = database.snapshot()?;
        let position = still.position();
        Ok(Followed {
            directory: self.directory.to_string_lossy().into_owned(),
            source: self.from.to_string(),
            state: word(state),
            history: position.history.to_string(),
            seq: position.seq.0,
            fingerprint: format!("{:016x}", still.fingerprint()),
            source_seq: source_seq.0,
            lag,
            lag_ms,
            caught_up: status.caught_up.map(link::word),
            counts: Counts::of(status.counts),
            links,
            last_end: last_end.map(|end| self.end(end, status.counts)),
            refused,
            received_bytes,
            listening: serving.map_or(&[], |serving| &serving.listening),
            metrics,
            replicas: serving.map(Serving::replicas).unwrap_or_default(),
        })
    }
}

impl Follow {
    fn end(&self, end: &LinkLost, counts: SyncCounts) -> String {
        let has_met = counts != SyncCounts::default();
        match (end, self.node.has_key()) {
            // To who does not prove its key a source says nothing.
            (LinkLost::Lost(_), true) if !has_met => format!("{end}; it may have another key"),
            (LinkLost::Lost(_), false) if !has_met => {
                format!("{end}; it may ask for a key: --key-file")
            }
            _ => end.to_string(),
        }
    }
}

fn word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Connecting => "connecting",
        ReplicaState::Meeting => "meeting",
        ReplicaState::Receiving => "receiving",
        ReplicaState::Streaming => "streaming",
        ReplicaState::Waiting => "waiting",
        ReplicaState::Refused => "refused",
        ReplicaState::Stopped => "stopped",
        _ => "other",
    }
}

impl Followed<'_> {
    fn doing(&self) -> String {
        let source = &self.source;
        match (self.state, &self.refused) {
            ("connecting", _) => format!("looks for {source}"),
            ("meeting", _) => format!("meets {source}"),
            ("receiving", _) => {
                format!("receives what {source} has, {} so far", ui::bytes(self.received_bytes))
            }
            ("streaming", _) => format!("follows {source}"),
            ("waiting", _) => format!("waits: {source} can't tell yet how to go on"),
            (_, Some(why)) => format!(
                "does not follow {source}: {why}; --resync gives up what is here and that lacks"
            ),
            _ => format!("does not follow {source}"),
        }
    }
}

impl Look for Followed<'_> {
    fn lines(&self) -> Vec<String> {
        let (lag, how) = (ui::batches(self.lag), self.caught_up.map_or("", link::by));
        let age = match (self.lag, self.lag_ms) {
            (0, _) if self.state == "streaming" => "has all of it".to_owned(),
            // Before anything was heard; or the source was, which has not got on.
            (0, _) => String::new(),
            (_, None) => format!("{lag} behind"),
            (_, Some(ms)) => format!("{lag} behind, {}", ui::micros(ms as f64 * 1e3)),
        };
        let colon = if age.is_empty() { "" } else { ": " };
        let seq = ui::count(self.seq);
        let mut lines = vec![format!("{} at batch {seq}{colon}{age}{how}", self.doing())];
        // Of the first link nothing need be said while it holds.
        if let (None, Some(end)) = (&self.refused, &self.last_end) {
            lines.push(format!("{} so far, the last ended: {end}", ui::plural(self.links, "link")));
        }
        lines.extend(self.replicas.iter().map(Connected::line));
        lines
    }

    fn news(&self) -> impl PartialEq + 'static {
        let replicas = self.replicas.iter().map(Connected::news).collect::<Vec<_>>();
        (self.state, self.caught_up, self.last_end.clone(), replicas)
    }
}

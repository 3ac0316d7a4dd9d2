//! Where nodes listen and are found, and what the commands about replicas have in common.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::bail;
use serde::Serialize;
use stillframe::{
    Database, LinkKey, Primary, PrimaryOptions, ReplicaInfo, ReplicaSource, SyncCounts, SyncKind,
};

use crate::live::Pace;
use crate::text::hex;
use crate::{key, ui};

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// `host:port`
    Tcp(String),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                bail!("no path after `unix:`");
            }
            return Ok(Address::Unix(path.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Address::Tcp(text.to_owned()))
            }
            _ => bail!("neither host:port nor unix:PATH"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// The node that listens there.
    pub(crate) fn source(&self) -> ReplicaSource {
        match self {
            Address::Tcp(address) => ReplicaSource::tcp(address),
            Address::Unix(path) => ReplicaSource::unix(path),
        }
    }

    /// Listens there; returns where, with the port that the system chose for port 0, and whether others than this machine's
    /// users may connect.
    fn listen(&self, primary: &Primary) -> anyhow::Result<(Address, bool)> {
        match self {
            Address::Tcp(address) => {
                let bound = primary.listen_tcp(address)?;
                Ok((Address::Tcp(bound.to_string()), !bound.ip().is_loopback()))
            }
            // Its file is for its owner alone.
            Address::Unix(path) => {
                primary.listen_unix(path)?;
                Ok((self.clone(), false))
            }
        }
    }
}

/// What `serve` and `follow` are both told.
#[derive(clap::Args)]
pub(crate) struct NodeOptions {
    /// The key that both sides prove to each other: see `stillframe key` [default: nobody proves anything]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// What this node calls itself [default: the name of the directory]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

impl NodeOptions {
    pub(crate) fn key(&self) -> anyhow::Result<Option<LinkKey>> {
        self.key_file.as_deref().map(key::read).transpose()
    }

    pub(crate) fn has_key(&self) -> bool {
        self.key_file.is_some()
    }

    /// What the node of `directory` calls itself.
    pub(crate) fn name(&self, directory: &Path) -> String {
        let name = || {
            let whole = directory.canonicalize();
            let whole = whole.as_deref().unwrap_or(directory);
            whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
        };
        self.name.clone().unwrap_or_else(name)
    }
}

/// A database whose replicas are served.
pub(crate) struct Serving {
    pub(crate) primary: Primary,
    pub(crate) listening: Vec<String>,
}

impl Serving {
    /// Listens on all of `addresses` and says so; none: nobody is served.
    pub(crate) fn start(
        database: &Database,
        addresses: &[Address],
        key: Option<LinkKey>,
        name: String,
        is_said: bool,
    ) -> anyhow::Result<Option<Self>> {
        if addresses.is_empty() {
            return Ok(None);
        }
        let has_key = key.is_some();
        let options = PrimaryOptions::new().name(name);
        let options = key.into_iter().fold(options, PrimaryOptions::key);
        let primary = database.serve_replicas(options)?;
        let mut listening = Vec::new();
        for address in addresses {
            let (at, is_open) = address.listen(&primary)?;
            if !has_key && is_open {
                eprintln!(
                    "note: whoever can connect to {at} gets all data: --key-file asks for proof"
                );
            }
            listening.push(at.to_string());
        }
        if is_said {
            let mut out = ui::stdout();
            listening.iter().try_for_each(|at| writeln!(out, "listening on {at}"))?;
            out.flush()?;
        }
        Ok(Some(Serving { primary, listening }))
    }

    pub(crate) fn replicas(&self) -> Vec<Connected> {
        self.primary.replicas().iter().map(Connected::of).collect()
    }
}

/// A replica that is connected.
#[derive(Serialize)]
pub(crate) struct Connected {
    name: String,
    peer: String,
    node: String,
    applied_seq: Option<u64>,
    durable_seq: Option<u64>,
    lag: u64,
    silent_ms: u64,
    sent_bytes: u64,
    caught_up: Option<&'static str>,
}

impl Connected {
    fn of(info: &ReplicaInfo) -> Self {
        Connected {
            name: info.name.clone(),
            peer: info.peer.clone(),
            node: hex(&info.node),
            applied_seq: info.applied.map(|applied| applied.seq.0),
            durable_seq: info.durable.map(|durable| durable.0),
            lag: info.lag,
            silent_ms: u64::try_from(info.silent_for.as_millis()).unwrap_or(u64::MAX),
            sent_bytes: info.sent_bytes,
            caught_up: info.caught_up.map(word),
        }
    }

    pub(crate) fn line(&self) -> String {
        let name = self.name.escape_debug();
        let how = self.caught_up.map_or("", by);
        let behind = match self.applied_seq {
            None => "has not caught up yet".to_owned(),
            Some(_) => format!("{} behind", ui::batches(self.lag)),
        };
        format!("replica {name} at {}: {behind}{how}", self.peer)
    }

    /// What is told at once when it changes.
    pub(crate) fn news(&self) -> (String, bool, Option<&'static str>) {
        (format!("{} {}", self.node, self.peer), self.applied_seq.is_some(), self.caught_up)
    }
}

/// The word of JSON.
pub(crate) fn word(kind: SyncKind) -> &'static str {
    match kind {
        SyncKind::Partial => "partial",
        SyncKind::Delta => "delta",
        SyncKind::Rewind => "rewind",
        SyncKind::Full => "full",
        _ => "other",
    }
}

/// The same for people.
pub(crate) fn by(word: &str) -> &'static str {
    match word {
        "partial" => ", caught up by records",
        "delta" => ", caught up by changed leaves",
        "rewind" => ", gave up writes of its own and caught up by changed leaves",
        "full" => ", caught up by everything",
        _ => "",
    }
}

/// How often in which way.
#[derive(Serialize)]
pub(crate) struct Counts {
    partial: u64,
    delta: u64,
    rewind: u64,
    full: u64,
}

impl Counts {
    pub(crate) fn of(counts: SyncCounts) -> Self {
        let SyncCounts { partial, delta, rewind, full, .. } = counts;
        Counts { partial, delta, rewind, full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_two_kinds() {
        let tcp = |text: &str| Some(Address::Tcp(text.into()));
        for (text, address) in [
            ("127.0.0.1:7878", tcp("127.0.0.1:7878")),
            ("[::1]:0", tcp("[::1]:0")),
            ("host.example:1", tcp("host.example:1")),
            ("unix:/run/a b", Some(Address::Unix("/run/a b".into()))),
            ("unix:", None),
            ("host", None),
            (":7878", None),
            ("host:70000", None),
            ("/run/socket", None),
        ] {
            assert_eq!(text.parse().ok(), address, "{text}");
        }
    }
}

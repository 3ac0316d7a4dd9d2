//! What a database holds and what that takes, as plain data.

mod figures;

use crate::commit::Role;
use crate::follow::ReplicaStatus;
use crate::meters::Histogram;
use crate::options::StillInfo;
use crate::position::{Position, Seq};
use crate::serve::hub::{ReplicaInfo, SyncCounts};

/// Figures of one database at about one moment.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// let stats = db.stats();
/// assert_eq!((stats.records, stats.raw_bytes), (1, 14));
/// assert_eq!(stats.keyspaces[0].name, "films");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// The last batch.
    pub position: Position,
    /// Entries stored, past their time or not.
    pub records: u64,
    /// Keys plus values, in bytes.
    pub raw_bytes: u64,
    /// Memory of live data: pages, leaf headers, large values; in bytes. Large values that a caller still
    /// holds as slices count until the last is dropped; each counts as mimalloc and jemalloc would round it up, a quarter
    /// at most.
    pub live_bytes: u64,
    /// Memory that only stills need, in bytes.
    pub retained_bytes: u64,
    /// Memory of the directory, in bytes.
    pub directory_bytes: u64,
    /// Leaves alive.
    pub leaves: u64,
    /// The live stills, oldest first.
    pub stills: Vec<StillInfo>,
    /// Each keyspace's part, by name.
    pub keyspaces: Vec<KeyspaceStats>,
    /// The log, if there is one.
    pub log: Option<LogStats>,
    /// Entries that this run has removed because their time was past; counted once that can be seen.
    pub expired: u64,
    /// Transactions that committed in this run, or had nothing to.
    pub transactions: u64,
    /// Times that one was run again, or given up, since others were in the way.
    pub conflicts: u64,
    /// How long writes, batches and transactions took to commit in this run, from the call to its return; of those that do not wait
    /// for the disk one in 64 is timed.
    pub commits: Histogram,
    /// .. syncs of the log.
    pub syncs: Histogram,
    /// .. cuts, which snapshots, saves and ranges take.
    pub cuts: Histogram,
    /// .. saves, from the cut to the last sync.
    pub saves: Histogram,
    /// Whether it takes writes.
    pub role: Role,
    /// The replicas that are connected to it.
    pub replicas: Vec<ReplicaInfo>,
    /// How replicas of its own caught up in this run.
    pub replica_syncs: SyncCounts,
    /// How it follows its source, if it does.
    pub following: Option<ReplicaStatus>,
}

/// How far the log of an open directory is.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-logstats-{}", std::process::id()));
/// use stillframe::{Database, Durability};
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// let seq = db.persist(Durability::Sync)?;
/// assert_eq!(db.stats().log.unwrap().durable, seq);
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LogStats {
    /// The last batch that has left the process.
    pub written: Seq,
    /// The last batch that is on the disk.
    pub durable: Seq,
    /// The last batch in the newest snapshot of the directory.
    pub saved: Seq,
    /// Segments in the directory that hold something.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A keyspace's part.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// let films = &db.stats().keyspaces[0];
/// assert_eq!((films.name.as_str(), films.records), ("films", 1));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeyspaceStats {
    /// Its name.
    pub name: String,
    /// Entries stored, past their time or not.
    pub records: u64,
    /// Keys plus values, in bytes.
    pub raw_bytes: u64,
}

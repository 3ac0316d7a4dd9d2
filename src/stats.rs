//! What a database holds and what that takes, as plain data.

use crate::options::StillInfo;
use crate::position::Position;

/// Figures of one database at about one moment.
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
    /// holds as slices count until the last is dropped.
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
}

/// A keyspace's part.
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

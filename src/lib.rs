//! Stillframe, an embedded key-value storage engine.

mod applier;
mod backup;
mod batch;
mod clock;
mod commit;
mod database;
mod error;
mod expiry;
mod fingerprint;
mod follow;
mod format;
mod install;
mod keeper;
mod keys;
mod keyspace;
mod meters;
mod notices;
mod open;
mod options;
mod planted;
mod position;
mod progress;
mod range;
mod replayer;
mod replication;
mod roles;
mod salvage;
mod saver;
mod serve;
mod slice;
mod snapshot;
mod stats;
mod storage;
mod subscription;
mod sync;
mod transaction;
mod tree;
mod typed;

pub use backup::{BackupReport, PointInTime, RestoreReport};
pub use batch::WriteBatch;
pub use commit::{Holder, Role};
pub use database::Database;
pub use error::{Error, Fault, LogFailure, Result, SyncRefused, Undecodable};
pub use follow::{LinkLost, Replica, ReplicaSource, ReplicaState, ReplicaStatus, StalePolicy};
pub use keyspace::{CompareAndSwapError, Keyspace};
pub use meters::Histogram;
pub use options::{Builder, Durability, StillInfo, StillReport, WriteOptions};
pub use position::{HistoryId, Position, Seq};
pub use progress::{OpenPhase, OpenProgress, OpenReport};
pub use range::{Keys, Range};
pub use replication::auth::LinkKey;
pub use replication::link::Link;
pub use serve::hub::{AckLevel, ReplicaInfo, SyncCounts, SyncKind};
pub use serve::{Primary, PrimaryOptions};
pub use slice::Slice;
pub use snapshot::{Snapshot, SnapshotKeyspace};
pub use stats::{KeyspaceStats, LogStats, Stats};
pub use storage::directory_info::{DirectoryInfo, HistorySpan};
pub use storage::file_keyspace::{FileKeyspace, FileRange};
pub use storage::log_reader::{
    LogEffect, LogEffects, LogEnd, LogReader, LogRecord, LogRecordKind, SegmentBeginning,
    SegmentInfo,
};
pub use storage::recovery::RecoveryMode;
pub use storage::salvage::{Lost, LostKey, LostRange};
pub use storage::save::{Compression, SaveHandle, SaveOptions, SaveProgress, SaveReport};
pub use storage::snapshot_file::{SnapshotFile, SnapshotInfo, VerifyReport};
pub use subscription::{Cause, Change, ChangeBatch, ChangeKind, SubscribeOptions, Subscription};
pub use transaction::{Transaction, TransactionRange};
#[cfg(feature = "serde")]
pub use typed::Serde;
pub use typed::{BeginsWith, CodecError, Typed, TypedKey, TypedRange, TypedSnapshot, TypedValue};

/// The world a test can hand in: a disk that forgets and fails, a clock that stands still, seeded numbers.
///
/// Outside semver: anything here may change in a patch release.
#[cfg(feature = "simulation")]
pub mod simulation {
    pub use crate::clock::{Clock, Random, SimClock, seed_thread};
    pub use crate::format::probe::decode_block;
    pub use crate::serve::speaker::Speaker;
    pub use crate::serve::turns::{KeptState, SessionEnd, SessionEnded, TurnOptions};
    pub use crate::snapshot::{LeafPass, PassedEntry, PassedLeaf};
    pub use crate::storage::probe::walk_segment;
    pub use crate::storage::sim::{
        Call, CallKind, Change, CrashPoint, DirId, DiskFault, Effect, Fate, FileId, Node, SimDisk,
        Step,
    };
    pub use crate::storage::{Disk, DiskFile, DiskMap};
}

/// The longest key, in bytes.
pub const MAX_KEY_LEN: usize = 64 << 10;
/// The longest value, in bytes.
pub const MAX_VALUE_LEN: usize = 1 << 30;
/// The largest batch, in bytes as encoded.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;
/// The longest name of a keyspace, in bytes.
pub const MAX_KEYSPACE_NAME_LEN: usize = 255;

/// The README's example runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExample;

//! Stillframe, an embedded key-value storage engine.

#[allow(dead_code, reason = "saving and loading will use it")]
mod storage;

#[allow(dead_code, reason = "cuts and ids will use it")]
mod clock;
mod error;
mod fingerprint;
mod slice;
mod sync;
mod tree;

pub use error::{Error, Fault, Result};
pub use slice::Slice;

/// The world a test can hand in: a disk that forgets and fails, a clock that stands still, seeded numbers.
///
/// Outside semver: anything here may change in a patch release.
#[cfg(feature = "simulation")]
pub mod simulation {
    pub use crate::clock::{Clock, Random, SimClock};
    pub use crate::storage::sim::{
        Call, CallKind, Change, CrashPoint, DirId, DiskFault, Effect, Fate, FileId, Node, SimDisk,
        Step,
    };
    pub use crate::storage::{Disk, DiskFile};
}

/// The longest key, in bytes.
pub const MAX_KEY_LEN: usize = 64 << 10;
/// The longest value, in bytes.
pub const MAX_VALUE_LEN: usize = 1 << 30;
/// The largest batch, in bytes as encoded.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;
/// The longest name of a keyspace, in bytes.
pub const MAX_KEYSPACE_NAME_LEN: usize = 255;

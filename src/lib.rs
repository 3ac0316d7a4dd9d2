//! Stillframe, an embedded key-value storage engine.

mod error;
mod fingerprint;
mod slice;
mod sync;
mod tree;

pub use error::{Error, Fault, Result};
pub use slice::Slice;

/// The longest key, in bytes.
pub const MAX_KEY_LEN: usize = 64 << 10;
/// The longest value, in bytes.
pub const MAX_VALUE_LEN: usize = 1 << 30;
/// The largest batch, in bytes as encoded.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;
/// The longest name of a keyspace, in bytes.
pub const MAX_KEYSPACE_NAME_LEN: usize = 255;

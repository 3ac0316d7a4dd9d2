//! Bytes: how a snapshot file and the log are laid out. Knows no file, thread, clock or memory structure.
//!
//! FORMAT.md draws every layout; each file here implements one of its sections: `snapshot` the file
//! header and footer, `block` the frame around every block, `leaves` the entries, `index` the index
//! blocks and the root; `assembly` puts them in order; `record` a batch, `log` what is around it in a
//! segment; `wire` what replicas and sources say. Decoders accept any input: they never panic, and allocate no more than the
//! input can account for.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

pub(crate) mod assembly;
pub(crate) mod block;
pub(crate) mod codec;
pub(crate) mod index;
pub(crate) mod leaves;
pub(crate) mod log;
#[cfg(feature = "simulation")]
pub(crate) mod probe;
pub(crate) mod record;
pub(crate) mod snapshot;
pub(crate) mod spool;
pub(crate) mod wire;

/// The format version that this release writes, and the newest it reads.
pub(crate) const VERSION: u32 = 1;

/// The highest Seq that a file may name: there is always a next one.
pub(crate) const MAX_SEQ: u64 = (1 << 63) - 1;
/// Length of the keyspace id that every internal key starts with.
pub(crate) const KEYSPACE_ID_LEN: usize = 4;
/// The longest internal key or fence.
pub(crate) const MAX_INTERNAL_KEY_LEN: usize = KEYSPACE_ID_LEN + (64 << 10);
/// The longest value.
pub(crate) const MAX_VALUE_LEN: usize = 1 << 30;
/// Values longer than this live in chunk blocks of their own.
pub(crate) const MAX_INLINE_VALUE_LEN: usize = 16 << 10;
/// Bytes of a large value in each of its chunk blocks but the last, which holds the rest.
pub(crate) const CHUNK_LEN: usize = 64 << 10;

const _: () = assert!(MAX_INTERNAL_KEY_LEN == KEYSPACE_ID_LEN + crate::MAX_KEY_LEN);
const _: () = assert!(MAX_VALUE_LEN == crate::MAX_VALUE_LEN);

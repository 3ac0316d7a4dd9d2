//! What a save reads and what a load builds: leaves, as seen from here.
//!
//! The tree's still, its pass and its builder stand behind these traits, so that this side never depends on
//! how memory holds a leaf, and can be tested without it. Keys are internal keys throughout.

use std::sync::Arc;
use std::time::Duration;

use crate::commit;
use crate::error::Result;
use crate::format::snapshot::Span;
use crate::position::{Position, Seq};
use crate::tree::bulk::{BuiltLeaf, Bulk, LeafBuilder};
use crate::tree::{self, Pass, Still};

/// Room for the rest of a key, so that its buffer seldom grows.
const USUAL_SUFFIX_LEN: usize = 64;

/// One entry as a save reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryRef<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    /// Unix milliseconds, 0 for never.
    pub(crate) expire_at: u64,
}

/// The content of one cut, leaf by leaf.
pub(crate) trait LeafSource: Send + Sync {
    /// A leaf that was copied out; used again for the next.
    type Copy: LeafCopy;

    /// Copies the content at the cut of the leaf that covers `from` into `out`, replacing what that held; `false` if that leaf is
    /// not wanted: then `out` has its fences alone.
    ///
    /// When `from` lies inside a leaf, only what is at or above it is copied, and `out.low()` is `from`.
    /// Called from the empty key on, then at each copy's high fence, once each.
    fn copy_leaf(&self, from: &[u8], out: &mut Self::Copy) -> Result<bool>;

    /// It was saved, which took so long.
    fn saved(&self, _took: Duration) {}
}

/// A leaf's content at a cut, held by nobody else.
pub(crate) trait LeafCopy: Default + Send {
    /// Lets go of what it holds, but for memory to use again.
    fn clear(&mut self);
    /// Where its range starts.
    fn low(&self) -> &[u8];
    /// Where the next leaf starts, `None` at the end of the key space.
    fn high(&self) -> Option<&[u8]>;
    /// Seq of the last change at the cut.
    fn stamp(&self) -> Seq;
    /// Keys plus values, in bytes.
    fn raw_bytes(&self) -> usize;
    /// Shows every entry, in ascending order of keys; stops at the first error.
    fn each(&self, visit: &mut dyn FnMut(EntryRef<'_>) -> Result<()>) -> Result<()>;
}

/// The cut that a save promises to write: identity, moment and running totals.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    /// The histories of the line, oldest first, the last ending at `position`; empty before any batch.
    pub(crate) lineage: Vec<Span>,
    /// Entries of every keyspace, the catalogue included.
    pub(crate) entries: u64,
    /// The sum of their fingerprints.
    pub(crate) fingerprint: u64,
}

/// A value as a load hands it over.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// Small enough to be copied.
    Bytes(&'a [u8]),
    /// A large one in an allocation of its own, and its hash, proven.
    Large { bytes: Box<[u8]>, hash: u64 },
}

/// Builds leaves from a file, on any thread, for several leaves at once.
pub(crate) trait LeafSink: Sync {
    /// What builds one leaf.
    type Builder<'a>: LeafBuild
    where
        Self: 'a;

    /// Starts the leaf that owns `low..high`.
    fn begin(&self, low: &[u8], high: Option<&[u8]>, stamp: Seq) -> Self::Builder<'_>;
}

/// A leaf that is being built.
pub(crate) trait LeafBuild {
    /// A finished leaf, to be joined with its neighbours.
    type Built: Send;

    /// Adds an entry; keys ascend strictly and lie within the fences.
    fn push(&mut self, key: &[u8], value: Payload<'_>, expire_at: u64) -> Result<()>;

    /// The leaf, or several that tile its range.
    fn finish(self) -> Result<Vec<Self::Built>>;
}

/// What [`LeafSink`] `S` builds.
pub(crate) type Built<'a, S> = <<S as LeafSink>::Builder<'a> as LeafBuild>::Built;

impl Cut {
    /// What a save at `cut` promises.
    pub(crate) fn of(cut: &commit::Cut) -> Self {
        Cut {
            position: cut.position,
            time_ms: cut.time_ms,
            lineage: cut.lineage(),
            entries: cut.totals.records,
            fingerprint: cut.totals.fingerprint,
        }
    }
}

impl LeafSource for Arc<Still> {
    type Copy = tree::LeafCopy;

    fn copy_leaf(&self, from: &[u8], out: &mut tree::LeafCopy) -> Result<bool> {
        Still::copy_leaf(self, from, out).map(|()| true)
    }

    fn saved(&self, took: Duration) {
        self.tree().commit.meters.save.record(took);
    }
}

impl LeafSource for Pass {
    type Copy = tree::LeafCopy;

    fn copy_leaf(&self, from: &[u8], out: &mut tree::LeafCopy) -> Result<bool> {
        Pass::copy_leaf(self, from, out).map(|()| true)
    }

    fn saved(&self, took: Duration) {
        self.tree().commit.meters.save.record(took);
    }
}

impl LeafCopy for tree::LeafCopy {
    fn clear(&mut self) {
        tree::LeafCopy::clear(self);
    }

    fn low(&self) -> &[u8] {
        self.page().low()
    }

    fn high(&self) -> Option<&[u8]> {
        self.page().high()
    }

    fn stamp(&self) -> Seq {
        tree::LeafCopy::stamp(self)
    }

    fn raw_bytes(&self) -> usize {
        tree::LeafCopy::raw_bytes(self)
    }

    fn each(&self, visit: &mut dyn FnMut(EntryRef<'_>) -> Result<()>) -> Result<()> {
        let page = self.page();
        // What the fences share, all keys do: written once.
        let mut key = Vec::with_capacity(page.prefix_len() + USUAL_SUFFIX_LEN);
        key.extend_from_slice(page.prefix());
        (0..page.len()).try_for_each(|at| {
            let entry = page.show(at, &mut key);
            visit(EntryRef { key: &key, value: entry.value.bytes(), expire_at: entry.expire_at })
        })
    }
}

impl LeafSink for Bulk {
    type Builder<'a> = LeafBuilder<'a>;

    fn begin(&self, low: &[u8], high: Option<&[u8]>, stamp: Seq) -> LeafBuilder<'_> {
        Bulk::begin(self, low, high, stamp)
    }
}

impl LeafBuild for LeafBuilder<'_> {
    type Built = BuiltLeaf;

    fn push(&mut self, key: &[u8], value: Payload<'_>, expire_at: u64) -> Result<()> {
        match value {
            Payload::Bytes(bytes) => LeafBuilder::push(self, key, bytes, expire_at),
            Payload::Large { bytes, hash } => self.push_owned(key, bytes, hash, expire_at),
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<BuiltLeaf>> {
        Ok(LeafBuilder::finish(self))
    }
}

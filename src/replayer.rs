//! Applies the log to the tree that it is replayed over.

use std::panic::resume_unwind;
use std::thread;

use crate::commit::{KeyspaceSlot, LoggedEffect};
use crate::format::codec::LENIENT;
use crate::format::log::{Base, RECORD_FRAME_LEN};
use crate::format::record::{Effects, HistoryBody};
use crate::format::snapshot::Span;
use crate::keys::{CATALOGUE_ID, PREFIX_LEN, id_of};
use crate::open::Content;
use crate::position::{Position, Seq};
use crate::progress::Progress;
use crate::storage::recovery::{Applied, Apply, ApplyError, RecordAt};
use crate::storage::walk::catalogue_entry;
use crate::tree::{BatchOp, Changes, RangeDelete, new_value};
use crate::{Fault, Result};

/// From so many operations on they are applied, by several threads.
const WINDOW: usize = 8_192;
/// So many are one batch of the tree: their cache misses overlap.
const BATCH: usize = 1_024;

/// Applies what the log holds. Batches that only put and remove are joined, the last of each key counting: nobody
/// looks in between, and a leaf's stamp may be newer than its last change; of each leaf that one of them meant it is.
pub(crate) struct Replayer<'a> {
    content: &'a mut Content,
    /// In the order of the log.
    ops: Vec<ReplayedOp>,
    /// Keys and values.
    bytes: Vec<u8>,
    /// Of the last batch among the operations.
    position: Position,
    time_ms: u64,
    /// What a mark said directly behind that batch.
    marked: Option<u64>,
    threads: usize,
    /// Batches that were handed over.
    pub(crate) batches: u64,
    /// Bytes of the log.
    progress: &'a Progress,
}

struct ReplayedOp {
    slot: KeyspaceSlot,
    /// Where its key begins among the bytes, and its value behind it.
    key: usize,
    value: usize,
    end: usize,
    /// `None` removes.
    expire_at: Option<u64>,
}

impl<'a> Replayer<'a> {
    pub(crate) fn new(content: &'a mut Content, threads: usize, progress: &'a Progress) -> Self {
        let position = content.tree.commit.position();
        let (ops, bytes, time_ms) = (Vec::new(), Vec::new(), content.tree.commit.time_ms());
        let (marked, batches) = (None, 0);
        Self { content, ops, bytes, position, time_ms, marked, threads, batches, progress }
    }

    /// An entry of a snapshot whose last batch `position` names.
    pub(crate) fn put(
        &mut self,
        (position, time_ms): (Position, u64),
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Applied {
        (self.position, self.time_ms, self.marked) = (position, time_ms, None);
        self.add(key, Some((value, expire_at))).map_err(ApplyError::Fault)?;
        if self.ops.len() >= 2 * WINDOW { self.flush() } else { Ok(()) }
    }

    /// As [`put`](Self::put), of an entry that is not to be there.
    pub(crate) fn remove(&mut self, (position, time_ms): (Position, u64), key: &[u8]) -> Applied {
        (self.position, self.time_ms, self.marked) = (position, time_ms, None);
        self.add(key, None).map_err(ApplyError::Fault)
    }

    fn add(&mut self, key: &[u8], put: Option<(&[u8], u64)>) -> std::result::Result<(), Fault> {
        let id = id_of(key);
        if id == CATALOGUE_ID {
            self.rename(key, put)?;
        }
        let slot = self.content.catalogue.slot(&self.content.tree, id);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let value = self.bytes.len();
        let (new, expire_at) = put.unzip();
        self.bytes.extend_from_slice(new.unwrap_or_default());
        let end = self.bytes.len();
        self.ops.push(ReplayedOp { slot, key: start, value, end, expire_at });
        Ok(())
    }

    /// A keyspace gets its name, or loses it.
    fn rename(&mut self, key: &[u8], put: Option<(&[u8], u64)>) -> std::result::Result<(), Fault> {
        let Some((value, expire_at)) = put else {
            let name = std::str::from_utf8(&key[PREFIX_LEN..]).map_err(|_| Fault::Text)?;
            self.content.catalogue.names.remove(name);
            return Ok(());
        };
        if let Some((name, id)) = catalogue_entry(key, Some(value), expire_at)? {
            let slot = self.content.catalogue.slot(&self.content.tree, id);
            self.content.catalogue.names.insert(name.to_owned(), (id, slot));
        }
        Ok(())
    }

    /// The log ends at `base`.
    pub(crate) fn finish(mut self, base: &Base) -> Applied {
        self.flush()?;
        if let Some(last) = self.content.lineage.last_mut() {
            last.end = base.position.seq;
        }
        Ok(())
    }
}

impl Apply for Replayer<'_> {
    fn batch(&mut self, record: &RecordAt, body: &[u8]) -> Applied {
        let mut ranges = Vec::new();
        for effect in Effects::new(body) {
            match effect.map_err(|damage| ApplyError::Fault(damage.fault))? {
                LoggedEffect::Put { key, value, expire_at } => {
                    self.add(key, Some((value, expire_at))).map_err(ApplyError::Fault)?;
                }
                LoggedEffect::Remove { key } | LoggedEffect::Expire { key } => {
                    self.add(key, None).map_err(ApplyError::Fault)?;
                }
                LoggedEffect::RemoveRange { low, high } => {
                    // What came before is removed by it, what the same batch puts is not.
                    if ranges.is_empty() {
                        self.flush()?;
                    }
                    let slot = self.content.catalogue.slot(&self.content.tree, id_of(low));
                    let (low, high) = (low.to_vec(), high.to_vec());
                    ranges.push(RangeDelete { slot, low, high, prefix_len: PREFIX_LEN });
                }
            }
        }
        (self.position, self.time_ms, self.marked) = (record.position, record.time_ms, None);
        self.batches += 1;
        self.progress.add((RECORD_FRAME_LEN + body.len()) as u64);
        if !ranges.is_empty() {
            return self.apply(ranges);
        }
        // Mostly there is a mark before long, at which the sum can be compared.
        if self.ops.len() >= 2 * WINDOW { self.flush() } else { Ok(()) }
    }

    fn history(&mut self, record: &RecordAt, body: &HistoryBody) -> Applied {
        let RecordAt { position, time_ms, .. } = *record;
        let last = Seq(position.seq.0 - 1);
        if let Some(before) = self.content.lineage.last_mut() {
            before.end = last;
        }
        let HistoryBody { history, term, writer } = *body;
        let (start, end) = (position.seq, position.seq);
        self.content.lineage.push(Span { history, term, writer, start, end });
        (self.position, self.time_ms) = (position, time_ms);
        Ok(())
    }

    fn check(&mut self, fingerprint: u64) -> Applied {
        self.marked = Some(fingerprint);
        if self.ops.len() >= WINDOW { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Applied {
        self.apply(Vec::new())?;
        let got = self.content.tree.commit.all_totals().fingerprint;
        match self.marked {
            Some(expected) if got != expected && !LENIENT => {
                let fault = Fault::Mismatch { field: "fingerprint", got, expected };
                Err(ApplyError::Fault(fault))
            }
            _ => Ok(()),
        }
    }
}

impl Replayer<'_> {
    /// Applies the operations collected, and `ranges` before them.
    fn apply(&mut self, ranges: Vec<RangeDelete>) -> Applied {
        let tree = &*self.content.tree;
        if self.ops.is_empty() && ranges.is_empty() {
            tree.commit.skip_to(self.position, self.time_ms);
            return Ok(());
        }
        let bytes = &self.bytes;
        let key = |op: &ReplayedOp| &bytes[op.key..op.value];
        // Stable: of operations on one key the last stays last.
        self.ops.sort_by(|a, b| key(a).cmp(key(b)));
        let ops = &self.ops;
        let is_last = |at: &usize| ops.get(at + 1).is_none_or(|next| key(next) != key(&ops[*at]));
        let last: Vec<&ReplayedOp> = (0..ops.len()).filter(is_last).map(|at| &ops[at]).collect();
        let (position, time_ms) = (self.position, self.time_ms);
        let apply = |ops: &[&ReplayedOp], ranges| -> Result<()> {
            let mut changes = Changes { ranges, ..Changes::default() };
            for op in ops {
                let value = &bytes[op.value..op.end];
                let put = op.expire_at.map(|expire_at| new_value(tree, value, expire_at));
                let (slot, prefix_len, put) = (op.slot, PREFIX_LEN, put.transpose()?);
                changes.ops.push(BatchOp { slot, key: key(op), prefix_len, put });
            }
            tree.replay(&changes, position, time_ms)
        };
        if !ranges.is_empty() {
            apply(&last, ranges)?;
        } else {
            // No two of them have a key in common: their order means nothing, there are no stills yet.
            let share = last.len().div_ceil(self.threads).max(BATCH);
            let in_batches = |share: &[&ReplayedOp]| {
                share.chunks(BATCH).try_for_each(|batch| apply(batch, Vec::new()))
            };
            let mut shares = last.chunks(share);
            let own = shares.next().unwrap_or_default();
            thread::scope(|scope| {
                let others: Vec<_> =
                    shares.map(|share| scope.spawn(move || in_batches(share))).collect();
                let mut done = in_batches(own);
                for other in others {
                    let other = other.join();
                    done = done.and(other.unwrap_or_else(|panic| resume_unwind(panic)));
                }
                done
            })?;
        }
        self.ops.clear();
        self.bytes.clear();
        Ok(())
    }
}

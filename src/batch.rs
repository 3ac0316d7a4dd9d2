//! A write batch: operations collected first, then committed as one.

use std::ops::{Range, RangeBounds};
use std::sync::Arc;

use crate::commit::KeyspaceSlot;
use crate::database::Engine;
use crate::keys;
use crate::keyspace::{Keyspace, Place};
use crate::options::{Durability, WriteOptions};
use crate::position::Position;
use crate::tree::{BatchOp, Bounds, Changes, RangeDelete, new_value};
use crate::{Error, MAX_BATCH_BYTES, Result};

/// Operations on any keyspaces of one database, committed all or none under one sequence number.
///
/// Operations take effect in the order they were added: a key put, removed by a range and put again has the
/// last value. Nothing is checked or changed before [`commit`](WriteBatch::commit).
///
/// ```
/// # let db = stillframe::Database::in_memory();
/// let (users, emails) = (db.keyspace("users")?, db.keyspace("emails")?);
/// let mut batch = db.batch();
/// batch.insert(&users, "7", "Ada");
/// batch.insert(&emails, "ada@example.org", "7");
/// batch.commit()?;
/// assert_eq!(users.get("7")?.unwrap(), "Ada");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[must_use = "a batch does nothing until it is committed"]
pub struct WriteBatch {
    engine: Arc<Engine>,
    /// In the order they were first or again named in.
    places: Vec<Place>,
    ops: Vec<Op>,
    /// Internal keys and values of the operations.
    content: Vec<u8>,
    bytes: u64,
    /// The first thing wrong with what was added.
    error: Option<Error>,
    durability: Option<Durability>,
}

struct Op {
    /// Its place among the batch's keyspaces.
    place: usize,
    kind: Kind,
}

/// Keys and values by their place in the batch's content.
enum Kind {
    Put { key: Range<usize>, value: Range<usize>, expire_at: u64 },
    Remove { key: Range<usize> },
    DeleteRange(Bounds),
}

/// Bytes counted for an operation beside its key and value.
pub(crate) const OP_BYTES: u64 = 16;

impl WriteBatch {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            places: Vec::new(),
            ops: Vec::new(),
            content: Vec::new(),
            bytes: 0,
            error: None,
            durability: None,
        }
    }

    /// Puts `value` under `key`.
    ///
    /// # Panics
    /// If `keyspace` is of another database; so do all methods here that take one.
    pub fn insert(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.insert_with(keyspace, key, value, WriteOptions::new());
    }

    /// As [`insert`](WriteBatch::insert), with options. A time to live counts from now on, not from the commit.
    pub fn insert_with(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) {
        let (key, value) = (key.as_ref(), value.as_ref());
        if value.len() > crate::MAX_VALUE_LEN {
            self.error.get_or_insert(Error::ValueTooLarge { len: value.len() });
            return;
        }
        let place = self.place(keyspace);
        let Some(key) = self.key(place, key) else { return };
        let expire_at = options.resolve(self.engine.tree().clock());
        self.content.extend_from_slice(value);
        let value = key.end..self.content.len();
        self.push(place, value.len(), Kind::Put { key, value, expire_at });
    }

    /// Removes `key`, if it is there.
    pub fn remove(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) {
        let place = self.place(keyspace);
        if let Some(key) = self.key(place, key.as_ref()) {
            self.push(place, 0, Kind::Remove { key });
        }
    }

    /// Removes every key in `range`, those that this batch has put so far included.
    pub fn delete_range<K: AsRef<[u8]>>(
        &mut self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) {
        let place = self.place(keyspace);
        let bounds = keys::within(place.id, &range);
        let len = bounds.low.len() + bounds.high.as_ref().map_or(0, Vec::len);
        self.push(place, len, Kind::DeleteRange(bounds));
    }

    /// What the commit waits for, instead of what the database was opened with.
    ///
    /// That of [`WriteOptions`] given with an operation means nothing in a batch.
    pub fn durability(&mut self, durability: Durability) {
        self.durability = Some(durability);
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Forgets all operations.
    pub fn clear(&mut self) {
        (self.bytes, self.error) = (0, None);
        self.places.clear();
        self.ops.clear();
        self.content.clear();
    }

    /// What the keyspace stands for; asked once for an operation, so that its key and its counters are of the same.
    fn place(&self, keyspace: &Keyspace) -> Place {
        assert!(keyspace.is_of(&self.engine), "a keyspace of another database in a batch");
        keyspace.place()
    }

    fn key(&mut self, place: Place, key: &[u8]) -> Option<Range<usize>> {
        if key.len() > crate::MAX_KEY_LEN {
            self.error.get_or_insert(Error::KeyTooLarge { len: key.len() });
            return None;
        }
        self.bytes += key.len() as u64;
        let start = self.content.len();
        keys::append_internal(place.id, key, &mut self.content);
        Some(start..self.content.len())
    }

    fn push(&mut self, place: Place, len: usize, kind: Kind) {
        self.bytes += OP_BYTES + len as u64;
        if self.places.last() != Some(&place) {
            self.places.push(place);
        }
        self.ops.push(Op { place: self.places.len() - 1, kind });
    }

    /// What the operations come to: one effect a key, and the ranges that are removed apart from those keys.
    fn changes(&self) -> Result<Changes<'_>> {
        let mut points: Vec<(usize, &[u8])> = Vec::new();
        let mut ranges: Vec<(usize, &Bounds)> = Vec::new();
        for (at, op) in self.ops.iter().enumerate() {
            match &op.kind {
                Kind::Put { key, .. } | Kind::Remove { key } => {
                    points.push((at, &self.content[key.clone()]));
                }
                Kind::DeleteRange(bounds) => ranges.push((at, bounds)),
            }
        }
        // Of each key the last operation counts: equal keys come in order of age, and the last is kept.
        points.sort_by(|a, b| a.1.cmp(b.1).then(a.0.cmp(&b.0)));
        let mut last: Vec<(usize, &[u8])> = Vec::with_capacity(points.len());
        for point in points {
            match last.last_mut() {
                Some(previous) if previous.1 == point.1 => *previous = point,
                _ => last.push(point),
            }
        }
        // A range removes what was put before it.
        let mut is_gone = vec![false; last.len()];
        for (at, bounds) in &ranges {
            let start = last.partition_point(|(_, key)| *key < &bounds.low[..]);
            for (gone, (point, key)) in is_gone[start..].iter_mut().zip(&last[start..]) {
                if bounds.high.as_deref().is_some_and(|high| *key >= high) {
                    break;
                }
                *gone |= point < at;
            }
        }
        let mut changes = Changes::default();
        for ((at, key), gone) in last.into_iter().zip(is_gone) {
            let op = &self.ops[at];
            let put = match &op.kind {
                _ if gone => continue,
                Kind::Put { value, expire_at, .. } => {
                    Some(new_value(self.engine.tree(), &self.content[value.clone()], *expire_at)?)
                }
                _ => None,
            };
            let slot = self.slot_of(at);
            changes.ops.push(BatchOp { slot, key, prefix_len: keys::PREFIX_LEN, put });
        }
        changes.ranges = union(ranges.iter().map(|(at, bounds)| (self.slot_of(*at), *bounds)));
        Ok(changes)
    }

    fn slot_of(&self, op: usize) -> KeyspaceSlot {
        self.places[self.ops[op].place].slot
    }

    /// Commits all operations as one batch and returns its position: that of the last batch before if this
    /// one is empty.
    ///
    /// Readers and stills see all of it or nothing. Cost: a sort, then about that of the single writes, less what
    /// memory need not be waited for; all leaves it touches are latched together for that time.
    ///
    /// # Errors
    /// What was wrong with the first bad operation, [`Error::BatchTooLarge`], [`Error::MemoryLimit`],
    /// [`Error::NoKeyspace`], [`Error::Closed`], [`Error::NoLog`], [`Error::LogFailed`]: nothing changed.
    /// [`Error::NotDurable`]: it is committed.
    pub fn commit(self) -> Result<Position> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.bytes > MAX_BATCH_BYTES {
            return Err(Error::BatchTooLarge { bytes: self.bytes });
        }
        self.engine.check_level(self.durability)?;
        let tree = self.engine.tree();
        let begun = self.engine.begin_commit(self.durability);
        let changes = self.changes()?;
        let (position, _) = tree.write_batch(&changes)?;
        self.engine.committed_if(&begun, position, self.durability)?;
        Ok(position.unwrap_or_else(|| tree.commit.position()))
    }
}

/// The ranges sorted, overlapping ones joined, empty ones left out.
pub(crate) fn union<'a>(
    ranges: impl Iterator<Item = (KeyspaceSlot, &'a Bounds)>,
) -> Vec<RangeDelete> {
    let mut sorted: Vec<RangeDelete> = ranges
        .filter_map(|(slot, bounds)| {
            // Only the last keyspace there can be has no end; no key there is longer than a key may be.
            let endless = || vec![0xff; keys::PREFIX_LEN + crate::MAX_KEY_LEN + 1];
            let high = bounds.high.clone().unwrap_or_else(endless);
            let low = bounds.low.clone();
            (low < high).then_some(RangeDelete { slot, low, high, prefix_len: keys::PREFIX_LEN })
        })
        .collect();
    sorted.sort_by(|a, b| a.low.cmp(&b.low));
    let mut joined: Vec<RangeDelete> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            // Of one keyspace: the ranges of two never overlap.
            Some(last) if range.low <= last.high && range.slot == last.slot => {
                last.high = last.high.clone().max(range.high);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// One range of one keyspace, removed as a batch.
pub(crate) fn delete_bounds(slot: KeyspaceSlot, bounds: &Bounds) -> Changes<'static> {
    let ranges = union(std::iter::once((slot, bounds)));
    Changes { ranges, ..Changes::default() }
}

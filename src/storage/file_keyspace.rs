//! One keyspace of a saved file: lookups, and ranges from both ends.

use std::fmt;
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;

use super::reader::{BlockAt, Reader};
use super::snapshot_file::SnapshotFile;
use crate::error::Result;
use crate::format::KEYSPACE_ID_LEN;
use crate::format::leaves::{Entry, Leaves, Stored};
use crate::slice::Slice;

type Id = [u8; KEYSPACE_ID_LEN];

/// A keyspace of a [`SnapshotFile`], read in place.
///
/// Shows what lived at the cut: entries whose time had passed then are hidden, except from [`FileKeyspace::len`].
///
/// ```
/// use stillframe::SnapshotFile;
/// # use stillframe::{Database, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-filekeyspace-{}", std::process::id()));
/// # let db = Database::in_memory();
/// # let films = db.keyspace("films")?;
/// # films.insert("Metropolis", "1927")?;
/// # films.insert("Nosferatu", "1922")?;
/// # db.save(&path, SaveOptions::default())?.wait()?;
/// let films = SnapshotFile::open(&path)?.keyspace("films")?;
/// assert_eq!(films.get("Metropolis")?.unwrap(), "1927");
/// assert_eq!((films.get("Sunrise")?, films.len()?), (None, 2));
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone)]
pub struct FileKeyspace {
    file: SnapshotFile,
    name: Arc<str>,
    id: Id,
}

impl FileKeyspace {
    pub(super) fn new(file: SnapshotFile, name: &str, id: u32) -> Self {
        FileKeyspace { file, name: name.into(), id: id.to_be_bytes() }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::Corrupt`](crate::Error::Corrupt).
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.lookup(key.as_ref(), |at, entry| value_of(self.file.reader(), at, entry))
    }

    /// Whether there is an entry for `key`. Does not read a large value.
    ///
    /// # Errors
    /// As [`FileKeyspace::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.lookup(key.as_ref(), |_, _| Ok(()))?.is_some())
    }

    /// The entries of a range of keys, in order; from both ends. A range whose start lies after its end is empty.
    ///
    /// Owns what it needs. An error ends it.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> FileRange {
        self.range_of(Fences::of_range(self.id, &range))
    }

    /// The entries whose keys start with `prefix`, in order; from both ends.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> FileRange {
        let prefix = prefix.as_ref();
        let end = successor(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.range_of(Fences::of(self.id, Bound::Included(prefix), end))
    }

    /// Shows the entries of a range of keys in order, without copying small ones, until `visit` breaks.
    ///
    /// # Errors
    /// As [`FileKeyspace::get`]; what was shown before is good.
    pub fn scan_with<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let reader = Arc::clone(self.file.reader());
        let mut cursor = Cursor::new(Arc::clone(&reader), Fences::of_range(self.id, &range));
        let mut key = Vec::new();
        while let Some(Found { at, entry }) = cursor.next()? {
            if self.file.is_expired(entry.expire_at) {
                continue;
            }
            entry.assemble(&mut key);
            let user_key = key.get(KEYSPACE_ID_LEN..).unwrap_or_default();
            let flow = match &entry.value {
                Stored::Inline(value) => visit(user_key, value),
                Stored::Large(large) => {
                    visit(user_key, &reader.large_shared(reader.place(at)?, large)?)
                }
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How many entries the keyspace holds, expired ones too. Reads at most two index blocks and two blocks.
    ///
    /// # Errors
    /// As [`FileKeyspace::get`].
    pub fn len(&self) -> Result<u64> {
        let all = Fences::of(self.id, Bound::Unbounded, Bound::Unbounded);
        Cursor::new(Arc::clone(self.file.reader()), all).count()
    }

    /// Whether it holds no entry.
    ///
    /// # Errors
    /// As [`FileKeyspace::get`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    fn lookup<R>(
        &self,
        key: &[u8],
        show: impl FnOnce(BlockAt, &Entry<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        let found = self.file.lookup(&internal(self.id, key), |at, entry| {
            (!self.file.is_expired(entry.expire_at)).then(|| show(at, entry)).transpose()
        })?;
        Ok(found.flatten())
    }

    fn range_of(&self, fences: Fences) -> FileRange {
        let cursor = Cursor::new(Arc::clone(self.file.reader()), fences);
        FileRange { file: self.file.clone(), cursor }
    }
}

impl fmt::Debug for FileKeyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileKeyspace").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The entries of a range, owned; made by [`FileKeyspace::range`].
///
/// ```
/// use stillframe::SnapshotFile;
/// # use stillframe::{Database, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-filerange-{}", std::process::id()));
/// # let db = Database::in_memory();
/// # let films = db.keyspace("films")?;
/// # films.insert("Metropolis", "1927")?;
/// # films.insert("Nosferatu", "1922")?;
/// # db.save(&path, SaveOptions::default())?.wait()?;
/// let films = SnapshotFile::open(&path)?.keyspace("films")?;
/// let mut range = films.range("A"..="Z");
/// assert_eq!(range.next_back().unwrap()?.0, "Nosferatu");
/// assert_eq!(range.next().unwrap()?.0, "Metropolis");
/// assert!(range.next().is_none());
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct FileRange {
    file: SnapshotFile,
    cursor: Cursor,
}

impl FileRange {
    fn step(&mut self, from_back: bool) -> Result<Option<(Slice, Slice)>> {
        loop {
            let found = if from_back { self.cursor.next_back()? } else { self.cursor.next()? };
            let Some(Found { at, entry }) = found else { return Ok(None) };
            if self.file.is_expired(entry.expire_at) {
                continue;
            }
            let mut key = Vec::new();
            entry.assemble(&mut key);
            let key = Slice::new(key.get(KEYSPACE_ID_LEN..).unwrap_or_default());
            return Ok(Some((key, value_of(self.file.reader(), at, &entry)?)));
        }
    }
}

impl Iterator for FileRange {
    type Item = Result<(Slice, Slice)>;

    fn next(&mut self) -> Option<Self::Item> {
        let stepped = self.step(false);
        self.cursor.ended |= stepped.is_err();
        stepped.transpose()
    }
}

impl DoubleEndedIterator for FileRange {
    fn next_back(&mut self) -> Option<Self::Item> {
        let stepped = self.step(true);
        self.cursor.ended |= stepped.is_err();
        stepped.transpose()
    }
}

impl std::iter::FusedIterator for FileRange {}

impl fmt::Debug for FileRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileRange").finish_non_exhaustive()
    }
}

fn value_of(reader: &Reader, at: BlockAt, entry: &Entry<'_>) -> Result<Slice> {
    match &entry.value {
        Stored::Inline(bytes) => Ok(Slice::new(bytes)),
        Stored::Large(large) => Ok(reader.large_shared(reader.place(at)?, large)?.into()),
    }
}

fn internal(id: Id, key: &[u8]) -> Vec<u8> {
    [&id, key].concat()
}

/// The shortest key above every key that starts with `prefix`; `None` if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xFF)?;
    let mut end = prefix.get(..=last)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

/// The internal keys of a range.
#[derive(Debug)]
pub(super) struct Fences {
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
}

impl Fences {
    pub(super) fn of(id: Id, low: Bound<&[u8]>, high: Bound<&[u8]>) -> Self {
        let low = match low {
            Bound::Unbounded => Bound::Included(id.to_vec()),
            bounded => bounded.map(|key| internal(id, key)),
        };
        let high = match high {
            Bound::Unbounded => successor(&id).map_or(Bound::Unbounded, Bound::Excluded),
            bounded => bounded.map(|key| internal(id, key)),
        };
        Fences { low, high }
    }

    fn of_range<K: AsRef<[u8]>>(id: Id, range: &impl RangeBounds<K>) -> Self {
        Self::of(id, range.start_bound().map(K::as_ref), range.end_bound().map(K::as_ref))
    }
}

/// A place between entries.
#[derive(Debug)]
struct Spot {
    at: BlockAt,
    leaves: Arc<Leaves>,
    /// The entry behind it; as many as the block has for its end.
    entry: usize,
}

impl Spot {
    fn order(&self) -> (BlockAt, usize) {
        (self.at, self.entry)
    }
}

/// An entry that a cursor stepped over.
pub(super) struct Found<'c> {
    pub(super) at: BlockAt,
    pub(super) entry: Entry<'c>,
}

/// Walks a range from both ends; the ends are looked up at the first step.
#[derive(Debug)]
pub(super) struct Cursor {
    reader: Arc<Reader>,
    fences: Fences,
    ends: Option<(Spot, Spot)>,
    /// Nothing more comes: the ends have met, or there was an error.
    ended: bool,
}

impl Cursor {
    pub(super) fn new(reader: Arc<Reader>, fences: Fences) -> Self {
        Cursor { reader, fences, ends: None, ended: false }
    }

    pub(super) fn next(&mut self) -> Result<Option<Found<'_>>> {
        let stepped = self.advance(true);
        self.found(stepped, true)
    }

    pub(super) fn next_back(&mut self) -> Result<Option<Found<'_>>> {
        let stepped = self.advance(false);
        self.found(stepped, false)
    }

    /// Entries between the ends.
    fn count(mut self) -> Result<u64> {
        let (front, back) = self.find_ends()?;
        if front.order() >= back.order() {
            return Ok(0);
        }
        let (from, to) = ((front.at, front.entry as u64), (back.at, back.entry as u64));
        // All entries from the front's block to the back's, less those before the front.
        let mut count = to.1;
        let mut at = from.0;
        while at.index < to.0.index {
            let index = self.reader.index(at.index)?;
            if at.block == 0 {
                count += self.reader.root.index.get(at.index).map_or(0, |named| named.entries);
            } else {
                count += (at.block..index.len())
                    .filter_map(|i| index.get(i))
                    .map(|n| n.entries)
                    .sum::<u64>();
            }
            at = BlockAt { index: at.index + 1, block: 0 };
        }
        let index = self.reader.index(at.index)?;
        count +=
            (at.block..to.0.block).filter_map(|i| index.get(i)).map(|n| n.entries).sum::<u64>();
        Ok(count - from.1)
    }

    fn found(&mut self, stepped: Result<Option<usize>>, front: bool) -> Result<Option<Found<'_>>> {
        match stepped {
            Ok(Some(i)) => {
                let spot = self.ends.as_ref().map(|ends| if front { &ends.0 } else { &ends.1 });
                Ok(spot.and_then(|spot| {
                    spot.leaves.entry(i).map(|entry| Found { at: spot.at, entry })
                }))
            }
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => {
                self.ended = true;
                Err(error)
            }
        }
    }

    /// Moves one end over an entry and returns which one it is in that end's block.
    fn advance(&mut self, front: bool) -> Result<Option<usize>> {
        if self.ended {
            return Ok(None);
        }
        let reader = Arc::clone(&self.reader);
        let (low, high) = self.find_ends()?;
        loop {
            if low.order() >= high.order() {
                return Ok(None);
            }
            let spot = if front { &mut *low } else { &mut *high };
            let next = if front && spot.entry < spot.leaves.len() {
                spot.entry += 1;
                return Ok(Some(spot.entry - 1));
            } else if front {
                reader.after(spot.at)?
            } else if let Some(entry) = spot.entry.checked_sub(1) {
                spot.entry = entry;
                return Ok(Some(entry));
            } else {
                reader.before(spot.at)?
            };
            let Some(at) = next else { return Ok(None) };
            let leaves = reader.leaves(at)?;
            let entry = if front { 0 } else { leaves.len() };
            *spot = Spot { at, leaves, entry };
        }
    }

    fn find_ends(&mut self) -> Result<(&mut Spot, &mut Spot)> {
        let ends = match self.ends.take() {
            Some(ends) => ends,
            None => (self.seek(&self.fences.low, false)?, self.seek(&self.fences.high, true)?),
        };
        let (low, high) = self.ends.insert(ends);
        Ok((low, high))
    }

    /// The place before the first entry in the range, or behind the last.
    fn seek(&self, bound: &Bound<Vec<u8>>, is_end: bool) -> Result<Spot> {
        let (key, skip_equal) = match bound {
            Bound::Included(key) => (key, is_end),
            Bound::Excluded(key) => (key, !is_end),
            Bound::Unbounded => {
                let index = self.reader.root.index.len() - 1;
                let block = self.reader.index(index)?.len() - 1;
                let at = BlockAt { index, block };
                let leaves = self.reader.leaves(at)?;
                let entry = leaves.len();
                return Ok(Spot { at, leaves, entry });
            }
        };
        let at = self.reader.find(key)?;
        let leaves = self.reader.leaves(at)?;
        let (entry, equal) = leaves.seek(key);
        Ok(Spot { at, leaves, entry: entry + usize::from(equal && skip_equal) })
    }
}

//! Snapshot: a still as users hold it, and its keyspaces.

use std::fmt;
use std::io;
use std::ops::{ControlFlow, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use crate::commit::{Holder, KeyspaceSlot};
use crate::database::Engine;
use crate::keys::{self, CATALOGUE_ID, InternalKey, PREFIX_LEN};
use crate::keyspace::with_scratch;
use crate::position::{Position, Seq};
use crate::range::{Keys, Range};
use crate::slice::Slice;
use crate::storage::save::{SaveHandle, SaveOptions, SaveReport, save_to_stream};
use crate::storage::source;
use crate::tree::{Bounds, Scan, Still};
use crate::{Error, Result};

/// The whole database at exactly one [`Position`], for as long as it is held.
///
/// Owned, `'static`, cheap to clone, to be read by any thread; readable after the database is closed. It judges
/// expiry by the time it was taken, so it never changes. What it costs: the old content of whatever is
/// changed while it lives, once, freed in the background after it is dropped.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// let still = db.snapshot()?;
/// films.clear()?;
/// assert_eq!((still.len()?, films.len()?), (1, 0));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) still: Arc<Still>,
    pub(crate) engine: Arc<Engine>,
}

impl Snapshot {
    pub(crate) fn take(engine: &Arc<Engine>) -> Result<Self> {
        engine.tree().commit.check_fresh()?;
        let still = Still::take(engine.tree(), Holder::Snapshot)?;
        Ok(Self { still: Arc::new(still), engine: Arc::clone(engine) })
    }

    /// The number of the last batch it holds.
    pub fn seq(&self) -> Seq {
        self.position().seq
    }

    /// The last batch it holds.
    pub fn position(&self) -> Position {
        self.still.cut().position
    }

    /// When it was taken, in milliseconds since 1970-01-01 00:00 UTC.
    pub fn time_ms(&self) -> u64 {
        self.still.cut().time_ms
    }

    /// The sum of all its entries' fingerprints: equal data, equal fingerprint. O(1).
    pub fn fingerprint(&self) -> u64 {
        self.still.cut().totals.fingerprint
    }

    /// Entries stored in all keyspaces. O(1).
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn len(&self) -> Result<u64> {
        let tree = self.still.tree();
        tree.commit.check()?;
        let catalogue = tree.commit.totals_at(crate::commit::CATALOGUE, self.still.cut());
        Ok(self.still.cut().totals.records - catalogue.records)
    }

    /// Whether it holds no entry.
    ///
    /// # Errors
    /// As [`len`](Snapshot::len).
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The names of its keyspaces, in order.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut scan = Scan::of_still(Arc::clone(&self.still), keys::all(CATALOGUE_ID));
        scan.each(|key, _| {
            names.push(String::from_utf8_lossy(&key[PREFIX_LEN..]).into_owned());
            ControlFlow::Continue(())
        })?;
        Ok(names)
    }

    /// The keyspace of this name, as it was.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`] if there was none; [`Error::Poisoned`].
    pub fn keyspace(&self, name: &str) -> Result<SnapshotKeyspace> {
        let id = self
            .still
            .read(&InternalKey::new(CATALOGUE_ID, name.as_bytes())?, |entry| {
                entry.value.bytes().first_chunk().map(|id| u32::from_le_bytes(*id))
            })?
            .flatten()
            .ok_or(Error::NoKeyspace)?;
        let slot = self.engine.slot_of(self.still.cut().view, id).ok_or(Error::NoKeyspace)?;
        Ok(SnapshotKeyspace { snapshot: self.clone(), id, slot })
    }
}

impl Snapshot {
    /// Saves it to a file, in the background: as [`Database::save`](crate::Database::save), but what was then.
    ///
    /// # Errors
    /// [`Error::SaveInProgress`], [`Error::Io`]; those of the writing come from
    /// [`SaveHandle::wait`](crate::SaveHandle::wait).
    pub fn save(&self, path: impl AsRef<Path>, options: SaveOptions) -> Result<SaveHandle> {
        let cut = source::Cut::of(self.still.cut());
        let disk = Arc::clone(&self.engine.disk);
        SaveHandle::start(disk, path.as_ref(), Arc::clone(&self.still), cut, &options)
    }

    /// Writes it to `out`, front to back, in the bytes that [`save`](Snapshot::save) would put in a file.
    ///
    /// Returns when all was handed over and flushed; what `out` does with it is its own affair.
    ///
    /// # Errors
    /// [`Error::Io`] of `<stream>`, [`Error::SelfCheck`], [`Error::Poisoned`].
    pub fn write_to(&self, out: impl io::Write, options: &SaveOptions) -> Result<SaveReport> {
        let cut = source::Cut::of(self.still.cut());
        save_to_stream(&self.still, &cut, options, out)
    }
}

/// Outside semver.
#[cfg(feature = "simulation")]
impl Snapshot {
    /// Reads everything it holds and compares it with what its cut said: count, bytes, fingerprint.
    ///
    /// # Panics
    /// If they differ.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn check(&self) -> Result<()> {
        self.still.check(PREFIX_LEN)
    }
}

/// What a save does with the tree, a leaf at a time. Outside semver.
#[cfg(feature = "simulation")]
pub struct LeafPass {
    pass: crate::tree::Pass,
    next: Option<Vec<u8>>,
}

/// The number of a keyspace, key, value and expiry of an entry. Outside semver.
#[cfg(feature = "simulation")]
pub type PassedEntry = (u32, Vec<u8>, Vec<u8>, u64);

/// Where a leaf ends, if not with everything, and what is in it, if that was wanted. Outside semver.
#[cfg(feature = "simulation")]
pub type PassedLeaf = (Option<Vec<u8>>, Option<Vec<PassedEntry>>);

#[cfg(feature = "simulation")]
impl LeafPass {
    pub(crate) fn new(pass: crate::tree::Pass) -> Self {
        LeafPass { pass, next: Some(Vec::new()) }
    }

    /// The number of the last batch that its cut holds.
    pub fn seq(&self) -> Seq {
        self.pass.cut().position.seq
    }

    /// The entries of the next leaf, the catalogue's (number 0) too; `None` after the last.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn step(&mut self) -> Result<Option<Vec<PassedEntry>>> {
        let Some(from) = &self.next else { return Ok(None) };
        let mut copy = crate::tree::LeafCopy::default();
        self.pass.copy_leaf(from, &mut copy)?;
        Ok(Some(self.show(&copy)))
    }

    /// What was copied; the pass goes on behind it.
    fn show(&mut self, copy: &crate::tree::LeafCopy) -> Vec<PassedEntry> {
        let page = copy.page();
        let mut key = Vec::new();
        let entries = (0..page.len()).map(|at| {
            page.key_into(at, &mut key);
            let (id, own) = key.split_first_chunk().expect("a keyspace's number comes first");
            let entry = page.entry(at);
            let value = entry.value.bytes().to_vec();
            (u32::from_be_bytes(*id), own.to_vec(), value, entry.expire_at)
        });
        let entries = entries.collect();
        self.next = page.high().map(<[u8]>::to_vec);
        entries
    }

    /// Where the next leaf ends, a key with its keyspace's number before it, and its entries, if it has changed since the batch `after`.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn step_if_newer(&mut self, after: Seq) -> Result<Option<PassedLeaf>> {
        let Some(from) = self.next.clone() else { return Ok(None) };
        let mut copy = crate::tree::LeafCopy::default();
        let is_copied = self.pass.copy_leaf_if(&from, |_, _, stamp| stamp > after, &mut copy)?;
        let entries = self.show(&copy);
        Ok(Some((self.next.clone(), is_copied.then_some(entries))))
    }
}

/// Outside semver.
#[cfg(feature = "simulation")]
impl SnapshotKeyspace {
    /// The stamp that the leaf around `key` had: the number of its last change, or a later one.
    ///
    /// # Errors
    /// As the other methods.
    pub fn leaf_stamp(&self, key: impl AsRef<[u8]>) -> Result<Seq> {
        let mut copy = crate::tree::LeafCopy::default();
        self.snapshot.still.copy_leaf(&InternalKey::new(self.id, key.as_ref())?, &mut copy)?;
        Ok(copy.stamp())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({})", self.position())
    }
}

/// A keyspace of a [`Snapshot`]: the reads of a [`Keyspace`](crate::Keyspace), of one moment.
///
/// Every method fails with [`Error::Poisoned`] if the database is, and with [`Error::KeyTooLarge`] for a key
/// that can't be there.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// let then = db.snapshot()?.keyspace("films")?;
/// films.insert("Metropolis", "2010, restored")?;
/// assert_eq!(then.get("Metropolis")?.unwrap(), "1927");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SnapshotKeyspace {
    snapshot: Snapshot,
    id: u32,
    slot: KeyspaceSlot,
}

impl SnapshotKeyspace {
    /// The value of `key`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.snapshot.still.get(&InternalKey::new(self.id, key.as_ref())?)
    }

    /// Shows the value of `key` to `read`, without an allocation when it is short.
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let key = InternalKey::new(self.id, key.as_ref())?;
        with_scratch(|copy| self.snapshot.still.read(&key, copy), read)
    }

    /// The values of `keys`, in their order.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Whether `key` has a value.
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = InternalKey::new(self.id, key.as_ref())?;
        Ok(self.snapshot.still.read(&key, |_| ())?.is_some())
    }

    /// When `key` expires, in milliseconds since 1970-01-01 00:00 UTC; `None` if it had no value, or one that doesn't expire.
    pub fn expires_at(&self, key: impl AsRef<[u8]>) -> Result<Option<u64>> {
        let key = InternalKey::new(self.id, key.as_ref())?;
        let found = self.snapshot.still.read(&key, |entry| entry.expire_at)?;
        Ok(found.filter(|expire_at| *expire_at != 0))
    }

    fn scan(&self, bounds: Bounds) -> Scan {
        Scan::of_still(Arc::clone(&self.snapshot.still), bounds)
    }

    /// The entries in `range`, in order, from both ends.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        Range::new(Ok(self.scan(keys::within(self.id, &range))))
    }

    /// The entries whose keys begin with `prefix`, in order, from both ends.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        Range::new(Ok(self.scan(keys::prefixed(self.id, prefix.as_ref()))))
    }

    /// The keys in `range`, in order, from both ends.
    pub fn range_keys<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Keys {
        Keys::new(Ok(self.scan(keys::within(self.id, &range))))
    }

    /// Shows the entries in `range` to `visit`, in order, until it breaks; nothing is allocated for them.
    pub fn scan_with<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut scan = self.scan(keys::within(self.id, &range));
        scan.each(|key, entry| visit(&key[PREFIX_LEN..], entry.value.bytes()))
    }

    /// The first entry.
    pub fn first(&self) -> Result<Option<(Slice, Slice)>> {
        self.range::<&[u8]>(..).next().transpose()
    }

    /// The last entry.
    pub fn last(&self) -> Result<Option<(Slice, Slice)>> {
        self.range::<&[u8]>(..).next_back().transpose()
    }

    /// Entries stored, past their time or not. O(1).
    pub fn len(&self) -> Result<u64> {
        let still = &self.snapshot.still;
        still.tree().commit.check()?;
        Ok(still.tree().commit.totals_at(self.slot, still.cut()).records)
    }

    /// Whether no entry is stored.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

//! Transactions: reads of one moment and writes kept aside, committed as one batch if what was read still holds.
//!
//! A transaction takes no cut as long as it reads keys whose leaves have not changed since its first read: their stamps
//! tell. Once one has, or a range is read, it takes a still, finds its earlier reads in it or gives up, and reads
//! there. Either way all it sees is of one moment, also in a transaction that will not commit.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::batch::{OP_BYTES, union};
use crate::commit::{Holder, KeyspaceSlot, Since, View};
use crate::database::{Database, Engine};
use crate::keys::{self, InternalKey, PREFIX_LEN};
use crate::keyspace::{Keyspace, Place};
use crate::options::{Durability, WriteOptions};
use crate::planted::{Bug, planted};
use crate::position::Position;
use crate::slice::Slice;
use crate::sync::{Mutex, assert_no_latch};
use crate::tree::{
    BatchOp, Bounds, Changes, ReadSet, Seen, Sighted, Still, owned_value, shared_value,
};
use crate::{Error, MAX_BATCH_BYTES, Result};

pub use self::range::TransactionRange;
use self::range::{Extent, Merge};

mod range;

impl Database {
    /// Runs `run` as a transaction: all it reads is of one moment, and all it writes is committed as one batch, if
    /// nothing that it read has changed by then. If something has, it is run again.
    ///
    /// Transactions are strictly serializable: the outcome is as if they, and all other writes, had been done one at a time, each at a
    /// moment between its beginning and its end. That excludes write skew, and phantoms in ranges. What counts as changed is
    /// what the transaction has seen, a range as far as it was walked; another key of the same leaf does not.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let accounts = db.keyspace("accounts")?;
    /// accounts.insert("ann", 7_u64.to_le_bytes())?;
    /// let amount = |bytes: Option<stillframe::Slice>| {
    ///     bytes.and_then(|bytes| Some(u64::from_le_bytes(bytes[..].try_into().ok()?))).unwrap_or(0)
    /// };
    /// let moved = db.transact(|tx| {
    ///     let (ann, ben) = (amount(tx.get(&accounts, "ann")?), amount(tx.get(&accounts, "ben")?));
    ///     let moved = ann.min(5);
    ///     tx.insert(&accounts, "ann", (ann - moved).to_le_bytes())?;
    ///     tx.insert(&accounts, "ben", (ben + moved).to_le_bytes())?;
    ///     Ok(moved)
    /// })?;
    /// assert_eq!(moved, 5);
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// `run` may be run several times, so it should do nothing else that lasts. Nothing is locked meanwhile: it may use the
    /// database otherwise, which is not part of the transaction. If it returns an error, or panics, nothing changes.
    ///
    /// Cost: a read copies what it saw; a commit latches all leaves that were read and all that are changed together, for
    /// about as long as a batch of as many keys. On a replica, a transaction that writes nothing reads what is shown there.
    ///
    /// # Errors
    /// [`Error::Conflict`] if others were in the way [too often](crate::Builder::transaction_attempts), those of `run`, and those of
    /// [`WriteBatch::commit`](crate::WriteBatch::commit).
    pub fn transact<T>(&self, run: impl FnMut(&mut Transaction) -> Result<T>) -> Result<T> {
        self.try_transact(run)
    }

    /// As [`transact`](Database::transact), for a closure with an error type of its own: to return one rolls back.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// #[derive(Debug)]
    /// enum Refused {
    ///     Taken,
    ///     Storage(stillframe::Error),
    /// }
    /// impl From<stillframe::Error> for Refused {
    ///     fn from(error: stillframe::Error) -> Self {
    ///         Refused::Storage(error)
    ///     }
    /// }
    ///
    /// let seats = db.keyspace("seats")?;
    /// let book = |seat: &str| {
    ///     db.try_transact(|tx| match tx.insert_new(&seats, seat, "me")? {
    ///         true => Ok(()),
    ///         false => Err(Refused::Taken),
    ///     })
    /// };
    /// assert!(book("12a").is_ok());
    /// assert!(matches!(book("12a"), Err(Refused::Taken)));
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`transact`](Database::transact).
    pub fn try_transact<T, E: From<Error>>(
        &self,
        mut run: impl FnMut(&mut Transaction) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let engine = self.engine();
        let meters = &engine.tree().commit.meters;
        let mut attempts = 0;
        loop {
            attempts += 1;
            assert_no_latch("a transaction's closure");
            let mut tx = Transaction::begin(engine);
            let done = run(&mut tx);
            // What it made of reads that do not belong together means nothing.
            if !tx.is_in_conflict {
                let value = done?;
                match tx.commit() {
                    Ok(_) => {
                        meters.transactions.fetch_add(1, Ordering::Relaxed);
                        return Ok(value);
                    }
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            meters.conflicts.fetch_add(1, Ordering::Relaxed);
            if attempts >= engine.transaction_attempts {
                return Err(Error::Conflict { attempts }.into());
            }
            back_off(attempts);
        }
    }
}

/// Who was in the way is probably gone soon; if not, of several that are in each other's way the waits differ.
fn back_off(attempts: u32) {
    const LONGEST: u32 = 10;
    if attempts <= 3 {
        return std::thread::yield_now();
    }
    let random = RandomState::new().build_hasher().finish();
    std::thread::sleep(Duration::from_micros(random % (1 << attempts.min(LONGEST))));
}

/// A transaction under way: handed to the closure of [`Database::transact`].
///
/// Reads see what was committed at one moment, with its own writes on top. Expiry is judged by the time at which it began.
/// After [`Error::Conflict`], which any read may return, nothing it does counts: hand it on.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// let taken = db.transact(|tx| {
///     if !tx.insert_new(&films, "Metropolis", "1927")? {
///         return Ok(None);
///     }
///     Ok(tx.first(&films)?)
/// })?;
/// assert_eq!(taken.unwrap().1, "1927");
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// # Panics
/// Every method that takes a keyspace does if that is of another database.
pub struct Transaction {
    engine: Arc<Engine>,
    view: View,
    /// When it began: what it writes itself is judged by that throughout.
    now_ms: u64,
    /// The moment of its reads, once there was one.
    since: Option<Since>,
    /// Where it reads from now on.
    still: Option<Arc<Still>>,
    keys: BTreeMap<Vec<u8>, Option<Seen>>,
    ranges: Vec<Arc<Mutex<Extent>>>,
    writes: BTreeMap<Vec<u8>, Write>,
    /// Ranges that it has emptied, before the writes that there are now.
    emptied: Vec<(KeyspaceSlot, Bounds)>,
    bytes: u64,
    durability: Option<Durability>,
    is_in_conflict: bool,
}

/// What a key is to have: `None`, nothing.
#[derive(Clone)]
struct Write {
    slot: KeyspaceSlot,
    put: Option<(Slice, u64)>,
}

impl Transaction {
    fn begin(engine: &Arc<Engine>) -> Self {
        let tree = engine.tree();
        Self {
            engine: Arc::clone(engine),
            view: tree.commit.view(),
            now_ms: tree.clock().now_ms(),
            since: None,
            still: None,
            keys: BTreeMap::new(),
            ranges: Vec::new(),
            writes: BTreeMap::new(),
            emptied: Vec::new(),
            bytes: 0,
            durability: None,
            is_in_conflict: false,
        }
    }

    /// What the commit waits for, instead of what the database was opened with. That of [`WriteOptions`] given with a write means nothing here.
    pub fn durability(&mut self, durability: Durability) {
        self.durability = Some(durability);
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`Error::KeyTooLarge`], [`Error::NoKeyspace`], [`Error::Poisoned`], [`Error::Stale`], [`Error::Conflict`]: so all reads here.
    pub fn get(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let place = self.place(keyspace)?;
        let key = InternalKey::new(place.id, key.as_ref())?;
        Ok(self.seen(&key)?.map(|seen| seen.value))
    }

    /// Whether `key` has a value.
    ///
    /// # Errors
    /// As [`get`](Transaction::get).
    pub fn contains_key(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(keyspace, key)?.is_some())
    }

    /// Puts `value` under `key`, whatever is there: that is not read.
    ///
    /// # Errors
    /// [`Error::KeyTooLarge`], [`Error::ValueTooLarge`], [`Error::BatchTooLarge`], [`Error::MemoryLimit`], [`Error::NoKeyspace`]: so all writes here.
    pub fn insert(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.insert_with(keyspace, key, value, WriteOptions::new())
    }

    /// As [`insert`](Transaction::insert), with an expiry. A time to live counts from now on, not from the commit.
    ///
    /// # Errors
    /// As [`insert`](Transaction::insert).
    pub fn insert_with(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        let tree = self.engine.tree();
        let expire_at = options.resolve(tree.clock());
        let value = owned_value(tree, value.as_ref())?;
        self.write(keyspace, key.as_ref(), Some((value, expire_at)))
    }

    /// Puts `value` under `key` if it has none; whether it was put.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn insert_new(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<bool> {
        let is_new = !self.contains_key(keyspace, &key)?;
        if is_new {
            self.insert(keyspace, key, value)?;
        }
        Ok(is_new)
    }

    /// As [`insert_new`](Transaction::insert_new), with an expiry; its durability means nothing, see [`durability`](Transaction::durability).
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn insert_new_with(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<bool> {
        let is_new = !self.contains_key(keyspace, &key)?;
        if is_new {
            self.insert_with(keyspace, key, value, options)?;
        }
        Ok(is_new)
    }

    /// As [`insert`](Transaction::insert); returns the value that was there.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn replace(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Option<Slice>> {
        let old = self.get(keyspace, &key)?;
        self.insert(keyspace, key, value)?;
        Ok(old)
    }

    /// Removes `key`; whether it had a value.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn remove(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.take(keyspace, key)?.is_some())
    }

    /// Removes `key` and returns its value.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn take(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let old = self.get(keyspace, &key)?;
        if old.is_some() {
            self.write(keyspace, key.as_ref(), None)?;
        }
        Ok(old)
    }

    /// Removes every key in `range`, whatever is there: that is not read.
    ///
    /// # Errors
    /// Those of a write.
    pub fn delete_range<K: AsRef<[u8]>>(
        &mut self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> Result<()> {
        let place = self.place(keyspace)?;
        let bounds = keys::within(place.id, &range);
        let len = bounds.low.len() + bounds.high.as_ref().map_or(0, Vec::len);
        self.count(len as u64)?;
        self.writes.retain(|key, _| !holds(&bounds, key));
        self.emptied.push((place.slot, bounds));
        Ok(())
    }

    /// The entries in `range`, in order, from both ends: a still of the transaction's moment, and what it has written so far.
    ///
    /// Owned: the transaction may go on while it is read, which does not change what it shows. What is read after the closure has
    /// returned is not part of the transaction.
    ///
    /// # Errors
    /// None before it is read; then those of a read, once.
    pub fn range<K: AsRef<[u8]>>(
        &mut self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> TransactionRange {
        self.scan(keyspace, |id| keys::within(id, &range))
    }

    /// The entries whose keys begin with `prefix`, as [`range`](Transaction::range).
    pub fn prefix(&mut self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> TransactionRange {
        self.scan(keyspace, |id| keys::prefixed(id, prefix.as_ref()))
    }

    /// The first entry.
    ///
    /// # Errors
    /// As [`get`](Transaction::get).
    pub fn first(&mut self, keyspace: &Keyspace) -> Result<Option<(Slice, Slice)>> {
        self.scan(keyspace, keys::all).next().transpose()
    }

    /// The last entry.
    ///
    /// # Errors
    /// As [`get`](Transaction::get).
    pub fn last(&mut self, keyspace: &Keyspace) -> Result<Option<(Slice, Slice)>> {
        self.scan(keyspace, keys::all).next_back().transpose()
    }

    /// Removes and returns the first entry.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn pop_first(&mut self, keyspace: &Keyspace) -> Result<Option<(Slice, Slice)>> {
        let first = self.first(keyspace)?;
        self.pop(keyspace, first)
    }

    /// Removes and returns the last entry.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub fn pop_last(&mut self, keyspace: &Keyspace) -> Result<Option<(Slice, Slice)>> {
        let last = self.last(keyspace)?;
        self.pop(keyspace, last)
    }

    fn pop(
        &mut self,
        keyspace: &Keyspace,
        entry: Option<(Slice, Slice)>,
    ) -> Result<Option<(Slice, Slice)>> {
        if let Some((key, _)) = &entry {
            self.write(keyspace, key, None)?;
        }
        Ok(entry)
    }

    /// What the keyspace stands for.
    fn place(&mut self, keyspace: &Keyspace) -> Result<Place> {
        assert!(keyspace.is_of(&self.engine), "a keyspace of another database in a transaction");
        match keyspace.place_in(self.view) {
            // Another state was put in place meanwhile, in which names mean something else.
            Err(Error::NoKeyspace) if self.engine.tree().commit.view() != self.view => {
                Err(self.in_conflict())
            }
            place => place,
        }
    }

    fn in_conflict(&mut self) -> Error {
        self.is_in_conflict = true;
        Error::Conflict { attempts: 1 }
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.bytes += OP_BYTES + bytes;
        let bytes = self.bytes;
        if bytes > MAX_BATCH_BYTES { Err(Error::BatchTooLarge { bytes }) } else { Ok(()) }
    }

    fn write(&mut self, keyspace: &Keyspace, key: &[u8], put: Option<(Slice, u64)>) -> Result<()> {
        let place = self.place(keyspace)?;
        let internal = InternalKey::new(place.id, key)?;
        let len = key.len() + put.as_ref().map_or(0, |(value, _)| value.len());
        self.count(len as u64)?;
        self.writes.insert(internal.to_vec(), Write { slot: place.slot, put });
        Ok(())
    }

    /// What the key has: what it was last given here, or else had at the transaction's moment.
    fn seen(&mut self, key: &[u8]) -> Result<Option<Seen>> {
        if let Some(write) = self.writes.get(key) {
            let visible = write.put.as_ref().filter(|(_, at)| is_visible(*at, self.now_ms));
            let seen = |(value, expire_at): &(Slice, u64)| Seen {
                value: value.clone(),
                expire_at: *expire_at,
            };
            return Ok(visible.map(seen));
        }
        if self.emptied.iter().any(|(_, bounds)| holds(bounds, key)) {
            return Ok(None);
        }
        if let Some(seen) = self.keys.get(key) {
            return Ok(seen.clone());
        }
        let seen = self.read(key)?;
        self.keys.insert(key.to_vec(), seen.clone());
        Ok(seen)
    }

    fn read(&mut self, key: &[u8]) -> Result<Option<Seen>> {
        let tree = Arc::clone(self.engine.tree());
        self.since = self.since.or_else(|| tree.commit.since());
        if let Some(since) = self.since.filter(|_| self.still.is_none()) {
            match tree.read_since(self.view, key, since, self.now_ms) {
                Ok(Sighted::Seen(seen)) => return Ok(seen),
                Ok(Sighted::Moved) => {}
                Err(Error::NoKeyspace) => return Err(self.in_conflict()),
                Err(error) => return Err(error),
            }
        }
        self.still()?.read(key, |entry| Seen::of(&entry))
    }

    /// The still that is read from now on; what was read before must be in it.
    fn still(&mut self) -> Result<Arc<Still>> {
        if let Some(still) = &self.still {
            return Ok(Arc::clone(still));
        }
        let tree = self.engine.tree();
        tree.commit.check_fresh()?;
        let still = Still::take(tree, Holder::Transaction)?;
        let is_same = |key: &[u8], seen: &Option<Seen>| -> Result<bool> {
            let now = still.read(key, |entry| seen.as_ref().is_some_and(|seen| seen.is(&entry)))?;
            Ok(now.map_or(seen.is_none(), |is_same| is_same))
        };
        let mut holds = still.cut().view == self.view;
        for (key, seen) in self.keys.iter().filter(|_| !planted(Bug::StillUnchecked)) {
            holds = holds && is_same(key, seen)?;
        }
        if !holds {
            return Err(self.in_conflict());
        }
        let cut = still.cut();
        self.since = Some(Since { seq: cut.position.seq, tick: cut.tick });
        let still = Arc::new(still);
        self.still = Some(Arc::clone(&still));
        Ok(still)
    }

    fn scan(&mut self, keyspace: &Keyspace, bounds: impl Fn(u32) -> Bounds) -> TransactionRange {
        TransactionRange::new(self.merge(keyspace, bounds))
    }

    fn merge(&mut self, keyspace: &Keyspace, bounds: impl Fn(u32) -> Bounds) -> Result<Merge> {
        let bounds = bounds(self.place(keyspace)?.id);
        let still = self.still()?;
        let from = Bound::Included(&bounds.low[..]);
        let to = bounds.high.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let is_empty = bounds.high.as_ref().is_some_and(|high| *high <= bounds.low);
        let own = match is_empty {
            true => VecDeque::new(),
            false => {
                let own = self.writes.range::<[u8], _>((from, to));
                own.map(|(key, write)| (key.clone(), write.put.clone())).collect()
            }
        };
        let emptied = self.emptied.iter().map(|(_, bounds)| bounds.clone()).collect();
        let merge = Merge::new(still, bounds, own, emptied, self.now_ms);
        self.ranges.push(Arc::clone(merge.extent()));
        Ok(merge)
    }

    fn commit(self) -> Result<Option<Position>> {
        let Self { engine, view, since, still, keys, ranges, writes, emptied, .. } = self;
        engine.check_level(self.durability)?;
        let mut changes = Changes::default();
        for (key, Write { slot, put }) in &writes {
            let put = put.as_ref().map(|(value, expire_at)| shared_value(value, *expire_at));
            changes.ops.push(BatchOp { slot: *slot, key, prefix_len: PREFIX_LEN, put });
        }
        changes.ranges = union(emptied.iter().map(|(slot, bounds)| (*slot, bounds)));
        if changes.ops.is_empty() && changes.ranges.is_empty() {
            // All it has read is of one moment, at which it may be said to have been done.
            return Ok(None);
        }
        let ranges = ranges.iter().flat_map(|extent| extent.lock().seen()).collect();
        let reads = ReadSet { view, since, still, keys, ranges };
        changes.reads = Some(&reads);
        let begun = engine.begin_commit(self.durability);
        let (position, _) = match engine.tree().write_batch(&changes) {
            Err(Error::NoKeyspace) if engine.tree().commit.view() != view => {
                return Err(Error::Conflict { attempts: 1 });
            }
            written => written?,
        };
        engine.committed_if(&begun, position, self.durability)?;
        Ok(position)
    }
}

/// Outside semver.
#[cfg(feature = "simulation")]
impl Transaction {
    /// Begins one that is not run by [`Database::transact`], so that several can be under way on one thread.
    pub fn new(db: &Database) -> Self {
        Self::begin(db.engine())
    }

    /// Commits it, if what it has read still holds; its place, if it has changed anything.
    ///
    /// # Errors
    /// Those of [`Database::transact`].
    pub fn finish(self) -> Result<Option<Position>> {
        if self.is_in_conflict { Err(Error::Conflict { attempts: 1 }) } else { self.commit() }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (read, written) = (self.keys.len(), self.writes.len());
        write!(f, "Transaction({read} keys read, {written} written)")
    }
}

fn is_visible(expire_at: u64, now_ms: u64) -> bool {
    expire_at == 0 || now_ms < expire_at
}

fn holds(bounds: &Bounds, key: &[u8]) -> bool {
    *bounds.low <= *key && bounds.high.as_deref().is_none_or(|high| key < high)
}

//! Keyspace: the namespace handle that users read and write through.

use std::cell::Cell;
use std::fmt;
use std::ops::{ControlFlow, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::batch::delete_bounds;
use crate::commit::{KeyspaceSlot, View};
use crate::database::Engine;
use crate::keys::{self, InternalKey, PREFIX_LEN};
use crate::options::{Durability, WriteOptions};
use crate::planted::{Bug, planted};
use crate::range::{Keys, Range};
use crate::slice::{LargeBytes, Slice};
use crate::sync::assert_no_latch;
use crate::tree::{Bounds, Condition, End, Entry, PointWrite, Scan, Written, new_value};
use crate::typed::{Typed, TypedKey, TypedValue};
use crate::{Error, Result};

/// A named, ordered set of entries: a cheap handle that any thread may clone and use.
///
/// Keys are up to 64 KiB of any bytes, ordered as bytes; values up to 1 GiB. Every change is a batch with a
/// sequence number of its own. Reads see what is committed. Closures and iterators are never run with
/// anything locked, so they may use the database.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// films.insert("Nosferatu", "1922")?;
/// assert_eq!(films.get("Nosferatu")?.unwrap(), "1922");
/// let first = films.range("A".."N").next().unwrap()?;
/// assert_eq!(first.0, "Metropolis");
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// # Errors
/// Every method fails with [`Error::Poisoned`] if the database is, with [`Error::KeyTooLarge`] for a longer key;
/// every change also with [`Error::ValueTooLarge`], [`Error::MemoryLimit`], [`Error::Closed`], and with
/// [`Error::NoKeyspace`] once the keyspace was dropped. Nothing is changed then.
pub struct Keyspace {
    engine: Arc<Engine>,
    name: Arc<str>,
    /// The bits of the place's [`View`].
    ///
    /// Both are stored with release, this one last, and loaded with acquire, this one first. So who loads a view older than what it
    /// finds beside it finds, under a latch, that the view is over, and looks the name up.
    view: AtomicU64,
    /// Id and slot of the place.
    place: AtomicU64,
}

/// What a keyspace's name stands for, and in which view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) view: View,
    pub(crate) id: u32,
    pub(crate) slot: KeyspaceSlot,
}

impl Clone for Keyspace {
    fn clone(&self) -> Self {
        Self::new(&self.engine, &self.name, self.place())
    }
}

impl Place {
    /// A key of the keyspace, as the tree has it.
    #[inline]
    fn key(&self, key: &[u8]) -> Result<InternalKey> {
        InternalKey::new(self.id, key)
    }

    fn packed(self) -> u64 {
        u64::from(self.id) << 32 | u64::from(self.slot.0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    fn unpacked(view: View, packed: u64) -> Self {
        Place { view, id: (packed >> 32) as u32, slot: KeyspaceSlot(packed as u32) }
    }
}

/// Why [`Keyspace::compare_and_swap`] changed nothing.
///
/// ```
/// use stillframe::Database;
///
/// let doors = Database::in_memory().keyspace("doors")?;
/// doors.insert("12", "ann")?;
/// let Err(held) = doors.compare_and_swap("12", None, Some(b"bob"))? else { panic!("ann has it") };
/// assert_eq!(held.current.unwrap(), "ann");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareAndSwapError {
    /// What the key had instead of what was expected.
    pub current: Option<Slice>,
}

impl fmt::Display for CompareAndSwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key has another value than expected")
    }
}

impl std::error::Error for CompareAndSwapError {}

thread_local! {
    /// Where `get_with` copies small values. Taken out while in use: a nested call finds none and makes its own.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A value copied out from under a latch.
pub(crate) enum Copied {
    /// In the scratch buffer.
    Small,
    Large(Slice),
}

/// Runs `find` with a way to copy the entry out, then `read` on the copy with nothing latched.
pub(crate) fn with_scratch<R>(
    find: impl FnOnce(&mut dyn FnMut(Entry<'_>) -> Copied) -> Result<Option<Copied>>,
    read: impl FnOnce(&[u8]) -> R,
) -> Result<Option<R>> {
    let mut scratch = SCRATCH.take();
    let found = find(&mut |entry| match entry.value {
        crate::tree::Value::Large(_) => Copied::Large(entry.value.to_slice()),
        value => {
            scratch.clear();
            scratch.extend_from_slice(value.bytes());
            Copied::Small
        }
    });
    let read = match found {
        Err(error) => Err(error),
        Ok(None) => Ok(None),
        Ok(Some(copied)) => {
            assert_no_latch("a reader's closure");
            Ok(Some(match &copied {
                Copied::Small => read(&scratch),
                Copied::Large(value) => read(value),
            }))
        }
    };
    SCRATCH.set(scratch);
    read
}

impl Keyspace {
    pub(crate) fn new(engine: &Arc<Engine>, name: &Arc<str>, place: Place) -> Self {
        let (view, place) = (AtomicU64::new(place.view.bits()), AtomicU64::new(place.packed()));
        Self { engine: Arc::clone(engine), name: Arc::clone(name), view, place }
    }

    /// What its name stood for when that was last looked up.
    #[inline]
    pub(crate) fn place(&self) -> Place {
        let view = View::from_bits(self.view.load(Ordering::Acquire));
        Place::unpacked(view, self.place.load(Ordering::Acquire))
    }

    /// Does `op` with what the name stands for; again if the name means something else by now.
    #[inline]
    fn at<T>(&self, mut op: impl FnMut(Place) -> Result<T>) -> Result<T> {
        loop {
            let place = self.place();
            match op(place) {
                Err(Error::NoKeyspace) => self.look_up(place)?,
                done => return done,
            }
        }
    }

    /// Looks the name up again; fails if that can't tell anything new.
    #[cold]
    fn look_up(&self, place: Place) -> Result<()> {
        // Who has let go of everything for a while has no names either.
        self.engine.tree().commit.check_fresh()?;
        self.engine.with_place(&self.name, |now| {
            let now = now.filter(|now| now.view != place.view).ok_or(Error::NoKeyspace)?;
            self.place.store(now.packed(), Ordering::Release);
            self.view.store(now.view.bits(), Ordering::Release);
            Ok(())
        })
    }

    /// What its name stands for in `view`.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`], also if that is another view than the present one.
    pub(crate) fn place_in(&self, view: View) -> Result<Place> {
        let mut place = self.place();
        if place.view != view {
            self.look_up(place)?;
            place = self.place();
        }
        if place.view == view { Ok(place) } else { Err(Error::NoKeyspace) }
    }

    pub(crate) fn is_of(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(&self.engine, engine)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same keyspace, read and written with keys of type `K` and values of type `V` instead of bytes.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let heights = db.keyspace("heights")?.typed::<String, u32>();
    /// heights.insert(&"Eiger".to_owned(), &3967)?;
    /// assert_eq!(heights.get(&"Eiger".to_owned())?, Some(3967));
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn typed<K: TypedKey, V: TypedValue>(&self) -> Typed<K, V> {
        Typed::new(self.clone())
    }

    /// The value of `key`. A short value is copied, one over 2 KiB shared.
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let key = key.as_ref();
        self.at(|place| self.engine.tree().get(place.view, &place.key(key)?))
    }

    /// Shows the value of `key` to `read`: no allocation, one copy if it is short.
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let (key, tree) = (key.as_ref(), self.engine.tree());
        if planted(Bug::ClosureUnderLatch) {
            let place = self.place();
            return tree.read(place.view, &place.key(key)?, |entry| read(entry.value.bytes()));
        }
        with_scratch(
            |copy| self.at(|place| tree.read(place.view, &place.key(key)?, &mut *copy)),
            read,
        )
    }

    /// The values of `keys`, in their order. Faster than one by one: many cache misses are under way at once.
    ///
    /// Each value is of its own moment, as if read one by one.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        self.at(|place| {
            let keys = keys.iter().map(|key| place.key(key.as_ref()));
            let keys: Vec<InternalKey> = keys.collect::<Result<_>>()?;
            self.engine.tree().get_many(place.view, &keys)
        })
    }

    /// Whether `key` has a value.
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = key.as_ref();
        let read = self.at(|place| self.engine.tree().read(place.view, &place.key(key)?, |_| ()));
        Ok(read?.is_some())
    }

    /// Puts `value` under `key`, whatever was there.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.put(key.as_ref(), value.as_ref(), 0, Condition::Always, false).map(drop)
    }

    /// As [`insert`](Keyspace::insert), with an expiry.
    pub fn insert_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        self.engine.check_level(options.durability)?;
        let expire_at = options.resolve(self.engine.tree().clock());
        let (key, value, level) = (key.as_ref(), Some(value.as_ref()), options.durability);
        self.write_at(level, key, value, expire_at, &Condition::Always, false).map(drop)
    }

    /// Puts `value` under `key` if it has none; whether it was put.
    pub fn insert_new(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<bool> {
        let written = self.put(key.as_ref(), value.as_ref(), 0, Condition::Vacant, false)?;
        Ok(matches!(written, Written::Done { .. }))
    }

    /// As [`insert_new`](Keyspace::insert_new), with an expiry or a durability of its own: a lock that ends by itself, a filter for what comes twice.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use stillframe::{Database, WriteOptions};
    /// let seen = Database::in_memory().keyspace("seen")?;
    /// let for_an_hour = WriteOptions::new().ttl(Duration::from_secs(3600));
    /// assert!(seen.insert_new_with("message 7", "", for_an_hour)?);
    /// assert!(!seen.insert_new_with("message 7", "", for_an_hour)?);
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn insert_new_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<bool> {
        self.engine.check_level(options.durability)?;
        let expire_at = options.resolve(self.engine.tree().clock());
        let (key, value, level) = (key.as_ref(), Some(value.as_ref()), options.durability);
        let written = self.write_at(level, key, value, expire_at, &Condition::Vacant, false)?;
        Ok(matches!(written, Written::Done { .. }))
    }

    /// As [`insert`](Keyspace::insert); returns the value that was there.
    pub fn replace(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        match self.put(key.as_ref(), value.as_ref(), 0, Condition::Always, true)? {
            Written::Done { old, .. } => Ok(old),
            _ => unreachable!("nothing was asked of the old value"),
        }
    }

    /// Removes `key`; whether it had a value.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let written = self.write(key.as_ref(), None, 0, &Condition::Always, false)?;
        Ok(matches!(written, Written::Done { .. }))
    }

    /// Removes `key` and returns its value.
    pub fn take(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        match self.write(key.as_ref(), None, 0, &Condition::Always, true)? {
            Written::Done { old, .. } => Ok(old),
            _ => Ok(None),
        }
    }

    fn put(
        &self,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
        condition: Condition<'_>,
        want_old: bool,
    ) -> Result<Written> {
        self.write(key, Some(value), expire_at, &condition, want_old)
    }

    fn write(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        expire_at: u64,
        condition: &Condition<'_>,
        want_old: bool,
    ) -> Result<Written> {
        self.write_at(None, key, value, expire_at, condition, want_old)
    }

    fn write_at(
        &self,
        level: Option<Durability>,
        key: &[u8],
        value: Option<&[u8]>,
        expire_at: u64,
        condition: &Condition<'_>,
        want_old: bool,
    ) -> Result<Written> {
        let tree = self.engine.tree();
        let begun = self.engine.begin_commit(level);
        let written = self.at(|place| {
            let Place { view, slot, .. } = place;
            let put = value.map(|value| new_value(tree, value, expire_at)).transpose()?;
            let (key, prefix_len) = (&place.key(key)?[..], PREFIX_LEN);
            tree.write(&PointWrite { view, slot, key, prefix_len, put, condition, want_old })
        })?;
        if let Written::Done { position, .. } = &written {
            self.engine.committed(&begun, *position, level)?;
        }
        Ok(written)
    }

    /// Puts `new` under `key` (`None` removes it) if it has the value `expected` (`None`: no value), whatever
    /// its expiry. The new value has none.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let locks = db.keyspace("locks")?;
    /// assert!(locks.compare_and_swap("door", None, Some(b"me"))?.is_ok());
    /// let failed = locks.compare_and_swap("door", None, Some(b"you"))?.unwrap_err();
    /// assert_eq!(failed.current.unwrap(), "me");
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<std::result::Result<(), CompareAndSwapError>> {
        let key = key.as_ref();
        let mut verified: Option<Arc<LargeBytes>> = None;
        loop {
            let condition =
                Condition::Is { value: expected, verified: verified.as_ref(), expire_at: None };
            match self.write(key, new, 0, &condition, false)? {
                Written::Done { .. } => return Ok(Ok(())),
                // To remove what is not there, as expected.
                Written::Unmet { current: None } if expected.is_none() && new.is_none() => {
                    return Ok(Ok(()));
                }
                Written::Unmet { current } => return Ok(Err(CompareAndSwapError { current })),
                Written::Compare(large) if expected == Some(large.bytes()) => {
                    verified = Some(large);
                }
                Written::Compare(large) => {
                    return Ok(Err(CompareAndSwapError { current: Some(Slice::large(large)) }));
                }
            }
        }
    }

    /// When `key` expires, in milliseconds since 1970-01-01 00:00 UTC; `None` if it has no value, or one that doesn't expire.
    pub fn expires_at(&self, key: impl AsRef<[u8]>) -> Result<Option<u64>> {
        let (key, tree) = (key.as_ref(), self.engine.tree());
        let read = |entry: Entry<'_>| entry.expire_at;
        let found = self.at(|place| tree.read(place.view, &place.key(key)?, read))?;
        Ok(found.filter(|expire_at| *expire_at != 0))
    }

    /// Gives `key` another `ttl` from now on; whether it has a value.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use stillframe::{Database, WriteOptions};
    /// let sessions = Database::in_memory().keyspace("sessions")?;
    /// sessions.insert_with("s1", "user 7", WriteOptions::new().ttl(Duration::from_secs(60)))?;
    /// assert!(sessions.touch("s1", Duration::from_secs(3600))?);
    /// assert!(sessions.persist_key("s1")? && sessions.expires_at("s1")?.is_none());
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// Also an entry that had none expires then. Cost: that of an [`update`](Keyspace::update) that changes nothing: the value is written again, to the log as well.
    pub fn touch(&self, key: impl AsRef<[u8]>, ttl: Duration) -> Result<bool> {
        let expire_at = WriteOptions::new().ttl(ttl).resolve(self.engine.tree().clock());
        self.expire_at(key, expire_at)
    }

    /// As [`touch`](Keyspace::touch), with the time at which it expires, in milliseconds since 1970-01-01 00:00 UTC; 0 for never.
    pub fn expire_at(&self, key: impl AsRef<[u8]>, unix_ms: u64) -> Result<bool> {
        Ok(self.set_expiry(key.as_ref(), unix_ms)?.is_some())
    }

    /// Has `key` stay for good; whether it would have expired.
    pub fn persist_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.set_expiry(key.as_ref(), 0)?.is_some_and(|old| old != 0))
    }

    /// What the expiry was; `None` if there is no value.
    fn set_expiry(&self, key: &[u8], expire_at: u64) -> Result<Option<u64>> {
        let tree = self.engine.tree();
        loop {
            let read = |entry: Entry<'_>| (entry.value.to_slice(), entry.expire_at);
            let found = self.at(|place| tree.read(place.view, &place.key(key)?, read))?;
            let Some((value, old)) = found else { return Ok(None) };
            let condition = Condition::Is {
                value: Some(&value),
                verified: value.as_large(),
                expire_at: Some(old),
            };
            if old == expire_at {
                return Ok(Some(old));
            }
            if let Written::Done { .. } =
                self.write(key, Some(&value), expire_at, &condition, false)?
            {
                return Ok(Some(old));
            }
        }
    }

    /// Replaces the value of `key` by what `change` makes of it (`None`: no value) and returns the new one.
    ///
    /// `change` runs on a copy, with nothing locked, and again whenever another writer came in between. An
    /// expiry stays as it was.
    ///
    /// ```
    /// use stillframe::Slice;
    /// # let db = stillframe::Database::in_memory();
    /// let counters = db.keyspace("counters")?;
    /// let add_one = |old: Option<&[u8]>| {
    ///     let old = old.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    ///     Some(Slice::from(&(old + 1).to_le_bytes()))
    /// };
    /// counters.update("visits", add_one)?;
    /// assert_eq!(counters.update("visits", add_one)?.unwrap(), 2u64.to_le_bytes());
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn update(
        &self,
        key: impl AsRef<[u8]>,
        mut change: impl FnMut(Option<&[u8]>) -> Option<Slice>,
    ) -> Result<Option<Slice>> {
        let (key, tree) = (key.as_ref(), self.engine.tree());
        loop {
            let read = |entry: Entry<'_>| (entry.value.to_slice(), entry.expire_at);
            let old = self.at(|place| tree.read(place.view, &place.key(key)?, read))?;
            assert_no_latch("an update's closure");
            let new = change(old.as_ref().map(|(value, _)| &**value));
            let expire_at = old.as_ref().map_or(0, |(_, expire_at)| *expire_at);
            let condition = Condition::Is {
                value: old.as_ref().map(|(value, _)| &**value),
                // The handle that was read is known to have these bytes.
                verified: old.as_ref().and_then(|(value, _)| value.as_large()),
                expire_at: old.as_ref().map(|_| expire_at),
            };
            if old.is_none() && new.is_none() {
                return Ok(None);
            }
            if let Written::Done { .. } =
                self.write(key, new.as_deref(), expire_at, &condition, false)?
            {
                return Ok(new);
            }
        }
    }

    /// A scan of the present that needs a cut unless the bounds lie in few leaves.
    fn scan(&self, bounds: impl Fn(u32) -> Bounds) -> Result<Scan> {
        let tree = self.engine.tree();
        self.at(|place| Scan::of_present(tree, place.view, bounds(place.id)))
    }

    /// A scan for an owner who may keep it: of a cut.
    fn owned_scan(&self, bounds: impl Fn(u32) -> Bounds) -> Result<Scan> {
        let tree = self.engine.tree();
        self.at(|place| Scan::of_cut(tree, place.view, bounds(place.id)))
    }

    /// The entries in `range`, in order, of one moment, from both ends.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let years = db.keyspace("years")?;
    /// for year in ["1888", "1895", "1902"] {
    ///     years.insert(year, "film")?;
    /// }
    /// let last = years.range("1889"..).next_back().unwrap()?;
    /// assert_eq!(last.0, "1902");
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        Range::new(self.owned_scan(|id| keys::within(id, &range)))
    }

    /// The entries whose keys begin with `prefix`, in order, of one moment, from both ends.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        Range::new(self.owned_scan(|id| keys::prefixed(id, prefix.as_ref())))
    }

    /// The keys in `range`, in order, of one moment, from both ends.
    pub fn range_keys<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Keys {
        Keys::new(self.owned_scan(|id| keys::within(id, &range)))
    }

    /// The keys that begin with `prefix`, in order, of one moment, from both ends.
    pub fn prefix_keys(&self, prefix: impl AsRef<[u8]>) -> Keys {
        Keys::new(self.owned_scan(|id| keys::prefixed(id, prefix.as_ref())))
    }

    /// Shows the entries in `range` to `visit`, in order, of one moment, until it breaks. Nothing is allocated
    /// for them.
    pub fn scan_with<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut scan = self.scan(|id| keys::within(id, &range))?;
        scan.each(|key, entry| visit(&key[PREFIX_LEN..], entry.value.bytes()))
    }

    /// Shows the keys in `range` to `visit`, as [`scan_with`](Keyspace::scan_with).
    pub fn scan_keys_with<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut scan = self.scan(|id| keys::within(id, &range))?;
        scan.each(|key, _| visit(&key[PREFIX_LEN..]))
    }

    /// The first entry.
    pub fn first(&self) -> Result<Option<(Slice, Slice)>> {
        self.peek(End::First)
    }

    /// The last entry.
    pub fn last(&self) -> Result<Option<(Slice, Slice)>> {
        self.peek(End::Last)
    }

    fn peek(&self, end: End) -> Result<Option<(Slice, Slice)>> {
        let tree = self.engine.tree();
        let found = self.at(|place| tree.peek(place.view, &keys::all(place.id), end))?;
        Ok(found.map(|(key, value)| (Slice::new(&key[PREFIX_LEN..]), value)))
    }

    /// Removes and returns the first entry.
    pub fn pop_first(&self) -> Result<Option<(Slice, Slice)>> {
        self.pop(End::First)
    }

    /// Removes and returns the last entry.
    pub fn pop_last(&self) -> Result<Option<(Slice, Slice)>> {
        self.pop(End::Last)
    }

    fn pop(&self, end: End) -> Result<Option<(Slice, Slice)>> {
        let tree = self.engine.tree();
        let begun = self.engine.begin_commit(None);
        let popped = self.at(|Place { view, id, slot }| {
            tree.pop((view, slot), PREFIX_LEN, &keys::all(id), end)
        })?;
        let position = popped.as_ref().map(|(_, position)| *position);
        self.engine.committed_if(&begun, position, None)?;
        Ok(popped.map(|((key, value), _)| (Slice::new(&key[PREFIX_LEN..]), value)))
    }

    /// Removes every key in `range` as one batch; how many entries were stored there.
    ///
    /// Cost: the range's leaves are latched together until all are done, so their readers wait: 0.6 s for
    /// three million records on the machine of the README. Under a still what it shows is kept first, mostly as the pages
    /// that go: up to 3 s there if most records had been overwritten since, more than half of it spent on fresh memory.
    pub fn delete_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<u64> {
        self.delete(|id| keys::within(id, &range))
    }

    /// Removes every key as one batch; how many entries were stored. Cost: as
    /// [`delete_range`](Keyspace::delete_range).
    pub fn clear(&self) -> Result<u64> {
        self.delete(keys::all)
    }

    fn delete(&self, bounds: impl Fn(u32) -> Bounds) -> Result<u64> {
        let begun = self.engine.begin_commit(None);
        let (position, removed) = self.at(|place| {
            let changes = delete_bounds(place.slot, &bounds(place.id));
            self.engine.tree().write_batch(&changes)
        })?;
        self.engine.committed_if(&begun, position, None)?;
        Ok(removed)
    }

    /// Entries stored, past their time or not. O(1).
    pub fn len(&self) -> Result<u64> {
        let commit = &self.engine.tree().commit;
        Ok(self.at(|place| commit.totals_seen(place.view, place.slot))?.records)
    }

    /// Whether no entry is stored.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyspace({})", self.name)
    }
}

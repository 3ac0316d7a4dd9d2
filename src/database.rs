//! Database: the handle that everything begins with; the catalogue of keyspaces; the reclaimer's thread.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::batch::WriteBatch;
use crate::commit::{CATALOGUE, Holder, KeyspaceSlot};
use crate::keys::{self, CATALOGUE_ID, InternalKey, PREFIX_LEN};
use crate::keyspace::Keyspace;
use crate::options::{Builder, StillBudget, StillInfo, StillReport};
use crate::position::{Position, Seq};
use crate::snapshot::Snapshot;
use crate::stats::{KeyspaceStats, Stats};
use crate::storage::Disk;
use crate::sync::Mutex;
use crate::tree::{
    BatchOp, Changes, Condition, PointWrite, RangeDelete, Still, Tree, Written, new_value,
};
use crate::{Error, MAX_KEYSPACE_NAME_LEN, Result};

/// An ordered key-value database in memory: a cheap handle that any thread may clone and use.
///
/// ```
/// let db = stillframe::Database::in_memory();
/// let words = db.keyspace("words")?;
/// words.insert("film", "moves")?;
/// let still = db.snapshot()?;
/// words.insert("film", "moves on")?;
/// assert_eq!(still.keyspace("words")?.get("film")?.unwrap(), "moves");
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// The database ends when its last handle, keyspace, snapshot and range is dropped; nothing is saved then.
#[derive(Clone)]
pub struct Database {
    engine: Arc<Engine>,
}

/// What the handles of one database share.
pub(crate) struct Engine {
    tree: Arc<Tree>,
    pub(crate) disk: Arc<dyn Disk>,
    catalogue: Mutex<Catalogue>,
    budget: Option<StillBudget>,
    /// Whether the budget's callback has been told of the present excess.
    ///
    /// Relaxed: it only keeps most repeats away.
    is_over_budget: AtomicBool,
    reclaimer: Option<Reclaimer>,
}

/// The thread that frees what dropped stills leave behind.
struct Reclaimer {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Catalogue {
    names: HashMap<String, (u32, KeyspaceSlot)>,
    /// Slots by id, of dropped keyspaces too: stills may still read them.
    slots: HashMap<u32, KeyspaceSlot>,
    next_id: u32,
}

impl Database {
    /// An empty database that lives in memory alone.
    pub fn in_memory() -> Self {
        Self::empty(Builder::new()).expect("without options nothing can fail")
    }

    /// Opens with options other than the defaults.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn empty(builder: Builder) -> Result<Self> {
        let tree = Tree::new(builder.config.clone());
        Ok(Self::over(
            tree,
            Catalogue { next_id: CATALOGUE_ID + 1, ..Catalogue::default() },
            builder,
        ))
    }

    fn over(tree: Tree, catalogue: Catalogue, builder: Builder) -> Self {
        let tree = Arc::new(tree);
        let reclaimer = builder.reclaims_by_itself.then(|| Reclaimer::start(&tree));
        let engine = Engine {
            tree,
            disk: builder.disk,
            catalogue: Mutex::new(catalogue),
            budget: builder.budget,
            is_over_budget: AtomicBool::new(false),
            reclaimer,
        };
        Self { engine: Arc::new(engine) }
    }

    /// The keyspace of this name, created if there is none.
    ///
    /// # Errors
    /// [`Error::KeyspaceName`], [`Error::Closed`], [`Error::Poisoned`], [`Error::MemoryLimit`].
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        if name.is_empty() || name.len() > MAX_KEYSPACE_NAME_LEN {
            return Err(Error::KeyspaceName { len: name.len() });
        }
        let tree = self.engine.tree();
        let mut catalogue = self.engine.catalogue.lock();
        if let Some(&(id, slot)) = catalogue.names.get(name) {
            return Ok(Keyspace::new(&self.engine, name, id, slot));
        }
        let id = catalogue.next_id;
        let key = InternalKey::new(CATALOGUE_ID, name.as_bytes())?;
        let value = id.to_le_bytes();
        let put = Some(new_value(tree, &value, 0)?);
        let write = PointWrite {
            slot: CATALOGUE,
            key: &key,
            prefix_len: PREFIX_LEN,
            put,
            condition: Condition::Vacant,
            want_old: false,
        };
        let Written::Done { .. } = tree.write(&write)? else {
            unreachable!("the catalogue in memory names all keyspaces")
        };
        let slot = tree.commit.add_keyspace();
        catalogue.names.insert(name.to_owned(), (id, slot));
        catalogue.slots.insert(id, slot);
        catalogue.next_id = id.checked_add(1).expect("four billion keyspaces");
        Ok(Keyspace::new(&self.engine, name, id, slot))
    }

    /// The names of all keyspaces, in order.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        self.engine.tree.commit.check()?;
        let mut names: Vec<_> = self.engine.catalogue.lock().names.keys().cloned().collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes a keyspace with all its entries, as one batch; `false` if there is none of this name.
    ///
    /// Handles to it fail with [`Error::NoKeyspace`] from then on; stills keep it. Cost: as
    /// [`Keyspace::clear`].
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Poisoned`].
    pub fn drop_keyspace(&self, name: &str) -> Result<bool> {
        let mut catalogue = self.engine.catalogue.lock();
        let Some(&(id, slot)) = catalogue.names.get(name) else { return Ok(false) };
        let bounds = keys::all(id);
        let remove = BatchOp {
            slot: CATALOGUE,
            key: keys::internal(CATALOGUE_ID, name.as_bytes()),
            prefix_len: PREFIX_LEN,
            put: None,
        };
        let high = bounds.high.unwrap_or_else(|| vec![0xff; PREFIX_LEN + crate::MAX_KEY_LEN + 1]);
        let range = RangeDelete { slot, low: bounds.low, high, prefix_len: PREFIX_LEN };
        let changes = Changes { ops: vec![remove], ranges: vec![range], drops: Some(slot) };
        self.engine.tree.write_batch(&changes)?;
        catalogue.names.remove(name);
        drop(catalogue);
        self.engine.after_write();
        Ok(true)
    }

    /// Takes a still: the whole content as of now, exact, for as long as the snapshot is held.
    ///
    /// Cost: one short lock, at any size; nothing is copied and no writer waits. While it is held, a writer
    /// keeps what it changes first.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Poisoned`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.engine, Holder::Snapshot)
    }

    /// A batch of operations to be committed as one.
    pub fn batch(&self) -> WriteBatch {
        WriteBatch::new(Arc::clone(&self.engine))
    }

    /// The number of the last batch.
    pub fn seq(&self) -> Seq {
        self.position().seq
    }

    /// The last batch. Its effect may still be under way to the leaves; readers wait those nanoseconds.
    pub fn position(&self) -> Position {
        self.engine.tree.commit.position()
    }

    /// What the database holds and what that takes. Cost: a walk over the keyspaces.
    pub fn stats(&self) -> Stats {
        let tree = &self.engine.tree;
        let totals = tree.commit.all_totals();
        let catalogue = tree.commit.totals(CATALOGUE);
        let mut keyspaces: Vec<_> = {
            let names = self.engine.catalogue.lock();
            let of = |(name, (_, slot)): (&String, &(u32, KeyspaceSlot))| {
                let totals = tree.commit.totals(*slot);
                KeyspaceStats {
                    name: name.clone(),
                    records: totals.records,
                    raw_bytes: totals.bytes,
                }
            };
            names.names.iter().map(of).collect()
        };
        keyspaces.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let account = tree.account();
        let (leaves, leaf_bytes) = tree.leaves();
        let stills = self.engine.stills();
        Stats {
            position: self.position(),
            records: totals.records - catalogue.records,
            raw_bytes: totals.bytes - catalogue.bytes,
            live_bytes: account.live.load(Ordering::Relaxed) + leaf_bytes,
            retained_bytes: account.retained.load(Ordering::Relaxed),
            directory_bytes: account.directory.load(Ordering::Relaxed),
            leaves,
            stills,
            keyspaces,
        }
    }

    /// Refuses writes and new stills from now on, on every handle. Reads go on, and so do stills taken before.
    ///
    /// Calling it again does nothing.
    ///
    /// # Errors
    /// None for a database in memory.
    pub fn close(&self) -> Result<()> {
        self.engine.tree.commit.close();
        Ok(())
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

/// Outside semver.
#[cfg(feature = "simulation")]
impl Database {
    /// Does what the reclaimer's thread does.
    pub fn reclaim(&self) {
        self.engine.tree.reclaim();
    }

    /// As on a replica that is rewound: the next batch gets the number after `seq` again, in another history.
    pub fn rewind_seq(&self, seq: Seq) {
        let history = crate::position::HistoryId(crate::clock::random_id().expect("randomness"));
        self.engine.tree.commit.rewind_seq(seq, history);
    }

    /// Checks every invariant of the tree that can be checked while nothing runs.
    ///
    /// # Panics
    /// If one is broken.
    pub fn check(&self) {
        self.engine.tree.check();
    }
}

impl Engine {
    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// The counters of the keyspace with this id.
    pub(crate) fn slot_of(&self, id: u32) -> Option<KeyspaceSlot> {
        self.catalogue.lock().slots.get(&id).copied()
    }

    fn stills(&self) -> Vec<StillInfo> {
        let info = |cut: &Arc<crate::commit::Cut>| StillInfo {
            holder: cut.holder,
            position: cut.position,
            age: cut.taken.elapsed(),
        };
        self.tree.commit.live_cuts().iter().map(info).collect()
    }

    /// What follows every write: the budget of stills is looked at, with nothing held.
    #[inline]
    pub(crate) fn after_write(&self) {
        if let Some(budget) = &self.budget {
            self.check_budget(budget);
        }
    }

    fn check_budget(&self, budget: &StillBudget) {
        let retained_bytes = self.tree.account().retained.load(Ordering::Relaxed);
        if retained_bytes <= budget.bytes {
            self.is_over_budget.store(false, Ordering::Relaxed);
        } else if !self.is_over_budget.swap(true, Ordering::Relaxed) {
            crate::sync::assert_no_latch("the still budget's callback");
            let stills = self.stills();
            (budget.tell)(&StillReport { retained_bytes, budget: budget.bytes, stills });
        }
    }

    /// A still for one range.
    pub(crate) fn still(&self, holder: Holder) -> Result<Still> {
        Still::take(&self.tree, holder)
    }
}

impl Reclaimer {
    fn start(tree: &Arc<Tree>) -> Self {
        let (waker, wake) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        tree.set_waker(waker);
        // Weak: the thread must not keep alive what ends it.
        let tree = Arc::downgrade(tree);
        let run = move |wake: Receiver<()>| {
            loop {
                select! {
                    recv(wake) -> woken => if woken.is_err() { return },
                    recv(stopped) -> _ => return,
                }
                match tree.upgrade() {
                    Some(tree) => tree.reclaim(),
                    None => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("stillframe-reclaim".into());
        let thread = thread.spawn(move || run(wake)).expect("the system starts a thread");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic there poisoned nothing that is still used.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({} leaves at {})", self.engine.tree.leaves().0, self.position())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Before the tree goes: the thread may hold the tree for as long as one sweep takes.
        self.reclaimer = None;
    }
}

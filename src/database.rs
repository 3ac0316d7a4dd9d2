//! Database: the handle that everything begins with; the catalogue of keyspaces; the reclaimer's thread.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::batch::WriteBatch;
use crate::clock::random_id;
use crate::commit::{CATALOGUE, Cut, Holder, KeyspaceSlot, Role, View};
use crate::expiry::{Expiry, Sweeper};
use crate::follow::Following;
#[cfg(feature = "simulation")]
use crate::install::Arrival;
use crate::keeper::Keeper;
use crate::keys::{self, CATALOGUE_ID, InternalKey, PREFIX_LEN};
use crate::keyspace::{Keyspace, Place};
use crate::meters::{Begun, Meters};
use crate::notices;
use crate::open::{Catalogue, Content, OnDisk};
use crate::options::{BacklogSize, Builder, Durability, StillBudget, StillInfo, StillReport};
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::progress::OpenReport;
use crate::roles::Attendant;
use crate::saver::{SaveThread, Saver};
use crate::serve::hub::Hub;
use crate::serve::signal::Signals;
use crate::snapshot::Snapshot;
use crate::stats::{KeyspaceStats, LogStats, Stats};
use crate::storage::Disk;
use crate::storage::load::{load_file, load_stream};
use crate::storage::log::{Log, SUSPENDED};
use crate::storage::save::{SaveHandle, SaveOptions, SaveReport};
use crate::storage::snapshot_file::SnapshotFile;
use crate::storage::source;
use crate::sync::{AtomicU64, Mutex};
use crate::tree::{
    BatchOp, Bulk, Changes, Condition, Pass, PointWrite, RangeDelete, Tree, Written, new_value,
};
use crate::{Error, LogFailure, MAX_KEYSPACE_NAME_LEN, Result};

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
    pub(crate) catalogue: Arc<Mutex<Catalogue>>,
    budget: Option<StillBudget>,
    /// Whether the budget's callback has been told of the present excess.
    ///
    /// Relaxed: it only keeps most repeats away.
    is_over_budget: AtomicBool,
    reclaimer: Option<Reclaimer>,
    /// Looks after the log.
    keeper: Option<Keeper>,
    log: Option<Arc<Log>>,
    /// What a write waits for that doesn't say.
    durability: Durability,
    expiry: Arc<Expiry>,
    sweeper: OnceLock<Sweeper>,
    sweeps_by_itself: bool,
    /// How often a transaction is tried.
    pub(crate) transaction_attempts: u32,
    pub(crate) saver: Option<Arc<Saver>>,
    /// Where there is no log: what replicas have not read yet, from the first one on.
    pub(crate) backlog: OnceLock<Arc<Log>>,
    pub(crate) backlog_size: BacklogSize,
    /// Signs the histories that begin here.
    pub(crate) node: [u8; 16],
    /// Where there is no directory.
    pub(crate) own_dataset: Mutex<[u8; 16]>,
    /// Counts states that were put in the place of the present, twice each: odd while one is.
    ///
    /// Release when set, acquire when read: who finds it even and unchanged has read one state's line and data set.
    pub(crate) installs: AtomicU64,
    pub(crate) hub: Arc<Hub>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) following: Mutex<Option<Arc<Following>>>,
    /// One hand-over at a time.
    pub(crate) handing: Mutex<()>,
    /// Held while another state takes the place of the present, and while a promotion begins its term.
    pub(crate) placing: Mutex<()>,
    pub(crate) attendants: Mutex<Vec<Weak<dyn Attendant>>>,
    save_thread: Option<SaveThread>,
    /// What was found when it was opened.
    report: Option<OpenReport>,
}

/// The thread that frees what dropped stills leave behind.
struct Reclaimer {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
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
        Self::over(Content::empty(&builder), None, random_id()?, builder)
    }

    /// A database of `content`, with the log of its directory if it has one.
    pub(crate) fn over(
        content: Content,
        on_disk: Option<OnDisk>,
        node: [u8; 16],
        builder: Builder,
    ) -> Result<Self> {
        let Content { tree, catalogue, lineage } = content;
        let reclaimer = builder.reclaims_by_itself.then(|| Reclaimer::start(&tree));
        tree.commit.set_line(lineage, node);
        let (mut keeper, mut save_thread, mut saver, mut log) = (None, None, None, None);
        let mut report = None;
        if let Some(OnDisk { log: own_log, snapshots, last_save, report: found }) = on_disk {
            notices::info(|| {
                let (path, position) = (own_log.directory.path.display(), tree.commit.position());
                format!("{path} is open at {position}")
            });
            report = Some(found);
            let parts = (&tree, &own_log);
            let own = Arc::new(Saver::new(parts, builder.saves, snapshots, last_save));
            if builder.keeps_log_by_itself {
                save_thread = SaveThread::start(&own);
                let wake = save_thread.as_ref().map(|thread| thread.wake.clone());
                keeper = Some(Keeper::start(&tree, &own_log, wake));
            }
            (saver, log) = (Some(own), Some(own_log));
        }
        let own_dataset = Mutex::new(random_id()?);
        let (catalogue, signals) = (Arc::new(Mutex::new(catalogue)), Arc::<Signals>::default());
        let expiry = Arc::new(Expiry {
            tree: Arc::clone(&tree),
            catalogue: Arc::clone(&catalogue),
            signals: Arc::clone(&signals),
            log: keeper.as_ref().map(Keeper::waker),
            expired: AtomicU64::new(0),
        });
        let engine = Engine {
            tree,
            disk: builder.disk,
            catalogue,
            budget: builder.budget,
            is_over_budget: AtomicBool::new(false),
            reclaimer,
            keeper,
            log,
            durability: builder.durability,
            expiry,
            sweeper: OnceLock::new(),
            sweeps_by_itself: builder.sweeps_by_itself,
            transaction_attempts: builder.transaction_attempts,
            saver,
            backlog: OnceLock::new(),
            backlog_size: builder.backlog,
            node,
            own_dataset,
            installs: AtomicU64::new(0),
            hub: Arc::default(),
            signals,
            following: Mutex::default(),
            handing: Mutex::default(),
            placing: Mutex::default(),
            attendants: Mutex::default(),
            save_thread,
            report,
        };
        engine.look_after_expiry();
        Ok(Self { engine: Arc::new(engine) })
    }

    /// Opens the database in the directory `path` with default options. See [`Builder::open`].
    ///
    /// # Errors
    /// Those of [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(path)
    }

    /// A database in memory, filled from a saved file. The file is not held open.
    ///
    /// Everything is proven before anything is returned: checksums, order, counts and the fingerprint. The
    /// first write begins a new history; until then the position is the file's. Cost: all cores, one
    /// pass over the file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`] with file and offset.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().load(path)
    }

    pub(crate) fn load_with(builder: Builder, path: &Path) -> Result<Self> {
        let file = SnapshotFile::open_on(&*builder.disk, path)?;
        let bulk = Bulk::new(builder.config.clone());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let loaded = load_file(file.reader(), &bulk, threads)?;
        Self::over(Content::loaded(bulk, loaded)?, None, random_id()?, builder)
    }

    pub(crate) fn load_from_with(builder: Builder, input: impl io::Read) -> Result<Self> {
        let bulk = Bulk::new(builder.config.clone());
        let loaded = load_stream(input, &bulk)?;
        Self::over(Content::loaded(bulk, loaded)?, None, random_id()?, builder)
    }

    /// Saves the present to a file, in the background: takes a still, as [`snapshot`](Database::snapshot),
    /// writes it to a temporary file beside `path`, syncs, and renames it over `path`.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// # let path = std::env::temp_dir().join(format!("stillframe-doc-{}", std::process::id()));
    /// let save = db.save(&path, stillframe::SaveOptions::default())?;
    /// let report = save.wait()?;
    /// assert_eq!(report.position, db.position());
    /// # std::fs::remove_file(path).unwrap();
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// Writers go on; what they change ahead of the save is kept until it has passed there. A crash leaves the old file
    /// or the new one under `path`, whole, and perhaps a temporary file beside it.
    ///
    /// # Errors
    /// [`Error::SaveInProgress`], [`Error::Io`], [`Error::Poisoned`]; those of the writing come from
    /// [`SaveHandle::wait`].
    pub fn save(&self, path: impl AsRef<Path>, options: SaveOptions) -> Result<SaveHandle> {
        let pass = Pass::take(&self.engine.tree, Holder::Save)?;
        let cut = source::Cut::of(pass.cut());
        SaveHandle::start(Arc::clone(&self.engine.disk), path.as_ref(), pass, cut, &options)
    }

    /// The keyspace of this name, created if there is none.
    ///
    /// # Errors
    /// [`Error::KeyspaceName`], [`Error::TooManyKeyspaces`], [`Error::Closed`], [`Error::Poisoned`], [`Error::MemoryLimit`].
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        if name.is_empty() || name.len() > MAX_KEYSPACE_NAME_LEN {
            return Err(Error::KeyspaceName { len: name.len() });
        }
        let tree = self.engine.tree();
        let mut catalogue = self.engine.catalogue.lock();
        // What names mean changes under the catalogue's lock alone.
        let view = tree.commit.view();
        let handle = |id, slot| Keyspace::new(&self.engine, &name.into(), Place { view, id, slot });
        if let Some(&(id, slot)) = catalogue.names.get(name) {
            return Ok(handle(id, slot));
        }
        let id = catalogue.next_id;
        let next_id = id.checked_add(1).ok_or(Error::TooManyKeyspaces)?;
        let begun = self.engine.begin_commit(None);
        let key = InternalKey::new(CATALOGUE_ID, name.as_bytes())?;
        let value = id.to_le_bytes();
        let put = Some(new_value(tree, &value, 0)?);
        let write = PointWrite {
            view,
            slot: CATALOGUE,
            key: &key,
            prefix_len: PREFIX_LEN,
            put,
            condition: &Condition::Vacant,
            want_old: false,
        };
        let Written::Done { position, .. } = tree.write(&write)? else {
            unreachable!("the catalogue in memory names all keyspaces")
        };
        let slot = tree.commit.add_keyspace();
        catalogue.names.insert(name.to_owned(), (id, slot));
        catalogue.slots.insert(id, slot);
        catalogue.next_id = next_id;
        drop(catalogue);
        self.engine.committed(&begun, position, None)?;
        Ok(handle(id, slot))
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
        let key = keys::internal(CATALOGUE_ID, name.as_bytes());
        let remove = BatchOp { slot: CATALOGUE, key: &key, prefix_len: PREFIX_LEN, put: None };
        let high = bounds.high.unwrap_or_else(|| vec![0xff; PREFIX_LEN + crate::MAX_KEY_LEN + 1]);
        let range = RangeDelete { slot, low: bounds.low, high, prefix_len: PREFIX_LEN };
        let changes = Changes {
            ops: vec![remove],
            ranges: vec![range],
            drops: Some(slot),
            ..Changes::default()
        };
        let begun = self.engine.begin_commit(None);
        let (position, _) = self.engine.tree.write_batch(&changes)?;
        catalogue.names.remove(name);
        drop(catalogue);
        self.engine.committed_if(&begun, position, None)?;
        Ok(true)
    }

    /// Takes a still: the whole content as of now, exact, for as long as the snapshot is held.
    ///
    /// Cost: one short lock, at any size; nothing is copied and no writer waits. While it is held, a writer
    /// keeps what it changes first.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.engine)
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

    /// Whether it takes writes.
    ///
    /// A database does that in memory, in a new directory, in one that it wrote before, and in a [copy](Builder::backup).
    /// A directory whose last batches came from elsewhere was a replica's.
    pub fn role(&self) -> Role {
        self.engine.tree.commit.role()
    }

    /// Makes a replica the primary: from now on it takes writes, in a new history of a higher term. A primary stays what it is.
    ///
    /// The beginning of the history is on the disk before the first write is taken. A crash before that leaves a replica, or what was promoted.
    ///
    /// # Errors
    /// [`Error::NotDurable`]: it takes no writes still, and may be promoted again. [`Error::Closed`], [`Error::LogFailed`], [`Error::Poisoned`].
    pub fn promote(&self) -> Result<Position> {
        self.engine.promote()
    }

    /// What was found when the directory was opened; `None` for a database in memory.
    pub fn open_report(&self) -> Option<&OpenReport> {
        self.engine.report.as_ref()
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
        let meters = &tree.commit.meters;
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
            log: self.engine.log_stats(),
            expired: self.engine.expiry.expired.load(Ordering::Relaxed),
            transactions: meters.transactions.load(Ordering::Relaxed),
            conflicts: meters.conflicts.load(Ordering::Relaxed),
            commits: meters.commit.read(),
            syncs: meters.sync.read(),
            cuts: meters.cut.read(),
            saves: meters.save.read(),
            role: self.role(),
            replicas: self.engine.hub.replicas(self.seq()),
            replica_syncs: self.engine.hub.counts(),
            following: self.engine.following().map(|following| following.status()),
        }
    }

    /// Refuses writes from now on, on every handle; reads and stills go on. Ends a save that runs. In a directory, brings all that is committed to the
    /// disk and lets go of the directory: it can be opened again, here or elsewhere, whatever of that failed.
    ///
    /// Dropping the last handle does the same and tells nobody. Calling it again does nothing, and says again that the log
    /// has failed, if it has.
    ///
    /// # Errors
    /// [`Error::LogFailed`]: what was not durable before may be lost. [`Error::Io`]: all is durable, but room that was
    /// reserved could not be given back. None for a database in memory.
    pub fn close(&self) -> Result<()> {
        self.engine.tree.commit.close();
        self.engine.stop_following();
        self.engine.dismiss();
        if let Some(saver) = &self.engine.saver {
            saver.close();
        }
        match &self.engine.log {
            Some(log) => log.finish(&self.engine.tree.commit),
            None => Ok(()),
        }
    }

    /// Saves the present into the database's directory, now, and removes the segments of the log that this makes unnecessary; the newest stays. What a database
    /// does [by itself](Builder::save_when_log_exceeds) from time to time.
    ///
    /// Writers go on. Interrupted at any point it leaves a directory that opens to the same state.
    ///
    /// # Errors
    /// [`Error::NoLog`], [`Error::LogFailed`], those of [`save`](Database::save).
    pub fn compact_log(&self, options: SaveOptions) -> Result<SaveReport> {
        self.saver()?.save(&options)
    }

    /// After the log failed: saves all there is in memory to a new snapshot and goes on in a new log. Writes are taken
    /// again then. What was answered with [`Error::NotDurable`] is in the snapshot.
    ///
    /// If the log has not failed it is a [`compact_log`](Database::compact_log), and the log goes on. If this fails, everything stays as it was.
    ///
    /// # Errors
    /// As [`compact_log`](Database::compact_log).
    pub fn recover(&self) -> Result<SaveReport> {
        self.saver()?.restart(&SaveOptions::default())
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn saver(&self) -> Result<&Saver> {
        self.engine.saver.as_deref().ok_or(Error::NoLog)
    }

    /// Brings all that is committed to `level`, and returns the last batch that is at it.
    ///
    /// ```
    /// # let dir = std::env::temp_dir().join(format!("stillframe-doc-persist-{}", std::process::id()));
    /// use stillframe::{Database, Durability};
    ///
    /// let db = Database::open(&dir)?;
    /// let users = db.keyspace("users")?;
    /// for n in 0..1_000_u32 {
    ///     users.insert(n.to_be_bytes(), "somebody")?;
    /// }
    /// assert_eq!(db.persist(Durability::Sync)?, db.seq());
    /// # db.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoLog`], [`Error::LogFailed`].
    pub fn persist(&self, level: Durability) -> Result<Seq> {
        self.engine.check_level(Some(level))?;
        match self.engine.persist(level) {
            // A state that came from elsewhere is shown, and on its way to the disk.
            Err(failure) if failure.op == SUSPENDED => {
                self.engine.saver.iter().for_each(|saver| saver.settle());
                self.engine.persist(level)
            }
            reached => reached,
        }
        .map_err(Error::LogFailed)
    }
}

/// Outside semver.
#[cfg(feature = "simulation")]
impl Database {
    /// Begins to copy everything at a cut of its own, as a save does.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn pass(&self) -> Result<crate::snapshot::LeafPass> {
        let pass = Pass::take(&self.engine.tree, Holder::Save)?;
        Ok(crate::snapshot::LeafPass::new(pass))
    }

    /// As on a replica that is sent a snapshot: what `input` holds takes the place of all there is.
    ///
    /// # Errors
    /// Those of [`load`](Database::load).
    pub fn install(&self, input: impl io::Read, rewinds: bool) -> Result<()> {
        self.engine.tree.commit.set_role(Role::Replica);
        let bulk = self.engine.tree.bulk();
        let loaded = load_stream(input, &bulk)?;
        self.engine.put_in_place(Arrival::whole(loaded, rewinds), self.engine.dataset())
    }

    /// Does what the reclaimer's thread does.
    pub fn reclaim(&self) {
        self.engine.tree.reclaim();
    }

    /// As on a replica that is rewound: the next batch gets the number after `seq` again, in another history.
    pub fn rewind_seq(&self, seq: Seq) {
        let history = crate::position::HistoryId::own().expect("randomness");
        self.engine.tree.commit.rewind_seq(seq, history);
    }

    /// Does what the thread that removes expired entries does, until nothing is due. How many entries were removed.
    pub fn sweep_expired(&self) -> u64 {
        let Expiry { expired, .. } = &*self.engine.expiry;
        let before = expired.load(Ordering::Relaxed);
        self.engine.expiry.sweep(std::time::Duration::MAX);
        expired.load(Ordering::Relaxed) - before
    }

    /// .. with the next leaf in which something is due; `None`: there is none.
    pub fn sweep_leaf(&self) -> Option<u64> {
        let Expiry { tree, expired, .. } = &*self.engine.expiry;
        let before = expired.load(Ordering::Relaxed);
        let is_due = tree.next_due_ms().is_some_and(|due| due <= tree.clock().now_ms());
        if !is_due || self.role() != Role::Primary {
            return None;
        }
        self.engine.expiry.sweep(std::time::Duration::ZERO);
        Some(expired.load(Ordering::Relaxed) - before)
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

    pub(crate) fn log(&self) -> Option<&Arc<Log>> {
        self.log.as_ref()
    }

    /// Shows what a name stands for now.
    pub(crate) fn with_place<T>(&self, name: &str, show: impl FnOnce(Option<Place>) -> T) -> T {
        let catalogue = self.catalogue.lock();
        let view = self.tree.commit.view();
        show(catalogue.names.get(name).map(|&(id, slot)| Place { view, id, slot }))
    }

    /// The counters of the keyspace that had this id in `view`.
    pub(crate) fn slot_of(&self, view: View, id: u32) -> Option<KeyspaceSlot> {
        self.catalogue.lock().slot_in(view, id)
    }

    fn stills(&self) -> Vec<StillInfo> {
        let info = |cut: &Arc<Cut>| StillInfo {
            holder: cut.holder,
            position: cut.position,
            age: cut.taken.elapsed(),
        };
        self.tree.commit.live_cuts().iter().map(info).collect()
    }

    /// Before every write, which may wait so long.
    #[inline]
    pub(crate) fn begin_commit(&self, level: Option<Durability>) -> Begun {
        let waits = self.log.is_some() && level.unwrap_or(self.durability) == Durability::Sync;
        Meters::begin_commit(waits)
    }

    /// After every write, with nothing locked: waits for the durability that it asked for.
    ///
    /// # Errors
    /// [`Error::NotDurable`].
    #[inline]
    pub(crate) fn committed(
        &self,
        begun: &Begun,
        position: Position,
        level: Option<Durability>,
    ) -> Result<()> {
        if let Some(budget) = &self.budget {
            self.check_budget(budget);
        }
        self.look_after_expiry();
        let reached = match &self.log {
            None => Ok(()),
            Some(log) => self.reach(log, position, level.unwrap_or(self.durability)),
        };
        self.signals.committed();
        self.tree.commit.meters.end_commit(begun);
        reached
    }

    /// Once anything is to expire somebody sweeps.
    #[inline]
    fn look_after_expiry(&self) {
        if self.tree.has_expiries() && self.sweeps_by_itself {
            self.sweeper.get_or_init(|| Sweeper::start(Arc::clone(&self.expiry)));
        }
    }

    /// After records of another node were applied, or a state of its was put in place: who waits for something to do is told. They are synced as writes of
    /// one's own would be, but nobody waits for that here.
    pub(crate) fn forwarded(&self) {
        if let Some(keeper) = &self.keeper {
            match self.durability {
                Durability::Periodic(period) => keeper.sync_within(period),
                Durability::Sync => keeper.sync_within(std::time::Duration::ZERO),
                Durability::Memory | Durability::Os => {}
            }
            keeper.committed();
        }
        self.look_after_expiry();
        self.signals.committed();
    }

    fn persist(&self, level: Durability) -> std::result::Result<Seq, LogFailure> {
        let commit = &self.tree.commit;
        let seq = commit.position().seq;
        let Some(log) = &self.log else { return Ok(seq) };
        match level {
            Durability::Memory => Ok(seq),
            Durability::Os => log.write_out(commit, seq).map(|()| log.written()),
            Durability::Periodic(_) | Durability::Sync => {
                log.sync(commit, seq).map(|()| log.durable())
            }
        }
    }

    /// As [`committed`](Self::committed), for a batch that may have changed nothing.
    pub(crate) fn committed_if(
        &self,
        begun: &Begun,
        position: Option<Position>,
        level: Option<Durability>,
    ) -> Result<()> {
        position.map_or(Ok(()), |position| self.committed(begun, position, level))
    }

    fn reach(&self, log: &Log, position: Position, level: Durability) -> Result<()> {
        let commit = &self.tree.commit;
        let reached = match level {
            Durability::Memory => Ok(()),
            Durability::Os | Durability::Periodic(_) => log.write_out(commit, position.seq),
            Durability::Sync => log.sync(commit, position.seq),
        };
        if let Some(keeper) = &self.keeper {
            if let Durability::Periodic(period) = level {
                keeper.sync_within(period);
            }
            keeper.committed();
        }
        reached.map_err(|failure| {
            notices::warn(|| format!("{position} is not durable, the log failed: {failure}"));
            Error::NotDurable { position, failure }
        })
    }

    /// Refuses a level that this database can't give.
    ///
    /// # Errors
    /// [`Error::NoLog`].
    pub(crate) fn check_level(&self, level: Option<Durability>) -> Result<()> {
        match level {
            None | Some(Durability::Memory) => Ok(()),
            Some(_) if self.log.is_some() => Ok(()),
            Some(_) => Err(Error::NoLog),
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

    fn log_stats(&self) -> Option<LogStats> {
        let (log, saver) = (self.log.as_ref()?, self.saver.as_ref()?);
        let (segments, bytes) = log.size();
        let (written, durable) = (log.written(), log.durable());
        Some(LogStats { written, durable, saved: saver.saved(), segments, bytes })
    }
}

impl Reclaimer {
    fn start(tree: &Arc<Tree>) -> Self {
        let (waker, wake) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        tree.set_waker(waker);
        let never_dropped = planted(Bug::ReclaimerLeaked).then(|| Arc::clone(tree));
        // Weak: the thread must not keep alive what ends it.
        let tree = Arc::downgrade(tree);
        let run = move |wake: Receiver<()>| {
            let _held = &never_dropped;
            loop {
                select! {
                    recv(wake) -> woken => if woken.is_err() { return },
                    recv(stopped) -> _ => return,
                }
                let Some(tree) = tree.upgrade() else { return };
                // A panic here is our bug and may leave a leaf half moved: nothing may be read any more.
                if catch_unwind(AssertUnwindSafe(|| tree.reclaim())).is_err() {
                    notices::warn(|| "poisoned: a panic while memory was reclaimed".to_owned());
                    return tree.commit.poison();
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
        if planted(Bug::ReclaimerNotStopped) || planted(Bug::ReclaimerLeaked) {
            std::mem::forget(self.stop.take());
        }
        if planted(Bug::ReclaimerLeaked) {
            self.thread = None;
        }
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
        self.dismiss();
        // Before the tree goes: the threads hold it for as long as they run. First of all who writes.
        self.sweeper.take();
        self.reclaimer = None;
        self.keeper = None;
        self.save_thread = None;
        if let Some(saver) = &self.saver {
            saver.close();
        }
        if let Some(log) = &self.log {
            self.tree.commit.close();
            // Who wants to be told closes the database before.
            let _ = log.finish(&self.tree.commit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::log::Identity;
    use crate::storage::sim::{CallKind, DiskFault, SimDisk};

    fn on(disk: &SimDisk) -> Builder {
        Database::builder().disk(disk.clone())
    }

    /// A directory as a replica leaves it: its node has written nothing of what it holds.
    fn left_by_a_replica(disk: &SimDisk) -> (Identity, Position) {
        let db = on(disk).open("/db").unwrap();
        db.keyspace("films").unwrap().insert("k", "v").unwrap();
        let position = db.position();
        db.close().unwrap();
        drop(db);
        let mut identity = None;
        disk.edit(Path::new("/db/identity"), |bytes| {
            let own = Identity { node: [9; 16], ..Identity::decode(bytes).unwrap() };
            bytes.copy_from_slice(&own.encode());
            identity = Some(own);
        })
        .unwrap();
        (identity.unwrap(), position)
    }

    #[test]
    fn what_another_node_wrote_is_read_only_until_it_is_promoted() {
        let disk = SimDisk::new();
        let (identity, position) = left_by_a_replica(&disk);
        for _ in 0..2 {
            let db = on(&disk).open("/db").unwrap();
            assert_eq!((db.role(), db.position()), (Role::Replica, position));
            let films = db.keyspace("films").unwrap();
            assert_eq!(films.get("k").unwrap().unwrap(), "v");
            assert!(matches!(films.insert("k", "w"), Err(Error::ReadOnly)));
            assert!(matches!(films.clear(), Err(Error::ReadOnly)));
            assert!(matches!(db.keyspace("more"), Err(Error::ReadOnly)));
            assert!(matches!(db.drop_keyspace("films"), Err(Error::ReadOnly)));
            db.compact_log(SaveOptions::default()).unwrap();
            assert_eq!((db.seq(), films.len().unwrap()), (position.seq, 1));
        }
        let db = on(&disk).open("/db").unwrap();
        let promoted = db.promote().unwrap();
        assert_eq!(db.promote().unwrap(), promoted);
        assert_eq!((db.role(), promoted.seq.0), (Role::Primary, position.seq.0 + 1));
        assert_ne!(promoted.history, position.history);
        let line = db.engine.tree.cut(Holder::Snapshot).unwrap().lineage();
        assert_eq!(line.iter().map(|span| span.term).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(line[1].writer, identity.node);
        // What was promoted stays so, though it has written nothing: also after the power went.
        let after = disk.crash(1);
        drop(db);
        let db = on(&after).open("/db").unwrap();
        assert_eq!((db.role(), db.position()), (Role::Primary, promoted));
        db.keyspace("films").unwrap().insert("k", "w").unwrap();
        let line = db.engine.tree.cut(Holder::Snapshot).unwrap().lineage();
        assert_eq!(line.iter().map(|span| span.term).collect::<Vec<_>>(), [0, 1, 1]);
    }

    #[test]
    fn a_promotion_that_is_not_durable_is_none() {
        let disk = SimDisk::new();
        left_by_a_replica(&disk);
        let db = on(&disk).open("/db").unwrap();
        disk.inject(DiskFault::error(5).on(CallKind::SyncData).forever());
        assert!(matches!(db.promote(), Err(Error::NotDurable { .. })));
        assert_eq!(db.role(), Role::Replica);
        let films = db.keyspace("films").unwrap();
        assert!(matches!(films.insert("k", "w"), Err(Error::LogFailed(_) | Error::ReadOnly)));
        disk.clear_faults();
        db.recover().unwrap();
        assert!(matches!(films.insert("k", "w"), Err(Error::ReadOnly)));
        db.promote().unwrap();
        films.insert("k", "w").unwrap();
    }

    /// A file may name the last number of all; the next keyspace would have panicked after its name was written.
    #[test]
    fn numbers_of_keyspaces_run_out_with_an_error() {
        let db = Database::in_memory();
        db.engine.catalogue.lock().next_id = u32::MAX - 1;
        db.keyspace("last").unwrap().insert("k", "v").unwrap();
        let seq = db.seq();
        assert!(matches!(db.keyspace("more"), Err(Error::TooManyKeyspaces)));
        assert_eq!((db.seq(), db.keyspaces().unwrap().len()), (seq, 1));
    }
}

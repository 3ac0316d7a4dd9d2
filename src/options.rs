//! Every knob, with unit, default and price.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::clock::{Clock, SystemClock};
use crate::commit::Holder;
use crate::database::Database;
use crate::follow::ReplicaSource;
use crate::position::Position;
use crate::progress::{OpenPhase, OpenProgress, Progress, Tell};
use crate::saver::SavePolicy;
use crate::storage::recovery::RecoveryMode;
use crate::storage::save::{SaveOptions, SaveReport};
use crate::storage::{Disk, OsDisk};
use crate::tree::Config;

/// Opens databases with options other than the defaults.
///
/// ```
/// let db = stillframe::Database::builder().memory_limit(64 << 20).in_memory()?;
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it opens something"]
pub struct Builder {
    pub(crate) config: Config,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) budget: Option<StillBudget>,
    pub(crate) reclaims_by_itself: bool,
    /// Whether a thread of the database's own removes what is past its time.
    pub(crate) sweeps_by_itself: bool,
    pub(crate) durability: Durability,
    pub(crate) transaction_attempts: u32,
    pub(crate) recovery: RecoveryMode,
    pub(crate) segment_bytes: u64,
    pub(crate) backlog: BacklogSize,
    pub(crate) source: Option<ReplicaSource>,
    /// Whether threads of the database's own look after the log.
    pub(crate) keeps_log_by_itself: bool,
    pub(crate) saves: SavePolicy,
    pub(crate) open_progress: Option<Tell>,
}

/// What must have happened before a write returns, in a database that has a [directory](Builder::open).
///
/// Every batch goes into the log, in order, at every level; the level says what is waited for. It holds for
/// all earlier batches too: there is one log. Readers see what is committed, whether it is durable or not.
///
/// ```
/// use stillframe::{Database, Durability, WriteOptions};
///
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-level-{}", std::process::id()));
/// let db = Database::builder().durability(Durability::Os).open(&dir)?;
/// let orders = db.keyspace("orders")?;
/// orders.insert("1", "open")?; // survives the end of the process
/// orders.insert_with("1", "paid", WriteOptions::new().durability(Durability::Sync))?; // and a power cut
/// assert_eq!(db.stats().log.unwrap().durable, db.seq());
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// Nothing is waited for. A killed process may lose its last milliseconds, a power cut what the
    /// operating system had not written by itself.
    Memory,
    /// The operating system has it: it survives the end of this process, at whatever instruction. A power cut
    /// may lose what the system had not written by itself.
    Os,
    /// As [`Os`](Durability::Os), and on the disk so much later at the latest. The price is that of `Os`.
    Periodic(Duration),
    /// On the disk: it survives a power cut. Costs a sync of the disk, shared by all who wait at the time.
    Sync,
}

impl Default for Durability {
    /// [`Periodic`](Durability::Periodic), a second.
    fn default() -> Self {
        Durability::Periodic(Duration::from_secs(1))
    }
}

/// How much of what was written stays in memory for replicas, in a database without a directory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BacklogSize {
    /// Of one segment.
    pub(crate) segment: u64,
    /// For those who were away for a moment.
    pub(crate) usual: u64,
    /// While somebody is still reading.
    pub(crate) most: u64,
}

impl Default for BacklogSize {
    fn default() -> Self {
        Self { segment: 4 << 20, usual: 64 << 20, most: 256 << 20 }
    }
}

/// How much stills may retain before somebody is told.
#[derive(Clone)]
pub(crate) struct StillBudget {
    pub(crate) bytes: u64,
    pub(crate) tell: Arc<dyn Fn(&StillReport) + Send + Sync>,
}

impl fmt::Debug for StillBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StillBudget({} bytes)", self.bytes)
    }
}

/// Who holds stills, since when, and what they retain together: handed to the callback of
/// [`Builder::still_budget`].
///
/// ```
/// use stillframe::Database;
///
/// // 64 MiB may be retained; then this is told who holds what.
/// let db = Database::builder()
///     .still_budget(64 << 20, |report| {
///         for still in &report.stills {
///             eprintln!("{:?} at {}, {:?} old", still.holder, still.position, still.age);
///         }
///     })
///     .in_memory()?;
/// # drop(db);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StillReport {
    /// Memory retained for stills, in bytes.
    pub retained_bytes: u64,
    /// The budget that was exceeded, in bytes.
    pub budget: u64,
    /// The live stills, oldest first.
    pub stills: Vec<StillInfo>,
}

/// One live still.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let first = db.snapshot()?;
/// db.keyspace("films")?.insert("Metropolis", "1927")?;
/// let second = db.snapshot()?;
/// let held: Vec<_> = db.stats().stills.iter().map(|still| still.position).collect();
/// assert_eq!(held, [first.position(), second.position()]);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StillInfo {
    /// What it is held for.
    pub holder: Holder,
    /// The last batch it holds.
    pub position: Position,
    /// How long it has been held.
    pub age: Duration,
}

fn begin_following(db: Database, source: Option<ReplicaSource>) -> Result<Database> {
    if let Some(source) = source {
        db.follow(source)?;
    }
    Ok(db)
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            config: Config::new(Arc::new(SystemClock)),
            disk: Arc::new(OsDisk),
            budget: None,
            reclaims_by_itself: true,
            sweeps_by_itself: true,
            durability: Durability::default(),
            transaction_attempts: 100,
            recovery: RecoveryMode::default(),
            segment_bytes: 64 << 20,
            backlog: BacklogSize::default(),
            source: None,
            keeps_log_by_itself: true,
            saves: SavePolicy::default(),
            open_progress: None,
        }
    }

    /// Calls `tell` while a directory is opened: at the beginning and the end of each phase, and at each hundredth of it. From
    /// whichever thread is at work; opening waits for it.
    pub fn on_open_progress(
        mut self,
        tell: impl Fn(&OpenProgress) + Send + Sync + 'static,
    ) -> Self {
        self.open_progress = Some(Tell(Arc::new(tell)));
        self
    }

    pub(crate) fn progress(&self, phase: OpenPhase, total: u64) -> Progress {
        Progress::new(self.open_progress.clone(), phase, total)
    }

    /// Saves a snapshot into the directory by itself once `batches` were committed and `within` has passed since the last save;
    /// said more than once, whenever one of the pairs holds. A save removes the log that it makes unnecessary. Default: none
    /// beside [`save_when_log_exceeds`](Builder::save_when_log_exceeds).
    ///
    /// A save that fails is told to [`on_save`](Builder::on_save) and tried again after a second, then two, up to a minute.
    pub fn save_after(mut self, batches: u64, within: Duration) -> Self {
        self.saves.after.push((batches, within));
        self
    }

    /// Saves when the log behind the last snapshot is longer than `bytes` and than that snapshot; `None`: never for that
    /// reason. So opening replays about so much at most. It is looked at once a second. Default: 64 MiB.
    pub fn save_when_log_exceeds(mut self, bytes: Option<u64>) -> Self {
        self.saves.log_bytes = bytes;
        self
    }

    /// How the database's own saves are done.
    pub fn save_options(mut self, options: SaveOptions) -> Self {
        self.saves.options = options;
        self
    }

    /// Calls `tell` after each save that the database did by itself, on the thread that saved.
    pub fn on_save(mut self, tell: impl Fn(&Result<SaveReport>) + Send + Sync + 'static) -> Self {
        self.saves.tell = Some(Arc::new(tell));
        self
    }

    /// Whether writes are refused, with [`Error::SavesFail`](crate::Error::SavesFail), from a failed save of its own
    /// to the next that succeeds. Default: no, the log holds them.
    pub fn refuse_writes_if_saves_fail(mut self, refuse: bool) -> Self {
        self.saves.stops_writes = refuse;
        self
    }

    /// Keeps `bytes` of the log at the least, and all of it that is younger than `age`, though a snapshot holds it. Default:
    /// nothing.
    pub fn keep_log(mut self, bytes: u64, age: Duration) -> Self {
        (self.saves.keep_bytes, self.saves.keep_age) = (bytes, age);
        self
    }

    /// Keeps what replicas have not read yet, up to `bytes` of the log, though a snapshot holds it; default 1 GiB. Who is farther behind gets the leaves that
    /// changed.
    pub fn keep_log_for_replicas(mut self, bytes: u64) -> Self {
        self.saves.keep_for_replicas = bytes;
        self
    }

    /// Follows another database as soon as it is open, as [`Database::follow`]; [`Database::replica`] has the handle.
    pub fn follow(mut self, source: ReplicaSource) -> Self {
        self.source = Some(source);
        self
    }

    /// Keeps so many snapshots, and the log behind the oldest of them. Default and least: 1.
    pub fn keep_snapshots(mut self, count: usize) -> Self {
        self.saves.keep_snapshots = count.max(1);
        self
    }

    /// What a write waits for unless it says otherwise. Default: [`Durability::Periodic`], a second.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How often a [transaction](Database::transact) is tried before it fails with [`Error::Conflict`](crate::Error::Conflict). From the fourth
    /// time on it waits a little before, up to a millisecond. Default: 100; least: 1.
    pub fn transaction_attempts(mut self, attempts: u32) -> Self {
        self.transaction_attempts = attempts.max(1);
        self
    }

    /// What damage to the log [`open`](Builder::open) puts up with. Default: [`RecoveryMode::TolerateTail`].
    pub fn recovery(mut self, mode: RecoveryMode) -> Self {
        self.recovery = mode;
        self
    }

    /// The longest segments of the log, in bytes, 4 GiB at most; a batch that is longer gets one of its own. Default: 64 MiB.
    ///
    /// A segment is made ahead, so that up to twice as much of the disk is taken and not used yet.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// The most memory, in bytes, that live data, data retained for stills and the directory may take
    /// together. Default: none.
    ///
    /// A write that would grow memory past it fails with [`Error::MemoryLimit`](crate::Error::MemoryLimit)
    /// before anything changes; removing always works, and a still is never broken to save memory. Sizes are
    /// those of entries, so that pages may go over by some percent. Price: three loads a write.
    ///
    /// A replica takes what its primary has taken, whatever its own limit: that is for its own writes, once it is promoted.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.config.memory_limit = bytes;
        self
    }

    /// Calls `tell` when what stills retain exceeds `bytes`, once each time it rises above. Default: none.
    ///
    /// The callback runs on the thread whose write passed the budget, after the write is done and with
    /// nothing locked: it may use the database, and drop stills. Nothing is refused.
    pub fn still_budget(
        mut self,
        bytes: u64,
        tell: impl Fn(&StillReport) + Send + Sync + 'static,
    ) -> Self {
        self.budget = Some(StillBudget { bytes, tell: Arc::new(tell) });
        self
    }

    /// Opens the database in the directory `path`, which is made if there is none: its newest snapshot is loaded and
    /// the log behind it replayed.
    ///
    /// The directory is locked until the database is closed or dropped. Cost: that of loading the snapshot, and about
    /// a microsecond a batch in the log behind it. Interrupted at any point, it can be done again.
    ///
    /// ```
    /// use stillframe::{Database, Durability};
    ///
    /// # let dir = std::env::temp_dir().join(format!("stillframe-doc-open-{}", std::process::id()));
    /// let db = Database::builder().durability(Durability::Sync).open(&dir)?;
    /// db.keyspace("users")?.insert("7", "Ada")?;
    /// db.close()?;
    ///
    /// let db = Database::open(&dir)?;
    /// assert_eq!(db.keyspace("users")?.get("7")?.unwrap(), "Ada");
    /// # db.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) if it is open already; [`Error::Corrupt`](crate::Error::Corrupt), with file
    /// and offset, if anything that was durable can't be read, or is not this database's; [`Error::Io`](crate::Error::Io).
    pub fn open(mut self, path: impl AsRef<Path>) -> Result<Database> {
        let source = self.source.take();
        begin_following(Database::open_with(self, path.as_ref())?, source)
    }

    /// An empty database that lives in memory alone.
    ///
    /// # Errors
    /// None today; opening may come to fail.
    pub fn in_memory(mut self) -> Result<Database> {
        let source = self.source.take();
        begin_following(Database::empty(self)?, source)
    }

    /// A database in memory, filled from a saved file. See [`Database::load`].
    ///
    /// # Errors
    /// Those of [`Database::load`].
    pub fn load(self, path: impl AsRef<Path>) -> Result<Database> {
        Database::load_with(self, path.as_ref())
    }

    /// A database in memory, filled from the bytes of a saved file as they come, up to the end of `input`.
    ///
    /// # Errors
    /// Those of [`Database::load`]; the file is called `<stream>`.
    pub fn load_from(self, input: impl io::Read) -> Result<Database> {
        Database::load_from_with(self, input)
    }
}

#[cfg(feature = "simulation")]
impl Builder {
    /// Splits leaves at this many entries, so that few make a tree.
    pub fn leaf_entries(mut self, entries: usize) -> Self {
        self.config.leaf_entries = entries;
        self
    }

    /// The clock that expiry is judged by. Time goes on when the caller says so, and so does what is past it: with
    /// [`Database::sweep_expired`] alone.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.sweeps_by_itself = false;
        self.config.clock = Arc::new(clock);
        self
    }

    /// The disk that files are on.
    pub fn disk(mut self, disk: impl Disk) -> Self {
        self.disk = Arc::new(disk);
        self
    }

    /// Without a directory, keeps so many bytes for replicas, twice as many while one is reading, in segments of an eighth.
    pub fn backlog_bytes(mut self, bytes: u64) -> Self {
        self.backlog = BacklogSize { segment: bytes / 8, usual: bytes, most: bytes * 2 };
        self
    }

    /// Starts no thread that frees what dropped stills leave: the caller does it with
    /// [`Database::reclaim`].
    pub fn manual_reclaim(mut self) -> Self {
        self.reclaims_by_itself = false;
        self
    }

    /// Starts no thread that looks after the log: what nobody waits for is written and synced with
    /// [`Database::persist`] alone, and a segment is made when it is needed.
    pub fn manual_log(mut self) -> Self {
        self.keeps_log_by_itself = false;
        self
    }
}

/// How a write is to be done. Default: no expiry, the database's durability.
///
/// ```
/// use std::time::Duration;
/// use stillframe::{Database, WriteOptions};
///
/// let sessions = Database::in_memory().keyspace("sessions")?;
/// sessions.insert_with("s1", "user 7", WriteOptions::new().ttl(Duration::from_secs(60)))?;
/// assert!(sessions.contains_key("s1")?);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use = "options do nothing by themselves"]
pub struct WriteOptions {
    expiry: Expiry,
    pub(crate) durability: Option<Durability>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Expiry {
    #[default]
    Never,
    In(Duration),
    At(u64),
}

impl WriteOptions {
    /// No expiry.
    pub fn new() -> Self {
        Self::default()
    }

    /// What this write waits for, instead of what the database was [opened](Builder::durability) with.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// The entry expires this long after the write, by the wall clock, to the millisecond: nobody sees it from then on. A primary removes it soon after,
    /// within a quarter of a second as a rule; one that was opened and has written nothing yet, after a minute.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.expiry = Expiry::In(ttl);
        self
    }

    /// The entry expires at this time, in milliseconds since 1970-01-01 00:00 UTC. 0 means never.
    pub fn expire_at(mut self, unix_ms: u64) -> Self {
        self.expiry = Expiry::At(unix_ms);
        self
    }

    /// The absolute expiry, 0 for never.
    pub(crate) fn resolve(&self, clock: &dyn Clock) -> u64 {
        match self.expiry {
            Expiry::Never => 0,
            Expiry::At(unix_ms) => unix_ms,
            Expiry::In(ttl) => {
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                clock.now_ms().saturating_add(ttl_ms).max(1)
            }
        }
    }
}

//! Subscription: every batch, whole, in order and once, to whoever reads them at a pace of his own.
//!
//! What is read is the log, so a subscriber costs writers nothing but the word that wakes one who waits: it holds no place among
//! them, and what it has not read yet lies where it lies anyway. Who falls farther behind than the log is kept is told so; nothing is left
//! out in silence.

mod names;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::commit::{Holder, Span};
use crate::database::{Database, Engine};
use crate::format::record::{HistoryBody, RecordKind};
use crate::notices;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::replication::line::{fork, has};
use crate::roles::Attendant;
use crate::serve::signal::{Signal, Signals};
use crate::slice::Slice;
use crate::snapshot::Snapshot;
use crate::storage::feed::{Fed, Feed, Shown};
use crate::storage::log::{Lease, Log, SUSPENDED};
use crate::tree::Still;
use crate::{Error, Result};
use names::Names;

/// So many bytes of records are read ahead, unless one batch is longer.
const AHEAD: usize = 64 << 10;
/// A subscriber is woken by writers no more often than this, so that it does not cost one a system call for each batch.
const NAP: Duration = Duration::from_micros(500);
/// What comes without a word is looked for so often.
const LOOK: Duration = Duration::from_millis(1);
/// A wait without end looks up so often.
const LONG: Duration = Duration::from_secs(1);

/// What a [`Subscription`] begins with, and what it shows.
///
/// ```
/// use stillframe::{Database, SubscribeOptions};
///
/// let db = Database::in_memory();
/// let users = db.keyspace("users")?;
/// let options = SubscribeOptions::new().prefix("users", "eu/");
/// let mut changes = db.subscribe(options)?;
/// users.insert("us/bob", "1")?;
/// users.insert("eu/eva", "2")?;
/// let batch = changes.recv()?;
/// assert_eq!(batch.position, db.position());
/// assert_eq!(batch.changes[0].key().unwrap(), "eu/eva");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    start: Start,
    /// Beginnings of keys by the name of their keyspace; none: everything.
    wanted: Option<BTreeMap<String, Vec<Vec<u8>>>>,
    after_durable: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum Start {
    #[default]
    Now,
    After(Position),
    AfterSeq(Seq),
}

impl SubscribeOptions {
    /// Everything, from now on.
    pub fn new() -> Self {
        Self::default()
    }

    /// What follows this batch: goes on where another subscription ended, in this run or an earlier one.
    ///
    /// That the batch is on the line of the database is checked: after a power cut, or on a replica, it may have been taken back.
    pub fn after(mut self, position: Position) -> Self {
        self.start = Start::After(position);
        self
    }

    /// What follows the batch of this number, whichever that is.
    pub fn after_seq(mut self, seq: Seq) -> Self {
        self.start = Start::AfterSeq(seq);
        self
    }

    /// Only this keyspace, there now or later; said again, that one too.
    pub fn keyspace(self, name: &str) -> Self {
        self.prefix(name, "")
    }

    /// Only keys of this keyspace that begin with `prefix`; said again, those too.
    pub fn prefix(mut self, keyspace: &str, prefix: impl AsRef<[u8]>) -> Self {
        let wanted = self.wanted.get_or_insert_default();
        wanted.entry(keyspace.to_owned()).or_default().push(prefix.as_ref().to_vec());
        self
    }

    /// Shows a batch once it is on the disk, and so none that a power cut takes back. What nobody syncs is not shown: see
    /// [`Durability`](crate::Durability). Without a directory it changes nothing.
    pub fn after_durable(mut self, after: bool) -> Self {
        self.after_durable = after;
        self
    }
}

/// A batch as a [`Subscription`] shows it: whole, but for what was not asked for.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// let mut changes = db.subscribe(stillframe::SubscribeOptions::new())?;
/// let mut batch = db.batch();
/// batch.insert(&films, "Metropolis", "1927");
/// batch.insert(&films, "Nosferatu", "1922");
/// let position = batch.commit()?;
/// let batch = changes.recv()?;
/// assert_eq!((batch.position, batch.changes.len()), (position, 2));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeBatch {
    /// Its number, in its history. Kept in a safe place, it is where [`SubscribeOptions::after`] goes on.
    pub position: Position,
    /// When it was committed, in milliseconds since 1970-01-01 00:00 UTC.
    pub time_ms: u64,
    /// What it did: ranges that were removed first, then what became of single keys, in their order.
    pub changes: Vec<Change>,
}

/// What a batch did to a key, a range or a keyspace.
///
/// ```
/// use stillframe::{Cause, Database, SubscribeOptions};
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// let mut changes = db.subscribe(SubscribeOptions::new())?;
/// films.insert("Metropolis", "1927")?;
/// let batch = changes.recv()?;
/// let change = &batch.changes[0];
/// assert_eq!((&*change.keyspace, change.cause), ("films", Cause::Write));
/// assert_eq!(change.key().unwrap(), "Metropolis");
/// assert_eq!(change.value().unwrap(), "1927");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The name of the keyspace.
    pub keyspace: Arc<str>,
    /// Who did it.
    pub cause: Cause,
    /// What was done.
    pub kind: ChangeKind,
}

/// Who changed something.
///
/// ```
/// use std::time::Duration;
/// use stillframe::{Cause, Database, SubscribeOptions, WriteOptions};
///
/// let db = Database::in_memory();
/// let sessions = db.keyspace("sessions")?;
/// let mut changes = db.subscribe(SubscribeOptions::new())?;
/// sessions.insert_with("ann", "", WriteOptions::new().ttl(Duration::from_millis(20)))?;
/// assert_eq!(changes.recv()?.changes[0].cause, Cause::Write);
/// // Readers see it no more after 20 ms; the sweep that removes it follows.
/// assert_eq!(changes.recv()?.changes[0].cause, Cause::Expiry);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Somebody wrote.
    Write,
    /// The entry's time was past.
    Expiry,
}

/// What was done by a [`Change`].
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// use stillframe::{ChangeKind, SubscribeOptions};
///
/// let mut changes = db.subscribe(SubscribeOptions::new())?;
/// films.insert("Metropolis", "1927")?;
/// for change in changes.recv()?.changes {
///     match change.kind {
///         ChangeKind::Put { key, value, .. } => println!("{}: {key:?} is {value:?}", change.keyspace),
///         other => println!("{other:?}"),
///     }
/// }
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The key has this value from now on.
    Put {
        /// The key.
        key: Slice,
        /// Its value.
        value: Slice,
        /// When it expires, in milliseconds since 1970-01-01 00:00 UTC, if it does.
        expires_at: Option<u64>,
    },
    /// The key has no value from now on.
    Remove {
        /// The key.
        key: Slice,
    },
    /// No key of the range has a value from now on, but for those that the same batch puts.
    RemoveRange {
        /// The first key of the range.
        low: Slice,
        /// The first key behind it; `None`: to the end of the keyspace.
        high: Option<Slice>,
    },
    /// The keyspace was made.
    CreateKeyspace,
    /// The keyspace is gone. Its entries were removed before, in the same batch.
    DropKeyspace,
}

impl Change {
    /// The key that was put or removed; `None` for what concerns more than one.
    pub fn key(&self) -> Option<&Slice> {
        match &self.kind {
            ChangeKind::Put { key, .. } | ChangeKind::Remove { key } => Some(key),
            _ => None,
        }
    }

    /// The value that was put.
    pub fn value(&self) -> Option<&Slice> {
        match &self.kind {
            ChangeKind::Put { value, .. } => Some(value),
            _ => None,
        }
    }
}

/// Every change since a batch, in order, each once: see [`Database::subscribe`].
///
/// An iterator too: over the batches to come, waiting for each, to the end of the database or the first error that lasts. To be read by one
/// thread; it may be handed from one to another. Memory: 64 KiB of batches, or the largest one, read ahead; about three times that as
/// they are held here.
///
/// ```
/// use stillframe::{Database, SubscribeOptions};
///
/// let db = Database::in_memory();
/// let mut changes = db.subscribe(SubscribeOptions::new().keyspace("words"))?;
/// let reader = std::thread::spawn(move || changes.by_ref().map(|batch| batch.unwrap()).count());
/// let words = db.keyspace("words")?;
/// words.insert("film", "moves")?;
/// words.insert("still", "does not")?;
/// db.close()?;
/// assert_eq!(reader.join().unwrap(), 3); // the first made the keyspace
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct Subscription {
    /// The subscription does not keep the database.
    engine: Weak<Engine>,
    signals: Arc<Signals>,
    ending: Arc<Ending>,
    after_durable: bool,
    wanted: Option<BTreeMap<String, Vec<Vec<u8>>>>,
    /// None after an error: it is found anew.
    reading: Option<Reading>,
    ready: VecDeque<ChangeBatch>,
    /// All up to here was received, or left out since nobody asked for it.
    position: Position,
    /// The histories that led there, as far as they are known.
    line: Vec<Span>,
    /// Why it doesn't go on.
    over: Option<Over>,
    /// Whether the iterator has told.
    is_told: bool,
    woken: Option<Instant>,
}

struct Reading {
    feed: Feed,
    lease: Lease,
    names: Names,
}

/// Why nothing comes any more.
#[derive(Debug, Clone, Copy)]
enum Over {
    Closed,
    Lagged { requested: Seq, oldest: Seq },
    Rewound { position: Position, to: Option<Seq> },
}

impl Over {
    fn error(self) -> Error {
        match self {
            Over::Closed => Error::Closed,
            Over::Lagged { requested, oldest } => Error::Lagged { requested, oldest },
            Over::Rewound { position, to } => Error::Rewound { position, to },
        }
    }
}

/// Is told when the database ends.
#[derive(Default)]
struct Ending {
    is_over: AtomicBool,
    signal: Arc<Signal>,
}

impl Attendant for Ending {
    fn end(&self) {
        // Release: who sees it sees that nothing is committed any more.
        self.is_over.store(true, Ordering::Release);
        self.signal.wake();
    }
}

/// How reading went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// There is more.
    More,
    /// All there is was read.
    All,
}

impl Database {
    /// Every change from now on, or since an earlier batch: each once, in order, batches whole. What was durable or acknowledged before it was read makes no difference: see
    /// [`SubscribeOptions::after_durable`].
    ///
    /// It reads the log: that of the directory, or one in memory, which a database without a directory begins with the first subscriber or replica
    /// and keeps from then on ([`Builder::backlog_bytes`](crate::Builder::backlog_bytes); each write is encoded once more). A subscriber that does not read
    /// costs writers nothing; what it has not read is kept up to
    /// [`Builder::keep_log_for_replicas`](crate::Builder::keep_log_for_replicas), and then it gets [`Error::Lagged`], never a gap. After a crash it goes
    /// on [after](SubscribeOptions::after) the position that its reader stored. A replica has subscribers of its own, who are told of every state that came without
    /// its batches. Cost: from now on, little; since an earlier batch, the segment of the log that has it is read up to there, and what follows is read twice.
    ///
    /// # Errors
    /// [`Error::Lagged`]: the log does not go back so far. [`Error::Rewound`]: that batch is not on the line. [`Error::Closed`], [`Error::LogFailed`],
    /// [`Error::Io`], [`Error::Corrupt`], [`Error::Poisoned`].
    pub fn subscribe(&self, options: SubscribeOptions) -> Result<Subscription> {
        let engine = self.engine();
        // Until the log is held no other state takes the place of this one.
        let _placing = engine.placing.lock();
        // Before the cut: what follows it is in the log from then on.
        let log = engine.source_log()?;
        let _lease = log.lease(log.written());
        let still = Arc::new(Still::take(engine.tree(), Holder::Range)?);
        Subscription::begin(engine, options, &still)
    }

    /// A still, and every change that is not in it: to hold a copy of the data elsewhere. One cut for both; what `options` say of the beginning means
    /// nothing.
    ///
    /// ```
    /// use stillframe::{Database, SubscribeOptions};
    ///
    /// let db = Database::in_memory();
    /// let words = db.keyspace("words")?;
    /// words.insert("film", "moves")?;
    /// let (still, mut changes) = db.snapshot_and_subscribe(SubscribeOptions::new())?;
    /// words.insert("still", "does not")?;
    /// assert_eq!(still.keyspace("words")?.len()?, 1);
    /// assert_eq!(changes.recv()?.changes[0].value().unwrap(), "does not");
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`subscribe`](Database::subscribe) and [`snapshot`](Database::snapshot).
    pub fn snapshot_and_subscribe(
        &self,
        options: SubscribeOptions,
    ) -> Result<(Snapshot, Subscription)> {
        let engine = self.engine();
        // As in `subscribe`.
        let _placing = engine.placing.lock();
        let log = engine.source_log()?;
        let _lease = log.lease(log.written());
        let snapshot = Snapshot::take(engine)?;
        let options = SubscribeOptions { start: Start::After(snapshot.position()), ..options };
        let subscription = Subscription::begin(engine, options, &snapshot.still)?;
        Ok((snapshot, subscription))
    }
}

impl Subscription {
    /// `still` is of the present, or was when the log was first held.
    fn begin(engine: &Arc<Engine>, options: SubscribeOptions, still: &Arc<Still>) -> Result<Self> {
        let SubscribeOptions { start, wanted, after_durable } = options;
        let ending = Arc::new(Ending::default());
        engine.attend(Arc::downgrade(&ending) as Weak<dyn Attendant>);
        engine.signals.add(&ending.signal);
        engine.tree().commit.check_open()?;
        let newest = still.cut().position;
        let position = match start {
            Start::Now => newest,
            Start::After(position) => position,
            Start::AfterSeq(seq) if seq > newest.seq => {
                let position = Position { seq, ..newest };
                return Err(Error::Rewound { position, to: Some(newest.seq) });
            }
            Start::AfterSeq(seq) => Position { seq, ..Position::default() },
        };
        let Position { history, seq } = position;
        let mut subscription = Self {
            engine: Arc::downgrade(engine),
            signals: Arc::clone(&engine.signals),
            ending,
            after_durable: after_durable && engine.log().is_some(),
            wanted,
            reading: None,
            ready: VecDeque::new(),
            position,
            line: vec![Span { history, term: 0, writer: [0; 16], start: seq, end: seq }],
            over: None,
            is_told: false,
            woken: None,
        };
        let is_any = matches!(start, Start::AfterSeq(_));
        match subscription.find(engine, still, is_any)? {
            Some(over) => Err(over.error()),
            None => Ok(subscription),
        }
    }

    /// Finds its place in the log of the line that `still` is on, whichever batch has the number if `is_any`. Nothing else is put in the place of that state
    /// meanwhile.
    fn find(&mut self, engine: &Engine, still: &Arc<Still>, is_any: bool) -> Result<Option<Over>> {
        let (cut, log, position) = (still.cut(), engine.source_log()?, self.position);
        let lineage = cut.lineage();
        if !is_any && !has(&lineage, position) && !planted(Bug::ResumesAnywhere) {
            return Ok(Some(Over::Rewound { position, to: fork(&self.line, &lineage) }));
        }
        let lease = log.lease(position.seq);
        log.write_out(&engine.tree().commit, cut.position.seq).map_err(Error::LogFailed)?;
        let feed = match Feed::open_near_end(log, position.seq)? {
            None if planted(Bug::LagUntold) => Feed::open(log, log.base().position.seq)?,
            feed => feed,
        };
        let Some(feed) = feed else { return Self::lagged(log, position) };
        let mut names = Names::of(still, self.wanted.as_ref())?;
        if position.seq < cut.position.seq {
            // What a number of a keyspace meant there, another run may have given to another since.
            let Some(ahead) = Feed::open(log, feed.position().seq)? else {
                return Self::lagged(log, position);
            };
            if !names.go_back(ahead, cut.position.seq)? {
                return Self::lagged(log, position);
            }
        }
        self.position = feed.position();
        self.line = lineage;
        self.line.retain(|span| span.start <= self.position.seq);
        self.reading = Some(Reading { feed, lease, names });
        Ok(None)
    }

    fn lagged(log: &Arc<Log>, position: Position) -> Result<Option<Over>> {
        let requested = Seq(position.seq.0.saturating_add(1));
        Ok(Some(Over::Lagged { requested, oldest: Feed::oldest(log)? }))
    }

    /// The next batch; waits for it.
    ///
    /// # Errors
    /// [`Error::Closed`]: the database was closed, and all that it had committed was received; or its last handle was dropped. [`Error::Lagged`],
    /// [`Error::Rewound`]: nothing comes any more. [`Error::LogFailed`], [`Error::Io`], [`Error::Corrupt`], [`Error::Poisoned`]: said again goes on where it was, if it can.
    pub fn recv(&mut self) -> Result<ChangeBatch> {
        loop {
            if let Some(batch) = self.next_within(Some(LONG))? {
                return Ok(batch);
            }
        }
    }

    /// The next batch; `None` if none comes in time.
    ///
    /// # Errors
    /// Those of [`recv`](Self::recv).
    pub fn recv_timeout(&mut self, within: Duration) -> Result<Option<ChangeBatch>> {
        self.next_within(Some(within))
    }

    /// The next batch; `None` if all that was committed was received.
    ///
    /// # Errors
    /// Those of [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<ChangeBatch>> {
        self.next_within(None)
    }

    /// The last batch that was received, or one behind it if what lies between was not asked for. [After](SubscribeOptions::after) it another subscription goes on
    /// where this one is.
    pub fn received(&self) -> Position {
        self.position
    }

    /// Batches that were committed and not received.
    pub fn lag(&self) -> u64 {
        let newest = self.engine.upgrade().map(|engine| engine.tree().commit.position().seq);
        newest.map_or(0, |newest| newest.0.saturating_sub(self.position.seq.0))
    }

    fn next_within(&mut self, within: Option<Duration>) -> Result<Option<ChangeBatch>> {
        let deadline = within.map(|within| Instant::now().checked_add(within));
        let mut is_stuck = false;
        loop {
            if let Some(batch) = self.ready.pop_front() {
                self.position = batch.position;
                return Ok(Some(batch));
            }
            if let Some(reading) = &self.reading {
                self.position = reading.feed.position();
            }
            if let Some(over) = self.over {
                return Err(over.error());
            }
            // Before it is read: nothing is committed afterwards.
            let is_over = self.ending.is_over.load(Ordering::Acquire);
            let engine = self.engine.upgrade();
            let filled = self.fill(engine.as_ref());
            if is_over && filled.is_err() {
                // The rest never comes.
                self.over = Some(Over::Closed);
            }
            let filled = filled?;
            if filled == Filled::More || !self.ready.is_empty() || self.over.is_some() {
                is_stuck = false;
                continue;
            }
            let Some(engine) = engine.filter(|_| !is_over) else {
                self.over = Some(Over::Closed);
                continue;
            };
            let Some(deadline) = deadline else { return Ok(None) };
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.unwrap_or(LONG);
            if left.is_zero() {
                return Ok(None);
            }
            let woken = self.woken.map_or(NAP, |woken| woken.elapsed());
            if let Some(nap) = NAP.checked_sub(woken).filter(|nap| !nap.is_zero()) {
                drop(engine);
                self.ending.signal.wait(nap.min(left));
                continue;
            }
            self.signals.want(&self.ending.signal);
            let read = self.reading.as_ref().map(|reading| reading.feed.position());
            let is_behind = read != Some(engine.tree().commit.position());
            // Not while it waits: the last handle may be dropped.
            drop(engine);
            if !is_behind {
                self.ending.signal.wait(left.min(LONG));
                self.woken = Some(Instant::now());
            } else if is_stuck {
                // What is not durable yet, or another state on its way to the disk.
                self.ending.signal.wait(left.min(LOOK));
            }
            is_stuck = is_behind;
        }
    }

    /// Reads on; without the database, what is in its log.
    fn fill(&mut self, engine: Option<&Arc<Engine>>) -> Result<Filled> {
        let filled = match engine {
            Some(engine) => self.read_on(engine),
            None => self.read(Seq(u64::MAX)),
        };
        if filled.is_err() {
            self.reading = None;
        }
        // What was read before comes first; whatever it was fails again.
        if self.ready.is_empty() { filled } else { Ok(Filled::More) }
    }

    fn read_on(&mut self, engine: &Arc<Engine>) -> Result<Filled> {
        let commit = &engine.tree().commit;
        commit.check()?;
        if self.reading.is_none() {
            // Held: another state is put in the place of the present. That may take long.
            let Some(_placing) = engine.placing.try_lock() else { return Ok(Filled::All) };
            let still = Arc::new(Still::take(engine.tree(), Holder::Range)?);
            match self.find(engine, &still, false) {
                Err(Error::LogFailed(failure)) if failure.op == SUSPENDED => {
                    return Ok(Filled::All);
                }
                found => self.over = found?,
            }
            if let Some(over) = self.over {
                notices::warn(|| format!("a subscription ends: {}", over.error()));
            }
            if self.over.is_some() {
                return Ok(Filled::All);
            }
        }
        let (mut last, log) = (commit.position().seq, engine.source_log()?);
        let written = match log.write_out(commit, last) {
            Err(failure) if failure.op == SUSPENDED => Ok(()),
            written => written,
        };
        if self.after_durable {
            last = last.min(log.durable());
        }
        match self.read(last)? {
            Filled::All if self.ready.is_empty() => {
                written.map_err(Error::LogFailed).map(|()| Filled::All)
            }
            filled => Ok(filled),
        }
    }

    /// Reads what is in the log, up to `last`.
    fn read(&mut self, last: Seq) -> Result<Filled> {
        let Some(Reading { feed, lease, names }) = &mut self.reading else {
            return Ok(Filled::All);
        };
        lease.move_to(self.position.seq);
        let (ready, line) = (&mut self.ready, &mut self.line);
        let mut position = feed.position();
        let mut damaged = None;
        let mut show = |shown: Shown<'_>| {
            let Shown::Record { header, body } = shown else { return };
            position.seq = header.seq;
            if damaged.is_some() {
                return;
            }
            let read = match header.kind {
                RecordKind::Batch => {
                    let batch = names.show(body).map(|changes| (changes, header.time_ms));
                    batch.map(|(changes, time_ms)| {
                        if !changes.is_empty() {
                            ready.push_back(ChangeBatch { position, time_ms, changes });
                        }
                    })
                }
                RecordKind::History => HistoryBody::decode(body).map(|body| {
                    let HistoryBody { history, term, writer } = body;
                    position.history = history;
                    let (start, end) = (header.seq, header.seq);
                    line.push(Span { history, term, writer, start, end });
                }),
            };
            damaged = read.err();
        };
        let fed = feed.next(last, AHEAD, &mut show)?;
        if let Some(span) = line.last_mut() {
            span.end = feed.position().seq;
        }
        if let Some(damage) = damaged {
            return Err(Error::corrupt(&feed.path(), damage.at, damage.fault));
        }
        if ready.is_empty() {
            self.position = feed.position();
        }
        Ok(match fed {
            Fed::All => Filled::All,
            Fed::More => Filled::More,
            Fed::Gone => {
                self.reading = None;
                Filled::More
            }
        })
    }
}

impl Iterator for Subscription {
    type Item = Result<ChangeBatch>;

    /// `None` once the database is closed, and after an error that lasts.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_told {
            return None;
        }
        let next = self.recv();
        self.is_told = self.over.is_some() && next.is_err();
        if matches!(next, Err(Error::Closed)) { None } else { Some(next) }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subscription(after {})", self.position)
    }
}

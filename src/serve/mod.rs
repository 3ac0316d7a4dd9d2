//! Replicas of a database are served: who listens, and the threads of each session.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::{deadline, uptime_ms};
use crate::commit::Role;
use crate::database::{Database, Engine};
use crate::position::{Position, Seq};
use crate::replication::auth::Side;
use crate::replication::framing::Secrets;
use crate::replication::link::listener::{Address, Listener};
use crate::replication::link::{Link, SocketAddr};
use crate::roles::Attendant;
use crate::serve::drive::{Drive, Stop, drive};
use crate::serve::hub::{AckLevel, ReplicaInfo, SyncCounts};
use crate::serve::session::{SessionLimits, SourceSession};
use crate::serve::signal::Signal;
use crate::{Error, LinkKey, Result};

pub(crate) mod drive;
pub(crate) mod hub;
pub(crate) mod session;
pub(crate) mod signal;
#[cfg(feature = "simulation")]
pub(crate) mod speaker;
pub(crate) mod transfer;
#[cfg(feature = "simulation")]
pub(crate) mod turns;

/// How replicas are served.
///
/// ```
/// use std::time::Duration;
/// use stillframe::{Database, Error, LinkKey, PrimaryOptions};
///
/// let db = Database::in_memory();
/// let orders = db.keyspace("orders")?;
/// let options = PrimaryOptions::new()
///     .key(LinkKey::new([7; 32]))
///     .min_replicas(1, Duration::from_secs(10));
/// let primary = db.serve_replicas(options)?;
/// // Nobody follows yet.
/// assert!(matches!(orders.insert("1001", "three reels"), Err(Error::TooFewReplicas { .. })));
/// # drop(primary);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PrimaryOptions {
    pub(crate) keys: Vec<LinkKey>,
    pub(crate) beat: Duration,
    pub(crate) timeout: Duration,
    pub(crate) threads: usize,
    pub(crate) always_compresses: bool,
    pub(crate) after_durable: bool,
    pub(crate) most_pending: usize,
    pub(crate) most_transfers: usize,
    pub(crate) most_sessions: usize,
    pub(crate) name: String,
    pub(crate) min_replicas: (usize, Duration),
    pub(crate) run_bytes: Option<usize>,
}

impl Default for PrimaryOptions {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            beat: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            threads: thread::available_parallelism().map_or(1, usize::from),
            always_compresses: false,
            after_durable: false,
            most_pending: 16,
            most_transfers: 2,
            most_sessions: 64,
            name: String::new(),
            min_replicas: (0, Duration::from_secs(10)),
            run_bytes: None,
        }
    }
}

impl PrimaryOptions {
    /// The defaults: nobody has to prove anything; whoever can connect gets all data. Good for links within a process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replicas have to prove that they have this key, and so does this node to them; every frame is proven by it. Given again, either key will do: keys can be
    /// changed without a pause.
    #[must_use]
    pub fn key(mut self, key: LinkKey) -> Self {
        self.keys.push(key);
        self
    }

    /// Says so often that it is there; default 1 s.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.beat = every.max(Duration::from_millis(1));
        self
    }

    /// A replica that says nothing for so long is gone, and one that connects has so long to prove who it is; default 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// So many threads encode leaves for a replica that needs them; default: as many as there are processors.
    #[must_use]
    pub fn encoding_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Compresses all that is sent of a state, for a link whose bytes cost something. By default a full sync is compressed once the link
    /// has proven slower than 120 MB/s; the leaves of a delta always are.
    #[must_use]
    pub fn always_compress(mut self, always: bool) -> Self {
        self.always_compresses = always;
        self
    }

    /// Sends nothing before it is durable here: no power cut of this node then leaves a replica with a write that this node has lost. The price is lag, of
    /// as long as it takes until something is synced: see [`Durability`](crate::Durability). Default: writes are sent as they are made; what this node has lost it
    /// takes back from a replica, or the replica gives it up.
    #[must_use]
    pub fn replicate_after_durable(mut self, after: bool) -> Self {
        self.after_durable = after;
        self
    }

    /// So many connections may have proven nothing yet; one more is closed at once. Default 16. Two threads and
    /// at most 4 KiB of what came are spent on each, for no longer than [`timeout`](Self::timeout).
    #[must_use]
    pub fn max_pending_handshakes(mut self, most: usize) -> Self {
        self.most_pending = most.max(1);
        self
    }

    /// So many replicas are sent leaves at once, the others wait; default 2. Each holds a still while its leaves are encoded:
    /// for seconds, however slow the replica, where there is a directory to put aside what it has not read; in memory, for as long as it takes.
    #[must_use]
    pub fn concurrent_full_syncs(mut self, most: usize) -> Self {
        self.most_transfers = most.max(1);
        self
    }

    /// So many connections are served at once, those that have proven nothing yet included; default 64.
    #[must_use]
    pub fn max_connections(mut self, most: usize) -> Self {
        self.most_sessions = most.max(1);
        self
    }

    /// What this node calls itself; for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = short(name.into());
        self
    }

    /// Writes are refused with [`Error::TooFewReplicas`] while fewer than `count` replicas were heard within `max_lag`; default 0.
    ///
    /// It narrows what is lost with the primary, and proves nothing: that is [`Primary::wait`]'s.
    #[must_use]
    pub fn min_replicas(mut self, count: usize, max_lag: Duration) -> Self {
        self.min_replicas = (count, max_lag.max(Duration::from_millis(10)));
        self
    }

    /// Leaves go in blocks of about so many bytes of keys and values, so that few entries fill many. Outside semver.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn block_bytes(mut self, bytes: usize) -> Self {
        self.run_bytes = Some(bytes);
        self
    }
}

/// A name that fits into a hello.
pub(crate) fn short(mut name: String) -> String {
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

/// A database whose replicas are served, for as long as this or a clone of it is held.
///
/// A replica may serve replicas of its own: it passes on what it gets.
///
/// ```
/// use stillframe::{Database, LinkKey, PrimaryOptions, ReplicaSource};
/// # use stillframe::AckLevel;
/// # use std::time::Duration;
///
/// let key = LinkKey::new([7; 32]);
/// let db = Database::in_memory();
/// let primary = db.serve_replicas(PrimaryOptions::new().key(key.clone()))?;
/// let address = primary.listen_tcp("127.0.0.1:0")?;
///
/// let copy = Database::in_memory();
/// let replica = copy.follow(ReplicaSource::tcp(address.to_string()).key(key))?;
/// db.keyspace("orders")?.insert("1001", "three reels")?;
/// primary.wait(db.position(), 1, AckLevel::Applied, Duration::from_secs(10))?;
/// assert_eq!(copy.position(), db.position());
/// replica.stop();
/// primary.shutdown();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone)]
pub struct Primary {
    serving: Arc<Serving>,
}

struct Serving {
    sessions: Arc<Sessions>,
    listeners: Mutex<Vec<Listener>>,
    gate: Mutex<Option<JoinHandle<()>>>,
}

/// What listeners have as well.
struct Sessions {
    engine: Weak<Engine>,
    options: PrimaryOptions,
    all: Mutex<Vec<(Arc<Stop>, JoinHandle<()>)>>,
    /// Connections that have proven nothing yet.
    pending: Arc<AtomicUsize>,
    /// Set under that lock.
    is_over: AtomicBool,
}

impl Database {
    /// Serves replicas: on addresses it is told to [listen](Primary::listen_tcp) on, and on links it is [given](Primary::attach).
    ///
    /// ```
    /// use std::time::Duration;
    /// use stillframe::{AckLevel, Database, Link, PrimaryOptions, ReplicaSource};
    ///
    /// let film = Database::in_memory();
    /// let primary = film.serve_replicas(PrimaryOptions::new())?;
    /// let copy = Database::in_memory();
    /// let replica = {
    ///     let primary = primary.clone();
    ///     copy.follow(ReplicaSource::links(move || {
    ///         let (ours, theirs) = Link::pair();
    ///         primary.attach(theirs);
    ///         Ok(ours)
    ///     }))?
    /// };
    /// film.keyspace("frames")?.insert("1", "a train arrives")?;
    /// primary.wait(film.position(), 1, AckLevel::Applied, Duration::from_secs(10))?;
    /// assert_eq!(copy.keyspace("frames")?.get("1")?.unwrap(), "a train arrives");
    /// replica.stop();
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// A database in memory keeps a log in memory from now on, of at most 256 MiB: what replicas have not read yet.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Poisoned`].
    pub fn serve_replicas(&self, options: PrimaryOptions) -> Result<Primary> {
        let engine = self.engine();
        engine.tree().commit.check_open()?;
        engine.source_log()?;
        engine.hub.set_most_transfers(options.most_transfers);
        let sessions = Arc::new(Sessions {
            engine: Arc::downgrade(engine),
            options,
            all: Mutex::default(),
            pending: Arc::default(),
            is_over: AtomicBool::new(false),
        });
        engine.attend(Arc::downgrade(&sessions) as Weak<dyn Attendant>);
        let gate = (sessions.options.min_replicas.0 > 0).then(|| {
            // Not only once the thread has begun.
            sessions.look_at_gate();
            sessions.watch_gate()
        });
        let (listeners, gate) = (Mutex::default(), Mutex::new(gate));
        Ok(Primary { serving: Arc::new(Serving { sessions, listeners, gate }) })
    }
}

impl Primary {
    /// Listens on a TCP address, such as `"127.0.0.1:7878"`; port 0 lets the system choose. Returns where it listens.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn listen_tcp(&self, address: &str) -> Result<SocketAddr> {
        let sessions = Arc::clone(&self.serving.sessions);
        let listener = Listener::tcp(address, move |link| sessions.attach(link));
        let listener =
            listener.map_err(|source| Error::io("listen on", Path::new(address), source))?;
        let bound = match listener.address() {
            Address::Tcp(bound) => *bound,
            Address::Unix(_) => unreachable!("it was asked to listen on TCP"),
        };
        lock(&self.serving.listeners).push(listener);
        Ok(bound)
    }

    /// Listens on a Unix socket, whose file is for its owner alone and goes when this does.
    ///
    /// # Errors
    /// [`Error::Io`]; with `AddrInUse` if somebody listens there.
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> Result<()> {
        let (sessions, path) = (Arc::clone(&self.serving.sessions), path.as_ref());
        let listener = Listener::unix(path, move |link| sessions.attach(link));
        let listener = listener.map_err(|source| Error::io("listen on", path, source))?;
        lock(&self.serving.listeners).push(listener);
        Ok(())
    }

    /// Serves the replica at the other end of a link. It is dropped if there are as many as there may be, or this has been shut down.
    pub fn attach(&self, link: Link) {
        self.serving.sessions.attach(link);
    }

    /// The replicas that are connected.
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        let Some(engine) = self.serving.sessions.engine.upgrade() else { return Vec::new() };
        engine.hub.replicas(engine.tree().commit.position().seq)
    }

    /// How replicas caught up, since the database was opened.
    pub fn counts(&self) -> SyncCounts {
        self.serving.sessions.engine.upgrade().map(|engine| engine.hub.counts()).unwrap_or_default()
    }

    /// Waits until the batch is durable here, if there is a directory, and `count` replicas have it. Returns how many have.
    ///
    /// What it promises: the batch outlives this node if one of the replicas that have it is promoted, and any restart of this
    /// node; nothing if a replica is promoted that has not said so.
    ///
    /// # Errors
    /// [`Error::NotAcked`] after `timeout`: it may reach them still. [`Error::NotDurable`]. [`Error::Gone`] if the batch is not on the line of this database.
    pub fn wait(
        &self,
        position: Position,
        count: usize,
        level: AckLevel,
        timeout: Duration,
    ) -> Result<usize> {
        let engine = self.serving.sessions.engine.upgrade().ok_or(Error::Closed)?;
        let standing = engine.tree().commit.standing();
        if !crate::replication::line::has(&standing.lineage, position) {
            return Err(Error::Gone { fork: None });
        }
        if let Some(log) = engine.log() {
            let synced = log.sync(&engine.tree().commit, position.seq);
            synced.map_err(|failure| Error::NotDurable { position, failure })?;
        }
        let acked = engine.hub.wait(&engine, position, count, level, timeout);
        if acked >= count { Ok(acked) } else { Err(Error::NotAcked { acked, wanted: count }) }
    }

    /// Makes the replica `to` the primary, without losing a write: new writes wait, what was written is brought to it, then it is told that from here on it
    /// alone writes. The database is a replica then, which follows nobody yet; writes that waited fail with [`Error::ReadOnly`].
    ///
    /// Cost: writers wait for about two round trips and two syncs. A crash before the last step leaves this node as it was; after
    /// it, this node takes no writes, and the other does as soon as it has heard of it, now or when it comes back. Should it never come back, another is
    /// [promoted](Database::promote).
    ///
    /// # Errors
    /// [`Error::NotAcked`] if the replica is not connected, or not any more, or does not get there within `timeout`, as one in memory never does whose
    /// primary is in a directory: nothing has happened.
    /// [`Error::NotDurable`]: nobody writes, until somebody is promoted. [`Error::ReadOnly`], [`Error::LogFailed`], [`Error::Closed`].
    pub fn hand_over(&self, to: [u8; 16], timeout: Duration) -> Result<Position> {
        /// Who is farther behind is waited for before writers are.
        const NEAR: u64 = 10_000;
        let engine = self.serving.sessions.engine.upgrade().ok_or(Error::Closed)?;
        let commit = &engine.tree().commit;
        let _one = engine.handing.lock();
        commit.check_writable()?;
        let deadline = deadline(timeout);
        let left = || deadline.saturating_duration_since(Instant::now());
        let missing = || Error::NotAcked { acked: 0, wanted: 1 };
        let near = Seq(commit.position().seq.0.saturating_sub(NEAR));
        let near = crate::replication::line::at(&commit.standing().lineage, near);
        // What is never durable there is not found out while writers wait.
        let level = engine.log().map_or(AckLevel::Applied, |_| AckLevel::Durable);
        if !engine.hub.wait_for_node(&engine, to, near, level, left()) {
            return Err(missing());
        }
        let gate = Gate::shut(&engine);
        let last = commit.position();
        if let Some(log) = engine.log() {
            let synced = log.sync(commit, last.seq);
            synced.map_err(|failure| Error::NotDurable { position: last, failure })?;
        }
        if !engine.hub.wait_for_node(&engine, to, last, level, left()) {
            return Err(missing());
        }
        let handed = engine.hand_to(to);
        drop(gate);
        handed
    }

    /// Ends all sessions and listens no more. Returns when all threads have ended.
    pub fn shutdown(&self) {
        self.serving.end();
    }
}

/// Writers wait for as long as it lives.
struct Gate<'a>(&'a Engine);

impl<'a> Gate<'a> {
    fn shut(engine: &'a Engine) -> Self {
        engine.tree().commit.set_gate(true);
        Gate(engine)
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.0.tree().commit.set_gate(false);
    }
}

impl fmt::Debug for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Primary({} replicas)", self.replicas().len())
    }
}

impl Serving {
    fn end(&self) {
        self.sessions.end();
        // Nobody is let in any more.
        drop(std::mem::take(&mut *lock(&self.listeners)));
        // Not under its lock: one of them may be the last that has the database, whose end comes here.
        let all = std::mem::take(&mut *lock(&self.sessions.all));
        for (stop, thread) in all {
            stop.close();
            // A panic there is our bug; what it left behind is a link that ends.
            let _ = thread.join();
        }
        if let Some(gate) = lock(&self.gate).take() {
            gate.thread().unpark();
            let _ = gate.join();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    fn attach(&self, link: Link) {
        let Some(engine) = self.engine.upgrade() else { return };
        let mut all = lock(&self.all);
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        // Threads that have ended leave nothing behind but their handles.
        all.retain(|(_, thread)| !thread.is_finished());
        // Relaxed: a count.
        let pending = self.pending.load(Ordering::Relaxed);
        if all.len() >= self.options.most_sessions || pending >= self.options.most_pending {
            return;
        }
        let pending = Pending::of(&self.pending);
        let stop = Arc::new(Stop::default());
        let how = Drive {
            side: Side::Server,
            secrets: Secrets { keys: self.options.keys.clone(), binding: [0; 32] },
            timeout: self.options.timeout,
            beat: self.options.beat,
            max_body_len: 0,
            stop: Arc::clone(&stop),
        };
        let limits = limits(&self.options);
        let engine = Arc::downgrade(&engine);
        let thread = thread::Builder::new().name("stillframe-serve".into());
        let thread = thread.spawn(move || serve(&engine, link, &how, limits, pending));
        all.push((stop, thread.expect("the system starts a thread")));
    }

    /// Refuses writes if too few replicas are in touch, else takes them.
    fn look_at_gate(&self) {
        let (count, max_lag) = self.options.min_replicas;
        let Some(engine) = self.engine.upgrade() else { return };
        let connected = engine.hub.in_touch(max_lag);
        let too_few = (connected < count && engine.tree().commit.role() == Role::Primary)
            .then_some((connected, count));
        // Who ends it opens the gate for good.
        let _all = lock(&self.all);
        if !self.is_over.load(Ordering::Relaxed) {
            engine.tree().commit.set_too_few_replicas(too_few);
        }
    }

    /// The thread that looks at the gate.
    fn watch_gate(self: &Arc<Self>) -> JoinHandle<()> {
        let pause = self.options.min_replicas.1 / 10;
        let sessions = Arc::clone(self);
        let look = move || {
            while !sessions.is_over.load(Ordering::Relaxed) && sessions.engine.strong_count() > 0 {
                sessions.look_at_gate();
                thread::park_timeout(pause);
            }
        };
        let thread = thread::Builder::new().name("stillframe-gate".into());
        thread.spawn(look).expect("the system starts a thread")
    }
}

/// A connection that has proven nothing yet.
struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn limits(options: &PrimaryOptions) -> SessionLimits {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    SessionLimits {
        beat_ms: ms(options.beat),
        timeout_ms: ms(options.timeout),
        threads: options.threads,
        always_compresses: options.always_compresses,
        after_durable: options.after_durable,
        drops_first: false,
        run_bytes: options.run_bytes,
        max_body_len: crate::format::record::MAX_BODY_LEN_U32,
        name: options.name.clone(),
    }
}

/// One session, from its first byte to its last.
fn serve(engine: &Weak<Engine>, link: Link, how: &Drive, limits: SessionLimits, pending: Pending) {
    let signal = Arc::new(Signal::default());
    let Some(strong) = engine.upgrade() else { return };
    strong.signals.add(&signal);
    let hub = Arc::clone(&strong.hub);
    let id = hub.enter(link.peer(), &signal);
    drop(strong);
    let begin = || {
        drop(pending);
        SourceSession::new((engine, &hub), id, limits, Arc::clone(&signal), uptime_ms())
    };
    // Why it ends the replica is told, and who looks after it.
    let _ = drive(link, how, &signal, begin);
    hub.leave(id);
}

impl Attendant for Sessions {
    fn end(&self) {
        {
            let all = lock(&self.all);
            self.is_over.store(true, Ordering::Relaxed);
            all.iter().for_each(|(stop, _)| stop.stop());
        }
        // With no lock held: whoever lets the database go last ends it, and comes here again.
        if let Some(engine) = self.engine.upgrade() {
            engine.tree().commit.set_too_few_replicas(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session may be the last that has the database; its end is told to whoever attends it, under the locks that these take.
    #[test]
    fn a_session_may_end_the_database() {
        let db = Database::in_memory();
        let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
        let sessions = Arc::clone(&primary.serving.sessions);
        let (stop, ends) = (Arc::new(Stop::default()), Arc::clone(&sessions));
        let (told, last) = (Arc::clone(&stop), db);
        let thread = thread::spawn(move || {
            // Until it is waited for.
            while !told.is_set() || ends.all.try_lock().is_ok_and(|all| !all.is_empty()) {
                thread::yield_now();
            }
            drop(last);
        });
        lock(&sessions.all).push((stop, thread));
        primary.shutdown();
    }
}

//! A database follows another: finds its source, stays with it, begins again when the link is lost.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::{deadline, uptime_ms};
use crate::commit::Role;
use crate::database::{Database, Engine};
use crate::error::SyncRefused;
use crate::follow::session::{Kept, ReplicaSession, Stage};
use crate::format::wire::{Backlog, Bye, Reason};
use crate::notices;
use crate::position::{Position, Seq};
use crate::replication::auth::Side;
use crate::replication::framing::Secrets;
use crate::replication::line::has;
use crate::replication::link::Link;
use crate::roles::Attendant;
use crate::serve::drive::{Chore, Drive, LinkEnd, Machine, Stop, drive};
use crate::serve::hub::{SyncCounts, SyncKind, lasts};
use crate::serve::session::{Ended, Filled, SessionLimits, Step};
use crate::serve::signal::Signal;
use crate::{Error, Result};

pub use self::source::{ReplicaSource, StalePolicy};
pub use self::status::{LinkLost, ReplicaState, ReplicaStatus};
use self::status::{fault_told, told};

mod build;
pub(crate) mod session;
mod source;
pub(crate) mod spool;
mod status;
#[cfg(test)]
mod tests;

/// After a link that was lost so long passes before the next, twice as long after each further one.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// A database that follows another, until it is stopped, promoted or closed.
///
/// ```
/// use stillframe::{Database, Link, PrimaryOptions, ReplicaSource};
/// # use std::time::Duration;
///
/// # let film = Database::in_memory();
/// # let primary = film.serve_replicas(PrimaryOptions::new())?;
/// # let copy = Database::in_memory();
/// # let attach = primary.clone();
/// # let source = ReplicaSource::links(move || {
/// #     let (ours, theirs) = Link::pair();
/// #     attach.attach(theirs);
/// #     Ok(ours)
/// # });
/// let replica = copy.follow(source)?;
/// film.keyspace("frames")?.insert("1", "a train arrives")?;
/// replica.wait_for(film.position(), Duration::from_secs(10))?;
/// assert_eq!(copy.keyspace("frames")?.get("1")?.unwrap(), "a train arrives");
/// // It takes over; the other is stopped before, by whoever decides this.
/// replica.promote()?;
/// copy.keyspace("frames")?.insert("2", "people run")?;
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone)]
pub struct Replica {
    following: Arc<Following>,
}

/// What its handles and its thread share.
pub(crate) struct Following {
    engine: Weak<Engine>,
    source: ReplicaSource,
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    state: ReplicaState,
    head: Seq,
    time_ms: u64,
    backlog: Backlog,
    /// Since then nothing was heard of the primary.
    lost_since_ms: Option<u64>,
    /// It last had what its source has then, this one or the one before, if it ever did since it was opened.
    fresh_ms: Option<u64>,
    caught_up: Option<SyncKind>,
    counts: SyncCounts,
    links: u64,
    last_end: Option<LinkLost>,
    received_bytes: u64,
    is_stopped: bool,
    /// The last change of the state was not told yet.
    is_untold: bool,
    may_discard: bool,
    stop: Arc<Stop>,
}

impl Database {
    /// Follows another database from now on: becomes what that is, and takes its writes as they come. It takes none of its own any more
    /// ([`Error::ReadOnly`]) until it is [promoted](Database::promote). Whom it followed before it leaves.
    ///
    /// Reads, stills and saves go on, of what it has, which is at every moment what its primary was at one batch. What it lacks comes in the cheapest
    /// way that is right: the records that it missed, the leaves that changed, or everything. What it has that the source lacks is given up only
    /// where rules say that it may be; else it says [`ReplicaState::Refused`] and waits for [`Replica::resync`]. Before that a database with a directory
    /// saves it to the folder `aside` there, as a snapshot file named by its history and number, and keeps the newest of those.
    ///
    /// A crash leaves a state of its primary, and what came of another that is not whole is forgotten.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Poisoned`], [`Error::Io`].
    pub fn follow(&self, source: ReplicaSource) -> Result<Replica> {
        let engine = self.engine();
        engine.tree().commit.check_open()?;
        let before = engine.following();
        engine.stop_following();
        let fresh_ms = before.and_then(|before| before.state().fresh_ms);
        if let Some(log) = engine.log() {
            log.directory.follows()?;
        }
        let following = Arc::new(Following {
            engine: Arc::downgrade(engine),
            source,
            state: Mutex::new(State {
                state: ReplicaState::Connecting,
                head: Seq(0),
                time_ms: 0,
                backlog: Backlog::NONE,
                lost_since_ms: Some(uptime_ms()),
                fresh_ms,
                caught_up: None,
                counts: SyncCounts::default(),
                links: 0,
                last_end: None,
                received_bytes: 0,
                is_stopped: false,
                is_untold: false,
                may_discard: false,
                stop: Arc::default(),
            }),
            changed: Condvar::new(),
            thread: Mutex::default(),
        });
        engine.attend(Arc::downgrade(&following) as Weak<dyn Attendant>);
        // Whoever was told to follow, or to be the primary, at the same time: one of them comes last.
        if let Some(other) = engine.set_following(&following) {
            other.stop();
        }
        engine.tree().commit.set_role(Role::Replica);
        following.set_in_touch(false);
        let run = Arc::clone(&following);
        let thread = thread::Builder::new().name("stillframe-follow".into());
        let thread = thread.spawn(move || run.run()).expect("the system starts a thread");
        *lock(&following.thread) = Some(thread);
        Ok(Replica { following })
    }

    /// The handle of what was begun with [`follow`](Database::follow), if it goes on.
    pub fn replica(&self) -> Option<Replica> {
        self.engine().following().map(|following| Replica { following })
    }
}

impl Replica {
    /// How it is doing.
    pub fn status(&self) -> ReplicaStatus {
        self.following.status()
    }

    /// Waits until it has the batch: a write that was made on the primary can be read here then.
    ///
    /// # Errors
    /// [`Error::TimedOut`]. [`Error::Gone`] if it is on a line that has come past there without it. [`Error::Closed`].
    pub fn wait_for(&self, position: Position, timeout: Duration) -> Result<()> {
        let deadline = deadline(timeout);
        loop {
            // Before the lock, and let go after it: who lets the database go last ends it, which takes this lock.
            let engine = self.following.engine.upgrade().ok_or(Error::Closed)?;
            let state = self.following.state();
            let standing = engine.tree().commit.standing();
            if has(&standing.lineage, position) {
                return Ok(());
            }
            // While it is out of touch it may still be rewound to the line of its source.
            let is_settled = matches!(state.state, ReplicaState::Streaming | ReplicaState::Stopped);
            if standing.position.seq >= position.seq && is_settled {
                let known = standing.lineage.iter().find(|span| span.history == position.history);
                return Err(Error::Gone { fork: known.map(|span| span.end) });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut);
            }
            let waited = self.following.changed.wait_timeout(state, left.min(LOOK));
            drop(waited.unwrap_or_else(PoisonError::into_inner).0);
        }
    }

    /// Gives up, once, what it has and its source lacks, though rules forbid it. It counts until it streams again; while it does, there is nothing to
    /// give up, and this does nothing.
    pub fn resync(&self) {
        let mut state = self.following.state();
        state.may_discard |= state.state != ReplicaState::Streaming;
        // Where it is refused it waits for this.
        self.following.changed.notify_all();
    }

    /// Follows no more; returns when its threads have ended. The database stays a replica, of what it has.
    pub fn stop(&self) {
        self.following.stop();
    }

    /// As [`Database::promote`].
    ///
    /// # Errors
    /// Those of [`Database::promote`], [`Error::Closed`].
    pub fn promote(&self) -> Result<Position> {
        let engine = self.following.engine.upgrade().ok_or(Error::Closed)?;
        engine.promote()
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status();
        write!(f, "Replica({:?} at {})", status.state, status.position)
    }
}

/// Who waits looks so often whether the database has gone.
const LOOK: Duration = Duration::from_millis(100);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Following {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        let engine = self.engine.upgrade();
        let durable = engine.as_ref().map_or(Seq(0), |engine| engine.hub.durable_heard().seq);
        let own = engine.map(|engine| engine.tree().commit.standing());
        let (position, applied_ms) =
            own.map_or((Position::default(), 0), |own| (own.position, own.time_ms));
        let state = self.state();
        let lag = state.head.0.saturating_sub(position.seq.0);
        let behind = if lag == 0 { 0 } else { state.time_ms.saturating_sub(applied_ms) };
        let lost_ms = state.lost_since_ms.map_or(0, |since| uptime_ms().saturating_sub(since));
        ReplicaStatus {
            state: state.state,
            source: self.source.place.clone(),
            position,
            source_seq: state.head.max(position.seq),
            durable,
            lag,
            lag_bytes: state.backlog.bytes,
            log_lasts: lasts(state.backlog),
            lag_ms: (state.time_ms > 0).then_some(behind.max(lost_ms)),
            caught_up: state.caught_up,
            counts: state.counts,
            links: state.links,
            last_end: state.last_end.clone(),
            received_bytes: state.received_bytes,
        }
    }

    fn set(&self, new: ReplicaState) {
        let mut state = self.state();
        if state.state == new {
            return;
        }
        (state.state, state.is_untold) = (new, true);
        let was_in_touch = state.lost_since_ms.is_none();
        drop(state);
        if was_in_touch && new != ReplicaState::Streaming {
            self.set_in_touch(false);
        }
        notices::info(|| format!("as a replica: {new:?}"));
        self.changed.notify_all();
    }

    /// Tells of the state, if that was not done yet. On the thread that follows, which nobody who is told waits for.
    fn tell(&self) {
        let is_untold = std::mem::take(&mut self.state().is_untold);
        if let (Some(tell), true) = (&self.source.tell, is_untold) {
            tell(&self.status());
        }
    }

    /// Records come as they are written, or don't any more.
    fn set_in_touch(&self, is_in_touch: bool) {
        let Some(engine) = self.engine.upgrade() else { return };
        engine.hub.set_lost(!is_in_touch);
        let fresh_ms;
        {
            let mut state = self.state();
            if state.lost_since_ms.is_none() {
                state.fresh_ms = Some(uptime_ms());
            }
            let since = state.lost_since_ms.unwrap_or_else(uptime_ms);
            state.lost_since_ms = (!is_in_touch).then_some(since);
            fresh_ms = state.fresh_ms;
        }
        let refuse_from = match self.source.stale {
            // It has let go of what it had.
            _ if !is_in_touch
                && self.source.drops_first
                && engine.tree().commit.position().seq == Seq(0) =>
            {
                Some(0)
            }
            StalePolicy::Refuse { after } if !is_in_touch => {
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                Some(fresh_ms.map_or(0, |fresh| fresh.saturating_add(after_ms)))
            }
            _ => None,
        };
        engine.tree().commit.refuse_reads_from(refuse_from);
    }

    /// Ends the thread, and waits for it.
    pub(crate) fn stop(&self) {
        self.end();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // A panic there is our bug; the database is what it last was.
            let _ = thread.join();
        }
    }

    /// The thread that follows.
    fn run(self: Arc<Self>) {
        let mut kept = Kept::default();
        let mut retry = FIRST_RETRY;
        loop {
            let stop = Arc::new(Stop::default());
            {
                let mut state = self.state();
                if state.is_stopped {
                    break;
                }
                state.stop = Arc::clone(&stop);
                kept.may_discard |= std::mem::take(&mut state.may_discard);
            }
            self.set(ReplicaState::Connecting);
            self.tell();
            let before = self.state().counts;
            let end = match (self.source.connect)(self.source.timeout) {
                Err(error) => LinkLost::Unreachable(error.to_string()),
                Ok(link) => {
                    self.state().links += 1;
                    match self.session(link, kept, stop) {
                        None => break,
                        Some((after, end)) => {
                            kept = after;
                            end
                        }
                    }
                }
            };
            // Of a cycle it may be one end that has not seen the other go.
            let is_cycle = matches!(end, LinkLost::Refused(SyncRefused::Cycle));
            let is_refused = matches!(end, LinkLost::Refused(_));
            let mut state = self.state();
            let was_link = matches!(end, LinkLost::Lost(_) | LinkLost::Silent | LinkLost::Stopping);
            state.last_end = Some(end);
            if state.counts != before && was_link {
                // It came further than the last time, and nothing that will be there the next time ended it.
                retry = FIRST_RETRY;
            }
            let is_stopped = state.is_stopped;
            drop(state);
            if !is_stopped {
                let lost =
                    if is_refused { ReplicaState::Refused } else { ReplicaState::Connecting };
                self.set(lost);
                self.tell();
            }
            state = self.state();
            let waits_long = is_refused && !is_cycle;
            let until = Instant::now() + if waits_long { LAST_RETRY } else { retry };
            retry = (retry * 2).min(LAST_RETRY);
            while !state.is_stopped && !state.may_discard {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.changed.wait_timeout(state, left.min(LOOK));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if self.engine.strong_count() == 0 {
                    state.is_stopped = true;
                }
            }
        }
        self.set(ReplicaState::Stopped);
        self.tell();
        if let Some(engine) = self.engine.upgrade() {
            engine.hub.set_path(Vec::new());
            // What it is to do with reads it was told for as long as it follows.
            engine.tree().commit.refuse_reads_from(None);
        }
    }

    /// One link, from its first byte to its last.
    fn session(
        self: &Arc<Self>,
        link: Link,
        kept: Kept,
        stop: Arc<Stop>,
    ) -> Option<(Kept, LinkLost)> {
        let engine = self.engine.upgrade()?;
        let hub = Arc::clone(&engine.hub);
        // Nobody else may be there to see that the disk has failed, and that it does no more.
        if let Some(Err(error)) = engine.saver.as_ref().map(|saver| saver.heal()) {
            return Some((kept, LinkLost::Failed(error.to_string())));
        }
        drop(engine);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let max_body_len = crate::format::record::MAX_BODY_LEN_U32;
        let limits = SessionLimits {
            beat_ms: ms(self.source.beat),
            timeout_ms: ms(self.source.timeout),
            threads: self.source.threads,
            always_compresses: true,
            after_durable: false,
            drops_first: self.source.drops_first,
            run_bytes: None,
            max_body_len,
            name: self.source.name.clone(),
        };
        let how = Drive {
            side: Side::Client,
            secrets: Secrets { keys: self.source.keys.clone(), binding: [0; 32] },
            timeout: self.source.timeout,
            beat: self.source.beat,
            max_body_len,
            stop,
        };
        let signal = Arc::new(Signal::default());
        let mut kept = Some(kept);
        let begin = || {
            let kept = kept.take().unwrap_or_default();
            let following = Arc::clone(self);
            let session = ReplicaSession::new((&self.engine, &hub), limits, kept, uptime_ms());
            Watched { session, following, stage: None }
        };
        let (watched, end) = drive(link, &how, &signal, begin);
        let has_met = watched.is_some();
        let (refused, fault, kept) = match watched {
            Some(Watched { mut session, .. }) => {
                session.settle();
                (session.refused, session.fault, session.kept)
            }
            None => (None, None, kept.take().unwrap_or_default()),
        };
        let lost = |error: Option<io::Error>| {
            LinkLost::Lost(
                error.map_or_else(|| "the other side ended it".into(), |e| e.to_string()),
            )
        };
        let end = match (refused, end) {
            (Some(refused), _) => LinkLost::Refused(refused),
            (_, LinkEnd::Stopped) => LinkLost::Stopping,
            (_, LinkEnd::Silent | LinkEnd::Session(Ended::By(Reason::Silent, _))) => {
                LinkLost::Silent
            }
            // Who finds that the other has not the key says nothing to him.
            (_, LinkEnd::Lost(None)) if !has_met => LinkLost::Lost(
                "the other side ended it and did not say who it is: it may have another key, or speak through TLS".into(),
            ),
            (_, LinkEnd::Lost(error)) => lost(error),
            (_, LinkEnd::Fault(fault)) => fault_told(&fault),
            (_, LinkEnd::Session(Ended::Failed(Error::Closed | Error::Poisoned))) => {
                self.state().is_stopped = true;
                LinkLost::Failed("the database is closed".into())
            }
            (_, LinkEnd::Session(Ended::Promoted)) => {
                self.state().is_stopped = true;
                LinkLost::HandedOver
            }
            (_, LinkEnd::Session(Ended::Failed(error))) => LinkLost::Failed(error.to_string()),
            (_, LinkEnd::Session(Ended::By(reason, detail))) => told(Bye { reason, detail }, fault),
            (_, LinkEnd::Session(Ended::Bye(bye))) => told(bye, None),
        };
        Some((kept, end))
    }
}

impl Attendant for Following {
    fn end(&self) {
        let mut state = self.state();
        state.is_stopped = true;
        state.stop.stop();
        drop(state);
        self.changed.notify_all();
    }
}

/// A session whose progress is told.
struct Watched {
    session: ReplicaSession,
    following: Arc<Following>,
    stage: Option<Stage>,
}

impl Watched {
    fn look(&mut self) {
        let stage = self.session.stage();
        {
            let mut state = self.following.state();
            if stage != Stage::Meeting {
                state.head = self.session.head;
            }
            state.time_ms = state.time_ms.max(self.session.time_ms);
            state.backlog = self.session.backlog;
            state.received_bytes =
                self.session.kept.spool.as_ref().map_or(0, |spool| spool.bytes());
            if self.stage != Some(stage) {
                state.may_discard &= stage != Stage::Streaming;
                state.caught_up = self.session.caught_up.or(state.caught_up);
                if stage == Stage::Streaming
                    && let Some(kind) = self.session.caught_up
                {
                    state.counts.add(kind);
                }
            }
        }
        let was_in_touch = self.following.state().lost_since_ms.is_none();
        if was_in_touch != self.session.is_in_touch() {
            self.following.set_in_touch(!was_in_touch);
        }
        if self.stage == Some(stage) {
            return;
        }
        self.stage = Some(stage);
        self.following.set(match stage {
            Stage::Meeting | Stage::Asked => ReplicaState::Meeting,
            Stage::Receiving => ReplicaState::Receiving,
            Stage::Streaming => ReplicaState::Streaming,
            Stage::Waiting | Stage::Healing => ReplicaState::Waiting,
        });
    }
}

impl Machine for Watched {
    fn receive(
        &mut self,
        kind: crate::format::wire::MessageKind,
        payload: &[u8],
        now_ms: u64,
    ) -> Step {
        let received = self.session.receive(kind, payload, now_ms);
        self.look();
        self.following.tell();
        self.following.changed.notify_all();
        received
    }

    fn fill(
        &mut self,
        sealer: &mut crate::replication::framing::Sealer,
        out: &mut Vec<u8>,
        now_ms: u64,
    ) -> Step<Filled> {
        let filled = self.session.fill(sealer, out, now_ms);
        self.look();
        filled
    }

    fn is_pressing(&self) -> bool {
        self.session.is_pressing()
    }

    fn chore(&mut self) -> Option<Chore> {
        self.session.chore()
    }

    fn nap(&mut self, is_active: bool) -> Duration {
        self.session.nap(is_active)
    }

    fn most_body_len(&self) -> u32 {
        self.session.most_body_len()
    }

    fn heard(&mut self, now_ms: u64) {
        self.session.heard(now_ms);
    }
}

//! What a database knows of its replicas: who they are, how far they are, who waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::deadline;
use crate::commit::{Role, Standing};
use crate::database::Engine;
use crate::format::snapshot::Span;
use crate::format::wire::{Ack, Backlog, Hello};
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::replication::line::{has, term};
use crate::serve::signal::Signal;

/// So many replicas are sent leaves at once, unless told otherwise.
const TRANSFERS: usize = 2;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// An acknowledgement came, or a session came or went.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    sessions: BTreeMap<u64, Session>,
    next_id: u64,
    /// Sessions that leaves are sent in, and how many there may be.
    transfers: usize,
    most_transfers: usize,
    counts: SyncCounts,
    /// Who waits until something is on replicas' disks: how many, and up to which batch.
    waiters: BTreeMap<u64, Seq>,
    upstream: Upstream,
}

/// What is known of the node that is followed.
#[derive(Debug)]
struct Upstream {
    /// The nodes that are followed, the nearest first, and how often they have changed.
    path: Vec<[u8; 16]>,
    turns: u64,
    /// The highest batch that was said to be durable on the primary, on the line of what was then the present.
    durable: Position,
    /// By the primary's clock.
    time_ms: u64,
    /// Nothing was heard of the primary of late.
    is_lost: bool,
    /// The highest term that was heard of.
    term: u64,
}

impl Default for Upstream {
    /// Nothing was heard.
    fn default() -> Self {
        let (path, durable) = (Vec::new(), Position::default());
        Self { path, turns: 0, durable, time_ms: 0, is_lost: true, term: 0 }
    }
}

#[derive(Debug)]
struct Session {
    signal: Arc<Signal>,
    peer: String,
    hello: Option<([u8; 16], String)>,
    ack: Option<Ack>,
    heard: Instant,
    sent_bytes: u64,
    backlog: Backlog,
    way: Option<SyncKind>,
    /// The last batch up to which it was asked to make all durable.
    asked: Seq,
}

/// How a replica caught up.
///
/// ```
/// use stillframe::{Database, Link, PrimaryOptions, ReplicaSource, ReplicaState, SyncKind};
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
/// film.keyspace("frames")?.insert("1", "a train arrives")?;
/// let (tell, told) = std::sync::mpsc::channel();
/// let source = source.on_change(move |status| {
///     let _ = tell.send(status.clone());
/// });
/// let replica = copy.follow(source)?;
/// let streaming = told.iter().find(|status| status.state == ReplicaState::Streaming).unwrap();
/// // It had nothing.
/// assert_eq!(streaming.caught_up, Some(SyncKind::Full));
/// replica.stop();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncKind {
    /// Records that it had missed.
    Partial,
    /// Leaves that had changed.
    Delta,
    /// As delta, and what it had written on another line was replaced.
    Rewind,
    /// Everything.
    Full,
    /// Leaves that differed though they should not, and those that had changed.
    Repair,
}

/// How many replicas caught up in which way since the database was opened.
///
/// ```
/// use stillframe::{Database, PrimaryOptions, SyncCounts};
///
/// let primary = Database::in_memory().serve_replicas(PrimaryOptions::new())?;
/// let counts = primary.counts();
/// // Each that could not go on with records costs: see `Builder::keep_log_for_replicas`.
/// println!("{} of records, {} of leaves, {} of all", counts.partial, counts.delta, counts.full);
/// assert_eq!(counts, SyncCounts::default());
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncCounts {
    /// See [`SyncKind::Partial`].
    pub partial: u64,
    /// See [`SyncKind::Delta`].
    pub delta: u64,
    /// See [`SyncKind::Rewind`].
    pub rewind: u64,
    /// See [`SyncKind::Full`].
    pub full: u64,
    /// See [`SyncKind::Repair`].
    pub repair: u64,
}

impl SyncCounts {
    pub(crate) fn add(&mut self, kind: SyncKind) {
        match kind {
            SyncKind::Partial => self.partial += 1,
            SyncKind::Delta => self.delta += 1,
            SyncKind::Rewind => self.rewind += 1,
            SyncKind::Full => self.full += 1,
            SyncKind::Repair => self.repair += 1,
        }
    }
}

/// One replica, as its source knows it.
///
/// ```
/// use stillframe::{AckLevel, Database, Link, PrimaryOptions, ReplicaSource};
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
/// let replica = copy.follow(source.name("reports"))?;
/// film.keyspace("frames")?.insert("1", "a train arrives")?;
/// primary.wait(film.position(), 1, AckLevel::Applied, Duration::from_secs(10))?;
/// let replicas = primary.replicas();
/// assert_eq!((replicas[0].name.as_str(), replicas[0].applied), ("reports", Some(film.position())));
/// replica.stop();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplicaInfo {
    /// Where it is connected from.
    pub peer: String,
    /// What it calls itself.
    pub name: String,
    /// Its node: random, kept in its directory.
    pub node: [u8; 16],
    /// The last batch that it has applied; `None` before it has said so.
    pub applied: Option<Position>,
    /// The last batch that it has on its disk.
    pub durable: Option<Seq>,
    /// Batches that it has not applied.
    pub lag: u64,
    /// Bytes of the log that it has not been sent, counted with each heartbeat.
    pub lag_bytes: u64,
    /// Growing as it does, the log drops after so long what the replica has not been sent: if it comes back later it gets leaves instead of records. `None`
    /// while the log does not grow.
    pub log_lasts: Option<Duration>,
    /// Since it was last heard.
    pub silent_for: Duration,
    /// Bytes that were sent to it in this session.
    pub sent_bytes: u64,
    /// How it caught up.
    pub caught_up: Option<SyncKind>,
}

/// How far a batch is to be on replicas: see [`Primary::wait`](crate::Primary::wait).
///
/// ```
/// use std::time::Duration;
/// use stillframe::{AckLevel, Database, Error, PrimaryOptions};
///
/// let db = Database::in_memory();
/// let primary = db.serve_replicas(PrimaryOptions::new())?;
/// db.keyspace("orders")?.insert("1001", "three reels")?;
/// // Nobody follows.
/// let result = primary.wait(db.position(), 1, AckLevel::Durable, Duration::from_millis(1));
/// assert!(matches!(result, Err(Error::NotAcked { acked: 0, .. })));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckLevel {
    /// It was applied: who reads there finds it.
    Applied,
    /// It is on the replica's disk.
    Durable,
}

impl Default for Hub {
    fn default() -> Self {
        let state = State {
            sessions: BTreeMap::new(),
            next_id: 0,
            transfers: 0,
            most_transfers: TRANSFERS,
            counts: SyncCounts::default(),
            waiters: BTreeMap::new(),
            upstream: Upstream::default(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

/// How long the log lasts, if that is known.
pub(crate) fn lasts(backlog: Backlog) -> Option<Duration> {
    (backlog.lasts_ms != u64::MAX).then(|| Duration::from_millis(backlog.lasts_ms))
}

/// The right to send leaves: given back when dropped.
pub(crate) struct Admitted(Arc<Hub>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.state().transfers -= 1;
    }
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many replicas may be sent leaves at once.
    pub(crate) fn set_most_transfers(&self, most: usize) {
        self.state().most_transfers = most.max(1);
    }

    /// A session begins.
    pub(crate) fn enter(&self, peer: &str, signal: &Arc<Signal>) -> u64 {
        let mut state = self.state();
        state.next_id += 1;
        let id = state.next_id;
        let session = Session {
            signal: Arc::clone(signal),
            peer: peer.to_owned(),
            hello: None,
            ack: None,
            heard: Instant::now(),
            sent_bytes: 0,
            backlog: Backlog::NONE,
            way: None,
            asked: Seq(0),
        };
        state.sessions.insert(id, session);
        id
    }

    /// A session has ended: what it said counts no more.
    pub(crate) fn leave(&self, id: u64) {
        if !planted(Bug::AckOutlives) {
            self.state().sessions.remove(&id);
        }
        self.changed.notify_all();
    }

    /// The replica of a session has said who it is.
    pub(crate) fn introduce(&self, id: u64, hello: &Hello) {
        if let Some(session) = self.state().sessions.get_mut(&id) {
            session.hello = Some((hello.node, hello.name.clone()));
            session.heard = Instant::now();
            // What it said before was of another state.
            session.ack = None;
        }
    }

    /// The replica of a session is there.
    pub(crate) fn heard_of(&self, id: u64) {
        if let Some(session) = self.state().sessions.get_mut(&id) {
            session.heard = Instant::now();
        }
    }

    /// The replica of a session has come so far.
    pub(crate) fn ack(&self, id: u64, ack: &Ack) {
        if let Some(session) = self.state().sessions.get_mut(&id) {
            session.ack = Some(*ack);
            session.heard = Instant::now();
        }
        self.changed.notify_all();
    }

    /// How the replica of a session catches up.
    pub(crate) fn catches_up(&self, id: u64, kind: SyncKind) {
        let mut state = self.state();
        state.counts.add(kind);
        if let Some(session) = state.sessions.get_mut(&id) {
            session.way = Some(kind);
        }
    }

    /// How replicas caught up.
    pub(crate) fn counts(&self) -> SyncCounts {
        self.state().counts
    }

    /// Bytes were sent in a session.
    pub(crate) fn sent(&self, id: u64, bytes: u64) {
        if bytes > 0
            && let Some(session) = self.state().sessions.get_mut(&id)
        {
            session.sent_bytes += bytes;
        }
    }

    /// So far the log is ahead of what was sent in a session.
    pub(crate) fn set_backlog(&self, id: u64, backlog: Backlog) {
        if let Some(session) = self.state().sessions.get_mut(&id) {
            session.backlog = backlog;
        }
    }

    /// The right to send leaves to one more replica.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let mut state = self.state();
        if state.transfers >= state.most_transfers {
            return None;
        }
        state.transfers += 1;
        Some(Admitted(Arc::clone(self)))
    }

    /// Whether the replica of a session is to make durable what it has: somebody waits. Answered once.
    pub(crate) fn wants_durable(&self, id: u64) -> bool {
        let mut state = self.state();
        let State { sessions, waiters, .. } = &mut *state;
        let Some(session) = sessions.get_mut(&id) else { return false };
        let Some(ack) = session.ack else { return false };
        // What others wait for may not have come yet, and may never have while more and more is written.
        let applied = waiters.values().filter(|seq| **seq <= ack.applied.seq);
        let Some(seq) = applied.max().copied() else { return false };
        let is_new = session.asked < seq;
        session.asked = session.asked.max(seq);
        is_new
    }

    /// Waits until `count` replicas have the batch, or so long; how many have it then.
    pub(crate) fn wait(
        &self,
        engine: &Engine,
        position: Position,
        count: usize,
        level: AckLevel,
        timeout: Duration,
    ) -> usize {
        self.wait_for(engine, (position, level, timeout), count, |_| true, |_| false)
    }

    /// Waits until the replica of this node has the batch, or so long; whether it has.
    pub(crate) fn wait_for_node(
        &self,
        engine: &Engine,
        node: [u8; 16],
        position: Position,
        level: AckLevel,
        timeout: Duration,
    ) -> bool {
        let is_it =
            |session: &Session| session.hello.as_ref().is_some_and(|(other, _)| *other == node);
        let is_gone = |state: &State| !state.sessions.values().any(is_it);
        self.wait_for(engine, (position, level, timeout), 1, is_it, is_gone) > 0
    }

    fn wait_for(
        &self,
        engine: &Engine,
        (position, level, timeout): (Position, AckLevel, Duration),
        count: usize,
        counts: impl Fn(&Session) -> bool,
        gives_up: impl Fn(&State) -> bool,
    ) -> usize {
        let deadline = deadline(timeout);
        let mut state = self.state();
        let waiter = (level == AckLevel::Durable).then(|| {
            state.next_id += 1;
            let id = state.next_id;
            state.waiters.insert(id, position.seq);
            id
        });
        let acked = loop {
            // Of another line an acknowledgement says nothing, and the line may have changed.
            let line = engine.tree().commit.standing().lineage;
            let has_it = |session: &Session| {
                session.ack.is_some_and(|ack| {
                    let seq = match level {
                        AckLevel::Applied => ack.applied.seq,
                        AckLevel::Durable => ack.durable.min(ack.applied.seq),
                    };
                    seq >= position.seq && has(&line, ack.applied) && has(&line, position)
                })
            };
            if waiter.is_some() {
                // They look whether somebody waits.
                state.sessions.values().for_each(|session| session.signal.wake());
            }
            let acked = nodes(state.sessions.values().filter(|s| counts(s) && has_it(s)));
            let left = deadline.saturating_duration_since(Instant::now());
            if acked >= count || left.is_zero() || gives_up(&state) {
                break acked;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        if let Some(waiter) = waiter {
            state.waiters.remove(&waiter);
        }
        acked
    }

    /// The replicas that are connected.
    pub(crate) fn replicas(&self, last: Seq) -> Vec<ReplicaInfo> {
        let state = self.state();
        let of = |session: &Session| {
            let (node, name) = session.hello.clone()?;
            let applied = session.ack.map(|ack| ack.applied);
            Some(ReplicaInfo {
                peer: session.peer.clone(),
                name,
                node,
                applied,
                durable: session.ack.map(|ack| ack.durable),
                lag: last.0.saturating_sub(applied.map_or(0, |applied| applied.seq.0)),
                lag_bytes: session.backlog.bytes,
                log_lasts: lasts(session.backlog),
                silent_for: session.heard.elapsed(),
                sent_bytes: session.sent_bytes,
                caught_up: session.way,
            })
        };
        state.sessions.values().filter_map(of).collect()
    }

    /// Replicas that are connected and were heard within so long.
    pub(crate) fn in_touch(&self, within: Duration) -> usize {
        let state = self.state();
        let is_near =
            |session: &&Session| session.ack.is_some() && session.heard.elapsed() <= within;
        nodes(state.sessions.values().filter(is_near))
    }
}

/// How many nodes these sessions are of: one that has made another connection is there twice until the old one is given up.
fn nodes<'a>(sessions: impl Iterator<Item = &'a Session>) -> usize {
    let nodes = sessions.filter_map(|session| Some(session.hello.as_ref()?.0));
    nodes.collect::<BTreeSet<_>>().len()
}

/// What is known of the node that is followed, for those that follow this one.
impl Hub {
    /// The nodes that are followed, the nearest first.
    pub(crate) fn path(&self) -> Vec<[u8; 16]> {
        self.state().upstream.path.clone()
    }

    /// From now on these are followed.
    pub(crate) fn set_path(&self, path: Vec<[u8; 16]>) {
        let mut state = self.state();
        if state.upstream.path != path {
            state.upstream.path = path;
            state.upstream.turns += 1;
        }
    }

    /// How often those that are followed have changed.
    pub(crate) fn path_turns(&self) -> u64 {
        self.state().upstream.turns
    }

    /// The highest term heard of, the line's own included.
    pub(crate) fn term(&self, line: &[Span]) -> u64 {
        self.state().upstream.term.max(term(line))
    }

    /// Another data set has taken the place of the one whose terms were heard of.
    pub(crate) fn forget_term(&self) {
        self.state().upstream.term = 0;
    }

    /// A term was heard of, of the data set that is here.
    pub(crate) fn heard_term(&self, heard: u64) {
        let mut state = self.state();
        state.upstream.term = state.upstream.term.max(heard);
    }

    /// The primary has said what time it is.
    pub(crate) fn heard_time(&self, time_ms: u64) {
        let mut state = self.state();
        state.upstream.time_ms = state.upstream.time_ms.max(time_ms);
    }

    /// The primary has said that this batch of `line`, which is the present one, is durable there. Who knows less later says nothing about it.
    pub(crate) fn heard_durable(&self, line: &[Span], durable: Position) {
        let mut state = self.state();
        let known = &mut state.upstream.durable;
        if known.seq < durable.seq || !has(line, *known) {
            *known = durable;
        }
    }

    /// What of its line the primary has said is durable.
    pub(crate) fn durable_heard(&self) -> Position {
        self.state().upstream.durable
    }

    /// Whether anything was heard of the primary of late.
    pub(crate) fn set_lost(&self, is_lost: bool) {
        self.state().upstream.is_lost = is_lost;
    }

    /// Whether nothing was heard of the primary of late.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.state().upstream.is_lost
    }

    /// What of the line is durable on its primary, as far as is known here.
    pub(crate) fn durable(&self, own: &Standing, on_disk: Seq) -> Seq {
        if own.role == Role::Primary {
            return on_disk;
        }
        let heard = self.state().upstream.durable;
        if has(&own.lineage, heard) { heard.seq } else { Seq(0) }
    }

    /// The primary's time.
    pub(crate) fn time_ms(&self, engine: &Engine) -> u64 {
        let heard = self.state().upstream.time_ms;
        if engine.is_primary() { engine.tree().clock().now_ms() } else { heard }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Database, PrimaryOptions};

    fn hello(node: u8) -> Hello {
        Hello {
            node: [node; 16],
            dataset: [0; 16],
            term: 0,
            durable: Seq(0),
            records: 0,
            chain: 0,
            is_primary: false,
            has_written: false,
            is_unsettled: false,
            max_body_len: 1,
            path: Vec::new(),
            lineage: Vec::new(),
            name: String::new(),
        }
    }

    /// A node whose old connection has not been given up is there twice, and counts once.
    #[test]
    fn a_node_counts_once() {
        let db = Database::in_memory();
        let _primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
        db.keyspace("k").unwrap().insert("k", "v").unwrap();
        let (engine, applied) = (db.engine(), db.position());
        let hub = &engine.hub;
        let enter = |node| {
            let id = hub.enter("test", &Arc::new(Signal::default()));
            hub.introduce(id, &hello(node));
            hub.ack(id, &Ack { applied, durable: applied.seq });
            id
        };
        let acked = |count| {
            let level = AckLevel::Durable;
            hub.wait(engine, applied, count, level, Duration::ZERO)
        };
        let first = enter(1);
        enter(1);
        assert_eq!((acked(2), hub.in_touch(Duration::MAX)), (1, 1));
        enter(2);
        assert_eq!((acked(2), hub.in_touch(Duration::MAX)), (2, 2));
        hub.leave(first);
        assert_eq!(acked(2), 2);
    }

    /// Who waits for a batch that has come is not kept waiting by who waits for one that has not.
    #[test]
    fn what_has_come_is_asked_for() {
        let hub = Hub::default();
        let id = hub.enter("test", &Arc::new(Signal::default()));
        let ack = |seq| {
            let applied = Position { seq: Seq(seq), ..Position::default() };
            hub.ack(id, &Ack { applied, durable: Seq(0) });
        };
        hub.state().waiters.extend([(1, Seq(5)), (2, Seq(9))]);
        ack(4);
        assert!(!hub.wants_durable(id));
        ack(7);
        assert!(hub.wants_durable(id));
        assert!(!hub.wants_durable(id));
        ack(9);
        assert!(hub.wants_durable(id));
        assert!(!hub.wants_durable(id));
    }
}

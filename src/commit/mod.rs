//! The commit lock, which gives every batch its place: Seq and tick, the live cuts, the running totals.
//!
//! Everything a writer and a cut must agree on is under one lock, held for tens of nanoseconds: a writer
//! takes its Seq while it holds its leaves' latches and sees the newest live cut in the same moment, so a
//! cut at S holds exactly the batches up to S. Nothing after the Seq may fail: a [`Ticket`] that is dropped
//! before [`Ticket::done`] poisons the database, reads included.
//!
//! **Order inside a node is the tick**, which never goes back; Seq can, when a replica is rewound.
//!
//! Where there is a log, the record of a batch is appended to its [`tail`] under the same lock.
//!
//! Knows nothing of leaves, entries, files.

use std::sync::{Arc, OnceLock};

use crate::error::LogFailure;
use crate::format::log::Base;
pub(crate) use crate::format::snapshot::Span;
use crate::meters::Meters;
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position, Seq};
use crate::sync::assert_no_latch;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::{Error, Result};

/// Who waits at the gate looks so often whether it is open.
const GATE_LOOK: std::time::Duration = std::time::Duration::from_micros(200);

pub(crate) use crate::format::record::{Effect as LoggedEffect, HistoryBody};

pub use self::cut::Holder;
pub(crate) use self::cut::{Cut, KeyRange};
pub(crate) use self::tail::{Body, Drained, Encoded, Forwarded, Tail};
pub(crate) use self::totals::{CATALOGUE, Delta, KeyspaceSlot, Totals};
pub(crate) use self::view::{Installed, Since, View};

mod cut;
mod tail;
mod totals;
mod view;

/// Whether a database takes writes.
///
/// ```
/// use stillframe::{Database, Role};
///
/// let db = Database::in_memory();
/// assert_eq!(db.role(), Role::Primary);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It does, and what it writes is what replicas follow.
    Primary,
    /// It refuses them: it follows a primary, or did when its directory was last open.
    Replica,
}

/// See the file's head.
pub(crate) struct Commit {
    state: Mutex<State>,
    /// [`Cut::code`] of the newest live cut, 0 if there is none: a hint, read before the lock.
    ///
    /// Relaxed both ways, as the two below: written under the lock, and checked again under it.
    newest_code: AtomicU64,
    /// The id of that cut.
    newest_id: AtomicU64,
    /// The code of the newest live cut but that one.
    second_code: AtomicU64,
    /// The [`View`], and what keeps it from being the present: see the constants there.
    ///
    /// Release when changed, acquire when read: who reads it under a leaf's latch and does not find it changed
    /// has the leaf as it was before whatever comes after the change, since that needs the latch.
    view: AtomicU64,
    /// The tick of the state that is shown while another is installed: stored before that begins.
    shown_tick: AtomicU64,
    /// The tick of the last state that was installed and went back: what leaves say of their last change means nothing to cuts
    /// before it. Stored before that begins, read under a leaf's latch, likewise.
    rewound_tick: AtomicU64,
    /// From when on a replica that is out of touch refuses reads, in milliseconds as the clock of this process counts them.
    refuse_from_ms: AtomicU64,
    has_history: AtomicBool,
    /// As the role, for who wants to know before anything else.
    ///
    /// Relaxed: written under the lock, and checked again under it.
    is_replica: AtomicBool,
    /// Set when a log is attached, before anyone else has the database.
    room: OnceLock<Arc<dyn Room>>,
    pub(crate) meters: Meters,
}

/// Who makes room for the log's tail.
pub(crate) trait Room: Send + Sync {
    /// Returns once a record of `len` bytes had room; others may have taken it since. Called with nothing held.
    ///
    /// # Errors
    /// Why there is none.
    fn make_room(&self, commit: &Commit, len: u64) -> Result<()>;
}

#[derive(Debug)]
struct State {
    position: Position,
    /// The histories that led there; the last ends at `position`, whatever it says.
    line: Arc<Vec<Span>>,
    /// Signs the histories that begin here.
    node: [u8; 16],
    /// This run's history, until its first batch: only that makes it part of the line.
    drawn: Option<HistoryId>,
    tick: u64,
    totals: Totals,
    keyspaces: Vec<Keyspace>,
    /// The tick that is shown while another state is installed.
    installing: Option<u64>,
    /// Keyspaces that keep old totals.
    keeping: Vec<KeyspaceSlot>,
    /// Ascending by tick; several may share one.
    cuts: Vec<Arc<Cut>>,
    cuts_taken: u64,
    last_time_ms: u64,
    role: Role,
    /// How often it was said what the role is.
    role_turns: u64,
    closed: bool,
    /// Records on their way to the log, if there is one.
    tail: Option<Tail>,
    /// Where there is no log: the chain up to the last batch that came with a record.
    chain: u32,
    /// Why the log takes no more.
    log_failure: Option<LogFailure>,
    /// Saves fail, and writes are to be refused for that.
    saves_fail: bool,
    /// So many replicas are in touch, which are fewer than are needed for writes.
    too_few_replicas: Option<(usize, usize)>,
    /// Writers wait.
    gated: bool,
}

#[derive(Debug, Default)]
struct Keyspace {
    now: Totals,
    /// Old totals, each with the tick of the batch that replaced it, ascending: kept like entries.
    kept: Vec<(u64, Totals)>,
    dropped: bool,
}

/// A place in the order, to be applied: nothing may fail until [`Ticket::done`].
pub(crate) struct Ticket<'a> {
    commit: &'a Commit,
    pub(crate) position: Position,
    pub(crate) tick: u64,
    /// The tick of the newest live cut that has not passed.
    pub(crate) newest: Option<u64>,
    /// That cut, if it is newer than what the leaves are listed for.
    pub(crate) cut: Option<Arc<Cut>>,
}

impl Ticket<'_> {
    /// For a planted bug: the newest live cut as of now, not as of the place taken.
    pub(crate) fn look_again(&mut self) {
        let state = self.commit.state.lock();
        self.cut = state.cuts.last().cloned();
        self.newest = self.cut.as_ref().map(|cut| cut.tick);
    }

    /// Everything is applied.
    pub(crate) fn done(self) -> Position {
        let position = self.position;
        std::mem::forget(self.commit_guard());
        position
    }

    /// Disarms: the cut is dropped as usual, the poison is not spread.
    fn commit_guard(mut self) -> Self {
        self.cut = None;
        self
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.commit.poison();
    }
}

/// Where a database stands between two batches.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) position: Position,
    /// The histories that led there; the last ends at `position`.
    pub(crate) lineage: Vec<Span>,
    /// That of the records up to there.
    pub(crate) chain: u32,
    pub(crate) time_ms: u64,
    pub(crate) totals: Totals,
    pub(crate) role: Role,
    /// The last history is this run's own.
    pub(crate) has_written: bool,
}

/// What a writer has prepared and listed before it asks for its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    /// Every cut up to this code is served by what is prepared.
    pub(crate) serves: u64,
    /// The cut of this id has passed all the leaves: nothing is kept for it.
    pub(crate) passed_by: u64,
    /// The leaf's range is listed with the cut of this id and with none that is newer.
    pub(crate) listed: u64,
    /// The batch that ends this keyspace: no later batch may touch it.
    pub(crate) drops: Option<KeyspaceSlot>,
}

/// Why there is no ticket.
pub(crate) enum Refused {
    /// A cut was taken meanwhile that needs something kept: prepare for any cut and ask again.
    NewCut,
    /// The log's tail has no room for a record of so many bytes.
    NoRoom(u64),
    /// Since a moment ago there is a log, and the batch has no body for it.
    Unencoded,
    /// Nothing is to be written for a moment.
    Gated,
    /// The database is closed, poisoned, or a keyspace is gone.
    Error(Error),
}

/// Why a write came to nothing, having changed nothing.
pub(crate) enum Denied {
    /// As [`Refused::NoRoom`]: to be made, and the write begun again.
    NoRoom(u64),
    /// As [`Refused::Unencoded`]: the write is begun again.
    Unencoded,
    /// As [`Refused::Gated`]: the write waits, and is begun again.
    Gated,
    Error(Error),
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Denied::Error(error)
    }
}

impl State {
    /// Takes the next place in the order, and appends the record that has it.
    fn next_place(&mut self, body: &mut Body) {
        let now_ms = match body {
            Body::Unlogged => 0,
            Body::Logged(body) => body.now_ms(),
            Body::Replayed { position, time_ms } => {
                self.position = *position;
                self.last_time_ms = self.last_time_ms.max(*time_ms);
                return;
            }
            Body::Forwarded(record) => {
                self.position.seq = record.header.seq;
                self.last_time_ms = self.last_time_ms.max(record.header.time_ms);
                self.chain = record.header.chain;
                if let Some(tail) = &mut self.tail {
                    tail.forward(record);
                }
                return;
            }
        };
        self.last_time_ms = self.last_time_ms.max(now_ms);
        if let Some(history) = self.drawn.take() {
            let term = self.line.last().map_or(0, |last| last.term);
            self.begin_history(history, term);
        }
        self.position.seq.0 += 1;
        if let (Some(tail), Body::Logged(body)) = (&mut self.tail, body) {
            tail.append(body, self.position.seq, self.last_time_ms);
        }
    }
}

impl State {
    /// A record of another node has a place, and is for a replica. Whoever brings it has looked, but not under the lock.
    fn check_forwarded(&self, body: &Body) -> Result<()> {
        let Body::Forwarded(record) = body else { return Ok(()) };
        let fits = record.header.check_place(self.chain(), self.position.seq).is_ok();
        if fits && self.role == Role::Replica { Ok(()) } else { Err(Error::NotFollowing) }
    }

    /// The chain up to the last batch.
    fn chain(&self) -> u32 {
        self.tail.as_ref().map_or(self.chain, Tail::chain)
    }

    /// Keeps a keyspace's totals, which are about to change, if the newest live cut needs them.
    fn keep_totals(&mut self, slot: KeyspaceSlot, newest: Option<u64>) {
        let keyspace = &mut self.keyspaces[slot.0 as usize];
        if let Some(newest) = newest.filter(|_| !planted(Bug::TotalsKeepNothing))
            && keyspace.kept.last().is_none_or(|(died, _)| *died <= newest)
        {
            if keyspace.kept.is_empty() {
                self.keeping.push(slot);
            }
            keyspace.kept.push((self.tick, keyspace.now));
        }
    }

    /// The record that begins a history takes the next place.
    fn begin_history(&mut self, history: HistoryId, term: u64) {
        self.begin_history_of(self.node, history, term);
    }

    fn begin_history_of(&mut self, writer: [u8; 16], history: HistoryId, term: u64) {
        let line = Arc::make_mut(&mut self.line);
        if let Some(last) = line.last_mut() {
            last.end = self.position.seq;
        }
        self.position = Position { history, seq: Seq(self.position.seq.0 + 1) };
        let start = self.position.seq;
        line.push(Span { history, term, writer, start, end: start });
        if let Some(tail) = &mut self.tail {
            let body = HistoryBody { history, term, writer };
            tail.append_history(&body, start, self.last_time_ms);
        }
    }
}

impl Commit {
    /// The state at `position`, holding what `totals` says of each keyspace, the catalogue first.
    pub(crate) fn new(position: Position, time_ms: u64, totals: Vec<Totals>) -> Self {
        let mut all = Totals::default();
        for each in &totals {
            all.records += each.records;
            all.bytes += each.bytes;
            all.fingerprint = all.fingerprint.wrapping_add(each.fingerprint);
        }
        let keyspace = |now| Keyspace { now, ..Keyspace::default() };
        Self {
            state: Mutex::new(State {
                position,
                line: Arc::default(),
                node: [0; 16],
                drawn: None,
                tick: 0,
                totals: all,
                keyspaces: totals.into_iter().map(keyspace).collect(),
                installing: None,
                keeping: Vec::new(),
                cuts: Vec::new(),
                cuts_taken: 0,
                last_time_ms: time_ms,
                role: Role::Primary,
                role_turns: 0,
                closed: false,
                tail: None,
                chain: 0,
                log_failure: None,
                saves_fail: false,
                too_few_replicas: None,
                gated: false,
            }),
            newest_code: AtomicU64::new(0),
            newest_id: AtomicU64::new(0),
            second_code: AtomicU64::new(0),
            view: AtomicU64::new(0),
            shown_tick: AtomicU64::new(0),
            rewound_tick: AtomicU64::new(0),
            refuse_from_ms: AtomicU64::new(0),
            has_history: AtomicBool::new(false),
            is_replica: AtomicBool::new(false),
            room: OnceLock::new(),
            meters: Meters::default(),
        }
    }

    /// The histories that led here, and who signs the next. Called before anyone writes.
    pub(crate) fn set_line(&self, lineage: Vec<Span>, node: [u8; 16]) {
        let mut state = self.state.lock();
        (state.line, state.node) = (Arc::new(lineage), node);
    }

    /// From now on every batch has a record, which goes behind the chain `chain`. Called once, before anyone writes.
    pub(crate) fn attach_log(&self, chain: u32, room: Arc<dyn Room>) {
        let mut state = self.state.lock();
        assert!(self.room.set(room).is_ok(), "a database has one log");
        state.chain = chain;
        state.tail = Some(Tail::new(chain));
    }

    /// As [`attach_log`](Self::attach_log) while others write: the log that `make` makes goes on from what it is shown. If there is one,
    /// nothing is done.
    pub(crate) fn attach_log_now(&self, make: impl FnOnce(Base) -> Arc<dyn Room>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if self.room.get().is_some() {
            return;
        }
        let (position, time_ms) = (state.position, state.last_time_ms);
        let room = make(Base { position, time_ms, chain: state.chain });
        assert!(self.room.set(room).is_ok(), "set under this lock alone");
        state.tail = Some(Tail::new(state.chain));
    }

    /// Where the present stands.
    pub(crate) fn standing(&self) -> Standing {
        let state = self.state.lock();
        Standing {
            position: state.position,
            lineage: lineage(&state.line, state.position.seq),
            chain: state.chain(),
            time_ms: state.last_time_ms,
            totals: state.totals,
            role: state.role,
            has_written: self.has_history() && state.drawn.is_none(),
        }
    }

    /// Whether batches need a [body](Body::Logged).
    #[inline]
    pub(crate) fn is_logged(&self) -> bool {
        self.room.get().is_some()
    }

    /// Does `write` until it is not in want of room in the log's tail. `None` if it must be begun again with a [body](Body::Logged).
    pub(crate) fn with_room<T>(
        &self,
        mut write: impl FnMut() -> std::result::Result<T, Denied>,
    ) -> Result<Option<T>> {
        loop {
            match write() {
                Ok(done) => return Ok(Some(done)),
                Err(Denied::Unencoded) => return Ok(None),
                Err(Denied::Gated) => self.wait_at_gate(),
                Err(Denied::Error(error)) => return Err(error),
                Err(Denied::NoRoom(len)) => {
                    let room = self.room.get().expect("only a log can want room");
                    room.make_room(self, len)?;
                }
            }
        }
    }

    #[cold]
    fn wait_at_gate(&self) {
        assert_no_latch("the gate");
        while self.state.lock().gated {
            std::thread::sleep(GATE_LOOK);
        }
    }

    /// Writers wait from now on, or go on.
    pub(crate) fn set_gate(&self, is_shut: bool) {
        self.state.lock().gated = is_shut;
    }

    /// Begins `history`, of a term above all that the line has, for `writer`, another node: from now on that alone writes. Writers were stopped by
    /// the [gate](Self::set_gate) before.
    ///
    /// # Errors
    /// [`Denied::NoRoom`], and why nothing can be written.
    pub(crate) fn hand_to(
        &self,
        writer: [u8; 16],
        history: HistoryId,
        term: u64,
        now_ms: u64,
    ) -> std::result::Result<Position, Denied> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.refusal(state, false)?;
        if let Some(tail) = &state.tail
            && !tail.has_room_for_history()
        {
            return Err(Denied::NoRoom(tail::HISTORY_LEN));
        }
        state.drawn = None;
        self.has_history.store(false, Ordering::Relaxed);
        state.tick += 1;
        state.last_time_ms = state.last_time_ms.max(now_ms);
        state.begin_history_of(writer, history, term);
        state.role = Role::Replica;
        state.role_turns += 1;
        self.is_replica.store(true, Ordering::Relaxed);
        Ok(state.position)
    }

    /// Takes the tail away, to be written; `empty` gives memory for the next.
    pub(crate) fn drain(&self, empty: Vec<u8>) -> Drained {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let tail = state.tail.as_mut().expect("a database with a log");
        let (bytes, linked) = tail.drain(empty);
        let chain = tail.chain();
        let base = Base { position: state.position, time_ms: state.last_time_ms, chain };
        Drained { bytes, linked, base, fingerprint: state.totals.fingerprint }
    }

    /// Bytes that wait in the tail.
    pub(crate) fn tail_len(&self) -> u64 {
        self.state.lock().tail.as_ref().map_or(0, Tail::len)
    }

    /// From now on so many bytes may wait in the tail. Whether something does already.
    pub(crate) fn set_tail_limit(&self, limit: u64) -> bool {
        let mut state = self.state.lock();
        let tail = state.tail.as_mut().expect("a database with a log");
        tail.set_limit(limit);
        !tail.is_empty()
    }

    /// The log begins anew behind all there is: writes are taken again.
    pub(crate) fn restart_log(&self) {
        let mut state = self.state.lock();
        state.log_failure = None;
        if let Some(tail) = &mut state.tail {
            tail.set_limit(0);
        }
    }

    /// Whether writes are refused because saves fail.
    pub(crate) fn set_saves_fail(&self, fail: bool) {
        self.state.lock().saves_fail = fail;
    }

    /// Whether writes are refused because too few replicas are in touch: how many are, and how many are needed.
    pub(crate) fn set_too_few_replicas(&self, too_few: Option<(usize, usize)>) {
        self.state.lock().too_few_replicas = too_few;
    }

    /// The log takes no more: writes are refused, reads go on. What waits in the tail stays there.
    pub(crate) fn fail_log(&self, failure: &LogFailure) {
        self.state.lock().log_failure.get_or_insert_with(|| failure.clone());
    }

    /// Whether this run has drawn its history.
    pub(crate) fn has_history(&self) -> bool {
        // Relaxed: only ever set, and set under the lock that every use of the history takes.
        self.has_history.load(Ordering::Relaxed)
    }

    /// Whether this run has written anything.
    pub(crate) fn has_written(&self) -> bool {
        let state = self.state.lock();
        self.has_history() && state.drawn.is_none()
    }

    /// The next batch begins `history`; the first to draw one wins.
    pub(crate) fn begin_history(&self, history: HistoryId) {
        let mut state = self.state.lock();
        if !self.has_history.swap(true, Ordering::Relaxed)
            && (!planted(Bug::SameHistory) || state.line.is_empty())
        {
            state.drawn = Some(history);
        }
    }

    /// Begins `history`, in a term above all that the line has and above `above`, though nothing is to be written yet. What the next batch would have begun is
    /// forgotten. Returns the place of the record.
    ///
    /// # Errors
    /// [`Denied::NoRoom`], and why nothing can be written.
    pub(crate) fn begin_term(
        &self,
        history: HistoryId,
        above: u64,
        now_ms: u64,
    ) -> std::result::Result<Position, Denied> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.refusal(state, true)?;
        if let Some(tail) = &state.tail
            && !tail.has_room_for_history()
        {
            return Err(Denied::NoRoom(tail::HISTORY_LEN));
        }
        let term = state.line.iter().map(|span| span.term).max().unwrap_or(0).max(above);
        state.drawn = None;
        self.has_history.store(true, Ordering::Relaxed);
        state.tick += 1;
        state.last_time_ms = state.last_time_ms.max(now_ms);
        state.begin_history(history, term.saturating_add(1));
        Ok(state.position)
    }

    /// Refuses who wants to write, before he has looked at anything.
    #[inline]
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check()?;
        let is_replica = self.is_replica.load(Ordering::Relaxed) && !planted(Bug::ReplicaWrites);
        if is_replica { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// A history begins that another node writes: its record takes the next place.
    ///
    /// # Errors
    /// [`Denied::NoRoom`], and why nothing can be written.
    pub(crate) fn forward_history(
        &self,
        body: &HistoryBody,
        record: Forwarded,
    ) -> std::result::Result<(), Denied> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.refusal(state, true)?;
        let mut record = Body::Forwarded(record);
        state.check_forwarded(&record)?;
        if let Some(tail) = &state.tail
            && let Some(wanted) = tail.wants(&record, false)
        {
            return Err(Denied::NoRoom(wanted));
        }
        let HistoryBody { history, term, writer } = *body;
        let line = Arc::make_mut(&mut state.line);
        if let Some(last) = line.last_mut() {
            last.end = state.position.seq;
        }
        state.tick += 1;
        state.next_place(&mut record);
        let start = state.position.seq;
        state.position.history = history;
        let line = Arc::make_mut(&mut state.line);
        line.push(Span { history, term, writer, start, end: start });
        Ok(())
    }

    /// This run's history is somebody else's as well: the next batch begins `another`, also that of a writer who is on his way.
    pub(crate) fn leave_history(&self, another: HistoryId) {
        let mut state = self.state.lock();
        state.drawn = Some(another);
        self.has_history.store(true, Ordering::Relaxed);
    }

    /// What the database does from now on. Returns how often that was said.
    pub(crate) fn set_role(&self, role: Role) -> u64 {
        let mut state = self.state.lock();
        state.role_turns += 1;
        state.role = role;
        self.is_replica.store(role != Role::Primary, Ordering::Relaxed);
        state.role_turns
    }

    /// As [`set_role`](Self::set_role) to a replica, of a primary that has written nothing in this run and is still at `position`. `None`: it
    /// has, or isn't.
    pub(crate) fn take_back(&self, position: Position) -> Option<u64> {
        let mut state = self.state.lock();
        let has_written = self.has_history() && state.drawn.is_none();
        if has_written || state.role != Role::Primary || state.position != position {
            return None;
        }
        state.role_turns += 1;
        state.role = Role::Replica;
        self.is_replica.store(true, Ordering::Relaxed);
        Some(state.role_turns)
    }

    /// As [`set_role`](Self::set_role), unless something was said since it had been `turns` times.
    pub(crate) fn set_role_since(&self, turns: u64, role: Role) {
        let mut state = self.state.lock();
        if state.role_turns == turns {
            state.role_turns += 1;
            state.role = role;
            self.is_replica.store(role != Role::Primary, Ordering::Relaxed);
        }
    }

    /// How often it was said what the database does.
    pub(crate) fn role_turns(&self) -> u64 {
        self.state.lock().role_turns
    }

    /// What the database does now.
    pub(crate) fn role(&self) -> Role {
        self.state.lock().role
    }

    /// Gives a batch its place. The caller holds the latches of all leaves it changes.
    pub(crate) fn take(
        &self,
        deltas: &[(KeyspaceSlot, Delta)],
        prepared: Prepared,
        body: &mut Body,
    ) -> std::result::Result<Ticket<'_>, Refused> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let refused =
            self.refusal(state, body.is_given()).and_then(|()| state.check_forwarded(body));
        if let Err(error) = refused {
            return Err(Refused::Error(error));
        }
        let is_dropped = |slot: &KeyspaceSlot| state.keyspaces[slot.0 as usize].dropped;
        if deltas.iter().any(|(slot, _)| is_dropped(slot)) && !planted(Bug::DroppedStillWrites) {
            return Err(Refused::Error(Error::NoKeyspace));
        }
        let any_mark = planted(Bug::MarkOfAnother) && prepared.passed_by != 0;
        let is_passed = |cut: &&Arc<Cut>| cut.id == prepared.passed_by || any_mark;
        let newest = state.cuts.iter().rev().find(|cut| !is_passed(cut));
        if newest.is_some_and(|cut| cut.code() > prepared.serves) {
            return Err(Refused::NewCut);
        }
        let newest_tick = newest.map(|cut| cut.tick);
        // Totals are kept for every live cut.
        let newest_of_all = state.cuts.last().map(|cut| cut.tick);
        let cut = newest.filter(|cut| cut.id > prepared.listed).cloned();
        if state.gated && !body.is_given() {
            return Err(Refused::Gated);
        }
        if let Some(tail) = &state.tail {
            if matches!(body, Body::Unlogged) {
                return Err(Refused::Unencoded);
            }
            if let Some(wanted) = tail.wants(body, state.drawn.is_some()) {
                return Err(Refused::NoRoom(wanted));
            }
        }
        if let Some(slot) = prepared.drops {
            state.keyspaces[slot.0 as usize].dropped = true;
        }
        state.tick += 1;
        state.next_place(body);
        for (slot, delta) in deltas {
            state.totals.add(delta);
            state.keep_totals(*slot, newest_of_all);
            state.keyspaces[slot.0 as usize].now.add(delta);
        }
        let (position, tick) = (state.position, state.tick);
        Ok(Ticket { commit: self, position, tick, newest: newest_tick, cut })
    }

    fn refusal(&self, state: &State, is_given: bool) -> Result<()> {
        self.check()?;
        if state.role != Role::Primary && !is_given && !planted(Bug::ReplicaWrites) {
            return Err(Error::ReadOnly);
        }
        if let Some(failure) = &state.log_failure {
            return Err(Error::LogFailed(failure.clone()));
        }
        if let Some((connected, needed)) = state.too_few_replicas
            && !is_given
        {
            return Err(Error::TooFewReplicas { connected, needed });
        }
        if state.saves_fail {
            return Err(Error::SavesFail);
        }
        if state.closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// Frees old totals that no live cut needs; a bounded number of keyspaces a lock.
    pub(crate) fn sweep_totals(&self) {
        const SLICE: usize = 64;
        let mut from = 0;
        loop {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let end = state.keeping.len().min(from + SLICE);
            let mut at = from;
            for _ in from..end {
                let slot = state.keeping[at];
                let kept = &mut state.keyspaces[slot.0 as usize].kept;
                let mut born = 0;
                kept.retain(|&(died, _)| {
                    let needed = state.cuts.iter().any(|cut| born <= cut.tick && cut.tick < died);
                    born = died;
                    needed
                });
                if kept.is_empty() {
                    *kept = Vec::new();
                    state.keeping.swap_remove(at);
                } else {
                    at += 1;
                }
            }
            from = at;
            if from >= state.keeping.len() {
                return;
            }
        }
    }

    /// A keyspace's totals now.
    pub(crate) fn totals(&self, slot: KeyspaceSlot) -> Totals {
        self.state.lock().keyspaces[slot.0 as usize].now
    }

    /// The whole database's totals now.
    pub(crate) fn all_totals(&self) -> Totals {
        self.state.lock().totals
    }

    /// A keyspace's totals at a live cut: the kept ones that died first after it, else the present ones.
    pub(crate) fn totals_at(&self, slot: KeyspaceSlot, cut: &Cut) -> Totals {
        let state = self.state.lock();
        let keyspace = &state.keyspaces[slot.0 as usize];
        let kept = keyspace.kept.iter().find(|(died, _)| *died > cut.tick);
        kept.map_or(keyspace.now, |(_, totals)| *totals)
    }

    /// Counters for one more keyspace.
    pub(crate) fn add_keyspace(&self) -> KeyspaceSlot {
        let mut state = self.state.lock();
        state.keyspaces.push(Keyspace::default());
        #[expect(clippy::cast_possible_truncation, reason = "ids are 32 bits as well")]
        KeyspaceSlot(state.keyspaces.len() as u32 - 1)
    }

    /// The time of the last batch or cut, in Unix milliseconds.
    pub(crate) fn time_ms(&self) -> u64 {
        self.state.lock().last_time_ms
    }

    /// Recovery: nothing changes up to `position`.
    pub(crate) fn skip_to(&self, position: Position, time_ms: u64) {
        self.state.lock().next_place(&mut Body::Replayed { position, time_ms });
    }

    /// The position of the last batch.
    pub(crate) fn position(&self) -> Position {
        self.state.lock().position
    }

    /// # Errors
    /// [`Error::Poisoned`], [`Error::Closed`].
    pub(crate) fn check_open(&self) -> Result<()> {
        self.check()?;
        if self.state.lock().closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses writes from now on.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// As a rewound replica's: the next batch gets the number after `seq` again, in another history.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn rewind_seq(&self, seq: Seq, history: HistoryId) {
        let mut state = self.state.lock();
        assert!(seq <= state.position.seq, "a rewind goes back");
        let mut line = lineage(&state.line, state.position.seq);
        line.retain(|span| span.start < seq);
        if let Some(last) = line.last_mut() {
            last.end = Seq(seq.0 - 1);
        }
        line.push(Span { history, term: 0, writer: state.node, start: seq, end: seq });
        state.line = Arc::new(line);
        state.position = Position { history, seq };
        state.drawn = None;
    }
}

/// The line of these histories, of which the last ends at `end`.
fn lineage(line: &[Span], end: Seq) -> Vec<Span> {
    let mut lineage = line.to_vec();
    if let Some(last) = lineage.last_mut() {
        last.end = end;
    }
    lineage
}

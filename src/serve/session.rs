//! The source's half of a session with one replica: messages in, messages out.
//!
//! It knows neither sockets nor threads nor the time: who drives it hands in what came and takes what is to be sent. What it reads it reads from the
//! database: leaves by a [transfer](super::transfer), records from the log, as far behind as the replica is.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::Error;
use crate::commit::{Holder, Role, Standing};
use crate::database::Engine;
use crate::follow::session::{Kept, ReplicaSession};
use crate::format::record::{HistoryBody, RECORD_HEADER_LEN, RecordKind};
use crate::format::snapshot::{Codec, Span, rank};
use crate::format::wire::{
    Ack, Ask, Backlog, Beat, Bye, CutMessage, End, Hello, MAX_PAYLOAD_LEN, Mark, MessageKind,
    Offer, Plan, Reason,
};
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position, Seq};
use crate::replication::catch_up::{CatchUp, Costs, Source, choose};
use crate::replication::framing::Sealer;
use crate::replication::line::{self, has};
use crate::replication::needs::{Need, Needs};
use crate::serve::drive::Machine;
use crate::serve::hub::{Hub, SyncKind};
use crate::serve::signal::Signal;
use crate::serve::transfer::{Next, Transfer};
use crate::storage::feed::{Fed, Feed, Shown};
use crate::storage::log::Lease;
use crate::storage::source;
use crate::storage::writer::WriterOptions;
use crate::tree::Pass;

/// About so many bytes are made ready at once.
const FILL_BYTES: usize = 256 << 10;
/// So often a replica is told what it must add up to, while nothing is written.
const MARK_EVERY_MS: u64 = 1_000;

/// How a session is kept.
#[derive(Debug, Clone)]
pub(crate) struct SessionLimits {
    /// One says at least so often that one is there.
    pub(crate) beat_ms: u64,
    /// Who said nothing for so long is gone.
    pub(crate) timeout_ms: u64,
    /// Threads that encode leaves; without any it is done in turn.
    pub(crate) threads: usize,
    /// Blocks are compressed whether the link needs it or not.
    pub(crate) always_compresses: bool,
    /// Nothing is sent before it is durable here.
    pub(crate) after_durable: bool,
    /// What a full sync replaces goes before it comes.
    pub(crate) drops_first: bool,
    /// Bytes of keys and values in a block, if not as many as usual.
    pub(crate) run_bytes: Option<usize>,
    /// The longest body of a record that one takes.
    pub(crate) max_body_len: u32,
    /// For people.
    pub(crate) name: String,
}

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum Ended {
    /// One ends it oneself, and says so.
    By(Reason, u64),
    /// The other has said so.
    Bye(Bye),
    /// Something of one's own failed, and the other is told that alone.
    Failed(Error),
    /// The replica takes over: what it was sent says so.
    Promoted,
}

impl Ended {
    /// What the other is told, if anything.
    pub(crate) fn bye(&self) -> Option<Bye> {
        match *self {
            Ended::By(reason, detail) => Some(Bye { reason, detail }),
            Ended::Failed(_) => Some(Bye { reason: Reason::Failed, detail: 0 }),
            Ended::Promoted => Some(Bye { reason: Reason::Stopping, detail: 0 }),
            Ended::Bye(_) => None,
        }
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Failed(error)
    }
}

pub(crate) type Step<T = ()> = std::result::Result<T, Ended>;

/// What a machine does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It has more to say at once.
    More,
    /// Nothing, before something comes, is written or is due.
    Idle,
}

/// See the file's head.
pub(crate) struct SourceSession {
    engine: Weak<Engine>,
    hub: Arc<Hub>,
    /// Its number at the hub.
    id: u64,
    limits: SessionLimits,
    signal: Arc<Signal>,
    /// What goes before all else.
    queue: VecDeque<(MessageKind, Vec<u8>)>,
    replica: Option<Hello>,
    /// How often another state had taken the place of the present when it said hello.
    installs: Option<u64>,
    /// How often those that are followed had changed when it told who they are.
    path_turns: u64,
    sending: Sending,
    /// When something last came, and when something last was sent.
    heard_ms: u64,
    beat_ms: u64,
    /// As it was last said.
    backlog: Backlog,
    /// Payload of records.
    payload: Vec<u8>,
    /// What the log holds behind some batch is not what was written.
    log_is_damaged: bool,
    /// It sends to its own source what that has lost.
    is_healing: bool,
}

enum Sending {
    Nothing,
    /// It takes back what it has lost: it is the one that is sent something.
    Healing(Box<Healing>),
    Leaves(Box<Leaves>),
    Records(Box<Records>),
}

/// See [`Sending::Healing`].
struct Healing {
    session: ReplicaSession,
    /// The last batch that the replica had of this node's.
    up_to: Position,
    engine: Weak<Engine>,
    /// Since then, if this is all that was said of its role: who is told meanwhile to follow, or to go on as it is, does.
    role_turns: u64,
}

impl Drop for Healing {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.tree().commit.set_role_since(self.role_turns, Role::Primary);
        }
    }
}

struct Leaves {
    transfer: Transfer,
    /// The number of the ask.
    number: u64,
    cut: Position,
    /// What follows the cut is to be there when its leaves are sent.
    lease: Lease,
    _admitted: crate::serve::hub::Admitted,
}

struct Records {
    feed: Feed,
    lease: Lease,
    /// When, and behind which batch, it was last said what all adds up to.
    marked_ms: u64,
    marked: Option<Seq>,
    growth: Growth,
}

/// Messages that may wait to be sent, beside what is made as it is sent.
pub(crate) const MOST_QUEUED: usize = 8;

/// How fast the log grows.
#[derive(Default)]
struct Growth {
    /// Bytes that were shown of it.
    shown: u64,
    /// How many there were, shown or not, at what time.
    last: Option<(u64, u64)>,
    /// Bytes a second, of late.
    rate: u64,
}

impl Growth {
    /// Bytes that lie `ahead` at `now_ms`, of which the log keeps `most`.
    fn backlog(&mut self, ahead: u64, most: u64, now_ms: u64) -> Backlog {
        let all = self.shown.saturating_add(ahead);
        if let Some((before, then)) = self.last
            && now_ms > then
        {
            let rate = all.saturating_sub(before).saturating_mul(1000) / (now_ms - then);
            // An eighth of it is new each time: with a beat a second that is over some ten seconds.
            self.rate = if self.rate == 0 { rate } else { self.rate - self.rate / 8 + rate / 8 };
        }
        self.last = Some((all, now_ms));
        let left = most.saturating_sub(ahead).saturating_mul(1000);
        Backlog { bytes: ahead, lasts_ms: left.checked_div(self.rate).unwrap_or(u64::MAX) }
    }
}

impl SourceSession {
    /// A session that begins at `now_ms`.
    pub(crate) fn new(
        (engine, hub): (&Weak<Engine>, &Arc<Hub>),
        id: u64,
        limits: SessionLimits,
        signal: Arc<Signal>,
        now_ms: u64,
    ) -> Self {
        Self {
            engine: Weak::clone(engine),
            hub: Arc::clone(hub),
            id,
            limits,
            signal,
            queue: VecDeque::new(),
            replica: None,
            installs: None,
            path_turns: 0,
            sending: Sending::Nothing,
            heard_ms: now_ms,
            beat_ms: now_ms,
            backlog: Backlog::NONE,
            payload: Vec::new(),
            log_is_damaged: false,
            is_healing: false,
        }
    }

    /// It sends to its own source what that has lost.
    pub(crate) fn heals(&mut self) {
        self.is_healing = true;
    }

    /// Leaves go in blocks of about so many bytes of keys and values.
    #[cfg(feature = "simulation")]
    pub(crate) fn set_run_bytes(&mut self, bytes: usize) {
        self.limits.run_bytes = Some(bytes);
    }

    /// The database, if it has not been dropped.
    fn engine(&self) -> Step<Arc<Engine>> {
        self.engine.upgrade().ok_or(Ended::By(Reason::Stopping, 0))
    }

    /// Takes a message.
    pub(crate) fn receive(&mut self, kind: MessageKind, payload: &[u8], now_ms: u64) -> Step {
        let engine = &self.engine()?;
        self.heard_ms = now_ms;
        if self.queue.len() > MOST_QUEUED {
            // It asks, and does not read what it is answered.
            return Err(Ended::By(Reason::Protocol, 0));
        }
        let decoded = |_| Ended::By(Reason::Protocol, 0);
        if let Sending::Healing(healing) = &mut self.sending
            && kind != MessageKind::Bye
        {
            if engine.tree().commit.role_turns() != healing.role_turns {
                return Err(Ended::By(Reason::Moved, 0));
            }
            healing.session.receive(kind, payload, now_ms)?;
            if engine.tree().commit.standing().position == healing.up_to {
                // The replica follows again, of what both have.
                return Err(Ended::By(Reason::Moved, 0));
            }
            return Ok(());
        }
        match kind {
            MessageKind::Hello => self.hello(engine, Hello::decode(payload).map_err(decoded)?),
            MessageKind::Ask => self.ask(engine, Ask::decode(payload).map_err(decoded)?, now_ms),
            MessageKind::Ack => {
                let ack = Ack::decode(payload).map_err(decoded)?;
                self.ack(ack);
                Ok(())
            }
            MessageKind::Beat => {
                Beat::decode(payload).map_err(decoded)?;
                self.hub.heard_of(self.id);
                Ok(())
            }
            MessageKind::Bye => Err(Ended::Bye(Bye::decode(payload).map_err(decoded)?)),
            _ => Err(Ended::By(Reason::Protocol, 0)),
        }
    }

    fn standing(&self, engine: &Arc<Engine>) -> Standing {
        engine.tree().commit.standing()
    }

    /// What of the line is durable on its primary.
    fn durable(&self, engine: &Arc<Engine>, own: &Standing) -> Seq {
        let on_disk = engine.log().map_or(Seq(0), |log| log.durable());
        self.hub.durable(own, on_disk)
    }

    /// Whether this node can't tell now where its line goes on.
    fn is_unsettled(&self, own: &Standing) -> bool {
        own.role != Role::Primary && self.hub.is_unsettled()
    }

    fn hello(&mut self, engine: &Arc<Engine>, hello: Hello) -> Step {
        let is_cycle = self.hub.path().contains(&hello.node) && !self.is_healing;
        if hello.node == engine.node || is_cycle {
            return Err(Ended::By(Reason::Cycle, 0));
        }
        self.installs = engine.installs();
        self.path_turns = self.hub.path_turns();
        let own = self.standing(engine);
        let is_same = hello.dataset == engine.dataset();
        let (ours, theirs) = (rank(&own.lineage), rank(&hello.lineage));
        let known = self.hub.term(&own.lineage);
        let outranks = theirs.0 > 0 && theirs > ours;
        if is_same && own.role == Role::Primary && (outranks || hello.term > known) {
            // Another was promoted, and this replica is with it, or has heard of it.
            let (term, history) = theirs.max((hello.term, HistoryId::default()));
            engine.fence(term, history)?;
            return Err(Ended::By(Reason::Fenced, term));
        }
        let own_hello = Hello {
            node: engine.node,
            dataset: engine.dataset(),
            term: self.hub.term(&own.lineage),
            durable: self.durable(engine, &own),
            records: own.totals.records,
            chain: own.chain,
            is_primary: own.role == Role::Primary,
            has_written: own.has_written,
            is_unsettled: self.is_unsettled(&own),
            max_body_len: self.limits.max_body_len,
            path: self.hub.path(),
            lineage: line::told(&own.lineage, &hello.lineage),
            name: self.limits.name.clone(),
        };
        if !self.is_what_it_said(engine) {
            return Err(Ended::By(Reason::Busy, 0));
        }
        let mut payload = Vec::new();
        own_hello.encode(&mut payload);
        self.queue.push_back((MessageKind::Hello, payload));
        // Whoever it had something for in this session begins anew.
        self.sending = Sending::Nothing;
        self.hub.introduce(self.id, &hello);
        self.replica = Some(hello);
        Ok(())
    }

    /// Whether the state is still the one, with its line and its data set, that hello told of, or goes on from it.
    fn is_what_it_said(&self, engine: &Arc<Engine>) -> bool {
        self.installs.is_some() && engine.installs() == self.installs
    }

    /// What the replica has told of its line.
    fn replica_line(&self) -> Vec<Span> {
        self.replica.as_ref().map(|replica| replica.lineage.clone()).unwrap_or_default()
    }

    fn ack(&mut self, ack: Ack) {
        if let Sending::Records(records) = &self.sending {
            // It may be behind what was sent, and is not ahead of it.
            records.lease.move_to(ack.applied.seq.min(records.feed.position().seq));
        }
        self.hub.ack(self.id, &ack);
    }

    fn offer(&mut self, number: u64, plan: Plan) {
        let mut payload = Vec::new();
        Offer { number, plan }.encode(&mut payload);
        self.queue.push_back((MessageKind::Offer, payload));
    }

    fn ask(&mut self, engine: &Arc<Engine>, ask: Ask, now_ms: u64) -> Step {
        let Some(replica) = &self.replica else { return Err(Ended::By(Reason::Protocol, 0)) };
        self.sending = Sending::Nothing;
        if !self.is_what_it_said(engine) {
            self.offer(ask.number, Plan::Retry);
            return Ok(());
        }
        let commit = &engine.tree().commit;
        let log = engine.source_log()?;
        loop {
            let own = commit.standing();
            log.write_out(commit, own.position.seq).map_err(Error::LogFailed)?;
            let asked = crate::replication::line::end(&replica.lineage);
            let lease = log.lease(asked.seq);
            let takes_records = ask.takes_records && has(&own.lineage, asked);
            let feed = match takes_records && !self.log_is_damaged {
                // At the same place by another way: then only leaves tell.
                true => match Feed::open(log, asked.seq) {
                    // What is in memory is good.
                    Err(Error::Corrupt { .. }) => None,
                    feed => feed?.filter(|feed| feed.chain() == replica.chain),
                },
                false => None,
            };
            let source = Source {
                line: &own.lineage,
                node: engine.node,
                is_primary: own.role == Role::Primary,
                has_written: own.has_written,
                is_unsettled: self.is_unsettled(&own),
                log_after: feed.as_ref().map(|_| asked.seq),
            };
            let costs = || self.costs(engine, feed.as_ref(), asked.seq);
            let way = choose(&replica.lineage, &source, costs);
            match (way, feed) {
                (CatchUp::NewHistory, _) => {
                    // What this run wrote since it was rolled back is another's from now on.
                    commit.leave_history(HistoryId::own()?);
                    continue;
                }
                (CatchUp::Retry, _) => self.offer(ask.number, Plan::Retry),
                (CatchUp::Wait, _) => self.offer(ask.number, Plan::Wait),
                (CatchUp::Heal, _) => {
                    // Nothing was written in this run, and nothing is until it has its own again.
                    let up_to = asked;
                    let Some(role_turns) = commit.take_back(own.position) else { continue };
                    let weak = Arc::downgrade(engine);
                    let mut session = ReplicaSession::new(
                        (&weak, &self.hub),
                        self.limits.clone(),
                        Kept::default(),
                        now_ms,
                    );
                    session.heals();
                    self.offer(ask.number, Plan::Heal);
                    self.sending = Sending::Healing(Box::new(Healing {
                        session,
                        up_to,
                        engine: weak,
                        role_turns,
                    }));
                }
                (CatchUp::Records { .. }, Some(feed)) => {
                    self.offer(ask.number, Plan::Records);
                    self.hub.catches_up(self.id, SyncKind::Partial);
                    self.stream(feed, lease, now_ms);
                }
                _ => return self.begin_leaves(engine, &ask, way),
            }
            return Ok(());
        }
    }

    /// What either way would send.
    fn costs(&self, engine: &Arc<Engine>, feed: Option<&Feed>, after: Seq) -> Costs {
        /// So many bytes are sent while a leaf is looked at: of fewer records nothing is counted.
        const A_LEAF: u64 = 8;
        let records = feed.map_or(u64::MAX, Feed::bytes_ahead);
        let few = (64 << 10).max(A_LEAF.saturating_mul(engine.tree().leaves().0));
        let leaves = if records <= few { u64::MAX } else { engine.tree().bytes_after(after) };
        // As they are sent: compressed.
        Costs { records, leaves: leaves / 2 }
    }

    fn begin_leaves(&mut self, engine: &Arc<Engine>, ask: &Ask, way: CatchUp) -> Step {
        let Some(admitted) = self.hub.admit() else {
            self.offer(ask.number, Plan::Retry);
            return Ok(());
        };
        let tree = engine.tree();
        // Before the cut: what follows it is in the log from then on.
        let log = engine.source_log()?;
        let lease = log.lease(log.written());
        let pass = Pass::take(tree, Holder::Replica)?;
        if !self.is_what_it_said(engine) {
            self.offer(ask.number, Plan::Retry);
            return Ok(());
        }
        let promised = source::Cut::of(pass.cut());
        if self.limits.after_durable && engine.log().is_some() {
            let synced = log.sync(&tree.commit, promised.position.seq);
            synced.map_err(Error::LogFailed)?;
        }
        let cut = CutMessage {
            number: ask.number,
            time_ms: promised.time_ms,
            records: promised.entries,
            fingerprint: promised.fingerprint,
            durable: self.durable(engine, &self.standing(engine)).min(promised.position.seq),
            chain: pass.cut().chain,
            lineage: line::told(&promised.lineage, &self.replica_line()),
        };
        let options = WriterOptions {
            codec: Codec::Lz4,
            threads: self.limits.threads,
            rate_limit: None,
            run_bytes: self.limits.run_bytes,
        };
        // Few leaves are sent because bytes are to be spared; all of them are to be there soon.
        let is_whole = matches!(&ask.needs[..], [(_, Need::Anything | Need::NewerThan(Seq(0)))]);
        let adapts = is_whole && !self.limits.always_compresses;
        let mut needs = Needs::of_ranges(ask.needs.clone());
        // What is written meanwhile has a newer stamp.
        needs.resolve(|low, high| {
            let sums = tree.sums(0, low, high);
            sums.iter().fold(0_u64, |sum, of| sum.wrapping_add(of.totals.fingerprint))
        });
        let place = (ask.file_id, ask.next_block);
        // As much of the disk as the log may take for who has not read it.
        let spill = engine.log().map(|log| (log, engine.log_for_replicas()));
        let transfer =
            Transfer::begin(pass, needs, place, (options, adapts), (&self.signal, spill));
        self.offer(ask.number, Plan::Leaves);
        let mut payload = Vec::new();
        cut.encode(&mut payload);
        self.queue.push_back((MessageKind::Cut, payload));
        let repairs = ask.needs.iter().any(|(_, need)| matches!(need, Need::Unless(..)));
        self.hub.catches_up(self.id, if repairs { SyncKind::Repair } else { kind_of(way) });
        let (number, cut, _admitted) = (ask.number, promised.position, admitted);
        self.sending =
            Sending::Leaves(Box::new(Leaves { transfer, number, cut, lease, _admitted }));
        Ok(())
    }

    fn stream(&mut self, feed: Feed, lease: Lease, now_ms: u64) {
        let marked_ms = now_ms.saturating_sub(MARK_EVERY_MS);
        let growth = Growth::default();
        let records = Records { feed, lease, marked_ms, marked: None, growth };
        self.sending = Sending::Records(Box::new(records));
    }

    /// Appends to `out` what is to be sent now, some 256 KiB of it at the most.
    pub(crate) fn fill(
        &mut self,
        sealer: &mut Sealer,
        out: &mut Vec<u8>,
        now_ms: u64,
    ) -> Step<Filled> {
        let engine = &self.engine()?;
        if now_ms.saturating_sub(self.heard_ms) > self.limits.timeout_ms {
            return Err(Ended::By(Reason::Silent, 0));
        }
        let before = out.len();
        while let Some((kind, payload)) = self.queue.pop_front() {
            sealer.seal(kind, &payload, out);
        }
        let wants_durable = self.hub.wants_durable(self.id);
        let is_silent = planted(Bug::NoBeat);
        let is_due = now_ms.saturating_sub(self.beat_ms) >= self.limits.beat_ms;
        if (wants_durable || is_due) && !is_silent {
            self.beat_ms = now_ms;
            let own = self.standing(engine);
            let time_ms = self.hub.time_ms(engine);
            if is_due {
                self.backlog = match &mut self.sending {
                    Sending::Records(records) => {
                        let ahead = records.feed.bytes_ahead();
                        records.growth.backlog(ahead, engine.log_for_replicas(), now_ms)
                    }
                    _ => Backlog::NONE,
                };
                self.hub.set_backlog(self.id, self.backlog);
            }
            let backlog = self.backlog;
            sealer.seal_with(MessageKind::Beat, out, |out| {
                let (seq, is_unsettled) = (own.position.seq, self.is_unsettled(&own));
                Beat { seq, time_ms, wants_durable, is_unsettled, backlog }.encode(out);
            });
        }
        let filled = match std::mem::replace(&mut self.sending, Sending::Nothing) {
            Sending::Nothing => Ok(Filled::Idle),
            Sending::Healing(mut healing) => {
                let filled = healing.session.fill(sealer, out, now_ms);
                self.sending = Sending::Healing(healing);
                filled
            }
            Sending::Leaves(leaves) => self.fill_leaves(engine, leaves, sealer, out, now_ms),
            Sending::Records(records) => self.fill_records(engine, records, sealer, out, now_ms),
        };
        self.hub.sent(self.id, (out.len() - before) as u64);
        filled
    }

    fn fill_leaves(
        &mut self,
        engine: &Arc<Engine>,
        mut leaves: Box<Leaves>,
        sealer: &mut Sealer,
        out: &mut Vec<u8>,
        now_ms: u64,
    ) -> Step<Filled> {
        while out.len() < FILL_BYTES {
            match leaves.transfer.next()? {
                Next::Block(block) => sealer.seal(MessageKind::Block, block, out),
                Next::NotYet => {
                    self.sending = Sending::Leaves(leaves);
                    return Ok(Filled::Idle);
                }
                Next::End => {
                    let Leaves { transfer, number, cut, lease, .. } = *leaves;
                    sealer.seal_with(MessageKind::End, out, |out| {
                        End { number, blocks: transfer.blocks }.encode(out);
                    });
                    let log = engine.source_log()?;
                    let commit = &engine.tree().commit;
                    log.write_out(commit, cut.seq).map_err(Error::LogFailed)?;
                    let feed = match Feed::open(log, cut.seq)? {
                        Some(feed) => feed,
                        // The log goes on from elsewhere, or it took too long.
                        None => return self.ask_again(number),
                    };
                    self.stream(feed, lease, now_ms);
                    return Ok(Filled::More);
                }
            }
        }
        self.sending = Sending::Leaves(leaves);
        Ok(Filled::More)
    }

    /// The replica is to say anew where it stands and what it needs.
    fn ask_again(&mut self, number: u64) -> Step<Filled> {
        self.offer(number, Plan::Retry);
        Ok(Filled::More)
    }

    fn fill_records(
        &mut self,
        engine: &Arc<Engine>,
        mut records: Box<Records>,
        sealer: &mut Sealer,
        out: &mut Vec<u8>,
        now_ms: u64,
    ) -> Step<Filled> {
        if self.path_turns != self.hub.path_turns() {
            // Who follows the replica, and whom it may follow, depends on it.
            return self.ask_again(0);
        }
        let commit = &engine.tree().commit;
        let log = engine.source_log()?;
        let mut head = commit.position().seq;
        log.write_out(commit, head).map_err(Error::LogFailed)?;
        if self.limits.after_durable && engine.log().is_some() {
            head = head.min(log.durable());
        }
        let max_body_len = self.replica.as_ref().map_or(0, |replica| replica.max_body_len);
        let (mut is_too_large, mut shown_bytes) = (false, 0);
        let durable = self.durable(engine, &self.standing(engine));
        let is_full = out.len() >= FILL_BYTES;
        let (payload, feed) = (&mut self.payload, &mut records.feed);
        payload.clear();
        let mut at = feed.position();
        let time_ms = self.hub.time_ms(engine);
        let mut show = |shown: Shown<'_>| match shown {
            Shown::Record { header, body } => {
                is_too_large |= header.body_len > max_body_len;
                shown_bytes += (RECORD_HEADER_LEN + body.len()) as u64;
                if payload.len() + RECORD_HEADER_LEN + body.len() > MAX_PAYLOAD_LEN {
                    flush(payload, sealer, out);
                }
                payload.extend_from_slice(&header.encode());
                if payload.len() + body.len() <= MAX_PAYLOAD_LEN {
                    payload.extend_from_slice(body);
                } else {
                    // It alone, in as many frames as it takes.
                    seal_long(payload, body, sealer, out);
                    payload.clear();
                }
                at.seq = header.seq;
                if header.kind == RecordKind::History
                    && let Ok(history) = HistoryBody::decode(body)
                {
                    at.history = history.history;
                }
            }
            Shown::Mark { fingerprint } => {
                flush(payload, sealer, out);
                sealer.seal_with(MessageKind::Mark, out, |out| {
                    Mark { position: at, fingerprint, durable, time_ms }.encode(out);
                });
            }
        };
        let fed = match is_full {
            true => Fed::More,
            false => match feed.next(head, FILL_BYTES, &mut show) {
                Err(Error::Corrupt { .. }) => {
                    self.log_is_damaged = true;
                    Fed::Gone
                }
                fed => fed?,
            },
        };
        if is_too_large {
            return Err(Ended::By(Reason::TooLarge, at.seq.0));
        }
        flush(payload, sealer, out);
        records.growth.shown += shown_bytes;
        match fed {
            Fed::More => {}
            Fed::Gone => return self.ask_again(0),
            Fed::All => {
                let is_due = now_ms.saturating_sub(records.marked_ms) >= MARK_EVERY_MS;
                if is_due && records.marked != Some(feed.position().seq) {
                    let own = commit.standing();
                    // Something may have been written since: then it is said another time.
                    if own.position == feed.position() {
                        records.marked_ms = now_ms;
                        records.marked = Some(own.position.seq);
                        let (position, fingerprint) = (own.position, own.totals.fingerprint);
                        sealer.seal_with(MessageKind::Mark, out, |out| {
                            Mark { position, fingerprint, durable, time_ms }.encode(out);
                        });
                    }
                }
            }
        }
        self.sending = Sending::Records(records);
        Ok(if fed == Fed::More { Filled::More } else { Filled::Idle })
    }

    /// Whether all that was written was sent; the next batch wakes it from then on.
    fn is_up_to_date(&self, engine: &Arc<Engine>) -> bool {
        let Sending::Records(records) = &self.sending else { return true };
        engine.signals.want(&self.signal);
        engine.tree().commit.position().seq <= records.feed.position().seq
    }
}

impl Machine for SourceSession {
    fn receive(&mut self, kind: MessageKind, payload: &[u8], now_ms: u64) -> Step {
        self.receive(kind, payload, now_ms)
    }

    fn fill(&mut self, sealer: &mut Sealer, out: &mut Vec<u8>, now_ms: u64) -> Step<Filled> {
        self.fill(sealer, out, now_ms)
    }

    fn is_pressing(&self) -> bool {
        // What it hears while it sends records calls for no answer, or for none at once.
        !matches!(self.sending, Sending::Records(_))
    }

    fn nap(&mut self, is_active: bool) -> Duration {
        /// While records go to and fro nobody is to be woken for each.
        const SHORT: Duration = Duration::from_micros(100);
        match &self.sending {
            Sending::Records(_) if is_active => SHORT,
            // What is written becomes durable without a word.
            Sending::Records(_) if self.limits.after_durable => Duration::from_millis(1),
            Sending::Records(_)
                if self.engine().is_ok_and(|engine| !self.is_up_to_date(&engine)) =>
            {
                Duration::ZERO
            }
            _ => Duration::from_millis(self.limits.beat_ms),
        }
    }

    fn most_body_len(&self) -> u32 {
        // Records come to a source only while it takes back its own.
        if matches!(self.sending, Sending::Healing(_)) { self.limits.max_body_len } else { 0 }
    }

    fn heard(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
    }
}

/// What a replica that is sent leaves is counted as.
fn kind_of(way: CatchUp) -> SyncKind {
    match way {
        CatchUp::Delta { after: Seq(0) } | CatchUp::Full => SyncKind::Full,
        CatchUp::Rewind { .. } => SyncKind::Rewind,
        _ => SyncKind::Delta,
    }
}

/// Sends the records that were collected.
fn flush(payload: &mut Vec<u8>, sealer: &mut Sealer, out: &mut Vec<u8>) {
    if !payload.is_empty() {
        sealer.seal(MessageKind::Records, payload, out);
        payload.clear();
    }
}

/// Sends a record that no frame holds: what its header is in, and its body.
fn seal_long(header: &[u8], body: &[u8], sealer: &mut Sealer, out: &mut Vec<u8>) {
    sealer.seal_part(MessageKind::Records, header, true, out);
    let mut parts = body.chunks(MAX_PAYLOAD_LEN).peekable();
    while let Some(part) = parts.next() {
        sealer.seal_part(MessageKind::Records, part, parts.peek().is_some(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of which 1,000 bytes a second are written, of which 10,000 are kept.
    #[test]
    fn a_log_lasts_as_long_as_it_grows() {
        let mut growth = Growth::default();
        assert_eq!(growth.backlog(0, 10_000, 1_000), Backlog::NONE);
        // All is shown as it comes.
        growth.shown = 1_000;
        assert_eq!(growth.backlog(0, 10_000, 2_000), Backlog { bytes: 0, lasts_ms: 10_000 });
        // Nothing is.
        for second in 1..=10 {
            let backlog = growth.backlog(second * 1_000, 10_000, 2_000 + second * 1_000);
            let lasts_ms = (10 - second) * 1_000;
            assert_eq!(backlog, Backlog { bytes: second * 1_000, lasts_ms });
        }
        // It grows no more.
        let mut rate = growth.rate;
        for second in 11..60 {
            growth.backlog(10_000, 20_000, 2_000 + second * 1_000);
            assert!(growth.rate <= rate);
            rate = growth.rate;
        }
        assert!(rate < 10, "{rate}");
        // However it counts, nothing overflows.
        growth.shown = u64::MAX;
        growth.backlog(u64::MAX, u64::MAX, u64::MAX);
    }
}

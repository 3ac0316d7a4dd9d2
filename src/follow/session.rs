//! The replica's half of a session with its source: messages in, messages out.
//!
//! It knows neither sockets nor threads nor the time. What it applies it applies when it is handed in.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::applier::{Applier, NotApplied};
use crate::clock::random_id;
use crate::commit::{Role, Standing};
use crate::database::Engine;
use crate::error::SyncRefused;
use crate::follow::spool::{Spool, needs_of};
use crate::format::record::{RECORD_HEADER_LEN, RecordHeader, RecordKind};
use crate::format::snapshot::Span;
use crate::format::wire::{
    Ack, Ask, Backlog, Beat, Bye, CutMessage, End, Hello, Mark, MessageKind, Offer, Plan, Reason,
};
use crate::install::Arrival;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::replication::catch_up::{Consent, Replica, batches_beyond, consent};
use crate::replication::framing::Sealer;
use crate::replication::line::{self, fork, has, term};
use crate::replication::needs::{Need, Needs};
use crate::serve::drive::{Chore, Machine};
use crate::serve::hub::{Hub, SyncKind};
use crate::serve::session::{Ended, Filled, MOST_QUEUED, SessionLimits, SourceSession, Step};
use crate::{Error, Fault};

/// Bytes of the ranges that are asked for: half of what an ask may take.
const MOST_ASKED: usize = 32 << 20;
/// Who was told to wait, or to ask again, does so after so long.
const ASK_AGAIN_MS: u64 = 200;

/// Of so many records or more at once it tells after a nap, not at once: few wait for each of them. Where many do, each waits so much longer.
const MANY_RECORDS: usize = 32;
const NAP: Duration = Duration::from_micros(400);
/// Records whose leaves are brought towards the cache together.
const AHEAD: usize = 16;

/// What a replica keeps from one session to the next.
#[derive(Default)]
pub(crate) struct Kept {
    /// What came of a state that is not whole yet.
    pub(crate) spool: Option<Spool>,
    /// Whether what is here was found to differ from what the source has at the same batch.
    pub(crate) doubt: Doubt,
    /// What is here may be given up, whatever rule says otherwise.
    pub(crate) may_discard: bool,
}

/// Whether what a replica has was found to differ from what its source has at the same batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Doubt {
    #[default]
    None,
    /// It is found out where, and sent anew.
    Somewhere,
    /// It differed after that still: none of it counts.
    Everywhere,
}

impl Doubt {
    fn further(self) -> Self {
        if self == Doubt::None { Doubt::Somewhere } else { Doubt::Everywhere }
    }
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Both say who they are.
    Meeting,
    /// The source has been asked.
    Asked,
    /// It sends a state.
    Receiving,
    /// It sends records as they are written.
    Streaming,
    /// Nothing follows at present: it is to be asked again.
    Waiting,
    /// The source is sent what it has lost.
    Healing,
}

/// See the file's head.
pub(crate) struct ReplicaSession {
    engine: Weak<Engine>,
    hub: Arc<Hub>,
    limits: SessionLimits,
    pub(crate) kept: Kept,
    queue: VecDeque<(MessageKind, Vec<u8>)>,
    stage: Stage,
    source: Option<Hello>,
    /// What was asked for.
    number: u64,
    fork: Option<Seq>,
    base: Needs,
    applier: Option<Applier>,
    /// When a new ask is due.
    ask_at_ms: Option<u64>,
    heard_ms: u64,
    beat_ms: u64,
    acked: Option<(Position, Seq)>,
    /// Records that came since.
    unacked: usize,
    /// The source wants to know soon what is on the disk.
    sync_wanted: bool,
    /// The source's last batch, as it said.
    pub(crate) head: Seq,
    /// The primary's clock, as it was last heard.
    pub(crate) time_ms: u64,
    /// What the source has said is still to come, and how long it keeps that.
    pub(crate) backlog: Backlog,
    /// The source has not heard of the primary of late.
    pub(crate) is_unsettled: bool,
    /// How it caught up.
    pub(crate) caught_up: Option<SyncKind>,
    /// Why it gave up, where a rule says so.
    pub(crate) refused: Option<SyncRefused>,
    /// What was wrong with what came.
    pub(crate) fault: Option<Fault>,
    has_begun: bool,
    /// The source's last batch when records began to come, and whether it was reached.
    target: Seq,
    has_caught_up: bool,
    /// It takes back what it has lost from its own replica.
    heals: bool,
    /// It sends to its source what that has lost.
    healing: Option<Box<SourceSession>>,
}

impl ReplicaSession {
    /// A session that begins at `now_ms`.
    pub(crate) fn new(
        (engine, hub): (&Weak<Engine>, &Arc<Hub>),
        limits: SessionLimits,
        kept: Kept,
        now_ms: u64,
    ) -> Self {
        Self {
            engine: Weak::clone(engine),
            hub: Arc::clone(hub),
            limits,
            kept,
            queue: VecDeque::new(),
            stage: Stage::Meeting,
            source: None,
            number: 0,
            fork: None,
            base: Needs::everywhere(Need::Anything),
            applier: None,
            ask_at_ms: None,
            heard_ms: now_ms,
            beat_ms: now_ms,
            acked: None,
            unacked: 0,
            sync_wanted: false,
            head: Seq(0),
            time_ms: 0,
            backlog: Backlog::NONE,
            is_unsettled: false,
            caught_up: None,
            refused: None,
            fault: None,
            has_begun: false,
            target: Seq(0),
            has_caught_up: false,
            heals: false,
            healing: None,
        }
    }

    /// It takes back what it has lost from its own replica.
    pub(crate) fn heals(&mut self) {
        self.heals = true;
    }

    /// What came of a transfer that goes no further is kept as far as it is whole.
    pub(crate) fn settle(&mut self) {
        if let Some(spool) = &mut self.kept.spool
            && let Err(error) = spool.settle()
        {
            // The source would have been told, had the link not ended before.
            let _ = differs(error, &mut self.fault);
        }
    }

    /// The database, if it has not been dropped.
    fn engine(&self) -> Step<Arc<Engine>> {
        self.engine.upgrade().ok_or(Ended::By(Reason::Stopping, 0))
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    fn standing(&self, engine: &Arc<Engine>) -> Standing {
        engine.tree().commit.standing()
    }

    fn say_hello(&mut self, engine: &Arc<Engine>) {
        let own = self.standing(engine);
        let mut payload = Vec::new();
        let hello = Hello {
            node: engine.node,
            dataset: engine.dataset(),
            term: self.hub.term(&own.lineage),
            durable: engine.log().map_or(Seq(0), |log| log.durable()),
            records: own.totals.records,
            chain: own.chain,
            is_primary: false,
            has_written: own.has_written,
            is_unsettled: false,
            max_body_len: self.limits.max_body_len,
            path: Vec::new(),
            lineage: line::told(&own.lineage, &[]),
            name: self.limits.name.clone(),
        };
        hello.encode(&mut payload);
        self.queue.push_back((MessageKind::Hello, payload));
        self.stage = Stage::Meeting;
        // The source has forgotten what it was told.
        (self.applier, self.ask_at_ms, self.acked) = (None, None, None);
    }

    /// Takes a message that came at `now_ms`.
    pub(crate) fn receive(&mut self, kind: MessageKind, payload: &[u8], now_ms: u64) -> Step {
        let engine = &self.engine()?;
        self.heard_ms = self.heard_ms.max(now_ms);
        if self.queue.len() > MOST_QUEUED {
            // It asks, and does not read what it is answered.
            return Err(Ended::By(Reason::Protocol, 0));
        }
        let decoded = |_| Ended::By(Reason::Protocol, 0);
        if let Some(healing) = &mut self.healing
            && kind != MessageKind::Bye
        {
            return healing.receive(kind, payload, now_ms);
        }
        match (kind, self.stage) {
            (MessageKind::Beat, _) => {
                let beat = Beat::decode(payload).map_err(decoded)?;
                self.head = self.head.max(beat.seq);
                self.time_ms = self.time_ms.max(beat.time_ms);
                self.sync_wanted |= beat.wants_durable;
                self.backlog = beat.backlog;
                self.is_unsettled = beat.is_unsettled;
                if let Some(applier) = &mut self.applier
                    && planted(Bug::BeatTakesSeq)
                {
                    applier.skip();
                }
                self.hub.heard_time(beat.time_ms);
                Ok(())
            }
            (MessageKind::Bye, _) => Err(Ended::Bye(Bye::decode(payload).map_err(decoded)?)),
            (MessageKind::Hello, Stage::Meeting) => {
                self.hello(engine, Hello::decode(payload).map_err(decoded)?, now_ms)
            }
            (MessageKind::Offer, _) => {
                self.offer(engine, Offer::decode(payload).map_err(decoded)?, now_ms)
            }
            (MessageKind::Cut, Stage::Receiving) => {
                self.cut(engine, CutMessage::decode(payload).map_err(decoded)?)
            }
            (MessageKind::Block, Stage::Receiving) => self.block(payload),
            (MessageKind::End, Stage::Receiving) => {
                let end = End::decode(payload).map_err(decoded)?;
                self.end(engine, end)
            }
            (MessageKind::Records, Stage::Streaming) => self.records(engine, payload),
            (MessageKind::Mark, Stage::Streaming) => {
                self.mark(engine, &Mark::decode(payload).map_err(decoded)?)
            }
            // It was on its way when this side said anew who it is.
            (
                MessageKind::Cut
                | MessageKind::Block
                | MessageKind::End
                | MessageKind::Records
                | MessageKind::Mark,
                Stage::Meeting,
            ) if self.number > 0 => Ok(()),
            _ => Err(Ended::By(Reason::Protocol, 0)),
        }
    }

    fn refuse(&mut self, refused: SyncRefused) -> Ended {
        self.refused = Some(refused);
        Ended::By(Reason::Refused, 0)
    }

    fn hello(&mut self, engine: &Arc<Engine>, source: Hello, now_ms: u64) -> Step {
        let own = self.standing(engine);
        let is_cycle = source.path.contains(&engine.node) && !self.heals;
        if source.node == engine.node || is_cycle {
            return Err(self.refuse(SyncRefused::Cycle));
        }
        let is_same = source.dataset == engine.dataset();
        match self.agree(engine, &own, is_same, &source.lineage) {
            // What was permitted was for a source that needs it.
            Ok(_) => self.kept.may_discard = false,
            Err(refused) if !self.kept.may_discard => return Err(self.refuse(refused)),
            Err(_) => {}
        }
        if is_same {
            self.hub.heard_term(source.term.max(term(&source.lineage)));
        }
        if !self.heals {
            let mut path = vec![source.node];
            path.extend(&source.path);
            path.truncate(64);
            self.hub.set_path(path);
        }
        self.is_unsettled = source.is_unsettled;
        // What was said before was of another line, which may have been longer.
        self.head = own.position.seq.max(line::end(&source.lineage).seq);
        self.fork = if is_same { fork(&own.lineage, &source.lineage) } else { None };
        if own.lineage.is_empty() {
            self.fork = Some(Seq(0));
        }
        self.source = Some(source);
        self.ask(engine, now_ms)
    }

    /// Whether what is here and not on that line may go.
    fn agree(
        &self,
        engine: &Engine,
        own: &Standing,
        is_same: bool,
        line: &[Span],
    ) -> std::result::Result<Consent, SyncRefused> {
        if !is_same && batches_beyond(&own.lineage, Seq(0)) > 0 {
            return Err(SyncRefused::Stranger);
        }
        let replica = Replica {
            line: &own.lineage,
            term: self.hub.term(&own.lineage),
            durable: self.heard_durable(own).max(written_durably(engine, own)),
            holds_data: own.totals.records > 0,
        };
        // Another data set has nothing in common, whatever it says.
        consent(&replica, if is_same || own.lineage.is_empty() { line } else { &[] })
    }

    fn heard_durable(&self, own: &Standing) -> Seq {
        let heard = self.hub.durable_heard();
        if has(&own.lineage, heard) { heard.seq } else { Seq(0) }
    }

    fn ask(&mut self, engine: &Arc<Engine>, _now_ms: u64) -> Step {
        self.settle();
        let own = self.standing(engine);
        let Some(source) = &self.source else { return Err(Ended::By(Reason::Protocol, 0)) };
        self.number += 1;
        self.base = match self.kept.doubt {
            Doubt::Everywhere => Needs::everywhere(Need::Anything),
            doubt => needs_of(engine, own.position, self.fork, doubt == Doubt::Somewhere),
        };
        // What a part of the state has already leaves it at most twice as long.
        self.base.join_to(MOST_ASKED);
        let threads = self.limits.threads.saturating_sub(1);
        let spool = self.kept.spool.take().or_else(|| Spool::reopen(engine, threads));
        let spool = spool.filter(|spool| spool.is_usable(own.position, &source.lineage));
        let spool = match spool {
            Some(spool) => spool,
            None => Spool::new(engine, random_id().map_err(Ended::Failed)?, threads),
        };
        let (file_id, next_block) = spool.place();
        let ask = Ask {
            number: self.number,
            file_id,
            next_block,
            // With a state comes whose it is.
            takes_records: !spool.is_begun()
                && self.kept.doubt == Doubt::None
                && source.dataset == engine.dataset(),
            needs: spool.needs(&self.base).ranges().to_vec(),
        };
        self.kept.spool = Some(spool);
        let mut payload = Vec::new();
        ask.encode(&mut payload);
        self.queue.push_back((MessageKind::Ask, payload));
        self.stage = Stage::Asked;
        Ok(())
    }

    fn offer(&mut self, engine: &Arc<Engine>, offer: Offer, now_ms: u64) -> Step {
        if offer.plan == Plan::Retry && self.stage != Stage::Asked {
            // What it sent goes on from elsewhere.
            self.say_hello(engine);
            return Ok(());
        }
        if offer.number != self.number || self.stage != Stage::Asked {
            return Err(Ended::By(Reason::Protocol, 0));
        }
        match offer.plan {
            Plan::Records => {
                self.kept.may_discard = false;
                if let Some(spool) = self.kept.spool.take() {
                    spool.remove();
                }
                self.caught_up = Some(SyncKind::Partial);
                let own = self.standing(engine);
                self.applier = Some(Applier::new(engine, own.chain));
                let target = self.source.as_ref().map(|source| line::end(&source.lineage));
                let target = target.unwrap_or_default();
                self.stream(target.seq);
                // It was handed to this node before, which had no time to take it.
                if target == own.position && is_handed(self.source.as_ref(), engine) {
                    return take_over(engine);
                }
            }
            Plan::Leaves => self.stage = Stage::Receiving,
            Plan::Retry | Plan::Wait => {
                self.stage = Stage::Waiting;
                self.ask_at_ms = Some(now_ms + ASK_AGAIN_MS);
            }
            // Two sources that both have lost something have no end.
            Plan::Heal if self.heals => return Err(self.refuse(SyncRefused::SourceLostData)),
            Plan::Heal => {
                let (weak, signal) = (Weak::clone(&self.engine), Arc::default());
                let (limits, hub) =
                    (SessionLimits { threads: 0, ..self.limits.clone() }, &self.hub);
                let mut session = SourceSession::new((&weak, hub), 0, limits, signal, now_ms);
                session.heals();
                self.stage = Stage::Healing;
                self.healing = Some(Box::new(session));
            }
        }
        Ok(())
    }

    fn cut(&mut self, engine: &Arc<Engine>, cut: CutMessage) -> Step {
        let own = self.standing(engine);
        if cut.number != self.number {
            return Err(Ended::By(Reason::Protocol, 0));
        }
        // Its line may have changed since it said hello.
        let at = fork(&own.lineage, &cut.lineage);
        if self.fork.is_some() && at != self.fork {
            self.say_hello(engine);
            return Ok(());
        }
        // What it has written since may be what forbids it.
        let is_same = self.source.as_ref().is_some_and(|source| source.dataset == engine.dataset());
        if let Err(refused) = self.agree(engine, &own, is_same, &cut.lineage)
            && !self.kept.may_discard
        {
            return Err(self.refuse(refused));
        }
        self.caught_up = Some(match self.fork {
            Some(_) if self.kept.doubt == Doubt::Somewhere => SyncKind::Repair,
            _ if self.kept.doubt == Doubt::Everywhere => SyncKind::Full,
            None | Some(Seq(0)) => SyncKind::Full,
            Some(at) if at < own.position.seq => SyncKind::Rewind,
            Some(_) => SyncKind::Delta,
        });
        let drops = self.limits.drops_first && self.caught_up == Some(SyncKind::Full);
        if drops && own.totals.records > 0 {
            return self.drop_content(engine, &own);
        }
        let Some(spool) = &mut self.kept.spool else { return Err(Ended::By(Reason::Protocol, 0)) };
        if spool.begin(cut).is_err() {
            self.kept.spool = None;
            self.say_hello(engine);
        }
        Ok(())
    }

    /// Lets go of all that is here, before what is to take its place has come, and begins again as one who never had anything.
    fn drop_content(&mut self, engine: &Arc<Engine>, own: &Standing) -> Step {
        if self.discards(own) {
            engine.set_aside(own)?;
        }
        if let Some(spool) = self.kept.spool.take() {
            spool.remove();
        }
        let dataset = self.source.as_ref().map_or_else(Default::default, |source| source.dataset);
        // Until it has caught up.
        engine.tree().commit.refuse_reads_from(Some(0));
        engine.put_in_place(Arrival::nothing(engine), dataset)?;
        (self.kept.doubt, self.caught_up) = (Doubt::None, None);
        self.say_hello(engine);
        Ok(())
    }

    fn block(&mut self, block: &[u8]) -> Step {
        let Some(spool) = &mut self.kept.spool else { return Err(Ended::By(Reason::Protocol, 0)) };
        spool.block(block).map_err(|error| differs(error, &mut self.fault))
    }

    fn end(&mut self, engine: &Arc<Engine>, message: End) -> Step {
        let own = self.standing(engine);
        let is_other = message.number != self.number;
        let spool = self.kept.spool.as_mut().filter(|_| !is_other);
        let spool = spool.ok_or(Ended::By(Reason::Protocol, 0))?;
        spool.wait().map_err(|error| differs(error, &mut self.fault))?;
        let mut spool = self.kept.spool.take().expect("it was there");
        let arrival = spool
            .end(message.blocks, &self.base, &own.lineage)
            .map_err(|error| differs(error, &mut self.fault))?;
        let (chain, reached) = (arrival.chain, arrival.position.seq);
        if arrival.rewinds && self.discards(&own) {
            engine.set_aside(&own)?;
        }
        let dataset = self.source.as_ref().map_or_else(Default::default, |source| source.dataset);
        if let Err(error) = engine.put_in_place(arrival, dataset) {
            if let Error::Corrupt { what, .. } = error {
                self.fault = Some(what);
                // What is here does not add up with what came: nothing that is here counts any more.
                self.kept.doubt = self.kept.doubt.further();
                spool.remove();
                return Err(Ended::By(Reason::Differs, 0));
            }
            return Err(Ended::Failed(error));
        }
        spool.remove();
        (self.kept.doubt, self.kept.may_discard) = (Doubt::None, false);
        self.applier = Some(Applier::new(engine, chain));
        // What was here may have been of a higher number.
        let told = self.source.as_ref().map_or(Seq(0), |source| line::end(&source.lineage).seq);
        self.head = reached.max(told);
        self.stream(self.head);
        engine.forwarded();
        if is_handed(self.source.as_ref(), engine) {
            return take_over(engine);
        }
        Ok(())
    }

    /// Whether what is here and not at the source is more than the beginnings of histories.
    fn discards(&self, own: &Standing) -> bool {
        match self.fork {
            Some(at) => batches_beyond(&own.lineage, at) > 0,
            None => own.totals.records > 0,
        }
    }

    fn records(&mut self, engine: &Arc<Engine>, mut payload: &[u8]) -> Step {
        let Some(applier) = &mut self.applier else {
            return Err(Ended::By(Reason::Protocol, 0));
        };
        // Those before this one are in the cache, or on their way there.
        let mut prefetched = 0;
        while !payload.is_empty() {
            if prefetched == 0 {
                let records = || {
                    std::iter::successors(split_record(payload), |(_, _, rest)| split_record(rest))
                };
                Applier::prefetch(engine, records().take(AHEAD).map(|(_, body, _)| body));
                prefetched = AHEAD;
            }
            prefetched -= 1;
            self.unacked += 1;
            let (header, body, rest) =
                split_record(payload).ok_or(Ended::By(Reason::Protocol, 0))?;
            match applier.apply(engine, &header, body) {
                Ok(()) => {}
                // A record that does not belong behind what is here: only leaves tell what is different.
                Err(NotApplied::Fault(fault)) => {
                    self.fault = Some(fault);
                    return Err(Ended::By(Reason::Differs, header.seq.0));
                }
                Err(NotApplied::Error(error)) => return Err(Ended::Failed(error)),
            }
            if header.kind == RecordKind::History && is_handed(self.source.as_ref(), engine) {
                return take_over(engine);
            }
            payload = rest;
        }
        let seq = applier.position().seq;
        self.head = self.head.max(seq);
        self.has_caught_up |= seq >= self.target;
        engine.forwarded();
        Ok(())
    }

    /// Records come from now on; it is as new as its source was once it has those up to `target`.
    fn stream(&mut self, target: Seq) {
        self.stage = Stage::Streaming;
        self.target = target;
        let at = self.applier.as_ref().map_or(Seq(0), |applier| applier.position().seq);
        self.has_caught_up = at >= target;
    }

    /// Whether it has what its source has, and that has heard of the primary.
    pub(crate) fn is_in_touch(&self) -> bool {
        self.stage == Stage::Streaming && self.has_caught_up && !self.is_unsettled
    }

    fn mark(&mut self, engine: &Arc<Engine>, mark: &Mark) -> Step {
        let own = self.standing(engine);
        if own.position != mark.position {
            return Err(Ended::By(Reason::Differs, mark.position.seq.0));
        }
        if own.totals.fingerprint != mark.fingerprint {
            self.kept.doubt = self.kept.doubt.further();
            let (got, expected) = (own.totals.fingerprint, mark.fingerprint);
            self.fault = Some(Fault::Mismatch { field: "fingerprint", got, expected });
            return Err(Ended::By(Reason::Differs, mark.position.seq.0));
        }
        self.time_ms = self.time_ms.max(mark.time_ms);
        // More may be durable there, of which nothing is here yet.
        let durable = mark.durable.min(mark.position.seq);
        let history = own.lineage.iter().rfind(|span| span.start <= durable);
        let history = history.map(|span| span.history).unwrap_or_default();
        self.hub.heard_time(mark.time_ms);
        self.hub.heard_durable(&own.lineage, Position { history, seq: durable });
        Ok(())
    }

    /// Appends to `out` what is to be sent now.
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
        if let Some(healing) = &mut self.healing {
            return healing.fill(sealer, out, now_ms);
        }
        if !self.has_begun || self.ask_at_ms.is_some_and(|at| at <= now_ms) {
            self.has_begun = true;
            self.say_hello(engine);
        }
        while let Some((kind, payload)) = self.queue.pop_front() {
            sealer.seal(kind, &payload, out);
        }
        if self.stage == Stage::Streaming {
            self.acknowledge(engine, sealer, out);
        }
        if now_ms.saturating_sub(self.beat_ms) >= self.limits.beat_ms {
            self.beat_ms = now_ms;
            let seq = engine.tree().commit.position().seq;
            sealer.seal_with(MessageKind::Beat, out, |out| {
                let (time_ms, backlog) = (0, Backlog::NONE);
                let (wants_durable, is_unsettled) = (false, false);
                Beat { seq, time_ms, wants_durable, is_unsettled, backlog }.encode(out);
            });
        }
        Ok(Filled::Idle)
    }

    fn acknowledge(&mut self, engine: &Arc<Engine>, sealer: &mut Sealer, out: &mut Vec<u8>) {
        let mut applied = engine.tree().commit.position();
        if planted(Bug::AckBeforeApply) {
            applied.seq = applied.seq.max(self.head);
        }
        let durable = engine.log().map_or(Seq(0), |log| log.durable()).min(applied.seq);
        if self.acked == Some((applied, durable)) {
            return;
        }
        (self.acked, self.unacked) = (Some((applied, durable)), 0);
        sealer.seal_with(MessageKind::Ack, out, |out| Ack { applied, durable }.encode(out));
    }
}

impl Machine for ReplicaSession {
    fn receive(&mut self, kind: MessageKind, payload: &[u8], now_ms: u64) -> Step {
        self.receive(kind, payload, now_ms)
    }

    fn fill(&mut self, sealer: &mut Sealer, out: &mut Vec<u8>, now_ms: u64) -> Step<Filled> {
        self.fill(sealer, out, now_ms)
    }

    fn chore(&mut self) -> Option<Chore> {
        let is_wanted = std::mem::take(&mut self.sync_wanted);
        let engine = self.engine.upgrade().filter(|_| is_wanted)?;
        let log = Arc::clone(engine.log()?);
        let tree = Arc::clone(engine.tree());
        // If it fails, the next record says so.
        Some(Box::new(move || drop(log.sync(&tree.commit, tree.commit.position().seq))))
    }

    fn is_pressing(&self) -> bool {
        self.stage != Stage::Streaming || self.unacked < MANY_RECORDS || self.sync_wanted
    }

    fn nap(&mut self, is_active: bool) -> Duration {
        if self.stage == Stage::Streaming && is_active {
            return NAP;
        }
        let at_most = if self.ask_at_ms.is_some() { ASK_AGAIN_MS } else { self.limits.beat_ms };
        Duration::from_millis(at_most)
    }

    fn most_body_len(&self) -> u32 {
        self.limits.max_body_len
    }

    fn heard(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
    }
}

/// The first of these records, and what follows it.
fn split_record(payload: &[u8]) -> Option<(RecordHeader, &[u8], &[u8])> {
    let (head, rest) = payload.split_first_chunk::<RECORD_HEADER_LEN>()?;
    let header = RecordHeader::decode(head).ok()?;
    let (body, rest) = rest.split_at_checked(header.body_len as usize)?;
    Some((header, body, rest))
}

/// Whether somebody has begun a history in this node's name, and it has written nothing in it. What this node began itself, in a run that it has
/// lost, is none, and neither is one behind which the source has more.
fn is_handed(source: Option<&Hello>, engine: &Engine) -> bool {
    let told = source.map_or(&[][..], |source| &source.lineage);
    let line = engine.tree().commit.standing().lineage;
    line.last().is_some_and(|last| {
        let at = told.iter().position(|span| span.history == last.history);
        let is_last = at.is_none_or(|at| at + 1 == told.len() && told[at].start == told[at].end);
        let is_handed = last.history.is_handed() || planted(Bug::OwnIsHanded);
        is_handed && last.writer == engine.node && last.start == last.end && is_last
    })
}

/// The source has handed over. That is to be known here after a power cut as well, before anything is written.
fn take_over(engine: &Engine) -> Step {
    let commit = &engine.tree().commit;
    if let Some(log) = engine.log() {
        log.sync(commit, commit.position().seq).map_err(Error::LogFailed)?;
    }
    // Whom it followed may follow it at once.
    engine.hub.set_path(Vec::new());
    commit.set_role(Role::Primary);
    Err(Ended::Promoted)
}

/// The highest batch on the disk of those that this node wrote itself: of these it is the primary that says what is durable.
fn written_durably(engine: &Engine, own: &Standing) -> Seq {
    let durable = engine.log().map_or(Seq(0), |log| log.durable());
    let last = own.lineage.iter().rfind(|span| span.writer == engine.node && span.start <= durable);
    last.map_or(Seq(0), |span| span.end.min(durable))
}

/// What came makes no sense.
fn differs(error: Error, told: &mut Option<Fault>) -> Ended {
    match error {
        Error::Corrupt { what, .. } => {
            let reason = match what {
                Fault::Order { .. } => Reason::Protocol,
                _ => Reason::Differs,
            };
            *told = Some(what);
            Ended::By(reason, 0)
        }
        error => Ended::Failed(error),
    }
}

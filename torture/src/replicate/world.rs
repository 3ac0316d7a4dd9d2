//! Nodes, the links between them, and the time that passes: everything that happens does so in one order, which the seed says.

use std::collections::HashMap;

use stillframe::simulation::{
    KeptState, Random, SessionEnd, SessionEnded, SimClock, SimDisk, TurnOptions,
};
use stillframe::{
    Builder, Database, Durability, HistoryId, LinkKey, Position, Role, Seq, Snapshot, SyncKind,
};

use super::network::{Delivered, Link, Side};
use super::oracle::{self, Fact, Meeting, Truth};

pub(crate) const BEAT_MS: u64 = 50;
pub(crate) const TIMEOUT_MS: u64 = 400;
/// When the clocks of the time of day begin.
const DAY_MS: u64 = 1_800_000_000_000;

/// Counted over a run, or many.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) full: u64,
    pub(crate) delta: u64,
    pub(crate) rewind: u64,
    pub(crate) partial: u64,
    pub(crate) refused: u64,
    pub(crate) promises: u64,
    pub(crate) handed: u64,
}

/// A node: a database, or where one was and will be.
pub(crate) struct Node {
    pub(crate) db: Option<Database>,
    /// None: it lives in memory alone.
    pub(crate) disk: Option<SimDisk>,
    pub(crate) dir: String,
    pub(crate) clock: SimClock,
    pub(crate) skew_ms: u64,
    pub(crate) offset_ms: u64,
    leaf_entries: usize,
    segment_bytes: u64,
    /// It is meant to take writes.
    pub(crate) is_meant: bool,
    pub(crate) follows: Option<usize>,
    connect_at: u64,
    pub(crate) restart_at: u64,
    pub(crate) kept: KeptState,
    /// Part of a state may be in what is kept.
    pub(crate) has_spool: bool,
    /// It may give up what rules forbid it to.
    pub(crate) may_discard: bool,
    in_touch: bool,
    /// Who signs what is written here: another after each time that it begins with nothing.
    pub(crate) writer: u64,
    /// What was last found there.
    pub(crate) fact: Fact,
    pub(crate) position: Position,
    /// How often its line went back.
    turns: u64,
    /// Up to which batch of each history it ever had all durable, and ever had at all.
    durable: HashMap<HistoryId, Seq>,
    applied: HashMap<HistoryId, Seq>,
    /// Stills, each of what was there when it was taken.
    pub(crate) stills: Vec<(Snapshot, Fact)>,
    /// Copies of its disk as it once was, and who signed there.
    pub(crate) images: Vec<(SimDisk, String, u64)>,
    pub(crate) last_refusal: Option<stillframe::SyncRefused>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Vec<Link>,
    /// Until when nothing comes from one node to another.
    pub(crate) blocked: HashMap<(usize, usize), u64>,
    pub(crate) truth: Truth,
    pub(crate) counts: Counts,
    pub(crate) acts: Vec<String>,
    pub(crate) key: Option<LinkKey>,
    /// Somebody went back to a copy: what was durable may be gone by that.
    pub(crate) has_restored: bool,
    /// What was durable on its primary and on a replica.
    pub(crate) promises: Vec<Position>,
    pub(crate) next_writer: u64,
    pub(crate) heals: bool,
    pub(crate) next_copy: u64,
}

pub(crate) type Outcome<T = ()> = Result<T, String>;

impl Node {
    pub(crate) fn new(random: &mut Random, in_memory: bool, writer: u64) -> Self {
        let fact = Truth::new().fact(Position::default()).expect("it is always there").clone();
        Self {
            db: None,
            disk: (!in_memory).then(SimDisk::new),
            dir: "/db".into(),
            clock: SimClock::new(DAY_MS),
            skew_ms: if random.one_in(2) { 0 } else { random.below(20_000) },
            offset_ms: random.below(1 << 40),
            leaf_entries: [4, 8, 16, 64][random.below(4) as usize],
            segment_bytes: [6 << 10, 8 << 10, 32 << 10, 1 << 20][random.below(4) as usize],
            is_meant: false,
            follows: None,
            connect_at: 0,
            restart_at: 0,
            kept: KeptState::default(),
            has_spool: false,
            may_discard: false,
            in_touch: true,
            writer,
            fact,
            position: Position::default(),
            turns: 0,
            durable: HashMap::new(),
            applied: HashMap::new(),
            stills: Vec::new(),
            images: Vec::new(),
            last_refusal: None,
        }
    }

    fn builder(&self) -> Builder {
        let builder = Database::builder()
            .clock(self.clock.clone())
            .leaf_entries(self.leaf_entries)
            .manual_reclaim()
            .manual_log()
            .save_when_log_exceeds(None)
            .durability(Durability::Memory)
            .segment_bytes(self.segment_bytes)
            .backlog_bytes(self.segment_bytes * 4);
        match &self.disk {
            Some(disk) => builder.disk(disk.clone()),
            None => builder,
        }
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.db.as_ref().is_some_and(|db| db.role() == Role::Primary)
    }

    /// The last batch that is on its disk.
    pub(crate) fn durable_seq(&self) -> Seq {
        let log = self.db.as_ref().and_then(|db| db.stats().log);
        log.map_or(Seq(0), |log| log.durable)
    }

    /// The time of this node's own clocks.
    fn uptime(&self, now: u64) -> u64 {
        now + self.offset_ms
    }
}

impl World {
    pub(crate) fn say(&mut self, what: impl Into<String>) {
        self.acts.push(format!("{:>6} {}", self.now, what.into()));
    }

    pub(crate) fn is_up(&self, n: usize) -> bool {
        self.nodes[n].db.is_some()
    }

    /// Opens what is on the node's disk, or begins with nothing.
    pub(crate) fn start(&mut self, n: usize, at_least: Position) -> Outcome {
        let node = &mut self.nodes[n];
        node.clock.set(DAY_MS + self.now + node.skew_ms);
        let db = match &node.disk {
            Some(_) => node.builder().open(&node.dir),
            None => node.builder().in_memory(),
        };
        let db = db.map_err(|error| format!("node {n} does not open: {error}"))?;
        if node.disk.is_none() {
            node.writer = self.next_writer;
            self.next_writer += 1;
        }
        let fact = self.truth.check(&db).map_err(|what| format!("node {n} opened: {what}"))?;
        let stamps = self.truth.check_stamps(&db, &fact);
        stamps.map_err(|what| format!("node {n} opened: {what}"))?;
        if node.disk.is_some() && !oracle::has(&fact.line, at_least) {
            return Err(format!("node {n} opens at {}, {at_least} was there", db.position()));
        }
        (node.position, node.fact) = (db.position(), fact);
        node.turns += 1;
        (node.kept, node.may_discard) = (KeptState::default(), false);
        node.has_spool &= node.disk.is_some();
        node.in_touch = true;
        if node.follows.is_some() {
            db.begin_following().map_err(|error| error.to_string())?;
            node.in_touch = false;
        }
        node.connect_at = self.now;
        let what = format!("node {n} opens at {} as {:?}", node.position, db.role());
        node.db = Some(db);
        self.note_durable(n);
        self.say(what);
        Ok(())
    }

    /// The database goes, and all its sessions with it.
    pub(crate) fn stop(&mut self, n: usize, is_told: bool) -> Option<Database> {
        let now = self.now;
        for link in &mut self.links {
            for side in [Side::Replica, Side::Source] {
                if link.node(side) != n {
                    continue;
                }
                if let Some(end) = link.leave(side, now, is_told) {
                    let has_begun = end.caught_up().is_some_and(|kind| kind != SyncKind::Partial);
                    self.nodes[n].has_spool |= has_begun && !end.is_streaming();
                }
            }
        }
        let node = &mut self.nodes[n];
        node.kept = KeptState::default();
        node.db.take()
    }

    /// The replica's end of its session ends here.
    pub(crate) fn leave_source(&mut self, n: usize, is_told: bool) {
        let now = self.now;
        for at in 0..self.links.len() {
            if self.links[at].replica == n && self.links[at].replica_end.is_some() {
                self.keep(at, now, is_told);
            }
        }
    }

    /// What the replica of a link keeps, whose end ends here.
    fn keep(&mut self, at: usize, now: u64, is_told: bool) {
        let link = &mut self.links[at];
        let is_streaming = link.replica_end.as_ref().is_some_and(SessionEnd::is_streaming);
        let n = link.replica;
        let node = &mut self.nodes[n];
        if let Some(end) = link.leave(Side::Replica, now, is_told) {
            let has_begun = end.caught_up().is_some_and(|kind| kind != SyncKind::Partial);
            node.has_spool = !is_streaming && (node.has_spool || has_begun);
            node.kept = end.into_kept();
        }
        node.connect_at = now + 1 + self.random.below(100);
    }

    /// From now on node `n` follows `source`.
    pub(crate) fn follow(&mut self, n: usize, source: usize, keeps: bool) -> Outcome {
        self.leave_source(n, true);
        let node = &mut self.nodes[n];
        (node.follows, node.is_meant, node.connect_at) = (Some(source), false, self.now);
        node.last_refusal = None;
        if !keeps {
            node.kept = KeptState::default();
            node.has_spool &= node.disk.is_some();
        }
        node.in_touch = false;
        match &node.db {
            Some(db) => db.begin_following().map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// Notes what this node has on its disk, and has.
    pub(crate) fn note_durable(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let durable = node.durable_seq();
        for (history, _, start, end) in node.fact.line.iter() {
            let seq = node.applied.entry(*history).or_default();
            *seq = (*seq).max(*end);
            if durable >= *start {
                let seq = node.durable.entry(*history).or_default();
                *seq = (*seq).max(durable.min(*end));
            }
        }
    }

    /// What the node has is what was committed there, and it was allowed to come there from where it was.
    pub(crate) fn check(&mut self, n: usize) -> Outcome {
        let node = &self.nodes[n];
        let Some(db) = &node.db else { return Ok(()) };
        if db.position() == node.position {
            return Ok(());
        }
        let fact = self.truth.check(db).map_err(|what| format!("node {n}: {what}"))?;
        let position = db.position();
        if position.seq.0 != node.position.seq.0 + 1 {
            let stamps = self.truth.check_stamps(db, &fact);
            stamps.map_err(|what| format!("node {n}: {what}"))?;
        }
        if !oracle::has(&fact.line, node.position) {
            self.check_loss(n, position, &fact)?;
            self.nodes[n].turns += 1;
        }
        let node = &mut self.nodes[n];
        (node.position, node.fact) = (position, fact);
        self.note_durable(n);
        Ok(())
    }

    /// The node goes back from where it was: a rule allows that, or its user did.
    fn check_loss(&mut self, n: usize, position: Position, new: &Fact) -> Outcome {
        let node = &self.nodes[n];
        let old = &node.fact;
        let fork = oracle::fork(&old.line, &new.line);
        let lost = match fork {
            Some(at) => oracle::batches_beyond(&old.line, at) > 0,
            None => !old.content.entries.is_empty() || !old.content.keyspaces.is_empty(),
        };
        let was = node.position;
        if !lost || node.may_discard {
            self.say(format!("node {n} goes from {was} to {position}, by way of {fork:?}"));
            return Ok(());
        }
        let told = |why: &str| {
            Err(format!("node {n} went from {was} to {position}, by way of {fork:?}: {why}"))
        };
        let Some(fork) = fork else { return told("nothing in common") };
        if new.term() < old.term() {
            return told("an older term");
        }
        if new.term() == old.term() {
            if !self.truth.is_one_writer(fork, [&old.line, &new.line]) {
                return told("two have written in one term");
            }
            let is_held = |promise: &&Position| {
                oracle::has(&old.line, **promise) && !oracle::has(&new.line, **promise)
            };
            if let Some(promise) = self.promises.iter().find(is_held)
                && !self.has_restored
            {
                return told(&format!("{promise} was durable on it and on its primary"));
            }
        }
        self.say(format!("node {n} goes from {was} to {position}, by way of {fork:?}, by rule"));
        Ok(())
    }

    /// Some milliseconds pass.
    pub(crate) fn step(&mut self, at_most: u64) -> Outcome {
        self.now += 1 + self.random.below(at_most);
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            node.clock.set(DAY_MS + self.now + node.skew_ms);
            if node.db.is_none() && node.restart_at <= self.now {
                self.start(n, Position::default())?;
            }
        }
        let mut order: Vec<_> = (0..self.links.len()).collect();
        self.random.shuffle(&mut order);
        for at in order {
            let mut sides = [Side::Replica, Side::Source];
            self.random.shuffle(&mut sides);
            for side in sides {
                self.hear(at, side)?;
                self.fill(at, side)?;
            }
            self.look(at)?;
        }
        self.links.retain(|link| !link.is_over());
        for n in 0..self.nodes.len() {
            self.connect(n)?;
            self.set_in_touch(n);
            if self.nodes[n].follows.is_some() && self.nodes[n].is_primary() {
                return Err(format!("node {n} follows and takes writes"));
            }
        }
        Ok(())
    }

    /// One end of a link takes what has come.
    fn hear(&mut self, at: usize, side: Side) -> Outcome {
        for _ in 0..16 {
            let now = self.now;
            let link = &mut self.links[at];
            let n = link.node(side);
            let from = link.replica + link.source - n;
            let is_blocked = self.blocked.get(&(from, n)).is_some_and(|until| *until > now);
            if is_blocked || link.end(side).is_none() {
                return Ok(());
            }
            match link.hear(side, now, &mut self.random) {
                Delivered::Nothing => return Ok(()),
                Delivered::End => {
                    self.leave(at, side, true);
                    return Ok(());
                }
                Delivered::Bytes(bytes) => {
                    let time = self.nodes[n].uptime(now);
                    let mut out = Vec::new();
                    let end = link.end(side).as_mut().expect("it was just there");
                    let received = end.receive(&bytes, time, &mut out);
                    link.say(side, out, now, &mut self.random);
                    self.look(at)?;
                    if let Err(ended) = received {
                        self.ended(at, side, &ended)?;
                    }
                    self.check(n)?;
                }
            }
        }
        Ok(())
    }

    /// One end of a link says what there is to say.
    fn fill(&mut self, at: usize, side: Side) -> Outcome {
        for _ in 0..16 {
            let now = self.now;
            let link = &mut self.links[at];
            let n = link.node(side);
            if link.outbound(side).bytes() >= link.window {
                return Ok(());
            }
            let Some(end) = link.end(side) else { return Ok(()) };
            let mut out = Vec::new();
            let filled = end.fill(self.nodes[n].uptime(now), &mut out);
            link.say(side, out, now, &mut self.random);
            match filled {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(ended) => return self.ended(at, side, &ended),
            }
        }
        Ok(())
    }

    fn leave(&mut self, at: usize, side: Side, is_told: bool) {
        match side {
            Side::Replica => self.keep(at, self.now, is_told),
            Side::Source => drop(self.links[at].leave(side, self.now, is_told)),
        }
    }

    fn ended(&mut self, at: usize, side: Side, ended: &SessionEnded) -> Outcome {
        let n = self.links[at].node(side);
        let other = self.links[at].replica + self.links[at].source - n;
        self.leave(at, side, true);
        let what = match ended {
            SessionEnded::Refused(why) => {
                self.counts.refused += 1;
                self.nodes[n].last_refusal = Some(*why);
                self.nodes[n].connect_at = self.now + 200;
                format!("{why:?}")
            }
            SessionEnded::Other(what) => what.clone(),
            other => format!("{other:?}"),
        };
        if what.starts_with("Promoted") {
            // It was handed over to.
            let node = &mut self.nodes[n];
            (node.follows, node.is_meant, node.in_touch) = (None, true, true);
        }
        self.say(format!("session of node {n} with {other} ends: {what}"));
        let is_fault = what.contains("Differs") || what.contains("Failed(");
        match is_fault && !what.contains("Bye") {
            true => Err(format!("session of node {n} with {other}: {what}")),
            false => Ok(()),
        }
    }

    /// How a replica was told to catch up.
    fn look(&mut self, at: usize) -> Outcome {
        let link = &mut self.links[at];
        let (n, source) = (link.replica, link.source);
        let Some(end) = &link.replica_end else { return Ok(()) };
        let Some(kind) = end.caught_up() else { return Ok(()) };
        let is_streaming = end.is_streaming();
        if !link.is_predicted {
            link.is_predicted = true;
            let has_turned = self.nodes[source].turns != link.source_turns;
            let (own, has_spool) = (&self.nodes[n], link.has_spool);
            if let Some(db) = self.nodes[source].db.as_ref().filter(|_| !has_turned) {
                /// Of fewer bytes nobody looks whether leaves are.
                const FEW: u64 = 64 << 10;
                let behind = db.log_bytes_after(own.position.seq).map_err(|e| e.to_string())?;
                let line = db.line();
                // What is in the log now may not have been when it was asked, and the other way round.
                let is_certain = self.nodes[source].position.seq <= Seq(own.position.seq.0 + 20);
                let is_in_log = behind.is_some() && is_certain;
                let is_long = behind.is_some_and(|bytes| bytes > FEW);
                let replica = &own.fact.line[..];
                let meeting = Meeting { replica, source: &line, is_in_log, is_long, has_spool };
                oracle::check_kind(kind, &meeting)
                    .map_err(|what| format!("node {n} from {source}: {what}"))?;
            }
        }
        if is_streaming && !self.links[at].is_counted {
            self.links[at].is_counted = true;
            match kind {
                SyncKind::Full => self.counts.full += 1,
                SyncKind::Delta => self.counts.delta += 1,
                SyncKind::Rewind => self.counts.rewind += 1,
                _ => self.counts.partial += 1,
            }
            let position = self.nodes[n].db.as_ref().map(Database::position).unwrap_or_default();
            self.say(format!("node {n} has caught up with {source} by {kind:?}, at {position}"));
        }
        Ok(())
    }

    /// A replica without a link gets one.
    fn connect(&mut self, n: usize) -> Outcome {
        let now = self.now;
        let node = &self.nodes[n];
        let Some(source) = node.follows else { return Ok(()) };
        let is_blocked = |a, b| self.blocked.get(&(a, b)).is_some_and(|until| *until > now);
        let has_link = self.links.iter().any(|l| l.replica == n && l.replica_end.is_some());
        if node.db.is_none()
            || !self.is_up(source)
            || node.connect_at > now
            || has_link
            || is_blocked(n, source)
            || is_blocked(source, n)
        {
            return Ok(());
        }
        let mut nonces = [[0; 32]; 2];
        nonces.iter_mut().for_each(|nonce| self.random.fill(nonce));
        let options = |nonce| TurnOptions {
            key: self.key.clone(),
            beat_ms: BEAT_MS,
            timeout_ms: TIMEOUT_MS,
            nonce,
        };
        let options = nonces.map(options);
        let (node, from) = (&self.nodes[n], &self.nodes[source]);
        let (Some(db), Some(source_db)) = (&node.db, &from.db) else { return Ok(()) };
        let source_end = SessionEnd::source(source_db, &options[1], from.uptime(now));
        let source_end = source_end.map_err(|error| error.to_string())?;
        let (db, time) = (db.clone(), node.uptime(now));
        let (source_turns, may_discard) = (from.turns, self.heals);
        let node = &mut self.nodes[n];
        let mut kept = std::mem::take(&mut node.kept);
        if may_discard {
            kept.allow_discard();
            node.may_discard = true;
        }
        let replica_end = SessionEnd::replica(&db, &options[0], kept, time);
        let has_spool = node.has_spool;
        let mut link = Link::new((n, replica_end), (source, source_end), &mut self.random);
        (link.source_turns, link.has_spool) = (source_turns, has_spool);
        self.links.push(link);
        Ok(())
    }

    /// A node knows whether it hears of its primary.
    fn set_in_touch(&mut self, n: usize) {
        let streams = |link: &Link| {
            link.replica == n && link.replica_end.as_ref().is_some_and(SessionEnd::is_streaming)
        };
        let is_streaming = self.links.iter().any(streams);
        let node = &mut self.nodes[n];
        let Some(db) = node.db.as_ref().filter(|_| node.follows.is_some()) else { return };
        if node.in_touch != is_streaming {
            node.in_touch = is_streaming;
            db.set_in_touch(is_streaming);
        }
    }

    /// Those other than `n` that ever had the batch, on the disk if that is asked for.
    pub(crate) fn holders(&self, n: usize, position: Position, durable: bool) -> usize {
        let had = |node: &&Node| {
            let seqs = if durable { &node.durable } else { &node.applied };
            seqs.get(&position.history).is_some_and(|seq| *seq >= position.seq)
        };
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != n);
        others.map(|(_, node)| node).filter(had).count()
    }
}

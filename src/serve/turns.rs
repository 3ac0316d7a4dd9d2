//! Sessions without threads: one end of a link as bytes in, bytes out, for who makes the network up.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::commit::Role;
use crate::database::Database;
use crate::error::SyncRefused;
use crate::follow::session::{Kept, ReplicaSession, Stage};
use crate::format::record::RECORD_HEADER_LEN;
use crate::replication::framing::{Handshake, Opener, Sealer, Secrets};
use crate::serve::drive::Machine;
use crate::serve::hub::{Hub, SyncKind};
use crate::serve::session::{Ended, Filled, SessionLimits, SourceSession};
use crate::serve::signal::Signal;
use crate::{LinkKey, Result};

/// What a replica keeps from one session to the next.
#[derive(Default)]
pub struct KeptState(Kept);

impl KeptState {
    /// What the replica has may be given up, once, whatever rule forbids it.
    pub fn allow_discard(&mut self) {
        self.0.may_discard = true;
    }
}

/// How a session is kept.
#[derive(Debug, Clone)]
pub struct TurnOptions {
    /// The keys of both sides; none for a link without.
    pub key: Option<LinkKey>,
    /// A side says at least so often that it is there.
    pub beat_ms: u64,
    /// Who said nothing for so long is gone.
    pub timeout_ms: u64,
    /// Random for the handshake.
    pub nonce: [u8; 32],
}

/// One end of a session.
pub struct SessionEnd {
    machine: Side,
    link: Wire,
    beat: u64,
}

enum Side {
    Source { session: Box<SourceSession>, hub: Arc<Hub>, id: u64 },
    Replica(Box<ReplicaSession>),
}

enum Wire {
    Meeting(Box<Handshake>, Vec<u8>),
    Open(Box<(Sealer, Opener)>),
}

/// How a session has ended, for people and for counting.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnded {
    /// A rule forbids the replica to follow.
    Refused(SyncRefused),
    /// Anything else.
    Other(String),
}

impl SessionEnd {
    /// The source's end.
    pub fn source(db: &Database, options: &TurnOptions, now_ms: u64) -> Result<Self> {
        let engine = db.engine();
        engine.source_log()?;
        let signal = Arc::new(Signal::default());
        let hub = Arc::clone(&engine.hub);
        let id = hub.enter("made up", &signal);
        let limits = limits(options);
        let weak = Arc::downgrade(engine);
        let session = SourceSession::new((&weak, &hub), id, limits, signal, now_ms);
        let link = Handshake::server(&secrets(options), options.nonce);
        Ok(Self {
            machine: Side::Source { session: Box::new(session), hub, id },
            link: Wire::Meeting(Box::new(link), Vec::new()),
            beat: options.beat_ms,
        })
    }

    /// The replica's end. See [`Database::begin_following`].
    pub fn replica(db: &Database, options: &TurnOptions, kept: KeptState, now_ms: u64) -> Self {
        let engine = db.engine();
        let weak: Weak<_> = Arc::downgrade(engine);
        let session = ReplicaSession::new((&weak, &engine.hub), limits(options), kept.0, now_ms);
        let (link, out) = Handshake::client(&secrets(options), options.nonce);
        Self {
            machine: Side::Replica(Box::new(session)),
            link: Wire::Meeting(Box::new(link), out),
            beat: options.beat_ms,
        }
    }

    /// A source sends leaves in blocks of about so many bytes of keys and values, so that few entries fill many.
    #[must_use]
    pub fn block_bytes(mut self, bytes: usize) -> Self {
        if let Side::Source { session, .. } = &mut self.machine {
            session.set_run_bytes(bytes);
        }
        self
    }

    /// Takes bytes that came.
    ///
    /// # Errors
    /// How the session has ended; what is to be said about that is in `out`.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now_ms: u64,
        out: &mut Vec<u8>,
    ) -> std::result::Result<(), SessionEnded> {
        if let Wire::Meeting(handshake, to_send) = &mut self.link {
            let met = handshake.receive(bytes, to_send);
            let met = met.map_err(|fault| SessionEnded::Other(fault.to_string()))?;
            out.append(to_send);
            if let Some((sealer, mut opener)) = met {
                // A source that takes records says so when it does.
                let most = if matches!(self.machine, Side::Replica(_)) { 1 << 31 } else { 0 };
                opener.set_record_limit(most);
                self.link = Wire::Open(Box::new((sealer, opener)));
            }
        } else if let Wire::Open(open) = &mut self.link {
            open.1.receive(bytes);
        }
        while let Wire::Open(open) = &mut self.link {
            let before = open.1.frames();
            let next = open.1.next().map_err(|fault| SessionEnded::Other(fault.to_string()))?;
            if open.1.frames() != before {
                match &mut self.machine {
                    Side::Source { session, .. } => session.heard(now_ms),
                    Side::Replica(session) => session.heard(now_ms),
                }
            }
            let Some((kind, payload)) = next else { break };
            let taken = match &mut self.machine {
                Side::Source { session, .. } => {
                    Machine::receive(&mut **session, kind, &payload, now_ms)
                }
                Side::Replica(session) => Machine::receive(&mut **session, kind, &payload, now_ms),
            };
            if let Err(ended) = taken {
                return Err(self.ended(ended, out));
            }
            let machine: &dyn Machine = match &self.machine {
                Side::Source { session, .. } => &**session,
                Side::Replica(session) => &**session,
            };
            let most = machine.most_body_len() as usize + RECORD_HEADER_LEN;
            if let Wire::Open(open) = &mut self.link {
                open.1.set_record_limit(most);
            }
        }
        Ok(())
    }

    /// Appends what is to be sent now; whether there is more at once.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn fill(
        &mut self,
        now_ms: u64,
        out: &mut Vec<u8>,
    ) -> std::result::Result<bool, SessionEnded> {
        let open = match &mut self.link {
            Wire::Meeting(_, to_send) => {
                out.append(to_send);
                return Ok(false);
            }
            Wire::Open(open) => open,
        };
        let machine: &mut dyn Machine = match &mut self.machine {
            Side::Source { session, .. } => &mut **session,
            Side::Replica(session) => &mut **session,
        };
        let chore = machine.chore();
        let filled = machine.fill(&mut open.0, out, now_ms);
        if let Some(chore) = chore {
            chore();
        }
        match filled {
            Ok(filled) => Ok(filled == Filled::More),
            Err(ended) => Err(self.ended(ended, out)),
        }
    }

    fn ended(&mut self, ended: Ended, out: &mut Vec<u8>) -> SessionEnded {
        if let (Wire::Open(open), Some(bye)) = (&mut self.link, ended.bye()) {
            open.0.seal_with(crate::format::wire::MessageKind::Bye, out, |out| bye.encode(out));
        }
        match &self.machine {
            Side::Replica(session) if session.refused.is_some() => {
                SessionEnded::Refused(session.refused.expect("it is there"))
            }
            Side::Replica(session) => SessionEnded::Other(format!("{ended:?} {:?}", session.fault)),
            Side::Source { .. } => SessionEnded::Other(format!("{ended:?}")),
        }
    }

    /// Whether records come as they are written.
    pub fn is_streaming(&self) -> bool {
        matches!(&self.machine, Side::Replica(session) if session.stage() == Stage::Streaming)
    }

    /// How the replica caught up.
    pub fn caught_up(&self) -> Option<SyncKind> {
        match &self.machine {
            Side::Replica(session) => session.caught_up,
            Side::Source { .. } => None,
        }
    }

    /// After so many milliseconds at the most it is to be filled again.
    pub fn nap_ms(&self) -> u64 {
        self.beat
    }

    /// What a replica keeps, when its session is over.
    pub fn into_kept(mut self) -> KeptState {
        match &mut self.machine {
            Side::Replica(session) => KeptState(std::mem::take(&mut session.kept)),
            Side::Source { .. } => KeptState::default(),
        }
    }
}

impl Drop for SessionEnd {
    fn drop(&mut self) {
        if let Side::Source { hub, id, .. } = &self.machine {
            hub.leave(*id);
        }
    }
}

fn limits(options: &TurnOptions) -> SessionLimits {
    SessionLimits {
        beat_ms: options.beat_ms,
        timeout_ms: options.timeout_ms,
        threads: 0,
        always_compresses: true,
        after_durable: false,
        drops_first: false,
        run_bytes: None,
        max_body_len: crate::format::record::MAX_BODY_LEN_U32,
        name: String::new(),
    }
}

pub(crate) fn secrets(options: &TurnOptions) -> Secrets {
    Secrets { keys: options.key.clone().into_iter().collect(), binding: [0; 32] }
}

impl Database {
    /// From now on it follows, whoever drives that.
    ///
    /// # Errors
    /// Those of [`Database::follow`].
    pub fn begin_following(&self) -> Result<()> {
        let engine = self.engine();
        engine.stop_following();
        if let Some(log) = engine.log() {
            log.directory.follows()?;
        }
        engine.tree().commit.set_role(Role::Replica);
        engine.hub.set_path(Vec::new());
        engine.hub.set_lost(true);
        Ok(())
    }

    /// Changes an entry behind the log's back, without a Seq, as a fault of the memory or of this engine would.
    ///
    /// # Panics
    /// If there is no such keyspace.
    pub fn plant_difference(&self, keyspace: &str, key: &[u8], value: &[u8]) {
        let engine = self.engine();
        let tree = engine.tree();
        let place = engine.with_place(keyspace, |place| place.expect("a keyspace"));
        let key = crate::keys::internal(place.id, key);
        let put = crate::tree::new_value(tree, value, 0).expect("a value");
        let op = crate::tree::BatchOp {
            slot: place.slot,
            key: &key,
            prefix_len: crate::keys::PREFIX_LEN,
            put: Some(put),
        };
        let changes = crate::tree::Changes { ops: vec![op], ..Default::default() };
        let own = tree.commit.standing();
        // At its present position: nothing tells but the sums.
        tree.replay(&changes, own.position, own.time_ms).expect("it is applied");
    }

    /// The nodes of the replicas that have said who they are.
    pub fn replica_nodes(&self) -> Vec<[u8; 16]> {
        let replicas = self.engine().hub.replicas(self.seq());
        replicas.into_iter().map(|replica| replica.node).collect()
    }

    /// Who it is for others.
    pub fn node(&self) -> [u8; 16] {
        self.engine().node
    }

    /// The last step of [`Primary::hand_over`](crate::Primary::hand_over) alone.
    ///
    /// # Errors
    /// As there.
    pub fn hand_to(&self, node: [u8; 16]) -> Result<crate::Position> {
        self.engine().hand_to(node)
    }

    /// Whether anything was heard of the primary of late, for who drives a replica himself.
    pub fn set_in_touch(&self, is_in_touch: bool) {
        self.engine().hub.set_lost(!is_in_touch);
    }

    /// How many replicas of this node have the batch, as [`Primary::wait`](crate::Primary::wait) counts them.
    pub fn acked(&self, position: crate::Position, level: crate::AckLevel) -> usize {
        self.engine().hub.wait(self.engine(), position, usize::MAX, level, Duration::ZERO)
    }

    /// Leaves that changed after this batch, of how many, and the bytes of their keys and values.
    pub fn changed_after(&self, seq: crate::Seq) -> (u64, u64, u64) {
        let tree = self.engine().tree();
        let (mut changed, mut all) = (0, 0);
        tree.stamps(|_, _, stamp| {
            all += 1;
            changed += u64::from(stamp > seq);
        });
        (changed, all, tree.bytes_after(seq))
    }

    /// Bytes of the records behind this batch, if the log has them all.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn log_bytes_after(&self, seq: crate::Seq) -> Result<Option<u64>> {
        let (log, commit) = (self.engine().source_log()?, &self.engine().tree().commit);
        log.write_out(commit, commit.position().seq).map_err(crate::Error::LogFailed)?;
        Ok(crate::storage::feed::Feed::open(log, seq)?.map(|feed| feed.bytes_ahead()))
    }

    /// The histories of its line: id, term, first and last batch of each.
    pub fn line(&self) -> Vec<(crate::HistoryId, u64, crate::Seq, crate::Seq)> {
        let lineage = self.engine().tree().commit.standing().lineage;
        lineage.iter().map(|span| (span.history, span.term, span.start, span.end)).collect()
    }
}

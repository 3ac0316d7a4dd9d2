//! What a replica tells of itself.

use std::fmt;
use std::time::Duration;

use crate::Fault;
use crate::error::SyncRefused;
use crate::format::wire::{Bye, Reason};
use crate::position::{Position, Seq};
use crate::replication::framing::LinkFault;
use crate::serve::hub::{SyncCounts, SyncKind};

/// What a replica is doing.
///
/// ```
/// use stillframe::{AckLevel, Database, Link, PrimaryOptions, ReplicaSource, ReplicaState};
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
/// let (tell, told) = std::sync::mpsc::channel();
/// let source = source.on_change(move |status| {
///     let _ = tell.send(status.state);
/// });
/// let replica = copy.follow(source)?;
/// assert!(told.iter().any(|state| state == ReplicaState::Streaming));
/// replica.stop();
/// assert_eq!(replica.status().state, ReplicaState::Stopped);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaState {
    /// It looks for its source, or waits before it does again.
    Connecting,
    /// Both say who they are, and how to go on.
    Meeting,
    /// Leaves come.
    Receiving,
    /// Records come as they are written.
    Streaming,
    /// The source can't tell yet how to go on.
    Waiting,
    /// A rule forbids to follow this source: [`Replica::resync`](crate::Replica::resync) decides.
    Refused,
    /// It follows no more.
    Stopped,
}

/// Why the last link of a replica ended.
///
/// ```
/// use std::time::{Duration, Instant};
/// use stillframe::{Database, LinkLost, ReplicaSource};
///
/// // Nobody listens on port 1.
/// let copy = Database::in_memory();
/// let replica = copy.follow(ReplicaSource::tcp("127.0.0.1:1"))?;
/// let began = Instant::now();
/// while replica.status().last_end.is_none() {
///     assert!(began.elapsed() < Duration::from_secs(10));
///     std::thread::yield_now();
/// }
/// assert!(matches!(replica.status().last_end, Some(LinkLost::Unreachable(_))));
/// replica.stop();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkLost {
    /// No connection could be made.
    Unreachable(String),
    /// The connection was lost.
    Lost(String),
    /// The source said nothing for too long.
    Silent,
    /// The source has not proven the key.
    NoProof,
    /// What came makes no sense, or the source said so of what it got.
    Protocol(String),
    /// The source stops.
    Stopping,
    /// The source has handed over: this is the primary now.
    HandedOver,
    /// The source has heard of another that was promoted, and is no primary any more.
    Fenced,
    /// What came, and what is here, do not add up: what is here is fetched anew.
    Differs(Option<Fault>),
    /// It does not follow by itself.
    Refused(SyncRefused),
    /// Something failed here.
    Failed(String),
    /// The source said that it can't.
    SourceFailed,
    /// The source takes no more replicas just now.
    Busy,
    /// The source sends longer records than are taken here.
    TooLarge,
}

impl fmt::Display for LinkLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkLost::Unreachable(error) => write!(f, "the source can't be reached: {error}"),
            LinkLost::Lost(error) => write!(f, "the link was lost: {error}"),
            LinkLost::Silent => f.write_str("nothing was heard for too long"),
            LinkLost::NoProof => f.write_str("the two sides have not proven the same key"),
            LinkLost::Protocol(what) => write!(f, "what came makes no sense: {what}"),
            LinkLost::Stopping => f.write_str("the source stopped"),
            LinkLost::HandedOver => f.write_str("the source handed over: this is the primary now"),
            LinkLost::Fenced => {
                f.write_str("the source is no primary any more: another was promoted")
            }
            LinkLost::Differs(Some(fault)) => {
                write!(f, "what came does not fit what is here: {fault}")
            }
            LinkLost::Differs(None) => f.write_str("what came does not fit what is here"),
            LinkLost::Refused(why) => write!(f, "it does not follow: {why}"),
            LinkLost::Failed(error) => write!(f, "it failed here: {error}"),
            LinkLost::SourceFailed => f.write_str("it failed at the source"),
            LinkLost::Busy => f.write_str("the source takes no more replicas just now"),
            LinkLost::TooLarge => f.write_str("the source's batches are too large to be taken"),
        }
    }
}

/// How a replica is doing.
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
/// film.keyspace("frames")?.insert("1", "a train arrives")?;
/// let replica = copy.follow(source)?;
/// replica.wait_for(film.position(), Duration::from_secs(10))?;
/// let status = replica.status();
/// assert_eq!((status.position, status.lag), (film.position(), 0));
/// println!("{:?} behind {}, {} links so far", status.state, status.source, status.links);
/// replica.stop();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// What it is doing.
    pub state: ReplicaState,
    /// Where its source is.
    pub source: String,
    /// Its last batch.
    pub position: Position,
    /// The last batch of its source, as that last said.
    pub source_seq: Seq,
    /// The last batch that the primary has said is durable there.
    pub durable: Seq,
    /// Batches that the source has and it hasn't.
    pub lag: u64,
    /// Bytes of the log that the source has not sent yet, as it said last.
    pub lag_bytes: u64,
    /// Growing as it does, the source's log drops after so long what it has not sent yet: who comes back later gets leaves instead of records. `None` while
    /// it does not grow, or nothing is known.
    pub log_lasts: Option<Duration>,
    /// How old what it has is, in milliseconds: by the primary's clock, or since that was last in touch, with this node or with those between the two. 0 while
    /// it has all. `None` before anything was heard.
    pub lag_ms: Option<u64>,
    /// How it caught up last.
    pub caught_up: Option<SyncKind>,
    /// How often it caught up in which way.
    pub counts: SyncCounts,
    /// Links that it had.
    pub links: u64,
    /// Why the last one ended.
    pub last_end: Option<LinkLost>,
    /// Bytes that came of a state that is not whole yet.
    pub received_bytes: u64,
}

/// How a link ended at which something was found.
pub(super) fn fault_told(fault: &LinkFault) -> LinkLost {
    match fault {
        LinkFault::NoProof => LinkLost::NoProof,
        fault => LinkLost::Protocol(fault.to_string()),
    }
}

/// How a link ended that one of the two said goodbye on.
pub(super) fn told(bye: Bye, fault: Option<Fault>) -> LinkLost {
    match bye.reason {
        Reason::Stopping | Reason::Moved => LinkLost::Stopping,
        Reason::Differs => LinkLost::Differs(fault),
        Reason::Cycle => LinkLost::Refused(SyncRefused::Cycle),
        Reason::Busy => LinkLost::Busy,
        Reason::Fenced => LinkLost::Fenced,
        Reason::Silent => LinkLost::Silent,
        Reason::Failed => LinkLost::SourceFailed,
        Reason::TooLarge => LinkLost::TooLarge,
        reason => LinkLost::Protocol(match fault {
            Some(fault) => fault.to_string(),
            None => format!("{reason:?}").to_lowercase(),
        }),
    }
}

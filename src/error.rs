//! The one public error type, and what exactly is wrong with damaged bytes.
//!
//! Three kinds: *bad bytes or I/O* come back as [`Error`]; a *caller's bug* panics and is documented
//! at the call; *our bug* is an `assert!`. Texts are lower case, without a period, and name the place.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::position::{Position, Seq};
use crate::slice::Slice;

/// The result of nearly everything here.
///
/// ```
/// fn is_known(db: &stillframe::Database, film: &str) -> stillframe::Result<bool> {
///     db.keyspace("films")?.contains_key(film)
/// }
/// assert!(!is_known(&stillframe::Database::in_memory(), "Metropolis")?);
/// # Ok::<(), stillframe::Error>(())
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
///
/// Errors that are found before a write gets its sequence number changed nothing; which ones those
/// are is said at each variant.
///
/// ```
/// use stillframe::{Database, Error};
///
/// let db = Database::in_memory();
/// match db.keyspace("films")?.insert(vec![b'm'; 100_000], "") {
///     Err(Error::KeyTooLarge { len }) => assert_eq!(len, 100_000),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused `op` on `path`.
    Io {
        /// What was attempted: "open", "read", "write", "sync", "rename", …
        op: &'static str,
        /// The file or directory it was attempted on; `<stream>` for a reader or writer of the caller's.
        path: PathBuf,
        /// The operating system's own word.
        source: io::Error,
    },
    /// The bytes at `offset` of `file` are not what was written there.
    Corrupt {
        /// The damaged file; `<stream>` for bytes that came from a reader of the caller's.
        file: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What is wrong there.
        what: Fault,
    },
    /// The database met a state it can't vouch for and refuses all further use.
    Poisoned,
    /// The database was closed; stills taken before stay readable.
    Closed,
    /// A key longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN). Nothing changed.
    KeyTooLarge {
        /// Length of the key, in bytes.
        len: usize,
    },
    /// A value longer than [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN). Nothing changed.
    ValueTooLarge {
        /// Length of the value, in bytes.
        len: usize,
    },
    /// A batch whose operations encode to more than [`MAX_BATCH_BYTES`](crate::MAX_BATCH_BYTES). Nothing changed.
    BatchTooLarge {
        /// Encoded size, in bytes.
        bytes: u64,
    },
    /// A keyspace name that is empty or longer than [`MAX_KEYSPACE_NAME_LEN`](crate::MAX_KEYSPACE_NAME_LEN). Nothing changed.
    KeyspaceName {
        /// Length of the name, in bytes.
        len: usize,
    },
    /// Four billion keyspaces were made already; numbers are not given twice. Nothing changed.
    TooManyKeyspaces,
    /// There is no keyspace of that name, or it was dropped while a handle was held.
    NoKeyspace,
    /// The write would grow memory past the limit set with `memory_limit`. Nothing changed; removing still works.
    MemoryLimit {
        /// The limit, in bytes.
        limit: u64,
        /// What live data, retained data and directory take now, in bytes.
        used: u64,
    },
    /// What a save wrote does not sum up to what the cut promised: our bug, or bad memory. The file was
    /// not put in place.
    SelfCheck {
        /// The sum that differs.
        field: &'static str,
        /// Summed up from what was written.
        got: u64,
        /// The running total at the cut.
        expected: u64,
    },
    /// The save was cancelled through its handle; nothing was left behind.
    Cancelled,
    /// Another save to the same path is running.
    SaveInProgress {
        /// The path both want.
        path: PathBuf,
    },
    /// The state that was asked for can't be restored: it is older than the oldest snapshot that was kept, or newer than the
    /// last batch.
    OutOfReach {
        /// The last batch there is, if that is why.
        newest: Option<Seq>,
    },
    /// The directory is open already, in this process or another.
    Locked {
        /// The file that is locked.
        path: PathBuf,
    },
    /// More was asked for than a database can do that lives in memory alone. Nothing changed.
    NoLog,
    /// An earlier write or sync of the log failed: nobody knows which bytes the disk has (Rebello et al.,
    /// "Can Applications Recover from fsync Failures?", ATC 2020). Nothing changed, reads go on;
    /// [`Database::recover`](crate::Database::recover) begins a new log.
    LogFailed(LogFailure),
    /// The database is a replica, or its directory was one's: writes are the primary's. Nothing changed;
    /// [`Database::promote`](crate::Database::promote) makes it one.
    ReadOnly,
    /// The replica was told to refuse reads while it has not what its source has, and it hasn't at present. Nothing changed.
    Stale,
    /// Fewer replicas are in touch than [`PrimaryOptions::min_replicas`](crate::PrimaryOptions::min_replicas) asks for. Nothing changed.
    TooFewReplicas {
        /// How many are.
        connected: usize,
        /// How many there must be.
        needed: usize,
    },
    /// Not as many replicas have the batch in time as were waited for: it may reach them still.
    NotAcked {
        /// How many have it.
        acked: usize,
        /// How many were to.
        wanted: usize,
    },
    /// What was waited for has not come in time.
    TimedOut,
    /// The batch that was waited for is not on the line that the database is on by now, and never will be.
    Gone {
        /// Where that line and the batch's parted, if it is known.
        fork: Option<Seq>,
    },
    /// A subscription asks for a batch that is not in the log any more: it read too slowly, was away for too long, or a replica got the state behind it in
    /// one piece. Nothing was left out before; what it lacks is in a [snapshot](crate::Database::snapshot_and_subscribe).
    Lagged {
        /// The batch that would come next.
        requested: Seq,
        /// The first that is there.
        oldest: Seq,
    },
    /// What a subscription has read was taken back: its last batch is not on the line that the database is on by now.
    Rewound {
        /// The batch.
        position: Position,
        /// The last one that both lines have, if it is known.
        to: Option<Seq>,
    },
    /// Something came for a replica, which by then followed nobody any more.
    NotFollowing,
    /// Others changed, again and again, what a transaction had read before it could commit. Nothing changed;
    /// see [`Builder::transaction_attempts`](crate::Builder::transaction_attempts).
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// The database's own saves fail, and it was opened to refuse writes then. Nothing changed.
    SavesFail,
    /// The batch is committed and visible, but the log failed before it had the durability asked for: whether it
    /// outlives this process is unknown.
    NotDurable {
        /// The batch.
        position: Position,
        /// What went wrong.
        failure: LogFailure,
    },
    /// What is stored is not what a [`Typed`](crate::Typed) keyspace reads it as.
    Undecodable(Box<Undecodable>),
    /// A value of a [`Typed`](crate::Typed) keyspace that can't be stored. Nothing changed.
    Unencodable {
        /// The type that it is of.
        type_name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Bytes that are not the encoding of the type that they were read as, in [`Error::Undecodable`].
///
/// It has the entry as it was stored, so that who removed it and got this instead has not lost it.
///
/// ```
/// # use stillframe::{Database, Error};
/// let ages = Database::in_memory().keyspace("ages")?;
/// ages.insert("ann", "forty")?;
/// let Err(Error::Undecodable(found)) = ages.typed::<String, u8>().take(&"ann".to_owned()) else {
///     panic!("this is not one byte")
/// };
/// assert_eq!((found.what, found.type_name), ("value", "u8"));
/// assert_eq!(found.value.unwrap(), "forty");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undecodable {
    /// What does not decode: "key" or "value".
    pub what: &'static str,
    /// The type that it was read as.
    pub type_name: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
    /// The key, as stored.
    pub key: Slice,
    /// The value, as stored, if it was read.
    pub value: Option<Slice>,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longer keys are cut short.
        const SHOWN: usize = 64;
        let Self { what, type_name, why, key, .. } = self;
        let shown = key[..key.len().min(SHOWN)].escape_ascii();
        let rest = if key.len() > SHOWN { "…" } else { "" };
        write!(f, "{what} of entry \"{shown}{rest}\" is no {type_name}: {why}")
    }
}

/// Why a replica does not follow a source by itself. Only its user can say otherwise.
///
/// ```
/// use stillframe::{LinkLost, Replica, ReplicaState, SyncRefused};
///
/// /// What an operator is to be told.
/// fn verdict(replica: &Replica) -> Option<String> {
///     let status = replica.status();
///     match status.last_end {
///         Some(LinkLost::Refused(SyncRefused::SplitBrain { fork })) => {
///             Some(format!("{} and we have both written behind {fork}: one must resync", status.source))
///         }
///         Some(LinkLost::Refused(why)) => Some(why.to_string()),
///         _ => None,
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncRefused {
    /// The source lacks batches that it had said were durable: it lost its disk, or is a restored backup.
    WentBack {
        /// The last batch that it said was durable.
        durable: Seq,
        /// The last batch that both have.
        fork: Seq,
    },
    /// Both have written since they parted.
    SplitBrain {
        /// The last batch that both have.
        fork: Seq,
    },
    /// The source never had anything in common with the replica.
    Stranger,
    /// The source holds nothing, the replica does.
    EmptyPrimary,
    /// The source is of an older term than one that the replica has heard of: another was promoted since.
    OldTerm {
        /// The highest term that was heard of.
        known: u64,
        /// The source's.
        offered: u64,
    },
    /// The source is the replica itself, or follows it.
    Cycle,
    /// The source lacks batches of its own that the replica has: it should take them back.
    SourceLostData,
}

impl fmt::Display for SyncRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SyncRefused::WentBack { durable, fork } => {
                write!(f, "the source said that {durable} is durable and has nothing behind {fork}")
            }
            SyncRefused::SplitBrain { fork } => write!(f, "both have written behind {fork}"),
            SyncRefused::Stranger => f.write_str("the source has nothing in common with it"),
            SyncRefused::EmptyPrimary => f.write_str("the source is empty"),
            SyncRefused::OldTerm { known, offered } => {
                write!(f, "the source is of term {offered}, {known} was heard of")
            }
            SyncRefused::Cycle => f.write_str("it would follow itself"),
            SyncRefused::SourceLostData => f.write_str("the source has lost batches of its own"),
        }
    }
}

/// Which operation on the log failed, and how.
///
/// ```
/// use stillframe::{Database, Error};
///
/// /// Writes; begins a new log, once, if the old one has failed.
/// fn write(db: &Database, key: &str, value: &str) -> stillframe::Result<()> {
///     let notes = db.keyspace("notes")?;
///     match notes.insert(key, value) {
///         Err(Error::LogFailed(failure)) => {
///             eprintln!("{} {} failed: {}", failure.op, failure.path.display(), failure.source);
///             db.recover()?;
///             notes.insert(key, value).map(drop)
///         }
///         result => result.map(drop),
///     }
/// }
/// # write(&Database::in_memory(), "1", "first")?;
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogFailure {
    /// What was attempted, as in [`Error::Io`].
    pub op: &'static str,
    /// The file it was attempted on.
    pub path: PathBuf,
    /// The operating system's own word.
    pub source: Arc<io::Error>,
}

impl LogFailure {
    pub(crate) fn new(op: &'static str, path: &Path, source: io::Error) -> Self {
        LogFailure { op, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl fmt::Display for LogFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.op, self.path.display(), self.source)
    }
}

/// What is wrong with bytes that should hold a snapshot file or a part of one.
///
/// ```
/// use stillframe::{Database, Error, Fault, SaveOptions};
///
/// let mut file = Vec::new();
/// Database::in_memory().snapshot()?.write_to(&mut file, &SaveOptions::default())?;
/// file.truncate(file.len() - 1);
/// let Err(Error::Corrupt { offset, what, .. }) = Database::builder().load_from(&file[..]) else {
///     panic!("a byte is missing")
/// };
/// assert!(matches!(what, Fault::Truncated { .. }), "{what} at {offset}");
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A checksum over `field` does not match.
    Checksum {
        /// What the checksum covers.
        field: &'static str,
        /// Computed from the bytes.
        got: u32,
        /// Stored beside them.
        expected: u32,
    },
    /// Fewer bytes are left than `field` needs.
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// Bytes follow where the file or structure must end.
    TrailingBytes {
        /// What should have ended.
        field: &'static str,
        /// How many bytes too many.
        count: u64,
    },
    /// Not a file of ours: the magic bytes are wrong.
    Magic,
    /// A format version this release can't read.
    Version {
        /// The version the file states.
        got: u32,
        /// The newest version this release reads.
        supported: u32,
    },
    /// A number lies outside what `field` allows.
    Range {
        /// The field.
        field: &'static str,
        /// The number found.
        got: u64,
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// A field that must equal something known does not.
    Mismatch {
        /// The field.
        field: &'static str,
        /// The number found.
        got: u64,
        /// The number required.
        expected: u64,
    },
    /// The end mark is missing: the file was cut short, or bytes were appended.
    NoEnd,
    /// `field` is whole, but belongs to another file or another place.
    Foreign {
        /// The structure.
        field: &'static str,
    },
    /// The name of a keyspace is not UTF-8.
    Text,
    /// Keys or fences are not strictly ascending, or lie outside their fences.
    Order {
        /// What is out of order.
        field: &'static str,
    },
    /// Compressed bytes that do not decompress to what was promised.
    Compression,
    /// Zeros where something was written.
    Missing,
    /// The disk can't read it.
    Unreadable,
    /// The log goes on from batch `base`, which no snapshot holds: one is missing, or an older segment.
    NoBase {
        /// The last batch before the oldest segment.
        base: Seq,
    },
    /// A snapshot without any segment of a log: that is missing.
    NoLog,
    /// The log can't be read behind its batch `last`, and more of it was durable: batches are lost.
    LogEnds {
        /// The last batch that can be read.
        last: Seq,
        /// The last batch that is known to have been durable.
        durable: Seq,
        /// What is wrong with what comes then.
        cause: Box<Fault>,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { op, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, what: Fault) -> Self {
        Error::Corrupt { file: file.to_owned(), offset, what }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { op, path, source } => write!(f, "{op} {}: {source}", path.display()),
            Error::Corrupt { file, offset, what } => {
                write!(f, "{} at byte {offset}: {what}", file.display())
            }
            Error::Poisoned => f.write_str("the database is poisoned by an earlier failure"),
            Error::Closed => f.write_str("the database is closed"),
            Error::KeyTooLarge { len } => {
                write!(f, "key of {len} bytes, the limit is {}", crate::MAX_KEY_LEN)
            }
            Error::ValueTooLarge { len } => {
                write!(f, "value of {len} bytes, the limit is {}", crate::MAX_VALUE_LEN)
            }
            Error::BatchTooLarge { bytes } => {
                write!(f, "batch of {bytes} bytes, the limit is {}", crate::MAX_BATCH_BYTES)
            }
            Error::KeyspaceName { len } => write!(
                f,
                "keyspace name of {len} bytes, it must have 1 to {}",
                crate::MAX_KEYSPACE_NAME_LEN
            ),
            Error::TooManyKeyspaces => f.write_str("no number is left for another keyspace"),
            Error::NoKeyspace => f.write_str("no such keyspace"),
            Error::MemoryLimit { limit, used } => {
                write!(f, "memory limit of {limit} bytes reached, {used} in use")
            }
            Error::SelfCheck { field, got, expected } => {
                write!(f, "the save wrote a {field} of {got}, the cut promised {expected}")
            }
            Error::Cancelled => f.write_str("cancelled"),
            Error::SaveInProgress { path } => {
                write!(f, "another save to {} is running", path.display())
            }
            Error::Locked { path } => {
                write!(f, "{} is locked: the database is open already", path.display())
            }
            Error::OutOfReach { newest: None } => {
                f.write_str("older than all that was kept of the database")
            }
            Error::OutOfReach { newest: Some(newest) } => {
                write!(f, "newer than the last batch, which is {newest}")
            }
            Error::NoLog => f.write_str("the database lives in memory alone, it has no log"),
            Error::LogFailed(failure) => write!(f, "the log failed: {failure}"),
            Error::ReadOnly => f.write_str("a replica takes no writes until it is promoted"),
            Error::Stale => f.write_str("the replica has not what its source has"),
            Error::TooFewReplicas { connected, needed } => {
                write!(f, "{connected} replicas are in touch, {needed} are needed")
            }
            Error::NotAcked { acked, wanted } => {
                write!(f, "{acked} replicas have the batch, {wanted} were waited for")
            }
            Error::TimedOut => f.write_str("not in time"),
            Error::Gone { fork: Some(fork) } => {
                write!(f, "the batch is on another line, which parted behind {fork}")
            }
            Error::Gone { fork: None } => f.write_str("the batch is on another line"),
            Error::Lagged { requested, oldest } => {
                write!(f, "batch {requested} is not in the log any more, it begins with {oldest}")
            }
            Error::Rewound { position, to: Some(to) } => {
                write!(f, "{position} was taken back, with all behind {to}")
            }
            Error::Rewound { position, to: None } => write!(f, "{position} was taken back"),
            Error::Conflict { attempts } => {
                write!(f, "others changed what the transaction had read, {attempts} times in a row")
            }
            Error::NotFollowing => f.write_str("the database follows nobody any more"),
            Error::SavesFail => f.write_str("saves fail, and writes are refused while they do"),
            Error::NotDurable { position, failure } => {
                write!(f, "{position} is committed, not durable: {failure}")
            }
            Error::Undecodable(found) => found.fmt(f),
            Error::Unencodable { type_name, why } => {
                write!(f, "a value of {type_name} can't be stored: {why}")
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Checksum { field, got, expected } => {
                write!(f, "{field} checksum is {got:08x}, expected {expected:08x}")
            }
            Fault::Truncated { field, needed, available } => {
                write!(f, "{field} needs {needed} bytes, {available} are left")
            }
            Fault::TrailingBytes { field, count } => {
                write!(f, "{count} bytes after the end of {field}")
            }
            Fault::Magic => f.write_str("not a stillframe file of this kind"),
            Fault::Version { got, supported } => {
                write!(f, "format version {got}, this release reads up to {supported}")
            }
            Fault::Range { field, got, min, max } => {
                write!(f, "{field} is {got}, allowed are {min} to {max}")
            }
            Fault::Mismatch { field, got, expected } => {
                write!(f, "{field} is {got}, expected {expected}")
            }
            Fault::NoEnd => {
                f.write_str("no end mark: the file was cut short or bytes were appended")
            }
            Fault::Foreign { field } => write!(f, "{field} belongs to another file or place"),
            Fault::Text => f.write_str("the name of a keyspace is not UTF-8"),
            Fault::Order { field } => write!(f, "{field} out of order"),
            Fault::Compression => {
                f.write_str("compressed bytes do not decompress to the stated length")
            }
            Fault::Unreadable => f.write_str("the disk can't read it"),
            Fault::Missing => f.write_str("zeros where something was written"),
            Fault::NoBase { base } => {
                write!(f, "the log goes on from batch {base}, which no snapshot holds")
            }
            Fault::NoLog => f.write_str("there is a snapshot, and no log"),
            Fault::LogEnds { last, durable, cause } => write!(
                f,
                "the log can't be read behind batch {last} ({cause}), it was durable up to {durable}"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            Error::LogFailed(failure) | Error::NotDurable { failure, .. } => Some(&*failure.source),
            _ => None,
        }
    }
}

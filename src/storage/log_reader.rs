//! A directory's log, looked into from outside: segments, and every record with what it does.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OsDisk;
use super::backup::{TRIES, may_have_moved};
use super::directory::Directory;
use super::recovery::{
    Applied, Apply, ApplyError, Listed, Reads, RecordAt, Recovered, RecoveryMode, Replay, Until,
    first_base, newest_run,
};
use super::segment::{Begun, Found};
use crate::error::{Error, Fault, Result};
use crate::format::log::Base;
use crate::format::record::{Effect, Effects, HistoryBody};
use crate::position::Position;

/// The log of a directory, read without opening the database; nothing is changed, and it may be open elsewhere.
///
/// What is read of a log that somebody is writing may end in the middle of a batch: [`LogEnd::torn_bytes`] tells.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-log-{}", std::process::id()));
/// use std::ops::ControlFlow;
/// use stillframe::{Database, LogReader, LogRecordKind};
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// db.close()?;
/// let mut keys = Vec::new();
/// LogReader::open(&dir)?.each(|record| {
///     if let LogRecordKind::Batch { effects, .. } = &record.kind {
///         keys.extend(effects.clone().filter_map(|effect| effect.key()).map(<[u8]>::to_vec));
///     }
///     ControlFlow::Continue(())
/// })?;
/// // What keyspaces are called is written like anything else.
/// assert_eq!(keys, [b"notes".to_vec(), b"1".to_vec()]);
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct LogReader {
    directory: Directory,
    segments: Vec<Result<Found>>,
}

/// One file of a log.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-segment-{}", std::process::id()));
/// use stillframe::{Database, LogReader};
///
/// # let db = Database::open(&dir)?;
/// # db.keyspace("notes")?.insert("1", "first")?;
/// # db.close()?;
/// for segment in LogReader::open(&dir)?.segments() {
///     match segment {
///         Ok(segment) => println!("{}: {} bytes", segment.path.display(), segment.bytes),
///         Err(damage) => println!("{damage}"),
///     }
/// }
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// The file.
    pub path: PathBuf,
    /// The number in its name.
    pub ordinal: u64,
    /// Its length, in bytes; room for what is not written yet included.
    pub bytes: u64,
    /// What it says of where it begins.
    pub beginning: SegmentBeginning,
}

/// What a segment says of where it begins.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-beginning-{}", std::process::id()));
/// use stillframe::{Database, LogReader, SegmentBeginning, Seq};
///
/// # let db = Database::open(&dir)?;
/// # db.keyspace("notes")?.insert("1", "first")?;
/// # db.close()?;
/// let reader = LogReader::open(&dir)?;
/// let first = reader.segments().next().unwrap().unwrap();
/// let SegmentBeginning::After { position, previous, .. } = first.beginning else { panic!() };
/// assert_eq!((position.seq, previous), (Seq(0), None));
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SegmentBeginning {
    /// Made ahead, and nothing was written to it.
    Blank,
    /// It goes on from this batch.
    After {
        /// The last batch before it.
        position: Position,
        /// When that was, in unix milliseconds.
        time_ms: u64,
        /// The segment before it; `None` if it goes on from a snapshot, or from nothing.
        previous: Option<u64>,
    },
    /// That can't be read: a writer died there, or it is damaged.
    Unclear(Fault),
}

/// A batch in the log.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-record-{}", std::process::id()));
/// use std::ops::ControlFlow;
/// use stillframe::{Database, LogReader};
///
/// # let db = Database::open(&dir)?;
/// # db.keyspace("notes")?.insert("1", "first")?;
/// # db.close()?;
/// LogReader::open(&dir)?.each(|record| {
///     println!("{} at byte {} of segment {}", record.position, record.offset, record.segment);
///     ControlFlow::Continue(())
/// })?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogRecord<'a> {
    /// Its number, in its history.
    pub position: Position,
    /// When it was committed, in unix milliseconds.
    pub time_ms: u64,
    /// The number of its segment.
    pub segment: u64,
    /// Where in the segment it lies.
    pub offset: u64,
    /// What it is.
    pub kind: LogRecordKind<'a>,
}

/// What a record in the log is.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-recordkind-{}", std::process::id()));
/// use std::ops::ControlFlow;
/// use stillframe::{Database, DirectoryInfo, LogReader, LogRecordKind};
///
/// # let db = Database::open(&dir)?;
/// # db.keyspace("notes")?.insert("1", "first")?;
/// # db.close()?;
/// let node = DirectoryInfo::read(&dir)?.node;
/// LogReader::open(&dir)?.each(|record| {
///     match &record.kind {
///         LogRecordKind::History { writer } => assert_eq!(*writer, node),
///         LogRecordKind::Batch { bytes, .. } => println!("{}: {bytes} bytes", record.position),
///         other => println!("{other:?}"),
///     }
///     ControlFlow::Continue(())
/// })?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LogRecordKind<'a> {
    /// The first of what one run of a process wrote; changes nothing.
    History {
        /// Who wrote it.
        writer: [u8; 16],
    },
    /// What was changed.
    Batch {
        /// Each change, in order.
        effects: LogEffects<'a>,
        /// Length of all of them as encoded, in bytes.
        bytes: u64,
    },
}

/// The changes of one batch, in order.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-effects-{}", std::process::id()));
/// use std::ops::ControlFlow;
/// use stillframe::{Database, LogReader, LogRecordKind};
///
/// # let db = Database::open(&dir)?;
/// # db.keyspace("notes")?.insert("1", "first")?;
/// # db.close()?;
/// let mut changes = 0;
/// LogReader::open(&dir)?.each(|record| {
///     if let LogRecordKind::Batch { effects, .. } = &record.kind {
///         changes += effects.clone().count();
///     }
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(changes, 2); // the keyspace and the note
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LogEffects<'a>(Effects<'a>);

/// One change of a batch.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-effect-{}", std::process::id()));
/// use std::ops::ControlFlow;
/// use stillframe::{Database, LogEffect, LogReader, LogRecordKind};
///
/// # let db = Database::open(&dir)?;
/// # db.keyspace("notes")?.insert("1", "first")?;
/// # db.close()?;
/// let mut put = Vec::new();
/// LogReader::open(&dir)?.each(|record| {
///     if let LogRecordKind::Batch { effects, .. } = &record.kind {
///         for effect in effects.clone() {
///             // Keyspace 0 holds the names of the others.
///             if let LogEffect::Put { keyspace: 1.., key, value, .. } = effect {
///                 put.push((key.to_vec(), value.to_vec()));
///             }
///         }
///     }
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(put, [(b"1".to_vec(), b"first".to_vec())]);
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogEffect<'a> {
    /// An entry was put.
    Put {
        /// The number of its keyspace; 0 holds the names of the others.
        keyspace: u32,
        /// Its key.
        key: &'a [u8],
        /// Its value; in keyspace 0, the number of the keyspace that the key names, little-endian.
        value: &'a [u8],
        /// When it expires, in unix milliseconds; 0: never.
        expire_at: u64,
    },
    /// An entry was removed, if there was one.
    Remove {
        /// The number of its keyspace.
        keyspace: u32,
        /// Its key.
        key: &'a [u8],
    },
    /// An entry was removed, since its time was past.
    Expire {
        /// The number of its keyspace.
        keyspace: u32,
        /// Its key.
        key: &'a [u8],
    },
    /// All entries of a range were removed, before the other changes of the batch.
    RemoveRange {
        /// The number of the keyspace.
        keyspace: u32,
        /// The first key of the range.
        low: &'a [u8],
        /// The first key behind it; `None`: to the end of the keyspace.
        high: Option<&'a [u8]>,
    },
}

/// Where a log ends.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-logend-{}", std::process::id()));
/// use std::ops::ControlFlow;
/// use stillframe::{Database, LogReader};
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// db.close()?;
/// let end = LogReader::open(&dir)?.each(|_| ControlFlow::Continue(()))?;
/// assert_eq!((end.position, end.torn_bytes), (db.position(), 0));
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogEnd {
    /// The last batch that was read; if there is none in the log, that which it goes on from.
    pub position: Position,
    /// When that was, in unix milliseconds.
    pub time_ms: u64,
    /// Batches in the log, those that begin a history included.
    pub records: u64,
    /// Bytes behind the last batch that a writer left when it died, or is just writing.
    pub torn_bytes: u64,
}

impl fmt::Debug for LogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogReader({})", self.directory.path.display())
    }
}

impl LogReader {
    /// Reads the heads of the segments in the directory `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] for a damaged identity. Damaged segments are told by those who read them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::on(Directory::look(Arc::new(OsDisk), path.as_ref())?)
    }

    fn on(directory: Directory) -> Result<Self> {
        let listed = Listed::read(&directory)?;
        let found = listed.segments.iter().map(|ordinal| Found::read(&directory, *ordinal));
        let segments = found.collect();
        Ok(Self { directory, segments })
    }

    /// The segments, oldest first; an error for each that is damaged.
    pub fn segments(&self) -> impl Iterator<Item = std::result::Result<SegmentInfo, &Error>> {
        self.segments.iter().map(|found| found.as_ref().map(SegmentInfo::of))
    }

    /// Shows every batch of the log, oldest first, each proven; to its end, or until `visit` has seen enough.
    ///
    /// Of segments that do not belong together the newest are read. Of a log that goes on under the reader, what is new is read as well,
    /// as far as it gets. Cost: a pass over the files. Memory: a segment.
    ///
    /// # Errors
    /// [`Error::Io`], also for a file that was removed before it was read, since a snapshot has what was in it;
    /// [`Error::Corrupt`] where something that was durable can't be read.
    pub fn each(&self, visit: impl FnMut(&LogRecord<'_>) -> ControlFlow<()>) -> Result<LogEnd> {
        let last = LogEnd { position: Position::default(), time_ms: 0, records: 0, torn_bytes: 0 };
        let mut shown = Shown { visit, last, is_enough: false };
        let mut tries = 0;
        let mut moved = None;
        loop {
            match self.replay(&mut shown) {
                Err(Error::Cancelled) if shown.is_enough => return Ok(shown.last),
                // What came next has been removed.
                Ok(None) => return Err(moved.expect("the first try begins where the log does")),
                Err(error) if may_have_moved(&error, &self.directory) && tries < TRIES => {
                    (moved, tries) = (Some(error), tries + 1);
                }
                Err(error) => return Err(error),
                Ok(Some(recovered)) => {
                    let torn_bytes = recovered.torn.map_or(0, |torn| torn.bytes);
                    let Base { position, time_ms, .. } = recovered.base;
                    let records = shown.last.records;
                    return Ok(LogEnd { position, time_ms, records, torn_bytes });
                }
            }
        }
    }

    /// Reads what is there now; what was shown before is not shown again. `None` if it does not go on from there.
    fn replay<F: FnMut(&LogRecord<'_>) -> ControlFlow<()>>(
        &self,
        shown: &mut Shown<F>,
    ) -> Result<Option<Recovered>> {
        let listed = Listed::read(&self.directory)?;
        let found = Found::all(&self.directory, &listed)?;
        let facts: Vec<_> = found.iter().map(Found::fact).collect();
        let segments = &found[newest_run(&facts).start..];
        let from = first_base(segments).unwrap_or_default();
        if shown.last.records > 0 && from.position.seq > shown.last.position.seq {
            return Ok(None);
        }
        let replay = Replay {
            directory: &self.directory,
            mode: RecoveryMode::TolerateTail,
            segments,
            from,
            is_on_line: &|_| true,
            until: Until::default(),
            reads: Reads::Settled,
        };
        replay.run(shown).map(Some)
    }
}

impl SegmentInfo {
    fn of(found: &Found) -> Self {
        let beginning = match &found.beginning {
            Begun::No => SegmentBeginning::Blank,
            Begun::Yes(beginning) => SegmentBeginning::After {
                position: beginning.base.position,
                time_ms: beginning.base.time_ms,
                previous: beginning.previous.map(|(ordinal, _)| ordinal),
            },
            Begun::Unclear { fault } => SegmentBeginning::Unclear(fault.clone()),
        };
        let (path, ordinal, bytes) = (found.path.clone(), found.ordinal, found.len);
        SegmentInfo { path, ordinal, bytes, beginning }
    }
}

impl<'a> Iterator for LogEffects<'a> {
    type Item = LogEffect<'a>;

    fn next(&mut self) -> Option<LogEffect<'a>> {
        // Proven before anybody was shown it.
        Some(LogEffect::of(self.0.next()?.ok()?))
    }
}

/// The number of the keyspace, and the key in it.
fn split(internal: &[u8]) -> (u32, &[u8]) {
    let (id, key) = internal.split_first_chunk().unwrap_or((&[0; 4], &[]));
    (u32::from_be_bytes(*id), key)
}

impl<'a> LogEffect<'a> {
    fn of(effect: Effect<'a>) -> Self {
        match effect {
            Effect::Put { key, value, expire_at } => {
                let (keyspace, key) = split(key);
                LogEffect::Put { keyspace, key, value, expire_at }
            }
            Effect::Remove { key } => {
                let (keyspace, key) = split(key);
                LogEffect::Remove { keyspace, key }
            }
            Effect::Expire { key } => {
                let (keyspace, key) = split(key);
                LogEffect::Expire { keyspace, key }
            }
            Effect::RemoveRange { low, high } => {
                let (keyspace, low) = split(low);
                let (last, high) = split(high);
                LogEffect::RemoveRange { keyspace, low, high: (last == keyspace).then_some(high) }
            }
        }
    }

    /// The key that was put or removed; `None` for a range.
    pub fn key(&self) -> Option<&'a [u8]> {
        match self {
            LogEffect::Put { key, .. }
            | LogEffect::Remove { key, .. }
            | LogEffect::Expire { key, .. } => Some(key),
            LogEffect::RemoveRange { .. } => None,
        }
    }
}

/// Shows records instead of applying them.
struct Shown<F> {
    visit: F,
    /// The last one that was shown, and how many were.
    last: LogEnd,
    is_enough: bool,
}

impl<F: FnMut(&LogRecord<'_>) -> ControlFlow<()>> Shown<F> {
    fn show(&mut self, at: &RecordAt, kind: LogRecordKind<'_>) -> Applied {
        let RecordAt { position, time_ms, segment, offset } = *at;
        if self.last.records > 0 && position.seq <= self.last.position.seq {
            return Ok(());
        }
        let records = self.last.records + 1;
        self.last = LogEnd { position, time_ms, records, torn_bytes: 0 };
        let record = LogRecord { position, time_ms, segment, offset, kind };
        self.is_enough = (self.visit)(&record).is_break();
        if self.is_enough { Err(ApplyError::Error(Error::Cancelled)) } else { Ok(()) }
    }
}

impl<F: FnMut(&LogRecord<'_>) -> ControlFlow<()>> Apply for Shown<F> {
    fn flush(&mut self) -> Applied {
        Ok(())
    }

    fn batch(&mut self, at: &RecordAt, body: &[u8]) -> Applied {
        let effects = Effects::new(body);
        for effect in effects.clone() {
            effect.map_err(|damage| ApplyError::Fault(damage.fault))?;
        }
        let bytes = body.len() as u64;
        self.show(at, LogRecordKind::Batch { effects: LogEffects(effects), bytes })
    }

    fn history(&mut self, at: &RecordAt, body: &HistoryBody) -> Applied {
        self.show(at, LogRecordKind::History { writer: body.writer })
    }

    fn check(&mut self, _: u64) -> Applied {
        Ok(())
    }
}

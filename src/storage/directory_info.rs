//! What a directory holds, told without opening it: whose line, how far, and who may write to it.
//!
//! Nothing is loaded: of a snapshot the ends are read, of the log every frame.

use std::path::Path;
use std::sync::Arc;

use super::OsDisk;
use super::backup::{TRIES, may_have_moved};
use super::directory::Directory;
use super::recovery::{
    Applied, Apply, Listed, Reads, RecordAt, RecoveryMode, Replay, SnapshotFact, Until, is_on, plan,
};
use super::segment::Found;
use super::snapshot_file::SnapshotFile;
use crate::commit::Role;
use crate::error::{Error, Result};
use crate::format::log::{Base, Identity};
use crate::format::record::HistoryBody;
use crate::format::snapshot::Span;
use crate::position::{HistoryId, Position, Seq};

/// What the directory of a database says of itself, read without opening it; nothing is changed, and it may be open elsewhere.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-info-{}", std::process::id()));
/// use stillframe::{Database, DirectoryInfo, Durability, Role};
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// db.persist(Durability::Os)?;
/// let info = DirectoryInfo::read(&dir)?;
/// assert_eq!((info.role, info.position), (Role::Primary, db.position()));
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DirectoryInfo {
    /// What a database that is opened there is at first. A process that has it open may have begun to follow another since.
    pub role: Role,
    /// The last batch. One that is open may have more in its process.
    pub position: Position,
    /// When that was, in unix milliseconds; 0 if there is none.
    pub time_ms: u64,
    /// The histories that led there, oldest first.
    pub lineage: Vec<HistorySpan>,
    /// Random, the same for all copies and replicas of the database.
    pub dataset: [u8; 16],
    /// Random, of this directory: the [writer](HistorySpan::writer) of the histories that were written here.
    pub node: [u8; 16],
    /// The last batch in the snapshot that it would be opened with.
    pub snapshot: Option<Position>,
    /// Batches in the log that are not in that snapshot.
    pub batches: u64,
    /// Bytes behind the last batch that a writer left when it died, or is just writing.
    pub torn_bytes: u64,
}

/// One history of a line: what one run of a process wrote of it.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-span-{}", std::process::id()));
/// use stillframe::{Database, DirectoryInfo};
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// db.close()?;
/// let info = DirectoryInfo::read(&dir)?;
/// let span = &info.lineage[0];
/// assert_eq!((span.writer, span.end), (info.node, db.seq()));
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistorySpan {
    /// Its id.
    pub history: HistoryId,
    /// Its term: higher than all before it if it began with a [promotion](crate::Database::promote).
    pub term: u64,
    /// The node that wrote it.
    pub writer: [u8; 16],
    /// Its first batch.
    pub start: Seq,
    /// The last batch that the line has of it.
    pub end: Seq,
}

impl DirectoryInfo {
    /// Reads what the directory `path` holds. Cost: a pass over the log; snapshots are opened, not read.
    ///
    /// # Errors
    /// [`Error::Io`], with `NotFound` where no database is; [`Error::Corrupt`] where something that was durable can't be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let directory = Directory::look(Arc::new(OsDisk), path.as_ref())?;
        let mut tries = 0;
        loop {
            match Self::of(&directory) {
                // Whoever has it open has gone on meanwhile.
                Err(error) if may_have_moved(&error, &directory) && tries < TRIES => tries += 1,
                info => return info,
            }
        }
    }

    fn of(directory: &Directory) -> Result<Self> {
        let listed = Listed::read(directory)?;
        let found = Found::all(directory, &listed)?;
        let facts: Vec<_> = found.iter().map(Found::fact).collect();
        let mut snapshots = Vec::new();
        for ordinal in &listed.snapshots {
            match SnapshotFile::open_on(&*directory.disk, &directory.snapshot(*ordinal)) {
                // An older one may do.
                Err(Error::Corrupt { .. }) => snapshots.push((*ordinal, None)),
                file => snapshots.push((*ordinal, Some(file?))),
            }
        }
        let fact = |(ordinal, file): &(u64, Option<SnapshotFile>)| SnapshotFact {
            ordinal: *ordinal,
            seq: file.as_ref().map(|file| file.info().position.seq),
        };
        let plan = plan(
            RecoveryMode::TolerateTail,
            &facts,
            &snapshots.iter().map(fact).collect::<Vec<_>>(),
        );
        let plan = plan.map_err(|refusal| refusal.told(directory))?;
        let chosen = snapshots.into_iter().find(|(ordinal, _)| Some(*ordinal) == plan.snapshot);
        let chosen = chosen.and_then(|(_, file)| file);
        let snapshot = chosen.as_ref().map(|file| file.info().position);
        let mut line = Line::default();
        let mut from = Base::default();
        if let Some(file) = &chosen {
            from.position = file.info().position;
            from.time_ms = file.reader().footer.time_ms;
            line.spans.clone_from(&file.reader().root.lineage);
        }
        let spans: Vec<_> =
            line.spans.iter().map(|span| (span.history, span.start, span.end)).collect();
        let is_needed = |found: &Found| {
            plan.segments.contains(&found.ordinal) || plan.blank.contains(&found.ordinal)
        };
        let segments: Vec<_> = found.into_iter().filter(is_needed).collect();
        let replay = Replay {
            directory,
            mode: RecoveryMode::TolerateTail,
            segments: &segments,
            from,
            is_on_line: &|position| is_on(spans.iter().copied(), position),
            until: Until::default(),
            reads: Reads::Settled,
        };
        let recovered = replay.run(&mut line)?;
        let Base { position, time_ms, .. } = recovered.base;
        line.end_at(position.seq);
        let may_write = directory.may_write(&line.spans)?;
        let Identity { dataset, node, .. } = directory.identity();
        Ok(DirectoryInfo {
            role: if may_write { Role::Primary } else { Role::Replica },
            position,
            time_ms,
            lineage: line.spans.iter().map(HistorySpan::of).collect(),
            dataset,
            node,
            snapshot,
            batches: line.batches,
            torn_bytes: recovered.torn.map_or(0, |torn| torn.bytes),
        })
    }
}

impl HistorySpan {
    fn of(span: &Span) -> Self {
        let Span { history, term, writer, start, end } = *span;
        HistorySpan { history, term, writer, start, end }
    }
}

/// Takes of the log which histories it has, and counts the rest.
#[derive(Default)]
struct Line {
    spans: Vec<Span>,
    batches: u64,
}

impl Line {
    fn end_at(&mut self, end: Seq) {
        if let Some(last) = self.spans.last_mut() {
            last.end = end;
        }
    }
}

impl Apply for Line {
    fn flush(&mut self) -> Applied {
        Ok(())
    }

    fn batch(&mut self, _: &RecordAt, _: &[u8]) -> Applied {
        self.batches += 1;
        Ok(())
    }

    fn history(&mut self, record: &RecordAt, body: &HistoryBody) -> Applied {
        let start = record.position.seq;
        self.end_at(Seq(start.0 - 1));
        let HistoryBody { history, term, writer } = *body;
        self.spans.push(Span { history, term, writer, start, end: start });
        self.batches += 1;
        Ok(())
    }

    fn check(&mut self, _: u64) -> Applied {
        Ok(())
    }
}

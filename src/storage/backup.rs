//! Copies the files of a directory that may be in use: its newest snapshot and the log behind it.
//!
//! The one who has it open is not asked and not stopped. It only appends to the newest segment and removes the oldest files, so
//! reading the newest first finds, in each older one, all that the newer ones go on from. Segments are opened first, the newest
//! first, and snapshots after them: what disappeared before it was opened is in a snapshot that is there by then, and open
//! files stay. Only if that is superseded in the same moment, the copy is begun again.

use std::io;
use std::path::Path;

use super::directory::{Directory, FileKind};
use super::recovery::{
    Applied, Apply, Listed, NEXT_IS_MISSING, Reads, RecordAt, Recovered, RecoveryMode, Replay,
    SnapshotFact, Until, first_base, plan,
};
use super::segment::{Begun, Found, Spare};
use super::snapshot_file::SnapshotFile;
use super::{DiskFile, read_exact_at, write_all_at};
use crate::error::{Error, Fault, Result};
use crate::format::log::Base;
use crate::format::record::HistoryBody;
use crate::position::{Position, Seq};

/// A new directory's first segment, which nothing was written to.
pub(crate) const BLANK_BYTES: u64 = 64 << 10;

/// What was copied.
pub(crate) struct Copied {
    /// The last batch in the copy.
    pub(crate) position: Position,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Copies `source` to `target`, which is empty, and proves the copy. The target's identity is left to the caller.
pub(crate) fn copy(source: &Directory, target: &Directory) -> Result<Copied> {
    let mut tries = 0;
    loop {
        match copy_held(source, target) {
            // It has gone on meanwhile, or is damaged: then the last try says so.
            Err(error) if may_have_moved(&error, source) && tries < TRIES => tries += 1,
            copied => return copied,
        }
        for (name, kind) in target.list()? {
            if matches!(kind, FileKind::Segment(_) | FileKind::Snapshot(_)) {
                target.remove(&target.path.join(name))?;
            }
        }
    }
}

/// So often a log that somebody is writing is read again, when it has gone on under the reader.
pub(crate) const TRIES: usize = 20;

/// Whether an error may come from reading a directory in which somebody begins new files, and removes old ones.
pub(crate) fn may_have_moved(error: &Error, source: &Directory) -> bool {
    match error {
        Error::Io { path, source: cause, .. } => {
            let is_gone =
                matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof);
            is_gone && path.starts_with(&source.path)
        }
        Error::Corrupt { what, .. } => {
            matches!(what, Fault::LogEnds { .. } | Fault::NoBase { .. } | Fault::NoLog)
                || *what == NEXT_IS_MISSING
        }
        _ => false,
    }
}

fn copy_held(source: &Directory, target: &Directory) -> Result<Copied> {
    let segments = hold_segments(source)?;
    let listed = Listed::read(source)?;
    let mut snapshots = Vec::new();
    for &ordinal in &listed.snapshots {
        let (path, seq) = (source.snapshot(ordinal), snapshot_seq(source, ordinal));
        match source.disk.open(&path) {
            Ok(file) => snapshots.push((SnapshotFact { ordinal, seq }, path, file)),
            // A newer one has what was in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("open", &path, source)),
        }
    }
    let facts: Vec<_> = segments.iter().map(Found::fact).collect();
    let of_snapshots: Vec<_> = snapshots.iter().map(|(fact, ..)| *fact).collect();
    let plan = plan(RecoveryMode::TolerateTail, &facts, &of_snapshots)
        .map_err(|refusal| refusal.told(source))?;
    let snapshot = snapshots.into_iter().find(|(fact, ..)| Some(fact.ordinal) == plan.snapshot);

    let (mut files, mut bytes) = (0, 0);
    for &ordinal in plan.segments.iter().chain(&plan.blank).rev() {
        let found = segments.iter().find(|found| found.ordinal == ordinal);
        let copied = match found.expect("planned from these").settled_bytes(source) {
            // One before the snapshot, which is older than what is to be kept by now.
            Err(error) if snapshot.is_some() && is_gone(&error) => break,
            copied => copied?,
        };
        let path = target.segment(ordinal);
        let told = |op, source| Error::io(op, &path, source);
        let file = target.disk.create_new(&path).map_err(|source| told("create", source))?;
        write_all_at(&*file, &copied, 0).map_err(|source| told("write", source))?;
        file.sync_all().map_err(|source| told("sync", source))?;
        (files, bytes) = (files + 1, bytes + copied.len() as u64);
    }
    if files == 0 {
        Spare::make(target, listed.next_ordinal(), BLANK_BYTES)?;
    }
    if let Some((fact, path, file)) = snapshot {
        bytes += copy_file((&path, &*file), target, &target.snapshot(fact.ordinal))?;
        files += 1;
    }
    Ok(Copied { position: prove(target)?, files, bytes })
}

/// The segments, oldest first; those behind the newest snapshot stay open.
fn hold_segments(source: &Directory) -> Result<Vec<Found>> {
    let listed = Listed::read(source)?;
    let newest = listed.snapshots.iter().rev().find_map(|ordinal| snapshot_seq(source, *ordinal));
    let mut segments = Vec::new();
    let mut is_needed = true;
    for &ordinal in listed.segments.iter().rev() {
        let found = match is_needed {
            true => Found::hold(source, ordinal),
            false => Found::read(source, ordinal),
        };
        let found = match found {
            // So has all that is older: a snapshot has what was in it.
            Err(error) if is_gone(&error) => break,
            found => found?,
        };
        if let Begun::Yes(beginning) = &found.beginning {
            is_needed &= newest.is_none_or(|newest| beginning.base.position.seq > newest);
        }
        segments.push(found);
    }
    segments.reverse();
    Ok(segments)
}

/// Whether a file was removed before it was opened.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { op: "open", source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// The last batch of a snapshot; `None` if it is damaged, or gone.
fn snapshot_seq(source: &Directory, ordinal: u64) -> Option<Seq> {
    let file = SnapshotFile::open_on(&*source.disk, &source.snapshot(ordinal)).ok()?;
    Some(file.info().position.seq)
}

fn copy_file((path, file): (&Path, &dyn DiskFile), target: &Directory, to: &Path) -> Result<u64> {
    const PIECE: usize = 1 << 20;
    let read = |source| Error::io("read", path, source);
    let written = |op, source| Error::io(op, to, source);
    let len = file.len().map_err(read)?;
    let copy = target.disk.create_new(to).map_err(|source| written("create", source))?;
    let mut piece = vec![0; usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
    let mut offset = 0;
    while offset < len {
        let count = piece.len().min(usize::try_from(len - offset).unwrap_or(PIECE));
        read_exact_at(file, &mut piece[..count], offset).map_err(read)?;
        write_all_at(&*copy, &piece[..count], offset).map_err(|source| written("write", source))?;
        offset += count as u64;
    }
    copy.sync_all().map_err(|source| written("sync", source))?;
    Ok(len)
}

/// Reads a copy whole.
fn prove(copy: &Directory) -> Result<Position> {
    let listed = Listed::read(copy)?;
    let found = Found::all(copy, &listed)?;
    let mut from = Base::default();
    if let Some(ordinal) = listed.snapshots.first() {
        let file = SnapshotFile::open_on(&*copy.disk, &copy.snapshot(*ordinal))?;
        file.verify()?;
        (from.position, from.time_ms) = (file.info().position, file.info().time_ms);
    }
    let base = first_base(&found).map(|base| base.position.seq);
    if let Some(base) = base.filter(|base| *base > from.position.seq) {
        return Err(Error::corrupt(&copy.path, 0, Fault::NoBase { base }));
    }
    let recovered = Replay {
        directory: copy,
        mode: RecoveryMode::TolerateTail,
        segments: &found,
        from,
        // Whether the line is the snapshot's the record at its Seq tells.
        is_on_line: &|_| true,
        until: Until::default(),
        reads: Reads::Once,
    }
    .run(&mut Unapplied)?;
    let Recovered { base, .. } = recovered;
    Ok(base.position)
}

/// Only what is read is proven.
pub(crate) struct Unapplied;

impl Apply for Unapplied {
    fn flush(&mut self) -> Applied {
        Ok(())
    }

    fn batch(&mut self, _: &RecordAt, _: &[u8]) -> Applied {
        Ok(())
    }

    fn history(&mut self, _: &RecordAt, _: &HistoryBody) -> Applied {
        Ok(())
    }

    fn check(&mut self, _: u64) -> Applied {
        Ok(())
    }
}

/// Refuses a directory that somebody has open, as far as it can be told without writing there.
pub(crate) fn refuse_in_use(
    directory: &Directory,
) -> Result<Option<Box<dyn std::any::Any + Send + Sync>>> {
    let path = directory.path.join(super::directory::LOCK);
    let is_there = directory.list()?.iter().any(|(name, _)| path.ends_with(name));
    if !is_there {
        return Ok(None);
    }
    match directory.disk.lock(&path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Error::Locked { path }),
        // Where nothing can be written nobody writes.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(Error::io("lock", &path, source)),
    }
}

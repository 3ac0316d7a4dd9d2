//! Opening a directory that is damaged: what can be proven becomes a database, under a history of its own.
//!
//! The order makes it safe to be interrupted: what was recovered is saved, a log is begun behind it that goes on from no other
//! segment, and only then the old files are moved aside. Before that log was begun, the directory is as damaged as
//! it was; afterwards what is left of the old files means nothing.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::clock::random_id;
use crate::database::Database;
use crate::format::log::Base;
use crate::format::snapshot::Span;
use crate::keys::{self, CATALOGUE_ID};
use crate::open::{Content, OnDisk, Read, Snapshots};
use crate::options::Builder;
use crate::position::{HistoryId, Position, Seq};
use crate::progress::{OpenPhase, OpenReport, Progress};
use crate::replayer::Replayer;
use crate::saver::LastSave;
use crate::storage::directory::Directory;
use crate::storage::log::{Log, Start};
use crate::storage::recovery::{Apply, ApplyError, Listed, SnapshotFact, Until};
use crate::storage::salvage::log::LogSalvage;
use crate::storage::salvage::snapshot::salvage_snapshot;
use crate::storage::salvage::{Lost, LostKey, LostRange, identity, set_aside};
use crate::storage::segment::{Begun, Found};
use crate::{Error, Fault, Result};

/// Opens the directory as usual if that can be done, and else with what of it can be proven.
pub(crate) fn open(builder: Builder, path: &Path) -> Result<Database> {
    let mut lost = Vec::new();
    let directory = Directory::claim_or(Arc::clone(&builder.disk), path, |disk, path, error| {
        lost.push(lost_file(path, &error));
        identity(disk, path)
    })?;
    match Read::new(&builder, &directory, Until::default()) {
        Ok(mut read) => {
            read.report.lost = lost;
            let disk = Arc::clone(&builder.disk);
            let damaged: Vec<_> =
                read.report.damaged_snapshots.iter().map(|(path, _)| path.clone()).collect();
            let database = read.go_on(directory, builder)?;
            if !damaged.is_empty() {
                set_aside(&*disk, path, &damaged)?;
            }
            Ok(database)
        }
        Err(Error::Corrupt { .. } | Error::Io { op: "read", .. }) => {
            salvage(builder, directory, lost)
        }
        Err(error) => Err(error),
    }
}

/// A file that nothing can be told of.
fn lost_file(path: &Path, error: &Error) -> LostRange {
    let (offset, fault) = match error {
        Error::Corrupt { offset, what, .. } => (*offset, what.clone()),
        _ => (0, Fault::Missing),
    };
    LostRange { path: path.to_owned(), offset, bytes: 0, fault, what: Lost::File }
}

fn salvage(builder: Builder, directory: Directory, mut lost: Vec<LostRange>) -> Result<Database> {
    let began = Instant::now();
    let listed = Listed::read(&directory)?;
    let files = (listed.segments.len() + listed.snapshots.len()) as u64;
    let progress = builder.progress(OpenPhase::Salvaging, files);

    let mut segments = Vec::new();
    for &ordinal in &listed.segments {
        match Found::read(&directory, ordinal) {
            Ok(found) => segments.push(found),
            Err(error @ (Error::Corrupt { .. } | Error::Io { op: "read", .. })) => {
                lost.push(lost_file(&directory.segment(ordinal), &error));
                progress.add(1);
            }
            Err(error) => return Err(error),
        }
    }

    let mut snapshots = Snapshots::open(&directory, &listed.snapshots, Until::default());
    let base = base(&builder, &directory, &segments, &mut snapshots, &mut lost)?;
    let has_snapshot = base.is_some();
    let mut content = base.unwrap_or_else(|| Content::empty(&builder));
    let damaged_snapshots = snapshots.damaged(&directory);
    drop(snapshots);
    progress.add(listed.snapshots.len() as u64);

    let from = content.tree.commit.position();
    let from_ms = content.tree.commit.time_ms();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let silent = Progress::new(None, OpenPhase::Replaying, 0);
    let mut replayer = Replayer::new(&mut content, threads, &silent);
    let mut log = LogSalvage::new(&directory, from, from_ms);
    log.run(&segments, &mut replayer, || progress.add(1))?;
    replayer.flush().map_err(|error| told(&directory.path, error))?;
    drop(replayer);
    let (end, time_ms, batches) = (log.end(), log.time_ms, log.batches);
    let torn_bytes = log.torn_bytes();
    lost.append(&mut log.lost);

    // A history that nobody else knows: that of what is left.
    let mut position = Position { history: HistoryId(random_id()?), seq: end };
    if end == Seq(0) {
        position = Position::default();
    }
    name_all(&mut content, (position, time_ms))?;
    content.tree.commit.skip_to(position, time_ms);
    content.lineage.clear();
    if position.seq > Seq(0) {
        let (history, writer) = (position.history, directory.identity.node);
        content.lineage.push(Span { history, term: 0, writer, start: end, end });
    }
    name_lost(&content, &mut lost);
    progress.end();

    let report = OpenReport {
        position,
        snapshot: has_snapshot.then_some(from),
        damaged_snapshots,
        segments: segments.len() as u64,
        log_bytes: segments.iter().map(|found| found.len).sum(),
        batches,
        torn_bytes,
        lost,
        elapsed: began.elapsed(),
    };
    let old: Vec<_> = listed
        .segments
        .iter()
        .map(|ordinal| directory.segment(*ordinal))
        .chain(listed.snapshots.iter().map(|ordinal| directory.snapshot(*ordinal)))
        .collect();
    let (disk, path) = (Arc::clone(&directory.disk), directory.path.clone());
    let base = Base { position, time_ms, chain: 0 };
    let start =
        Start { base, previous: None, closed: Vec::new(), next_ordinal: listed.next_ordinal() };
    let log = Log::new(directory, builder.segment_bytes, start, None);
    let (snapshots, last_save) = (Vec::new(), LastSave::default());
    let on_disk = OnDisk { log: Arc::new(log), snapshots, last_save, report };
    let database = on_disk.open(content, builder)?;
    database.saver()?.found()?;
    set_aside(&*disk, &path, &old)?;
    Ok(database)
}

fn told(path: &Path, error: ApplyError) -> Error {
    match error {
        ApplyError::Error(error) => error,
        ApplyError::Fault(fault) => Error::corrupt(path, 0, fault),
    }
}

/// The state that the log is applied to, if there is any snapshot to begin with.
///
/// The newest snapshot that is whole and that the log goes on from; else what is left of the newest; else any that is whole: the
/// batches between are lost then.
fn base(
    builder: &Builder,
    directory: &Directory,
    segments: &[Found],
    snapshots: &mut Snapshots,
    lost: &mut Vec<LostRange>,
) -> Result<Option<Content>> {
    let facts: Vec<_> = snapshots.facts.iter().rev().copied().collect();
    let log_base = segments.iter().find_map(|found| match &found.beginning {
        Begun::Yes(beginning) => Some(beginning.base.position.seq),
        _ => None,
    });
    let newest = facts.first().map(|fact| fact.ordinal);
    let reaches = |fact: &SnapshotFact| {
        Some(fact.ordinal) == newest || log_base.is_none_or(|base| fact.seq >= Some(base))
    };
    for fact in facts.iter().filter(|fact| reaches(fact)) {
        if let Some(content) = whole(builder, snapshots, fact)? {
            return Ok(Some(content));
        }
    }
    for fact in &facts {
        let path = directory.snapshot(fact.ordinal);
        let is_damaged = snapshots.damaged(directory).iter().any(|(damaged, _)| *damaged == path);
        if is_damaged && let Some(content) = part(builder, directory, &path, lost)? {
            return Ok(Some(content));
        }
    }
    for fact in &facts {
        if let Some(content) = whole(builder, snapshots, fact)? {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// A snapshot that is whole, loaded.
fn whole(
    builder: &Builder,
    snapshots: &mut Snapshots,
    fact: &SnapshotFact,
) -> Result<Option<Content>> {
    if fact.seq.is_none() {
        return Ok(None);
    }
    match snapshots.load(builder, fact.ordinal) {
        Ok((content, _)) => Ok(Some(content)),
        Err(error @ (Error::Corrupt { .. } | Error::Io { op: "read", .. })) => {
            snapshots.set_damaged(fact.ordinal, error);
            Ok(None)
        }
        // It was found damaged before.
        Err(Error::Closed) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is left of a damaged snapshot.
fn part(
    builder: &Builder,
    directory: &Directory,
    path: &Path,
    lost: &mut Vec<LostRange>,
) -> Result<Option<Content>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let silent = Progress::new(None, OpenPhase::Loading, 0);
    let mut content = Content::empty(builder);
    let mut replayer = Replayer::new(&mut content, threads, &silent);
    let salvaged = salvage_snapshot(&*directory.disk, path, |entry| {
        let put = replayer.put(entry.cut, entry.key, entry.value, entry.expire_at);
        put.map_err(|error| told(path, error))
    })?;
    replayer.flush().map_err(|error| told(path, error))?;
    drop(replayer);
    let Some(mut salvaged) = salvaged else {
        let (path, fault) = (path.to_owned(), Fault::Missing);
        lost.push(LostRange { path, offset: 0, bytes: 0, fault, what: Lost::File });
        return Ok(None);
    };
    let (position, time_ms) = salvaged.cut;
    content.tree.commit.skip_to(position, time_ms);
    lost.append(&mut salvaged.lost);
    Ok(Some(content))
}

/// Keyspaces whose names were lost get one.
fn name_all(content: &mut Content, at: (Position, u64)) -> Result<()> {
    let named: Vec<u32> = content.catalogue.names.values().map(|(id, _)| *id).collect();
    let holds_any = |slot| content.tree.commit.totals(slot).records > 0;
    let mut nameless: Vec<u32> = content
        .catalogue
        .slots
        .iter()
        .filter(|(id, slot)| !named.contains(id) && holds_any(**slot))
        .map(|(id, _)| *id)
        .collect();
    nameless.sort_unstable();
    let silent = Progress::new(None, OpenPhase::Replaying, 0);
    for id in nameless {
        let mut name = format!("salvaged-{id}");
        while content.catalogue.names.contains_key(&name) {
            name.push('-');
        }
        let key = keys::internal(CATALOGUE_ID, name.as_bytes());
        let mut replayer = Replayer::new(content, 1, &silent);
        let put = replayer.put(at, &key, &id.to_le_bytes(), 0).and_then(|()| replayer.flush());
        put.map_err(|error| told(Path::new("catalogue"), error))?;
    }
    Ok(())
}

/// Says of lost entries what their keyspace is called.
fn name_lost(content: &Content, lost: &mut [LostRange]) {
    let name = |end: &mut LostKey| {
        let named = content.catalogue.names.iter().find(|(_, (id, _))| *id == end.id);
        end.keyspace = named.map(|(name, _)| name.clone());
    };
    for range in lost {
        if let Lost::Entries { low, high } = &mut range.what {
            name(low);
            high.iter_mut().for_each(name);
        }
    }
}

//! Opening a directory that is damaged: what can be proven becomes a database, under a history of its own.
//!
//! The order makes it safe to be interrupted: a log is begun that goes on from no other segment, then what was recovered is saved
//! as the snapshot that it goes on from, and only then the old files are moved aside. Before that snapshot has its name nobody opens
//! the directory, and who salvages it again finds the same; afterwards what is left of the old files means nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

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
use crate::storage::recovery::{Apply, Listed, SnapshotFact, Until, first_base};
use crate::storage::salvage::log::LogSalvage;
use crate::storage::salvage::snapshot::salvage_snapshot;
use crate::storage::salvage::{Lost, LostKey, LostRange, fault_of, identity, is_damage, set_aside};
use crate::storage::segment::Found;
use crate::{Error, Fault, Result};

/// Opens the directory as usual if that can be done, and else with what of it can be proven.
pub(crate) fn open(builder: Builder, path: &Path) -> Result<Database> {
    let mut lost = Vec::new();
    let directory = Directory::claim_or(Arc::clone(&builder.disk), path, |disk, own, error| {
        if !is_damage(&error) && !own_is_missing(&error) {
            return Err(error);
        }
        let found = identity(disk, path)?;
        lost.push(lost_file(own, &error));
        found.ok_or(error)
    })?;
    match Read::new(&builder, &directory, Until::default()) {
        Ok(mut read) => {
            if !lost.is_empty() {
                directory.replace_identity()?;
            }
            let disk = Arc::clone(&builder.disk);
            let damaged: Vec<_> =
                read.report.damaged_snapshots.iter().map(|(path, _)| path.clone()).collect();
            read.report.lost = lost;
            let database = read.go_on(directory, builder)?;
            if !damaged.is_empty() {
                set_aside(&*disk, path, &damaged, &[])?;
            }
            Ok(database)
        }
        Err(error) if is_damage(&error) => salvage(builder, directory, lost),
        Err(error) => Err(error),
    }
}

/// Whether a directory that holds something has no identity.
fn own_is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { op: "open", source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// A file that nothing can be told of.
fn lost_file(path: &Path, error: &Error) -> LostRange {
    let (offset, fault) = fault_of(error);
    let fault = if own_is_missing(error) { Fault::Missing } else { fault };
    LostRange { path: path.to_owned(), offset, bytes: 0, fault, what: Lost::File }
}

fn salvage(builder: Builder, directory: Directory, mut lost: Vec<LostRange>) -> Result<Database> {
    let began = Instant::now();
    let has_identity = lost.is_empty();
    directory.settle_anew()?;
    let listed = Listed::read(&directory)?;
    let files = (listed.segments.len() + listed.snapshots.len()) as u64;
    let progress = builder.progress(OpenPhase::Salvaging, files);

    let mut segments = Vec::new();
    for &ordinal in &listed.segments {
        match Found::read(&directory, ordinal) {
            Ok(found) => segments.push(found),
            Err(error) if is_damage(&error) => {
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
    replayer.flush().map_err(|error| error.at(&directory.path, 0))?;
    drop(replayer);
    let (end, time_ms, batches) = (log.end(), log.time_ms, log.batches);
    let torn_bytes = log.torn_bytes();
    lost.append(&mut log.lost);
    if segments.is_empty() && has_snapshot {
        let (path, what) = (directory.path.clone(), Lost::Batches { after: end, before: None });
        lost.push(LostRange { path, offset: 0, bytes: 0, fault: Fault::NoLog, what });
    }

    // A history that nobody else knows: that of what is left.
    let mut position = Position { history: HistoryId::own()?, seq: end };
    if end == Seq(0) {
        position = Position::default();
    }
    name_all(&mut content, (position, time_ms), &directory.path)?;
    content.tree.commit.skip_to(position, time_ms);
    content.lineage.clear();
    if position.seq > Seq(0) {
        let (history, writer) = (position.history, directory.identity().node);
        content.lineage.push(Span { history, term: 0, writer, start: end, end });
    }
    name_lost(&content, &mut lost);
    progress.end();

    let kept = lost.clone();
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
    if !has_identity {
        directory.replace_identity()?;
    }
    let base = Base { position, time_ms, chain: 0 };
    let start =
        Start { base, previous: None, closed: Vec::new(), next_ordinal: listed.next_ordinal() };
    let log = Log::new(directory, builder.segment_bytes, start, None);
    let (snapshots, last_save) = (Vec::new(), LastSave::default());
    let on_disk = OnDisk { log: Arc::new(log), snapshots, last_save, report };
    let database = on_disk.open(content, builder)?;
    database.saver()?.found()?;
    set_aside(&*disk, &path, &old, &kept)?;
    Ok(database)
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
    let log_base = first_base(segments).map(|base| base.position.seq);
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
        let damaged =
            snapshots.damaged(directory).into_iter().find(|(damaged, _)| *damaged == path);
        let Some((_, fault)) = damaged else { continue };
        let error = Error::corrupt(&path, 0, fault.clone());
        if !is_damage(&error) {
            return Err(error);
        }
        if let Some(content) = part(builder, directory, &path, fault, lost)? {
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
        Err(error) if is_damage(&error) => {
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
    fault: Fault,
    lost: &mut Vec<LostRange>,
) -> Result<Option<Content>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let silent = Progress::new(None, OpenPhase::Loading, 0);
    let mut content = Content::empty(builder);
    let mut replayer = Replayer::new(&mut content, threads, &silent);
    let salvaged = salvage_snapshot(&*directory.disk, path, |entry| {
        let put = replayer.put(entry.cut, entry.key, entry.value, entry.expire_at);
        put.map_err(|error| error.at(path, 0))
    })?;
    replayer.flush().map_err(|error| error.at(path, 0))?;
    drop(replayer);
    let Some(mut salvaged) = salvaged else {
        let path = path.to_owned();
        lost.push(LostRange { path, offset: 0, bytes: 0, fault, what: Lost::File });
        return Ok(None);
    };
    let (position, time_ms) = salvaged.cut;
    content.tree.commit.skip_to(position, time_ms);
    lost.append(&mut salvaged.lost);
    Ok(Some(content))
}

/// Keyspaces whose names were lost get one; of two names of one keyspace, which a lost batch may have left, one goes.
fn name_all(content: &mut Content, at: (Position, u64), path: &Path) -> Result<()> {
    let silent = Progress::new(None, OpenPhase::Replaying, 0);
    let mut by_id: Vec<_> =
        content.catalogue.names.iter().map(|(name, (id, _))| (*id, name.clone())).collect();
    by_id.sort_unstable();
    for two in by_id.windows(2).filter(|two| two[0].0 == two[1].0) {
        let key = keys::internal(CATALOGUE_ID, two[0].1.as_bytes());
        let mut replayer = Replayer::new(content, 1, &silent);
        let removed = replayer.remove(at, &key).and_then(|()| replayer.flush());
        removed.map_err(|error| error.at(path, 0))?;
    }
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
    for id in nameless {
        let mut name = format!("salvaged-{id}");
        while content.catalogue.names.contains_key(&name) {
            name.push('-');
        }
        let key = keys::internal(CATALOGUE_ID, name.as_bytes());
        let mut replayer = Replayer::new(content, 1, &silent);
        let put = replayer.put(at, &key, &id.to_le_bytes(), 0).and_then(|()| replayer.flush());
        put.map_err(|error| error.at(path, 0))?;
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

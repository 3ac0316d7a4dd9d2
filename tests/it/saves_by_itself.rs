//! Saves into the database's directory, on demand and by policy: when they come, what they keep and remove, what
//! becomes of writes when they fail.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use stillframe::simulation::{CallKind, Disk, DiskFault, SimClock, SimDisk};
use stillframe::{
    Builder, Database, Error, Fault, Keyspace, RecoveryMode, SaveOptions, SaveReport, Seq,
};

use crate::keeper::{DEADLINE, wait_until};
use crate::log::{DIR, content, on, open, segments};

fn snapshots(disk: &SimDisk) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| path.extension().is_some_and(|end| end == "snap");
    disk.files().into_iter().filter(is_one).collect()
}

/// The segments that are not made ahead.
fn begun(disk: &SimDisk) -> Vec<PathBuf> {
    let is_begun = |path: &PathBuf| disk.contents(path).unwrap()[64..160] != [0; 96];
    segments(disk).into_iter().filter(is_begun).collect()
}

/// About a hundred bytes of the log each.
fn write(data: &Keyspace, numbers: Range<u32>) {
    for n in numbers {
        data.insert((n % 100).to_be_bytes(), n.to_string().repeat(10)).unwrap();
    }
}

#[test]
fn a_save_makes_older_files_unnecessary_and_they_go() {
    let disk = SimDisk::new();
    let db = on(&disk).segment_bytes(4 << 10).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    write(&data, 0..500);
    let before = segments(&disk).len();
    let report = db.compact_log(SaveOptions::default()).unwrap();
    assert_eq!(report.position, db.position());
    let after = segments(&disk).len();
    assert!(before > 10 && after <= 2, "{before} segments, then {after}");
    write(&data, 500..700);
    let (before, position) = (content(&db), db.position());
    let fork = disk.fork();
    let again = open(&fork);
    assert_eq!((content(&again), again.position()), (before.clone(), position));
    // A second one takes the place of the first.
    db.compact_log(SaveOptions::default()).unwrap();
    assert_eq!(snapshots(&disk).len(), 1);
    db.close().unwrap();
    let again = open(&disk);
    assert_eq!((content(&again), again.position()), (before, position));
    again.close().unwrap();

    // What would make it another state is refused: no snapshot, or no log.
    let no_snapshot = disk.fork();
    let path = snapshots(&disk).remove(0);
    no_snapshot.remove(&path).unwrap();
    let error = on(&no_snapshot).open(DIR).unwrap_err();
    assert!(matches!(error, Error::Corrupt { what: Fault::NoBase { .. }, .. }), "{error}");
    let no_log = disk.fork();
    segments(&disk).iter().for_each(|path| no_log.remove(path).unwrap());
    let error = on(&no_log).open(DIR).unwrap_err();
    assert!(matches!(error, Error::Corrupt { what: Fault::NoLog, .. }), "{error}");
    let damaged = disk.fork();
    damaged.edit(&path, |bytes| *bytes.last_mut().unwrap() ^= 1).unwrap();
    let error = on(&damaged).open(DIR).unwrap_err();
    assert!(
        matches!(&error, Error::Corrupt { file, what: Fault::NoEnd, .. } if *file == path),
        "{error}"
    );
}

#[test]
fn as_many_snapshots_stay_as_were_asked_for_and_the_log_behind_the_oldest() {
    let disk = SimDisk::new();
    let three = |disk: &SimDisk| on(disk).segment_bytes(4 << 10).keep_snapshots(3);
    let db = three(&disk).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    let mut most = 0;
    for round in 0..6 {
        write(&data, round * 200..round * 200 + 200);
        db.compact_log(SaveOptions::default()).unwrap();
        assert_eq!(snapshots(&disk).len(), 3.min(round as usize + 1));
        most = most.max(segments(&disk).len());
    }
    write(&data, 0..10);
    let kept = segments(&disk).len();
    assert!((8..=most).contains(&kept), "{kept} segments, {most} at the most");
    let (before, position) = (content(&db), db.position());
    let state = |db: &Database| (content(db), db.position());
    db.close().unwrap();

    let newest_first: Vec<PathBuf> = snapshots(&disk).into_iter().rev().collect();
    let (damaged, removed) = (disk.fork(), disk.fork());
    for (gone, path) in newest_first.iter().enumerate() {
        let (tolerant, without) = (on(&damaged.fork()).open(DIR), on(&removed.fork()).open(DIR));
        assert_eq!(state(&tolerant.unwrap()), (before.clone(), position), "{gone} damaged");
        assert_eq!(state(&without.unwrap()), (before.clone(), position), "{gone} missing");
        damaged.edit(path, |bytes| *bytes.last_mut().unwrap() ^= 1).unwrap();
        removed.remove(path).unwrap();
        let strict = on(&damaged.fork()).recovery(RecoveryMode::Strict).open(DIR);
        assert!(matches!(strict, Err(Error::Corrupt { .. })), "{gone} and one more damaged");
    }
    let error = on(&damaged).open(DIR).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { file, .. } if *file == newest_first[0]), "{error}");
    let error = on(&removed).open(DIR).unwrap_err();
    assert!(matches!(error, Error::Corrupt { what: Fault::NoBase { .. }, .. }), "{error}");
}

/// A damaged snapshot counted as one of those that are to be kept, and a good one that was older went in its stead.
#[test]
fn a_damaged_snapshot_goes_before_a_good_one() {
    let disk = SimDisk::new();
    let two = |disk: &SimDisk| on(disk).segment_bytes(4 << 10).keep_snapshots(2);
    let db = two(&disk).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    for round in 0..2 {
        write(&data, round * 200..round * 200 + 200);
        db.compact_log(SaveOptions::default()).unwrap();
    }
    db.close().unwrap();
    let damaged = snapshots(&disk).pop().unwrap();
    disk.edit(&damaged, |bytes| *bytes.last_mut().unwrap() ^= 1).unwrap();
    let db = two(&disk).open(DIR).unwrap();
    db.compact_log(SaveOptions::default()).unwrap();
    let state = (content(&db), db.position());
    db.close().unwrap();
    let kept = snapshots(&disk);
    assert!(kept.len() == 2 && !kept.contains(&damaged), "{kept:?}");
    // So there are two still.
    disk.edit(&kept[1], |bytes| *bytes.last_mut().unwrap() ^= 1).unwrap();
    let db = open(&disk);
    assert_eq!((content(&db), db.position()), state);
}

#[test]
fn so_many_bytes_of_the_log_stay() {
    const KEPT: u64 = 20_000;
    let disk = SimDisk::new();
    let builder = on(&disk).segment_bytes(4 << 10);
    let db = builder.keep_log(KEPT, Duration::ZERO).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    for round in 0..4 {
        write(&data, round * 500..round * 500 + 500);
        let before = db.stats().log.unwrap().bytes;
        db.compact_log(SaveOptions::default()).unwrap();
        let after = db.stats().log.unwrap().bytes;
        assert!(before > 2 * KEPT, "{before}");
        // All that was left but for one segment would be less; and there is the one in use.
        assert!((KEPT..KEPT + 2 * 5_000).contains(&after), "{after}");
    }
    let before = (content(&db), db.position());
    db.close().unwrap();
    let again = open(&disk);
    assert_eq!((content(&again), again.position()), before);
}

#[test]
fn the_log_stays_for_so_long() {
    const MINUTE: u64 = 60_000;
    let disk = SimDisk::new();
    let clock = SimClock::new(1_700_000_000_000);
    let builder = on(&disk).clock(clock.clone()).segment_bytes(4 << 10);
    let db = builder.keep_log(0, Duration::from_secs(5 * 60)).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    write(&data, 0..200);
    let mut old = begun(&disk);
    // What is in use has younger batches later.
    let in_use = old.pop().unwrap();
    clock.advance(3 * MINUTE);
    write(&data, 200..400);
    let all = begun(&disk);
    db.compact_log(SaveOptions::default()).unwrap();
    assert_eq!(begun(&disk), all, "all of it is young");
    clock.advance(3 * MINUTE);
    db.compact_log(SaveOptions::default()).unwrap();
    let young = all.iter().filter(|path| !old.contains(path));
    assert_eq!(begun(&disk).iter().collect::<Vec<_>>(), young.collect::<Vec<_>>());
    assert_eq!(begun(&disk)[0], in_use);
    clock.advance(3 * MINUTE);
    db.compact_log(SaveOptions::default()).unwrap();
    assert_eq!(begun(&disk).len(), 1, "what is in use");
}

/// Saves after a restart could not be opened: batches that were replayed in the history of the loaded snapshot were
/// named in the lineage twice, as that history's and as this run's.
#[test]
fn a_save_after_a_restart_names_each_history_once() {
    let disk = SimDisk::new();
    let db = open(&disk);
    let data = db.keyspace("data").unwrap();
    data.insert("1", "x").unwrap();
    db.compact_log(SaveOptions::default()).unwrap();
    data.insert("2", "behind the snapshot").unwrap();
    db.close().unwrap();
    let db = open(&disk);
    db.compact_log(SaveOptions::default()).unwrap();
    db.keyspace("data").unwrap().insert("3", "another history").unwrap();
    db.compact_log(SaveOptions::default()).unwrap();
    let (before, position) = (content(&db), db.position());
    db.close().unwrap();
    let again = open(&disk);
    assert_eq!((content(&again), again.position()), (before, position));
}

/// What the database tells of its own saves: when, and the last batch saved.
type Told = Receiver<(Instant, Option<Seq>)>;

fn saving(disk: &SimDisk) -> (Builder, Told) {
    let (tell, told) = unbounded();
    let on_save = move |report: &stillframe::Result<SaveReport>| {
        let seq = report.as_ref().ok().map(|report| report.position.seq);
        // Nobody may listen any more.
        let _ = tell.send((Instant::now(), seq));
    };
    let builder = Database::builder().disk(disk.clone()).on_save(on_save);
    (builder.save_when_log_exceeds(None), told)
}

fn next(told: &Told) -> (Instant, Option<Seq>) {
    told.recv_timeout(DEADLINE).expect("a save, or one that failed")
}

#[test]
fn it_saves_by_itself() {
    let disk = SimDisk::new();
    let (builder, told) = saving(&disk);
    let db = builder.save_after(10, Duration::ZERO).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    disk.inject(DiskFault::error(DiskFault::ENOSPC).on(CallKind::Rename).after(1));
    write(&data, 0..20);
    // The first fails where the fault strikes, or a segment's making did; then it is tried again.
    while next(&told).1.is_none() {}
    let (before, position) = (content(&db), db.position());
    db.close().unwrap();
    assert_eq!(snapshots(&disk).len(), 1);
    let again = open(&disk);
    assert_eq!((content(&again), again.position()), (before, position));
}

#[test]
fn a_save_comes_once_so_many_batches_were_committed() {
    let policy = |builder: Builder| {
        builder.save_after(1, Duration::from_secs(100_000)).save_after(10, Duration::ZERO)
    };
    let disk = SimDisk::new();
    let (builder, told) = saving(&disk);
    let db = policy(builder).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    while db.seq() < Seq(9) {
        data.insert(db.seq().0.to_be_bytes(), "v").unwrap();
    }
    // Another one, opened later, looks at the same times or later.
    let (builder, told_of_other) = saving(&SimDisk::new());
    let other = policy(builder).open(DIR).unwrap();
    write(&other.keyspace("data").unwrap(), 0..20);
    assert!(next(&told_of_other).1 > Some(Seq(9)));
    assert_eq!(db.stats().log.unwrap().saved, Seq(0), "nine are too few");
    assert!(told.is_empty());
    data.insert("the tenth", "v").unwrap();
    assert_eq!(next(&told).1, Some(Seq(10)));
    assert_eq!(db.stats().log.unwrap().saved, Seq(10));
}

#[test]
fn a_save_comes_once_the_log_is_so_long() {
    let policy = |builder: Builder| builder.save_when_log_exceeds(Some(20_000));
    let disk = SimDisk::new();
    let (builder, told) = saving(&disk);
    let db = policy(builder).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    write(&data, 0..150);
    let below = db.stats().log.unwrap().bytes;
    let (builder, told_of_other) = saving(&SimDisk::new());
    let other = policy(builder).open(DIR).unwrap();
    write(&other.keyspace("data").unwrap(), 0..1_000);
    assert!(next(&told_of_other).1.is_some());
    assert!((10_000..20_000).contains(&below), "{below}");
    assert_eq!(db.stats().log.unwrap().saved, Seq(0), "{below} bytes are too few");
    write(&data, 150..400);
    assert!(next(&told).1 > Some(Seq(150)));
}

#[test]
fn writes_are_refused_while_saves_fail_if_that_was_asked_for() {
    let disk = SimDisk::new();
    let (builder, told) = saving(&disk);
    let builder = builder.save_after(1, Duration::ZERO).refuse_writes_if_saves_fail(true);
    let db = builder.open(DIR).unwrap();
    // The segment that the first write makes gets its name, no other file does.
    disk.inject(DiskFault::error(DiskFault::ENOSPC).on(CallKind::Rename).after(1).forever());
    let data = db.keyspace("data").unwrap();
    data.insert("1", "before").unwrap();
    let (first, saved) = next(&told);
    assert_eq!(saved, None, "it fails");
    let position = db.position();
    let refused = |result: stillframe::Result<()>| {
        assert!(matches!(result, Err(Error::SavesFail)), "{result:?}");
    };
    refused(data.insert("2", "x"));
    refused(data.remove("1").map(drop));
    refused(db.keyspace("other").map(drop));
    let mut batch = db.batch();
    batch.insert(&data, "2", "x");
    refused(batch.commit().map(drop));
    // Reads, stills and syncs go on.
    assert_eq!(data.get("1").unwrap().unwrap(), "before");
    assert_eq!(db.snapshot().unwrap().keyspace("data").unwrap().len().unwrap(), 1);
    assert_eq!(db.persist(stillframe::Durability::Sync).unwrap(), position.seq);
    assert!(matches!(db.compact_log(SaveOptions::default()), Err(Error::Io { .. })));
    refused(data.insert("2", "x"));
    // It tries again, each time later.
    let (second, saved) = next(&told);
    assert!(saved.is_none() && second - first >= Duration::from_secs(1));
    let (third, saved) = next(&told);
    assert!(saved.is_none() && third - second >= Duration::from_secs(2));
    assert_eq!(db.position(), position, "nothing was written");

    disk.clear_faults();
    db.compact_log(SaveOptions::default()).unwrap();
    data.insert("2", "after").unwrap();
    let before = (content(&db), db.position());
    db.close().unwrap();
    let again = open(&disk);
    assert_eq!((content(&again), again.position()), before);
}

#[test]
fn writes_go_on_while_saves_fail_and_a_save_that_succeeds_is_told() {
    for refuses in [false, true] {
        let disk = SimDisk::new();
        let (builder, told) = saving(&disk);
        let builder = builder.save_after(1, Duration::ZERO).refuse_writes_if_saves_fail(refuses);
        let db = builder.open(DIR).unwrap();
        disk.inject(DiskFault::error(DiskFault::ENOSPC).on(CallKind::Rename).after(1).forever());
        let data = db.keyspace("data").unwrap();
        data.insert("1", "before").unwrap();
        assert_eq!(next(&told).1, None, "it fails");
        assert_eq!(data.insert("2", "meanwhile").is_err(), refuses);
        let position = db.position();
        disk.clear_faults();
        assert_eq!(next(&told).1, Some(position.seq), "it succeeds by itself");
        assert_eq!(db.stats().log.unwrap().saved, position.seq);
        data.insert("3", "after").unwrap();
        // A save after one that succeeded comes as soon as any.
        assert_eq!(next(&told).1, Some(db.seq()));
    }
}

/// A save that runs when the database is closed is given up, and that is not told as a failure.
#[test]
fn closing_gives_up_a_save() {
    let disk = SimDisk::new();
    let (builder, told) = saving(&disk);
    let slow = SaveOptions::default().rate_limit(Some(1));
    let db = builder.save_after(1, Duration::ZERO).save_options(slow).open(DIR).unwrap();
    write(&db.keyspace("data").unwrap(), 0..100);
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let is_begun = |path: &PathBuf| name(path).contains(".snap.");
    wait_until("a save begins", || disk.files().iter().any(is_begun));
    db.close().unwrap();
    let position = db.position();
    drop(db);
    assert_eq!(told.iter().count(), 0, "neither a success nor a failure");
    assert_eq!(snapshots(&disk).len(), 0);
    assert!(!disk.files().iter().any(is_begun), "nothing half-made stays");
    assert_eq!(open(&disk).position(), position);
}

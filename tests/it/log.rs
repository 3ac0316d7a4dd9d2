//! A database in a directory: what is in the log is there after it is opened again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stillframe::simulation::{CallKind, Change, Disk, DiskFault, Fate, Random, SimDisk, Step};
use stillframe::{
    Builder, Database, Durability, Error, Fault, RecoveryMode, SaveOptions, Seq, WriteOptions,
};

pub(crate) const DIR: &str = "/db";

pub(crate) fn on(disk: &SimDisk) -> Builder {
    Database::builder().disk(disk.clone()).manual_log()
}

pub(crate) fn open(disk: &SimDisk) -> Database {
    on(disk).open(DIR).unwrap()
}

/// All entries of all keyspaces.
pub(crate) fn content(db: &Database) -> BTreeMap<(String, Vec<u8>), Vec<u8>> {
    let mut content = BTreeMap::new();
    for name in db.keyspaces().unwrap() {
        for entry in db.keyspace(&name).unwrap().range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            content.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    content
}

pub(crate) fn fingerprint(db: &Database) -> u64 {
    db.snapshot().unwrap().fingerprint()
}

#[test]
fn what_was_written_is_there_when_it_is_opened_again() {
    let disk = SimDisk::new();
    let db = open(&disk);
    let users = db.keyspace("users").unwrap();
    let mails = db.keyspace("mails").unwrap();
    users.insert("1", "Ada").unwrap();
    users.insert("2", "Grace").unwrap();
    users.remove("1").unwrap();
    users.insert("long", vec![7; 100_000]).unwrap();
    users.insert_with("late", "x", WriteOptions::new().expire_at(1 << 60)).unwrap();
    mails.insert("a", "1").unwrap();
    let mut batch = db.batch();
    batch.insert(&users, "3", "Edsger");
    batch.delete_range(&mails, "a".."b");
    batch.insert(&mails, "aa", "2");
    batch.commit().unwrap();
    db.keyspace("gone").unwrap().insert("k", "v").unwrap();
    db.drop_keyspace("gone").unwrap();
    users.pop_first().unwrap();
    let (before, sum, position) = (content(&db), fingerprint(&db), db.position());
    db.close().unwrap();
    db.close().unwrap();
    assert!(matches!(users.insert("4", "x"), Err(Error::Closed)));

    let db = open(&disk);
    assert_eq!(content(&db), before);
    assert_eq!((fingerprint(&db), db.position()), (sum, position));
    db.keyspace("users").unwrap().insert("5", "Barbara").unwrap();
    assert_ne!(db.position().history, position.history, "another run, another history");
    assert_eq!(db.seq().0, position.seq.0 + 2, "the history's record has a number of its own");
    let (before, sum, position) = (content(&db), fingerprint(&db), db.position());
    // Not closed: dropped.
    drop((users, mails));
    drop(db);
    let db = open(&disk);
    assert_eq!(content(&db), before);
    assert_eq!((fingerprint(&db), db.position()), (sum, position));
}

#[test]
fn a_database_is_open_once() {
    let disk = SimDisk::new();
    let db = open(&disk);
    assert!(matches!(on(&disk).open(DIR), Err(Error::Locked { .. })));
    let still = db.snapshot().unwrap();
    db.close().unwrap();
    let again = open(&disk);
    assert_eq!(still.seq(), Seq(0), "a still outlives its database");
    drop(again);
}

#[test]
fn each_level_keeps_what_it_says() {
    let lost_by_power = |level| {
        let disk = SimDisk::new();
        let db = on(&disk).durability(level).open(DIR).unwrap();
        let data = db.keyspace("data").unwrap();
        data.insert("k", "v").unwrap();
        let (killed, unplugged) = (disk.fork(), disk.crash_point(disk.change_count()).image(&[]));
        let found =
            |disk: SimDisk| open(&disk).keyspace("data").unwrap().get("k").unwrap().is_some();
        (found(killed), found(unplugged))
    };
    assert_eq!(lost_by_power(Durability::Memory), (false, false));
    assert_eq!(lost_by_power(Durability::Os), (true, false));
    assert_eq!(lost_by_power(Durability::default()), (true, false));
    assert_eq!(lost_by_power(Durability::Sync), (true, true));
}

#[test]
fn a_level_can_be_said_with_each_write() {
    let disk = SimDisk::new();
    let db = on(&disk).durability(Durability::Memory).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    data.insert("1", "memory").unwrap();
    assert_eq!(open(&disk.fork()).seq(), Seq(0));
    data.insert_with("2", "os", WriteOptions::new().durability(Durability::Os)).unwrap();
    assert_eq!(open(&disk.fork()).seq(), db.seq());
    let mut batch = db.batch();
    batch.durability(Durability::Sync);
    batch.insert(&data, "3", "sync");
    batch.commit().unwrap();
    let unplugged = disk.crash_point(disk.change_count()).image(&[]);
    assert_eq!(open(&unplugged).seq(), db.seq());
    data.insert("4", "memory").unwrap();
    let log = db.stats().log.unwrap();
    assert_eq!((log.written, log.durable.0), (log.durable, db.seq().0 - 1));
    assert_eq!(db.persist(Durability::Sync).unwrap(), db.seq());
    assert_eq!(db.stats().log.unwrap().durable, db.seq());

    let memory = Database::in_memory();
    let data = memory.keyspace("data").unwrap();
    let options = WriteOptions::new().durability(Durability::Sync);
    assert!(matches!(data.insert_with("k", "v", options), Err(Error::NoLog)));
    assert!(matches!(memory.persist(Durability::Os), Err(Error::NoLog)));
    assert_eq!(data.get("k").unwrap(), None);
}

#[test]
fn segments_follow_one_another() {
    let disk = SimDisk::new();
    let db = on(&disk).segment_bytes(8 << 10).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    for n in 0..2_000_u32 {
        data.insert((n % 300).to_be_bytes(), n.to_string().repeat(5)).unwrap();
        if n % 500 == 0 {
            // Longer than a segment.
            data.insert("long", vec![n as u8; 30_000]).unwrap();
        }
    }
    let segments = disk.files().iter().filter(|path| is_segment(path)).count();
    assert!(segments > 10, "{segments}");
    let (before, position) = (content(&db), db.position());
    let db = on(&disk.fork()).segment_bytes(8 << 10).open(DIR).unwrap();
    assert_eq!((content(&db), db.position()), (before, position));
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

pub(crate) fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|path| is_segment(path)).collect()
}

#[test]
fn what_was_durable_and_is_damaged_is_an_error_and_a_torn_end_is_none() {
    let disk = SimDisk::new();
    let db = open(&disk);
    let data = db.keyspace("data").unwrap();
    for n in 0..20_u32 {
        data.insert(n.to_be_bytes(), "v").unwrap();
    }
    db.persist(Durability::Sync).unwrap();
    let durable = db.seq();
    for n in 20..40_u32 {
        data.insert(n.to_be_bytes(), "v").unwrap();
    }
    let last = db.seq();
    let path = segments(&disk).pop().unwrap();
    let bytes = disk.contents(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut ends = Vec::new();
    for at in 160..end {
        let damaged = disk.fork();
        damaged.edit(&path, |bytes| bytes[at] ^= 0x55).unwrap();
        match on(&damaged).open(DIR) {
            Ok(db) => {
                assert!(db.seq() >= durable && db.seq() < last, "byte {at}: {}", db.seq());
                ends.push(db.seq());
                // Found again as it was left.
                let again = damaged.fork();
                assert_eq!(
                    on(&again).recovery(RecoveryMode::Strict).open(DIR).unwrap().seq(),
                    db.seq()
                );
            }
            Err(Error::Corrupt {
                file,
                offset,
                what: Fault::LogEnds { last, durable: told, .. },
            }) => {
                assert_eq!(file, path);
                assert!(offset <= at as u64 && last < durable && told == durable, "byte {at}");
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
        let strict = disk.fork();
        strict.edit(&path, |bytes| bytes[at] ^= 0x55).unwrap();
        assert!(on(&strict).recovery(RecoveryMode::Strict).open(DIR).is_err(), "byte {at}");
    }
    ends.dedup();
    assert_eq!(
        ends.len() as u64,
        last.0 - durable.0,
        "each batch behind the sync can be the first lost"
    );
}

#[test]
fn what_a_power_cut_leaves_is_a_prefix_that_holds_what_was_synced() {
    let seed = std::env::var("STILLFRAME_SEED").map_or(1, |seed| seed.parse().unwrap());
    let seeds = std::env::var("STILLFRAME_SEEDS").map_or(60, |seeds| seeds.parse().unwrap());
    println!("STILLFRAME_SEED={seed}");
    for seed in seed..seed + seeds {
        power_cuts(seed);
    }
}

fn power_cuts(seed: u64) {
    let mut random = Random::new(seed);
    let disk = SimDisk::new();
    let opened = || {
        let builder = on(&disk).segment_bytes(4 << 10).durability(Durability::Memory);
        let db = builder.open(DIR).unwrap();
        let data = db.keyspace("data").unwrap();
        (db, data)
    };
    let (mut db, mut data) = opened();
    // Seq 1 is the history's record, which changes nothing.
    let mut states = vec![(Seq(0), 0), (Seq(1), 0), (db.seq(), fingerprint(&db))];
    let mut synced = Vec::new();
    for n in 0..120_u64 {
        let key = random.below(40).to_be_bytes();
        let before = (db.seq(), fingerprint(&db));
        match random.below(12) {
            0 | 1 => drop(data.remove(key).unwrap()),
            2 | 3 => drop(data.delete_range(key..random.below(40).to_be_bytes()).unwrap()),
            4 | 5 => {
                let level = [Durability::Os, Durability::Sync][random.below(2) as usize];
                let options = WriteOptions::new().durability(level);
                data.insert_with(key, n.to_string(), options).unwrap();
                if level == Durability::Sync {
                    synced.push((disk.change_count(), db.seq()));
                }
            }
            6 => data.insert(key, vec![n as u8; 5_000]).unwrap(),
            7 => {
                let mut batch = db.batch();
                batch.delete_range(&data, key..);
                batch.insert(&data, key, n.to_string());
                batch.commit().unwrap();
            }
            8 if random.one_in(3) => {
                let report = db.compact_log(SaveOptions::default().threads(1)).unwrap();
                synced.push((disk.change_count(), report.position.seq));
            }
            9 if random.one_in(4) => {
                db.close().unwrap();
                synced.push((disk.change_count(), db.seq()));
                drop(data);
                drop(db);
                (db, data) = opened();
                assert_eq!((db.seq(), fingerprint(&db)), before, "seed {seed}");
            }
            10 if random.one_in(4) => {
                disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncData));
                let failed = db.persist(Durability::Sync).is_err();
                disk.clear_faults();
                if failed {
                    db.recover().unwrap();
                    synced.push((disk.change_count(), db.seq()));
                }
            }
            _ => data.insert(key, n.to_string()).unwrap(),
        }
        // A run's first batch comes behind the record of its history.
        states.push((Seq(before.0.0 + 1), before.1));
        states.push((db.seq(), fingerprint(&db)));
    }
    for _ in 0..20 {
        let count = random.below(disk.change_count() as u64 + 1) as usize;
        let point = disk.crash_point(count);
        let after = point.image(&point.draw(&mut random));
        let opened = on(&after).open(DIR);
        let db = opened.unwrap_or_else(|error| panic!("seed {seed}, cut at {count}: {error}"));
        let found = (db.seq(), fingerprint(&db));
        let expected: Vec<_> = states.iter().filter(|state| state.0 == found.0).collect();
        assert!(states.contains(&found), "seed {seed}, cut at {count}: {found:?}, {expected:?}");
        let acknowledged = synced.iter().rev().find(|(at, _)| *at <= count);
        let acknowledged = acknowledged.map_or(Seq(0), |(_, seq)| *seq);
        assert!(found.0 >= acknowledged, "seed {seed}, cut at {count}: {found:?}, {acknowledged}");
        db.keyspace("data").unwrap().insert("more", "later").unwrap();
        let found = (db.seq(), fingerprint(&db));
        let again = open(&after.fork());
        assert_eq!((again.seq(), fingerprint(&again)), found, "seed {seed}, cut at {count}");
    }
}

#[test]
fn a_log_that_fails_refuses_writes_and_begins_anew_when_told_to() {
    let cases = [
        (CallKind::SyncData, Durability::Sync),
        (CallKind::Write, Durability::Sync),
        (CallKind::Store, Durability::Os),
    ];
    for (kind, level) in cases {
        let disk = SimDisk::new();
        let db = on(&disk).open(DIR).unwrap();
        let data = db.keyspace("data").unwrap();
        data.insert("1", "before").unwrap();
        let sync = WriteOptions::new().durability(Durability::Sync);
        data.insert_with("2", "synced", sync).unwrap();
        disk.inject(DiskFault::error(DiskFault::EIO).on(kind));
        let options = WriteOptions::new().durability(level);
        let error = data.insert_with("3", "unknown", options).unwrap_err();
        let Error::NotDurable { position, .. } = error else { panic!("{error}") };
        assert_eq!(position, db.position(), "it is committed");
        assert_eq!(data.get("3").unwrap().unwrap(), "unknown", "reads go on");
        // The disk works again, but who knows what it has.
        assert!(matches!(data.insert("4", "x"), Err(Error::LogFailed(_))));
        assert!(matches!(db.persist(Durability::Sync), Err(Error::LogFailed(_))));
        assert!(matches!(db.compact_log(SaveOptions::default()), Err(Error::LogFailed(_))));
        assert_eq!(data.get("4").unwrap(), None);
        let kept = |disk: &SimDisk| {
            let db = on(disk).open(DIR).unwrap();
            (db.seq(), db.keyspace("data").unwrap().get("2").unwrap().is_some())
        };
        let unplugged = disk.crash_point(disk.change_count()).image(&[]);
        let (seq, has_synced) = kept(&unplugged);
        assert!(has_synced && seq.0 + 1 >= position.seq.0 && seq <= position.seq, "{seq}");

        assert_eq!(db.recover().unwrap().position, position);
        data.insert_with("4", "after", sync).unwrap();
        let unplugged = disk.crash_point(disk.change_count()).image(&[]);
        let again = on(&unplugged).open(DIR).unwrap();
        assert_eq!((content(&again), again.position()), (content(&db), db.position()));
        db.close().unwrap();
    }
}

#[test]
fn a_full_disk_is_an_error_before_anything_changes_and_heals() {
    let disk = SimDisk::new();
    let db = on(&disk).segment_bytes(64 << 10).durability(Durability::Os).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    disk.set_capacity(Some(256 << 10));
    let mut written = 0_u32;
    let error = loop {
        let before = (db.position(), fingerprint(&db));
        match data.insert(written.to_be_bytes(), [7; 1_000]) {
            Ok(()) => written += 1,
            Err(error) => {
                assert_eq!((db.position(), fingerprint(&db)), before);
                break error;
            }
        }
    };
    assert!(matches!(error, Error::Io { op: "write", .. }), "{error}");
    assert!(written > 100, "{written}");
    assert!(data.insert("more", [7; 1_000]).is_err(), "still full");
    let temporary = disk.files().iter().any(|path| path.extension().is_some_and(|e| e == "tmp"));
    assert!(!temporary, "nothing half-made stays");
    let again = open(&disk.fork());
    assert_eq!(again.position(), db.position());
    disk.set_capacity(None);
    data.insert("more", [7; 1_000]).unwrap();
    db.close().unwrap();
}

/// A sync that fails may leave bytes in the system's memory that it takes for written: the next process reads them there, and
/// a sync of its own finds nothing to do. What was found counted as durable and was lost with the power.
#[test]
fn what_is_found_after_a_sync_that_failed_is_written_again() {
    let disk = SimDisk::new();
    let db = open(&disk);
    let data = db.keyspace("data").unwrap();
    data.insert("1", "x").unwrap();
    disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncData));
    assert!(matches!(db.close(), Err(Error::LogFailed(_))));
    drop((data, db));
    let again = open(&disk);
    let found = again.seq();
    assert!(found > Seq(0));
    let unplugged = disk.crash_point(disk.change_count()).image(&[]);
    assert_eq!(open(&unplugged).seq(), found);
}

/// The same of names: the directory, or its identity, whose first sync failed, was never synced again.
#[test]
fn a_directory_whose_name_could_not_be_synced_is_made_anew() {
    for passed in 0..4 {
        let disk = SimDisk::new();
        disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncDir).after(passed));
        let db = on(&disk).open(DIR).or_else(|_| on(&disk).open(DIR)).unwrap();
        let written = || db.keyspace("data").and_then(|data| data.insert("1", "x"));
        written().or_else(|_| written()).unwrap();
        let synced = db.persist(Durability::Sync).unwrap();
        let unplugged = disk.crash_point(disk.change_count()).image(&[]);
        assert_eq!(open(&unplugged).seq(), synced, "after {passed} syncs that pass");
    }
}

/// Recovery that was interrupted between removing a segment that was never begun and cutting the one that names it left a
/// directory that did not open: "the next segment is missing".
#[test]
fn a_recovery_that_is_interrupted_can_be_done_again() {
    let mut removed = 0;
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let disk = SimDisk::new();
        let db = on(&disk).segment_bytes(4 << 10).durability(Durability::Os).open(DIR).unwrap();
        let data = db.keyspace("data").unwrap();
        for n in 0..30_u32 {
            data.insert(n.to_be_bytes(), [7; 300]).unwrap();
        }
        let point = disk.crash_point(disk.change_count());
        // All there is, but for the beginning of the newest segment, which is torn.
        let pending = point.pending();
        let begins = |change: &Change| matches!(change.step, Step::Write { offset: 64, .. });
        let (begun, _) = pending.iter().rfind(|(_, change)| begins(change)).unwrap();
        let kept = pending.iter().filter(|(index, _)| index < begun);
        let mut fates: Vec<_> = kept.map(|(index, _)| (*index, Fate::Kept)).collect();
        fates.push((*begun, Fate::Prefix(1 + random.below(90) as usize)));
        let torn = point.image(&fates);
        let found = |disk: &SimDisk| on(disk).open(DIR).map(|db| (db.seq(), fingerprint(&db)));
        let first = found(&torn).unwrap();
        removed += usize::from(segments(&torn).len() < segments(&disk).len());
        for cut in 0..=torn.change_count() {
            let point = torn.crash_point(cut);
            for _ in 0..4 {
                let again = point.image(&point.draw(&mut random));
                let again = found(&again);
                let again =
                    again.unwrap_or_else(|error| panic!("seed {seed}, cut at {cut}: {error}"));
                assert_eq!(again, first, "seed {seed}, recovery cut at {cut}");
            }
        }
    }
    assert!(removed > 0, "none had a segment to remove");
}

/// Segments that a save made unnecessary were removed one behind the other and their names synced together: a power cut could
/// bring back the older of two, whose end names the newer one as the next.
#[test]
fn segments_go_one_after_the_other() {
    power_cuts(84);
}

/// A database whose log had failed kept its directory for as long as any handle lived.
#[test]
fn closing_lets_go_of_the_directory_whatever_failed() {
    let disk = SimDisk::new();
    let db = open(&disk);
    let data = db.keyspace("data").unwrap();
    data.insert("1", "x").unwrap();
    assert_eq!(db.persist(Durability::Sync).unwrap(), db.seq());
    disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncData).forever());
    data.insert("2", "y").unwrap();
    for _ in 0..2 {
        assert!(matches!(db.close(), Err(Error::LogFailed(_))));
    }
    assert!(matches!(db.recover(), Err(Error::Closed | Error::LogFailed(_))));
    disk.clear_faults();
    let again = open(&disk);
    assert_eq!(again.keyspace("data").unwrap().get("1").unwrap().unwrap(), "x");
    // The old handle reads on, and what it does to close changes nothing under the new one.
    assert_eq!(data.get("2").unwrap().unwrap(), "y");
    let changes = disk.change_count();
    assert!(db.close().is_err());
    drop((data, db));
    assert_eq!(disk.change_count(), changes);
}

/// The first segment had been made ahead, named as the next and begun, and lost its beginning with the power, or part of it, while
/// the segment behind it had kept its own. It went before another one was made; cut there, recovery left a
/// directory with a snapshot and no log, which did not open.
#[test]
fn a_directory_with_a_snapshot_has_a_segment_at_every_moment_of_recovery() {
    let disk = SimDisk::new();
    let db = on(&disk).segment_bytes(4 << 10).durability(Durability::Os).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    let write = |numbers: std::ops::Range<u32>| {
        numbers.for_each(|n| data.insert(n.to_be_bytes(), [7; 300]).unwrap());
    };
    write(0..30);
    db.compact_log(SaveOptions::default()).unwrap();
    let saved = (db.seq(), fingerprint(&db));
    write(30..50);
    let first = segments(&disk).remove(0);
    // The one made ahead was not there yet.
    let is_blank = |path: &&PathBuf| disk.contents(path).unwrap()[64..160] == [0; 96];
    segments(&disk).iter().filter(is_blank).for_each(|path| disk.remove(path).unwrap());
    assert!(segments(&disk).len() > 1, "another one goes on from it");
    for lost in [0..96, 10..96] {
        let torn = disk.fork();
        torn.edit(&first, |bytes| bytes[64..][lost.clone()].fill(0)).unwrap();
        let found = |disk: &SimDisk| on(disk).open(DIR).map(|db| (db.seq(), fingerprint(&db)));
        // The snapshot holds all that is known to have been durable.
        assert_eq!(found(&torn).unwrap(), saved);
        let mut random = Random::new(1);
        for cut in 0..=torn.change_count() {
            let point = torn.crash_point(cut);
            // Each change alone, and each alone missing; then some draws.
            let all: Vec<_> = point.pending().iter().map(|(index, _)| *index).collect();
            let kept = |keeps: &dyn Fn(usize) -> bool| {
                all.iter()
                    .filter(|index| keeps(**index))
                    .map(|index| (*index, Fate::Kept))
                    .collect()
            };
            let mut left: Vec<Vec<_>> = Vec::new();
            for one in &all {
                left.push(kept(&|index| index == *one));
                left.push(kept(&|index| index != *one));
            }
            left.extend((0..8).map(|_| point.draw(&mut random)));
            for fates in left {
                let again = found(&point.image(&fates));
                let again =
                    again.unwrap_or_else(|error| panic!("cut at {cut}, {fates:?}: {error}"));
                assert_eq!(again, saved, "cut at {cut}, {fates:?}");
            }
        }
    }
}

#[test]
fn calls_that_take_less_or_are_interrupted_go_on() {
    let interrupted = DiskFault::error(DiskFault::EINTR);
    let faults = [
        DiskFault::short(7).on(CallKind::Write).forever(),
        DiskFault::short(7).on(CallKind::Read).forever(),
        interrupted.clone().on(CallKind::Write),
        interrupted.on(CallKind::Read),
    ];
    for (fault, passed) in faults.iter().flat_map(|fault| (0..8).map(move |passed| (fault, passed)))
    {
        let disk = SimDisk::new();
        disk.inject(fault.clone().after(passed));
        let opened = || on(&disk).segment_bytes(4 << 10).durability(Durability::Sync).open(DIR);
        let db = opened().unwrap();
        let data = db.keyspace("data").unwrap();
        for n in 0..30_u32 {
            data.insert(n.to_be_bytes(), [7; 300]).unwrap();
        }
        db.compact_log(SaveOptions::default()).unwrap();
        data.insert("behind it", "v").unwrap();
        let before = (content(&db), db.position());
        db.close().unwrap();
        let again = opened().unwrap();
        assert_eq!((content(&again), again.position()), before, "{fault:?} after {passed}");
    }
}

//! What can be seen of the log from beside it alone.

use std::cell::Cell;

use super::*;
use crate::storage::sim::SimDisk;
use crate::{Database, Durability};

/// A database whose log has begun its first segment, of 1 MiB, and has none ahead.
fn begun() -> Database {
    let builder = Database::builder().disk(SimDisk::new()).manual_log();
    let builder = builder.save_when_log_exceeds(None).durability(Durability::Memory);
    let db = builder.segment_bytes(FIRST_SEGMENT_BYTES).open("/db").unwrap();
    write(&db, 1);
    assert!(lock(&db.engine().log().unwrap().writer).spare.is_none());
    db
}

/// Some KiB go into the log.
fn write(db: &Database, kib: usize) {
    let keyspace = db.keyspace("films").unwrap();
    (0..kib).for_each(|_| keyspace.insert("Metropolis", [7; 1 << 10]).unwrap());
    let log = db.engine().log().unwrap();
    log.write_out(&db.engine().tree().commit, db.seq()).unwrap();
}

#[test]
fn a_segment_is_made_ahead_in_pieces_while_there_is_time() {
    let db = begun();
    let (log, commit) = (db.engine().log().unwrap(), &db.engine().tree().commit);
    let pauses = Cell::new(0);
    let pause = || {
        pauses.set(pauses.get() + 1);
        true
    };
    log.make_spare_ahead(commit, &pause).unwrap();
    assert_eq!(pauses.get(), 16, "of 64 KiB each");
    // There is one.
    log.make_spare_ahead(commit, &pause).unwrap();
    assert_eq!(pauses.get(), 16);

    // It takes its time until more than half of what there is was used.
    let db = begun();
    let (log, commit) = (db.engine().log().unwrap(), &db.engine().tree().commit);
    let pauses = Cell::new(0);
    let fill = || {
        pauses.set(pauses.get() + 1);
        if pauses.get() == 3 {
            write(&db, 700);
        }
        true
    };
    log.make_spare_ahead(commit, &fill).unwrap();
    assert_eq!(pauses.get(), 3);
}

/// What waits in memory will be in the segment soon.
#[test]
fn what_is_not_written_yet_counts() {
    let db = begun();
    let keyspace = db.keyspace("films").unwrap();
    (0..700).for_each(|_| keyspace.insert("Metropolis", [7; 1 << 10]).unwrap());
    let (log, commit) = (db.engine().log().unwrap(), &db.engine().tree().commit);
    log.make_spare_ahead(commit, &|| panic!("there is no time")).unwrap();
}

/// Who needs what is in the making does not wait for its pauses.
#[test]
fn who_waits_for_a_segment_hurries_it() {
    let db = begun();
    let (log, commit) = (db.engine().log().unwrap(), &db.engine().tree().commit);
    let pauses = Cell::new(0);
    std::thread::scope(|scope| {
        let wait = || {
            pauses.set(pauses.get() + 1);
            scope.spawn(|| log.ensure_segment().unwrap());
            while log.hurried.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            true
        };
        log.make_spare_ahead(commit, &wait).unwrap();
    });
    assert_eq!(pauses.get(), 1);
}

/// Who closes does not wait for a segment that nobody will use.
#[test]
fn what_is_made_ahead_can_be_left() {
    let db = begun();
    let (log, commit) = (db.engine().log().unwrap(), &db.engine().tree().commit);
    let names = || log.directory.disk.list(&log.directory.path).unwrap();
    let before = names();
    assert!(matches!(log.make_spare_ahead(commit, &|| false), Err(Error::Cancelled)));
    assert_eq!(names(), before);
    log.make_spare(commit, 0).unwrap();
    assert_eq!(names().len(), before.len() + 1);
}

/// A log in memory kept a handle to each segment that it had left, to be synced some time, and nobody synced it: whatever was pruned
/// stayed in memory, for good.
#[test]
fn a_log_in_memory_lets_go_of_what_is_pruned() {
    let db = Database::builder().backlog_bytes(64 << 10).in_memory().unwrap();
    let log = db.engine().source_log().unwrap();
    let keyspace = db.keyspace("films").unwrap();
    (0..1_000).for_each(|_| keyspace.insert("Metropolis", [7; 1 << 10]).unwrap());
    let (segments, bytes) = log.size();
    assert!((2..=12).contains(&segments) && bytes <= 128 << 10, "{segments} of {bytes} bytes");
    assert!(log.bytes() > 900 << 10, "most of it was pruned");
    assert!(lock(&log.writer).unsynced.is_empty());
}

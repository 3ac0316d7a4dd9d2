//! A database in a directory: what is in the log is there after it is opened again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stillframe::simulation::{Random, SimDisk};
use stillframe::{Builder, Database, Durability, Error, Fault, RecoveryMode, Seq, WriteOptions};

const DIR: &str = "/db";

fn on(disk: &SimDisk) -> Builder {
    Database::builder().disk(disk.clone()).manual_log()
}

fn open(disk: &SimDisk) -> Database {
    on(disk).open(DIR).unwrap()
}

/// All entries of all keyspaces.
fn content(db: &Database) -> BTreeMap<(String, Vec<u8>), Vec<u8>> {
    let mut content = BTreeMap::new();
    for name in db.keyspaces().unwrap() {
        for entry in db.keyspace(&name).unwrap().range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            content.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    content
}

fn fingerprint(db: &Database) -> u64 {
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
    assert_eq!(db.persist(Durability::Sync).unwrap(), db.seq());

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

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
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
    println!("STILLFRAME_SEED={seed}");
    for seed in seed..seed + 60 {
        let mut random = Random::new(seed);
        let disk = SimDisk::new();
        let db = on(&disk).segment_bytes(4 << 10).durability(Durability::Memory).open(DIR).unwrap();
        let data = db.keyspace("data").unwrap();
        // Seq 1 is the history's record, which changes nothing.
        let mut states = vec![(Seq(0), 0), (Seq(1), 0), (db.seq(), fingerprint(&db))];
        let mut synced = Vec::new();
        for n in 0..120_u64 {
            let key = random.below(40).to_be_bytes();
            match random.below(6) {
                0 => drop(data.remove(key).unwrap()),
                1 => drop(data.delete_range(key..random.below(40).to_be_bytes()).unwrap()),
                2 => {
                    let level = [Durability::Os, Durability::Sync][random.below(2) as usize];
                    let options = WriteOptions::new().durability(level);
                    data.insert_with(key, n.to_string(), options).unwrap();
                    if level == Durability::Sync {
                        synced.push((disk.change_count(), db.seq()));
                    }
                }
                3 => data.insert(key, vec![n as u8; 5_000]).unwrap(),
                _ => data.insert(key, n.to_string()).unwrap(),
            }
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
            assert!(
                states.contains(&found),
                "seed {seed}, cut at {count}: {found:?}, {expected:?}"
            );
            let acknowledged = synced.iter().rev().find(|(at, _)| *at <= count);
            let acknowledged = acknowledged.map_or(Seq(0), |(_, seq)| *seq);
            assert!(found.0 >= acknowledged, "seed {seed}, cut at {count}: {found:?}");
            db.keyspace("data").unwrap().insert("more", "later").unwrap();
            let found = (db.seq(), fingerprint(&db));
            let again = open(&after.fork());
            assert_eq!((again.seq(), fingerprint(&again)), found, "seed {seed}, cut at {count}");
        }
    }
}

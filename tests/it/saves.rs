//! Saving, loading, reading in place: the same content three ways, through the public interface.

use std::ops::ControlFlow;
use std::path::PathBuf;

use stillframe::simulation::{DiskFault, Random, SimDisk};
use stillframe::{Compression, Database, Error, SaveOptions, SnapshotFile, WriteOptions};

use crate::model::for_each_seed;

/// A directory that is removed with what it holds.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Self {
        let unique = format!("stillframe-{name}-{}-{:p}", std::process::id(), &name);
        let thread = format!("{:?}", std::thread::current().id());
        let path = std::env::temp_dir().join(unique + &thread.replace(['(', ')'], "-"));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn fill(db: &Database, seed: u64) {
    let mut random = Random::new(seed);
    for name in ["a", "b", "empty", "c"] {
        let space = db.keyspace(name).unwrap();
        let count = if name == "empty" { 0 } else { random.below(3000) };
        for _ in 0..count {
            let mut key = vec![0; random.below(20) as usize];
            random.fill(&mut key);
            let len = if random.one_in(500) { 40_000 } else { random.below(300) };
            let value: Vec<u8> = (0..len).map(|i| (i * random.below(9) % 7) as u8).collect();
            let at = if random.one_in(10) { 1 + random.below(u64::MAX - 1) } else { 0 };
            space.insert_with(&key, &value, WriteOptions::new().expire_at(at)).unwrap();
        }
    }
}

type Content = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

fn of_still(snapshot: &stillframe::Snapshot) -> Content {
    let entries = |name: &String| {
        let space = snapshot.keyspace(name).unwrap();
        space
            .range::<&[u8]>(..)
            .map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap())
            .collect()
    };
    snapshot.keyspaces().unwrap().into_iter().map(|name| (name.clone(), entries(&name))).collect()
}

fn of_file(file: &SnapshotFile) -> Content {
    let entries = |name: &String| {
        let mut all = Vec::new();
        file.keyspace(name)
            .unwrap()
            .scan_with::<&[u8]>(.., |key, value| {
                all.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        all
    };
    file.keyspaces().unwrap().into_iter().map(|name| (name.clone(), entries(&name))).collect()
}

fn round_trip(seed: u64) {
    let dir = Dir::new("round-trip");
    let db = Database::builder().leaf_entries(3 + seed as usize % 60).in_memory().unwrap();
    fill(&db, seed);
    let snapshot = db.snapshot().unwrap();
    let content = of_still(&snapshot);
    let codec = if seed.is_multiple_of(2) { Compression::Lz4 } else { Compression::Raw };
    let options = SaveOptions::default().compression(codec).threads(1 + seed as usize % 3);
    let path = dir.file("still");
    // What is written after the still must not be in the file.
    fill(&db, seed + 1);
    let report = snapshot.save(&path, options).unwrap().wait().unwrap();
    assert_eq!(report.fingerprint, snapshot.fingerprint());
    assert_eq!(report.position, snapshot.position());

    let file = SnapshotFile::open(&path).unwrap();
    assert_eq!(file.info().fingerprint, snapshot.fingerprint());
    file.verify().unwrap();
    assert_eq!(of_file(&file), content, "read in place");
    for (name, entries) in &content {
        let space = file.keyspace(name).unwrap();
        for (key, value) in entries.iter().step_by(17) {
            assert_eq!(space.get(key).unwrap().unwrap(), *value);
        }
    }

    let loaded = Database::load(&path).unwrap();
    let again = loaded.snapshot().unwrap();
    assert_eq!(again.fingerprint(), snapshot.fingerprint());
    assert_eq!(again.position(), snapshot.position());
    assert_eq!(again.len().unwrap(), snapshot.len().unwrap());
    // Expiry is judged by the time of the cut, which is later for the loaded one by some milliseconds: the
    // expiries here are either long ago or far ahead.
    assert_eq!(of_still(&again), content, "loaded");
    loaded.check();
    for stats in loaded.stats().keyspaces {
        assert_eq!(loaded.keyspace(&stats.name).unwrap().len().unwrap(), stats.records);
    }
    // The loaded database lives on: other histories, new keyspaces beside the old ones.
    loaded.keyspace("later").unwrap().insert("k", "v").unwrap();
    assert_ne!(loaded.position().history, snapshot.position().history);
    loaded.snapshot().unwrap().save(dir.file("later"), options).unwrap().wait().unwrap();
    SnapshotFile::open(dir.file("later")).unwrap().verify().unwrap();

    let mut bytes = Vec::new();
    snapshot.write_to(&mut bytes, &options).unwrap();
    let streamed = Database::builder().load_from(&*bytes).unwrap();
    assert_eq!(of_still(&streamed.snapshot().unwrap()), content, "streamed");
}

#[test]
fn a_saved_still_reads_the_same_in_place_loaded_and_streamed() {
    for_each_seed("saves", 8, round_trip);
}

#[test]
fn a_save_under_writers_holds_exactly_its_cut() {
    let dir = Dir::new("under-writers");
    let db = Database::in_memory();
    let space = db.keyspace("k").unwrap();
    for i in 0..50_000u32 {
        space.insert(i.to_be_bytes(), [0; 40]).unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                let mut i = thread;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    i = i.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    space.insert((i % 60_000).to_be_bytes(), i.to_le_bytes()).unwrap();
                    if i % 3 == 0 {
                        space.remove((i / 7 % 60_000).to_be_bytes()).unwrap();
                    }
                }
            });
        }
        for round in 0..5 {
            let snapshot = db.snapshot().unwrap();
            let path = dir.file(&round.to_string());
            // The save itself compares what it wrote with the cut's totals.
            let report = snapshot.save(&path, SaveOptions::default()).unwrap().wait().unwrap();
            assert_eq!(report.fingerprint, snapshot.fingerprint());
            let file = SnapshotFile::open(&path).unwrap();
            assert_eq!(of_file(&file), of_still(&snapshot));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn two_saves_to_one_path_and_a_cancelled_one_leave_nothing_half_done() {
    let dir = Dir::new("cancel");
    let db = Database::in_memory();
    let space = db.keyspace("k").unwrap();
    for i in 0..20_000u32 {
        space.insert(i.to_be_bytes(), [7; 100]).unwrap();
    }
    let path = dir.file("file");
    let slow = SaveOptions::default().rate_limit(Some(1 << 10));
    let first = db.save(&path, slow).unwrap();
    assert!(matches!(db.save(&path, slow), Err(Error::SaveInProgress { .. })));
    first.cancel();
    assert!(matches!(first.wait(), Err(Error::Cancelled)));
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0, "nothing is left behind");
    db.save(&path, SaveOptions::default()).unwrap().wait().unwrap();
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1);
}

/// Every call a save makes on its disk fails in turn: the old file stays as it was, nothing else is left,
/// and the database goes on.
#[test]
fn whatever_the_disk_refuses_the_old_file_stays() {
    let old = {
        let disk = SimDisk::new();
        let db = Database::builder().disk(disk.clone()).in_memory().unwrap();
        db.keyspace("old").unwrap().insert("k", "v").unwrap();
        db.save("/file", SaveOptions::default()).unwrap().wait().unwrap();
        disk.settle();
        disk
    };
    let mut failed = 0;
    for call in 0.. {
        let disk = old.fork();
        let db = Database::builder().disk(disk.clone()).in_memory().unwrap();
        fill(&db, 3);
        disk.inject(DiskFault::error(DiskFault::ENOSPC).after(call));
        let saved = db.save("/file", SaveOptions::default()).and_then(|save| save.wait());
        disk.clear_faults();
        let loaded = Database::builder().disk(disk.clone()).load("/file").unwrap();
        match saved {
            Ok(report) => {
                let snapshot = loaded.snapshot().unwrap();
                assert_eq!(snapshot.fingerprint(), report.fingerprint);
                if failed == call {
                    break;
                }
            }
            Err(Error::Io { .. }) => failed += 1,
            Err(other) => panic!("call {call}: {other}"),
        }
        db.keyspace("a").unwrap().insert("still", "alive").unwrap();
    }
    assert!(failed >= 5, "only {failed} calls were made to fail");
}

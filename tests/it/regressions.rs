//! One test per bug that was found, its story on top; and inputs on which fuzzing once failed, which must not fail again.

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a crate of its own elsewhere")]
mod fuzz;

use std::path::PathBuf;

use stillframe::simulation::{CallKind, DiskFault, SimDisk};
use stillframe::{Database, Durability, Error, RecoveryMode, SaveOptions, SnapshotFile};

use crate::saves::Dir;

/// Files under `tests/regressions/<target>/`: what a fuzzing target failed on is put there with the fix.
#[test]
fn inputs_that_once_failed_pass() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    let mut count = 0;
    let targets = [
        ("snapshot", fuzz::snapshot as fn(&[u8])),
        ("block", fuzz::block),
        ("log", fuzz::log),
        ("directory", fuzz::directory),
        ("model", fuzz::model),
        ("source", fuzz::source),
        ("replica", fuzz::replica),
    ];
    for (target, run) in targets {
        let Ok(inputs) = std::fs::read_dir(dir.join(target)) else { continue };
        for input in inputs {
            let path = input.unwrap().path();
            println!("{}", path.display());
            run(&std::fs::read(path).unwrap());
            count += 1;
        }
    }
    println!("{count} inputs");
}

/// The targets themselves, on something that is not refused at once.
#[test]
fn targets_take_whole_files_and_operations() {
    for name in ["empty", "raw", "lz4", "keyspaces", "large_value", "expiry"] {
        let path = format!("{}/tests/golden/v1/{name}.still", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        fuzz::snapshot(&bytes);
        let stored_len = u32::from_le_bytes(bytes[104..108].try_into().unwrap()) as usize;
        fuzz::block(&[&bytes[16..32], &bytes[96..96 + 32 + stored_len]].concat());
    }
    let mut random = stillframe::simulation::Random::new(1);
    for len in [0, 1, 30, 3_000] {
        let mut operations = vec![0; len];
        random.fill(&mut operations);
        fuzz::model(&operations);
    }
    for seed in 0..40_u8 {
        let mut run = vec![0; 1 + 5 * (usize::from(seed) % 7)];
        stillframe::simulation::Random::new(seed.into()).fill(&mut run);
        // A conversation with edits, for each of the options; every third time below the frames.
        run[0] = 2 | seed << 2;
        for edit in run[1..].chunks_mut(5) {
            edit[0] %= 24;
            edit[1] = if seed % 3 == 0 { 11 } else { edit[1] };
        }
        fuzz::source(&run);
        fuzz::replica(&run);
        // Bytes, and messages.
        for how in 0..2 {
            run[0] = how | seed << 2;
            fuzz::source(&run);
            fuzz::replica(&run);
        }
    }
    for seed in 0..300 {
        let mut run = vec![0; 30 + seed as usize];
        stillframe::simulation::Random::new(seed).fill(&mut run);
        // Operations, and damage or a power cut.
        run[0] = 1;
        fuzz::directory(&run);
    }
}

/// A write that changes nothing, as removing a key that is not there, drew the run's history and put it into the
/// position at once. Of a loaded database that was saved then, the cut had a history without any batch, with which no
/// lineage ends: the file that `save` had called good was refused by everyone. Found by the fuzzing target `model`.
#[test]
fn a_write_that_changes_nothing_begins_no_history() {
    let dir = Dir::new("no-history");
    let db = Database::in_memory();
    assert!(!db.keyspace("k").unwrap().remove("absent").unwrap());
    db.keyspace("k").unwrap().insert("key", "value").unwrap();
    let first = db.save(dir.file("first"), SaveOptions::default()).unwrap().wait().unwrap();

    let loaded = Database::load(dir.file("first")).unwrap();
    let space = loaded.keyspace("k").unwrap();
    assert!(!space.remove("absent").unwrap());
    assert!(!space.insert_new("key", "other").unwrap());
    space.insert("key", "value").unwrap();
    let written = loaded.position();
    assert_ne!(written.history, first.position.history);

    let untouched = Database::load(dir.file("first")).unwrap();
    assert!(!untouched.keyspace("k").unwrap().remove("absent").unwrap());
    assert_eq!(untouched.position(), first.position);
    for (name, db) in [("untouched", untouched), ("written", loaded)] {
        db.save(dir.file(name), SaveOptions::default()).unwrap().wait().unwrap();
        let file = SnapshotFile::open(dir.file(name)).unwrap();
        file.verify().unwrap();
        assert_eq!(file.info().position, db.position());
        assert_eq!(Database::load(dir.file(name)).unwrap().position(), db.position());
    }
}

/// Keys just above 1 KiB that share 200 bytes: what lay outside of a page came into it when a split made the
/// fences' common part longer, and then half a leaf had no room. Inserts panicked from about the 600th on;
/// under a still what was kept was lost.
#[test]
fn keys_around_the_length_that_pages_hold_may_share_much() {
    for total in [1000, 1020, 1024, 1025, 1100, 1230, 1300] {
        let db = Database::in_memory();
        let space = db.keyspace("long").unwrap();
        let key = |number: u32| {
            let mut key = vec![b's'; 200];
            key.extend_from_slice(&number.to_be_bytes());
            key.resize(total, b'e');
            key
        };
        (0..300).for_each(|number| space.insert(key(number), [7; 8]).unwrap());
        let still = db.snapshot().unwrap();
        (300..900).for_each(|number| space.insert(key(number), [7; 8]).unwrap());
        (0..900).step_by(3).for_each(|number| space.insert(key(number), [9; 700]).unwrap());
        let mut batch = db.batch();
        (900..1300).for_each(|number| batch.insert(&space, key(number), [8; 90]));
        batch.commit().unwrap();
        still.check().unwrap();
        assert_eq!(still.keyspace("long").unwrap().len().unwrap(), 300);
        db.check();
        let mut file = Vec::new();
        db.snapshot().unwrap().write_to(&mut file, &SaveOptions::default()).unwrap();
        let loaded = Database::builder().load_from(&file[..]).unwrap();
        loaded.check();
        assert_eq!(loaded.snapshot().unwrap().fingerprint(), db.snapshot().unwrap().fingerprint());
    }
}

/// A directory with a snapshot always has a segment, or its log would seem to be lost. Two ways led to one without: a save before
/// anything was written, and a new log begun after the first segment of all could not be. Neither opened again. Found by a test of
/// replicas that saved whenever they liked.
#[test]
fn what_was_saved_before_anything_was_written_opens() {
    let on = |disk: &SimDisk| Database::builder().disk(disk.clone()).manual_log();
    for closes in [false, true] {
        let disk = SimDisk::new();
        for _ in 0..2 {
            let db = on(&disk).recovery(RecoveryMode::Strict).open("/db").unwrap();
            assert_eq!(
                db.compact_log(SaveOptions::default().threads(1)).unwrap().position.seq.0,
                0
            );
            if closes {
                db.close().unwrap();
            }
        }
        let db = on(&disk).open("/db").unwrap();
        db.keyspace("data").unwrap().insert("k", "v").unwrap();
        db.persist(Durability::Sync).unwrap();
        drop(db);
        let db = on(&disk).open("/db").unwrap();
        assert_eq!(db.keyspace("data").unwrap().get("k").unwrap().unwrap(), "v");
    }
    let mut failed = 0;
    for calls in 0..12 {
        let disk = SimDisk::new();
        let db = on(&disk).durability(Durability::Os).open("/db").unwrap();
        disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::Write).after(calls));
        let made = db.keyspace("data");
        disk.clear_faults();
        if made.is_ok()
            || !matches!(db.compact_log(SaveOptions::default()), Err(Error::LogFailed(_)))
        {
            continue;
        }
        failed += 1;
        db.recover().unwrap();
        let position = db.position();
        drop(db);
        let db = on(&disk).recovery(RecoveryMode::Strict).open("/db").unwrap();
        assert_eq!(db.position(), position, "call {calls}");
    }
    assert!(failed > 0, "no log failed");
}

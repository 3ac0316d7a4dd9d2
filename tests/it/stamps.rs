//! Stamps: the number a leaf carries never hides a change, at a cut or now, through splits and merges.

use std::collections::BTreeMap;

use stillframe::simulation::{Random, SimDisk};
use stillframe::{Database, Durability, SaveOptions, Seq, Snapshot};

use crate::model::for_each_seed;

/// The batch that last changed each key.
type Changes = BTreeMap<u8, Seq>;

fn check(snapshot: &Snapshot, changes: &Changes) {
    let space = snapshot.keyspace("stamped").unwrap();
    for (key, seq) in changes {
        let stamp = space.leaf_stamp([*key]).unwrap();
        assert!(stamp >= *seq, "key {key} changed at {seq}, its leaf says {stamp}");
        assert!(stamp <= snapshot.seq(), "a leaf changed after the cut it is read at");
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let db = Database::builder().leaf_entries(3).manual_reclaim().in_memory().unwrap();
    let space = db.keyspace("stamped").unwrap();
    let (mut changes, mut held) = (Changes::new(), Vec::<(Snapshot, Changes)>::new());
    for _ in 0..200 {
        let key = random.below(40) as u8;
        match random.below(10) {
            0..4 => {
                space.insert([key], b"x").unwrap();
                changes.insert(key, db.seq());
            }
            4..7 => {
                if space.remove([key]).unwrap() {
                    changes.insert(key, db.seq());
                }
            }
            7 => {
                let mut batch = db.batch();
                let keys = [key, random.below(40) as u8, random.below(40) as u8];
                keys.iter().for_each(|key| batch.insert(&space, [*key], b"y"));
                let seq = batch.commit().unwrap().seq;
                changes.extend(keys.map(|key| (key, seq)));
            }
            8 if held.len() < 4 => held.push((db.snapshot().unwrap(), changes.clone())),
            _ => {
                if !held.is_empty() {
                    held.swap_remove(random.below(held.len() as u64) as usize);
                }
                db.reclaim();
            }
        }
        held.iter().for_each(|(snapshot, then)| check(snapshot, then));
        check(&db.snapshot().unwrap(), &changes);
    }
}

#[test]
fn a_stamp_never_hides_a_change() {
    for_each_seed("stamps", 60, run);
}

/// What a key had before each change of the directory's, and what is read of it after it was opened again.
fn run_reopened(seed: u64) {
    let mut random = Random::new(seed);
    let disk = SimDisk::new();
    let open = || {
        let builder = Database::builder().disk(disk.clone()).manual_log().manual_reclaim();
        let builder = builder.leaf_entries(3).durability(Durability::Memory);
        builder.save_when_log_exceeds(None).open("/db").unwrap()
    };
    let mut db = open();
    let mut space = db.keyspace("stamped").unwrap();
    let (mut changes, mut present) = (Changes::new(), [false; 40]);
    for _ in 0..150 {
        let key = random.below(40) as u8;
        match random.below(12) {
            0..4 => {
                space.insert([key], b"x").unwrap();
                changes.insert(key, db.seq());
                present[usize::from(key)] = true;
            }
            4..8 => {
                if space.remove([key]).unwrap() {
                    changes.insert(key, db.seq());
                }
                present[usize::from(key)] = false;
            }
            8 => {
                let keys = key..40.min(key + 3);
                space.delete_range([keys.start]..[keys.end]).unwrap();
                for key in keys {
                    if std::mem::take(&mut present[usize::from(key)]) {
                        changes.insert(key, db.seq());
                    }
                }
            }
            9 => drop(db.compact_log(SaveOptions::default().threads(1)).unwrap()),
            10 => {
                let mut batch = db.batch();
                let keys = [key, (key + 1 + random.below(39) as u8) % 40];
                batch.insert(&space, [keys[0]], b"y");
                batch.remove(&space, [keys[1]]);
                let seq = batch.commit().unwrap().seq;
                changes.insert(keys[0], seq);
                present[usize::from(keys[0])] = true;
                if std::mem::take(&mut present[usize::from(keys[1])]) {
                    changes.insert(keys[1], seq);
                }
            }
            _ => {
                db.close().unwrap();
                drop((space, db));
                db = open();
                space = db.keyspace("stamped").unwrap();
                check(&db.snapshot().unwrap(), &changes);
            }
        }
    }
}

/// A replica went back by the leaves newer than the fork and did not add up: a key that had come before the fork and gone after it was
/// nowhere in the state from which its directory had been opened, so nothing had stamped its leaf. Refused, and fetched whole.
#[test]
fn what_came_and_went_in_the_log_is_no_secret_of_recovery() {
    for_each_seed("stamps of recovery", 100, run_reopened);
}

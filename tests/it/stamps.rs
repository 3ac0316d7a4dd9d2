//! Stamps: the number a leaf carries never hides a change, at a cut or now, through splits and merges.

use std::collections::BTreeMap;

use stillframe::simulation::Random;
use stillframe::{Database, Seq, Snapshot};

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

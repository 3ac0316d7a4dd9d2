//! A state that takes the place of another under readers: what a replica does with what its source has sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use stillframe::simulation::Random;
use stillframe::{Database, Error, Role, SaveOptions, Snapshot};

use crate::backup::Stops;
use crate::model::for_each_seed;

type Content = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

fn content(db: &Database) -> Content {
    let keyspace = |name: &String| {
        let keyspace = db.keyspace(name).unwrap();
        let entries = keyspace.range::<&[u8]>(..).map(|entry| entry.unwrap());
        let entries: BTreeMap<_, _> =
            entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(keyspace.len().unwrap(), entries.len() as u64, "{name}");
        (name.clone(), entries)
    };
    db.keyspaces().unwrap().iter().map(keyspace).collect()
}

fn content_of(still: &Snapshot) -> Content {
    let keyspace = |name: &String| {
        let keyspace = still.keyspace(name).unwrap();
        let entries = keyspace.range::<&[u8]>(..).map(|entry| entry.unwrap());
        let entries: BTreeMap<_, _> =
            entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(keyspace.len().unwrap(), entries.len() as u64, "{name}");
        (name.clone(), entries)
    };
    still.keyspaces().unwrap().iter().map(keyspace).collect()
}

fn saved(db: &Database) -> Vec<u8> {
    let mut bytes = Vec::new();
    db.snapshot().unwrap().write_to(&mut bytes, &SaveOptions::default()).unwrap();
    bytes
}

fn small() -> Database {
    Database::builder().leaf_entries(4).manual_reclaim().in_memory().unwrap()
}

const NAMES: [&str; 4] = ["films", "makers", "years", "prizes"];

/// Changes `db` at random, less than `most` times. Keys are of one small set, so that two databases share some.
fn change(db: &Database, random: &mut Random, most: u64) {
    for n in 0..random.below(most) {
        let name = NAMES[random.below(NAMES.len() as u64) as usize];
        if random.below(60) == 0 {
            db.drop_keyspace(name).unwrap();
            continue;
        }
        let keyspace = db.keyspace(name).unwrap();
        let key = format!("{:03}", random.below(300));
        match random.below(12) {
            0 => assert!(keyspace.remove(key).is_ok()),
            1 => assert!(keyspace.delete_range(key.clone()..format!("{key}9")).is_ok()),
            2 => keyspace.insert(key, vec![n as u8; 3_000]).unwrap(),
            _ => keyspace.insert(key, format!("{n}")).unwrap(),
        }
    }
}

/// Stills taken before and between keep what they had, the present is what came, and nothing is left over.
#[test]
fn the_present_is_what_came_and_stills_are_what_they_were() {
    for_each_seed("install", 60, |seed| {
        let mut random = Random::new(seed);
        let db = small();
        change(&db, &mut random, 400);
        let mut stills: Vec<(Snapshot, Content)> = Vec::new();
        for _ in 0..3 {
            stills.push((db.snapshot().unwrap(), content(&db)));
            if db.role() == Role::Primary {
                change(&db, &mut random, 50);
            }
            // Of this database itself, gone on elsewhere, or of another.
            let related = random.below(3) > 0;
            let other = match related {
                true => Database::builder().leaf_entries(4).load_from(&saved(&db)[..]).unwrap(),
                false => small(),
            };
            change(&other, &mut random, if related { 30 } else { 300 });
            let handle = db.keyspaces().unwrap().first().map(|name| db.keyspace(name).unwrap());
            stills.push((db.snapshot().unwrap(), content(&db)));
            db.install(&saved(&other)[..], random.below(2) == 0 || !related).unwrap();
            db.check();
            assert_eq!(db.position(), other.position(), "seed {seed}");
            assert!(content(&db) == content(&other), "seed {seed}");
            assert_eq!(
                db.snapshot().unwrap().fingerprint(),
                other.snapshot().unwrap().fingerprint(),
                "seed {seed}"
            );
            // A handle goes by its name, whatever number that has now.
            if let Some(handle) = handle {
                match other.keyspaces().unwrap().iter().any(|name| name == handle.name()) {
                    true => {
                        let expected = other.keyspace(handle.name()).unwrap().len().unwrap();
                        assert_eq!(handle.len().unwrap(), expected, "seed {seed}");
                        let first = handle.first().unwrap();
                        assert_eq!(first, other.keyspace(handle.name()).unwrap().first().unwrap());
                    }
                    false => assert!(matches!(handle.len(), Err(Error::NoKeyspace))),
                }
            }
            for (still, expected) in &stills {
                assert!(content_of(still) == *expected, "seed {seed}: {}", still.position());
                still.check().unwrap();
            }
            if random.below(2) == 0 {
                stills.remove(random.below(stills.len() as u64) as usize);
                db.reclaim();
                db.check();
            }
            for (still, expected) in &stills {
                assert!(content_of(still) == *expected, "seed {seed}: {}", still.position());
            }
            // What was installed can be saved, and is the same.
            let again = Database::builder().load_from(&saved(&db)[..]).unwrap();
            assert!(content(&again) == content(&db), "seed {seed}");
        }
        drop(stills);
        db.reclaim();
        db.check();
        assert_eq!(db.stats().retained_bytes, 0, "seed {seed}");
    });
}

/// Readers see one state or the other, each of them whole, and never the old one again once the new one was seen.
#[test]
fn readers_see_all_of_it_at_once() {
    // Reclaimed by a thread of the test, so that nothing runs any more when all is checked.
    let db = Database::builder().leaf_entries(8).manual_reclaim().in_memory().unwrap();
    let films = db.keyspace("films").unwrap();
    let key = |n: u64| format!("{n:04}");
    let states: Vec<Vec<u8>> = (0..24_u64)
        .map(|state| {
            let other = small();
            let films = other.keyspace("films").unwrap();
            // Other lengths, so that leaves do not lie as before.
            (0..400 + state * 7).for_each(|n| films.insert(key(n), format!("{state}")).unwrap());
            saved(&other)
        })
        .collect();
    db.install(&states[0][..], true).unwrap();
    let done = AtomicBool::new(false);
    let shown = AtomicU64::new(0);
    let state_of = |value: &[u8]| std::str::from_utf8(value).unwrap().parse::<u64>().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                db.reclaim();
                thread::yield_now();
            }
        });
        for reader in 0..3 {
            let (db, films, done, shown) = (db.clone(), films.clone(), &done, &shown);
            scope.spawn(move || {
                let mut random = Random::new(reader);
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let least = shown.load(Ordering::Acquire).max(last);
                    let at = random.below(400);
                    last = match random.below(6) {
                        0 => state_of(&films.get(key(at)).unwrap().unwrap()),
                        1 => state_of(&films.get_many(&[key(at)]).unwrap()[0].clone().unwrap()),
                        2 => state_of(&films.first().unwrap().unwrap().1),
                        3 => {
                            // Its own state says how long it is.
                            let (last, value) = films.last().unwrap().unwrap();
                            let state = state_of(&value);
                            assert_eq!(last, key(399 + state * 7).as_bytes());
                            state
                        }
                        4 => {
                            let mut seen = Vec::new();
                            let range = key(at.saturating_sub(20))..key(at + 1);
                            films
                                .scan_with(range, |_, value| {
                                    seen.push(state_of(value));
                                    std::ops::ControlFlow::Continue(())
                                })
                                .unwrap();
                            assert!(seen.iter().all(|state| *state == seen[0]), "{seen:?}");
                            seen[0]
                        }
                        _ => {
                            let still = db.snapshot().unwrap();
                            let films = still.keyspace("films").unwrap();
                            let state = state_of(&films.get(key(at)).unwrap().unwrap());
                            assert_eq!(films.len().unwrap(), 400 + state * 7);
                            let mut values = films.range::<&[u8]>(..).map(|e| e.unwrap().1);
                            assert!(values.all(|value| state_of(&value) == state));
                            state
                        }
                    };
                    assert!(last >= least, "{last} after {least}");
                }
            });
        }
        // Stops them also when this panics.
        let _stops = Stops(&done);
        for (state, bytes) in states.iter().enumerate().skip(1) {
            db.install(&bytes[..], true).unwrap();
            shown.store(state as u64, Ordering::Release);
        }
    });
    db.check();
}

/// What does not add up changes nothing.
#[test]
fn writers_are_refused_and_damage_changes_nothing() {
    let db = small();
    db.keyspace("films").unwrap().insert("a", "1").unwrap();
    let other = small();
    other.keyspace("films").unwrap().insert("b", "2").unwrap();
    let mut bytes = saved(&other);
    let before = (content(&db), db.position());
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    assert!(matches!(db.install(&bytes[..], true), Err(Error::Corrupt { .. })));
    bytes[at] ^= 1;
    assert!((content(&db), db.position()) == before);
    db.install(&bytes[..], true).unwrap();
    let films = db.keyspace("films").unwrap();
    assert!(matches!(films.insert("c", "3"), Err(Error::ReadOnly)));
    assert!(matches!(films.pop_first(), Err(Error::ReadOnly)));
    assert!(matches!(films.insert_new("b", "3"), Err(Error::ReadOnly)));
    assert!(matches!(films.remove("nothing"), Err(Error::ReadOnly)));
    db.promote().unwrap();
    films.insert("c", "3").unwrap();
    assert_eq!(db.seq().0, other.seq().0 + 2);
}

//! Memory: what stills retain is counted and comes back, the limit refuses in time, the budget tells; and sizes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use stillframe::{
    Database, Error, Holder, Keyspace, MAX_BATCH_BYTES, MAX_KEY_LEN, MAX_KEYSPACE_NAME_LEN,
    MAX_VALUE_LEN, Snapshot, Stats,
};

fn total(stats: &Stats) -> u64 {
    stats.live_bytes + stats.retained_bytes + stats.directory_bytes
}

fn manual() -> Database {
    Database::builder().manual_reclaim().in_memory().unwrap()
}

fn fill(space: &Keyspace, count: u32) {
    for number in 0..count {
        // Scattered, so that leaves split in the middle.
        let key = number.wrapping_mul(0x9E37_79B1).to_be_bytes();
        let len = if number % 500 == 0 { 5000 } else { 20 + number as usize % 100 };
        space.insert(key, vec![number as u8; len]).unwrap();
    }
}

/// After everything is deleted under a held still and that is dropped, an empty database is left.
fn memory_returns(how: &str, delete: fn(&Database, &Keyspace)) {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    let empty = total(&db.stats());
    fill(&space, 20_000);
    let raw_bytes = db.stats().raw_bytes;
    let still = db.snapshot().unwrap();
    delete(&db, &space);
    let held = db.stats();
    assert_eq!((held.records, held.raw_bytes), (0, 0), "{how}");
    assert!(held.retained_bytes >= raw_bytes, "{how}: {} retained", held.retained_bytes);
    assert_eq!(still.len().unwrap(), 20_000, "{how}");
    still.check().unwrap();
    let peak = total(&held);
    drop(still);
    db.reclaim();
    // What was merged may be merged once more.
    db.reclaim();
    db.check();
    let left = db.stats();
    assert_eq!(left.retained_bytes, 0, "{how}");
    let more = total(&left).saturating_sub(empty);
    assert!(more <= peak / 10, "{how}: {more} bytes are left of {peak}: {left:?}");
}

#[test]
fn memory_returns_when_the_last_still_goes() {
    memory_returns("clear", |_, space| assert_eq!(space.clear().unwrap(), 20_000));
    memory_returns("delete_range", |_, space| {
        let first = space.delete_range::<&[u8]>(..=&[0x80][..]).unwrap();
        assert_eq!(first + space.delete_range::<&[u8]>(..).unwrap(), 20_000);
    });
    memory_returns("remove", |_, space| {
        let keys: Vec<_> = space.range_keys::<&[u8]>(..).map(Result::unwrap).collect();
        keys.iter().for_each(|key| assert!(space.remove(key).unwrap()));
    });
    memory_returns("pop", |_, space| while space.pop_last().unwrap().is_some() {});
    memory_returns("batch", |db, space| {
        let keys: Vec<_> = space.range_keys::<&[u8]>(..).map(Result::unwrap).collect();
        for keys in keys.chunks(700) {
            let mut batch = db.batch();
            keys.iter().for_each(|key| batch.remove(space, key));
            batch.commit().unwrap();
        }
    });
}

#[test]
fn a_dropped_keyspace_gives_its_memory_back() {
    let db = manual();
    db.keyspace("other").unwrap().insert("stays", "here").unwrap();
    let empty = total(&db.stats());
    let space = db.keyspace("gone").unwrap();
    fill(&space, 5_000);
    let still = db.snapshot().unwrap();
    assert!(db.drop_keyspace("gone").unwrap());
    let peak = total(&db.stats());
    assert_eq!(still.keyspace("gone").unwrap().len().unwrap(), 5_000);
    drop(still);
    db.reclaim();
    db.reclaim();
    db.check();
    let stats = db.stats();
    assert_eq!((stats.records, stats.retained_bytes), (1, 0));
    assert!(total(&stats) - empty <= peak / 10, "{stats:?}");
}

/// What only the newer of two stills needs goes with it, though the older one stays.
#[test]
fn each_still_gives_back_its_own_part() {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    fill(&space, 5_000);
    let older = db.snapshot().unwrap();
    space.clear().unwrap();
    fill(&space, 5_000);
    let for_older = db.stats().retained_bytes;
    for _ in 0..3 {
        let newer = db.snapshot().unwrap();
        for number in 0..5_000u32 {
            space.insert(number.wrapping_mul(0x9E37_79B1).to_be_bytes(), [1; 60]).unwrap();
        }
        assert!(db.stats().retained_bytes > for_older + 5_000 * 60);
        drop(newer);
        db.reclaim();
        let left = db.stats().retained_bytes;
        assert!(left <= for_older + for_older / 10, "{left} retained, the older needs {for_older}");
    }
    older.check().unwrap();
    drop(older);
    db.reclaim();
    db.check();
}

/// New keys without end under one still: what says that they were absent must not grow without end.
#[test]
fn absent_keys_do_not_pile_up() {
    let db = manual();
    let space = db.keyspace("queue").unwrap();
    fill(&space, 200);
    let before = total(&db.stats());
    let still = db.snapshot().unwrap();
    for number in 0..50_000u32 {
        space.insert(number.to_be_bytes(), [7; 8]).unwrap();
        if number >= 100 {
            space.remove((number - 100).to_be_bytes()).unwrap();
        }
        if number % 1000 == 0 {
            db.reclaim();
        }
    }
    assert_eq!(still.len().unwrap(), 200);
    still.check().unwrap();
    let stats = db.stats();
    assert!(stats.retained_bytes < 4 << 20, "{} + {stats:?}", before);
    drop(still);
    db.reclaim();
    db.check();
}

#[test]
fn the_limit_refuses_before_anything_changes_and_removing_works() {
    let limit = 1 << 20;
    let db = Database::builder().memory_limit(limit).manual_reclaim().in_memory().unwrap();
    let space = db.keyspace("all").unwrap();
    let mut count = 0u32;
    let error = loop {
        match space.insert(count.to_be_bytes(), [1; 100]) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 100_000, "the limit never refused");
    };
    assert!(matches!(error, Error::MemoryLimit { limit: l, .. } if l == limit), "{error}");
    let used = total(&db.stats());
    assert!(used <= limit + limit / 10, "{used} bytes in use with a limit of {limit}");
    assert!(used >= limit / 2, "refused at {used} bytes already");
    let (seq, len) = (db.seq(), space.len().unwrap());
    let refused = |done: stillframe::Result<()>| {
        assert!(matches!(done, Err(Error::MemoryLimit { .. })), "{done:?}");
    };
    refused(space.insert("new", [1; 100]));
    refused(space.insert("large", vec![1; 1 << 20]));
    refused(space.insert_new("new", [1; 100]).map(drop));
    refused(space.replace(0u32.to_be_bytes(), [1; 2000]).map(drop));
    refused(space.compare_and_swap("new", None, Some(&[1; 100])).map(drop));
    refused(space.update("new", |_| Some(vec![1; 100].into())).map(drop));
    let mut batch = db.batch();
    batch.remove(&space, 0u32.to_be_bytes());
    batch.insert(&space, "new", [1; 100]);
    refused(batch.commit().map(drop));
    assert_eq!((db.seq(), space.len().unwrap()), (seq, len), "a refused write changed something");
    assert_eq!(space.get("new").unwrap(), None);

    // Under a still removing takes memory first, and works all the same; the still is never broken.
    let still = db.snapshot().unwrap();
    for number in 0..count {
        assert!(space.remove(number.to_be_bytes()).unwrap());
    }
    assert_eq!(still.keyspace("all").unwrap().len().unwrap(), u64::from(count));
    still.check().unwrap();
    refused(space.insert("new", [1; 100]));
    drop(still);
    db.reclaim();
    space.insert("new", [1; 100]).unwrap();
    db.check();
}

#[test]
fn the_budget_tells_once_each_time_it_is_passed() {
    let told = Arc::new(AtomicUsize::new(0));
    let held: Arc<Mutex<Vec<Snapshot>>> = Arc::default();
    let handle: Arc<Mutex<Option<Keyspace>>> = Arc::default();
    let (seen, drops, handles) = (Arc::clone(&told), Arc::clone(&held), Arc::clone(&handle));
    let builder = Database::builder().manual_reclaim().still_budget(64 << 10, move |report| {
        assert!(report.retained_bytes > report.budget && report.budget == 64 << 10);
        assert_eq!(report.stills.len(), 1);
        assert_eq!(report.stills[0].holder, Holder::Snapshot);
        seen.fetch_add(1, Ordering::Relaxed);
        // It may use the database and drop the very stills it is told of.
        let space = handles.lock().unwrap().clone().expect("set before the first write");
        space.insert("told", "yes").unwrap();
        drops.lock().unwrap().clear();
    });
    let db = builder.in_memory().unwrap();
    let space = db.keyspace("all").unwrap();
    *handle.lock().unwrap() = Some(space.clone());
    fill(&space, 5_000);
    assert_eq!(told.load(Ordering::Relaxed), 0, "nothing is held");
    for round in 1..=3 {
        held.lock().unwrap().push(db.snapshot().unwrap());
        fill(&space, 5_000);
        assert_eq!(told.load(Ordering::Relaxed), round, "told once in each round");
        assert!(held.lock().unwrap().is_empty());
        db.reclaim();
        assert_eq!(db.stats().retained_bytes, 0);
        space.insert("below", "again").unwrap();
    }
    *handle.lock().unwrap() = None;
}

#[test]
fn keys_at_and_past_the_limit() {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    let still = db.snapshot().unwrap();
    for len in [0, 1, 4, 5, 254, 255, 256, 1024, 1029, 4096, MAX_KEY_LEN - 1, MAX_KEY_LEN] {
        let (key, twin) = (vec![0xfe; len], [&vec![0xfe; len.max(1) - 1][..], &[0xff]].concat());
        space.insert(&key, len.to_le_bytes()).unwrap();
        space.insert(&twin, "twin").unwrap();
        assert_eq!(space.get(&key).unwrap().unwrap(), len.to_le_bytes(), "length {len}");
        assert_eq!(space.get(&twin).unwrap().unwrap(), "twin", "length {len}");
    }
    db.check();
    assert!(space.range::<&[u8]>(..).map(Result::unwrap).is_sorted());
    let long = vec![0xfe; MAX_KEY_LEN + 1];
    let refused = |error: Option<Error>| {
        assert!(matches!(error, Some(Error::KeyTooLarge { len }) if len == long.len()));
    };
    let seq = db.seq();
    refused(space.insert(&long, "x").err());
    refused(space.get(&long).err());
    refused(space.get_many(&[&long]).err());
    refused(space.remove(&long).err());
    refused(space.update(&long, |_| None).err());
    refused(still.keyspace("all").unwrap().get(&long).err());
    let mut batch = db.batch();
    batch.insert(&space, "fits", "x");
    batch.insert(&space, &long, "x");
    refused(batch.commit().err());
    // Bounds may be longer: every key lies on one side of them.
    assert!(space.range::<&[u8]>(&long[..]..).map(Result::unwrap).all(|(key, _)| *key > long[..]));
    assert_eq!(db.seq(), seq, "a refused write changed something");
    assert_eq!(space.get("fits").unwrap(), None);
}

#[test]
fn values_at_and_past_the_limits() {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    let still = db.snapshot().unwrap();
    for len in [0, 1, 22, 23, 255, 256, 2047, 2048, 2049, 65_535, 65_536, 3 << 20] {
        let value: Vec<u8> = (0..len).map(|at| at as u8).collect();
        for key in ["same", "other"] {
            space.insert(key, &value).unwrap();
            assert_eq!(space.get(key).unwrap().unwrap(), value, "length {len}");
        }
        assert!(space.compare_and_swap("same", Some(&value), None).unwrap().is_ok());
        assert_eq!(space.take("other").unwrap().unwrap(), value);
        space.insert("other", &value).unwrap();
    }
    db.check();
    assert!(still.keyspace("all").unwrap().is_empty().unwrap());
    let long = vec![0; MAX_VALUE_LEN + 1];
    let seq = db.seq();
    let refused = |error: Option<Error>| {
        assert!(matches!(error, Some(Error::ValueTooLarge { len }) if len == long.len()));
    };
    refused(space.insert("long", &long).err());
    refused(space.replace("long", &long).err());
    refused(space.insert_new("long", &long).err());
    refused(space.compare_and_swap("long", None, Some(&long)).err());
    let mut batch = db.batch();
    batch.insert(&space, "long", &long);
    refused(batch.commit().err());
    assert_eq!(db.seq(), seq, "a refused write changed something");
}

#[test]
fn a_batch_past_the_limit() {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    let seq = db.seq();
    let half = vec![0; MAX_BATCH_BYTES as usize / 2];
    let mut batch = db.batch();
    batch.insert(&space, "one", &half);
    batch.insert(&space, "two", &half);
    let error = batch.commit().unwrap_err();
    assert!(matches!(error, Error::BatchTooLarge { bytes } if bytes > MAX_BATCH_BYTES), "{error}");
    assert_eq!(db.seq(), seq);
}

#[test]
fn names_at_and_past_the_limit() {
    let db = manual();
    let longest = "n".repeat(MAX_KEYSPACE_NAME_LEN);
    db.keyspace(&longest).unwrap().insert("a", "b").unwrap();
    assert_eq!(db.snapshot().unwrap().keyspaces().unwrap(), [longest]);
    for name in [String::new(), "n".repeat(MAX_KEYSPACE_NAME_LEN + 1)] {
        let error = db.keyspace(&name).unwrap_err();
        assert!(matches!(error, Error::KeyspaceName { len } if len == name.len()));
    }
    assert!(!db.drop_keyspace("never made").unwrap());
}

/// Values are replaced in place when they don't grow, entries removed leave gaps: neither may pin memory.
#[test]
fn what_shrinks_gives_its_memory_back() {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    let key = |number: u32| number.wrapping_mul(0x9E37_79B1).to_be_bytes();
    let bytes = || {
        let stats = db.stats();
        (stats.live_bytes, stats.raw_bytes)
    };
    (0..20_000).for_each(|number| space.insert(key(number), [1; 400]).unwrap());
    let (full, raw) = bytes();
    assert!(full < raw * 5 / 4, "{full} bytes for {raw}");
    // Shorter and shorter, never so much at once that a page is made anew for that alone.
    for len in [300, 200, 100, 50, 10] {
        (0..20_000).for_each(|number| space.insert(key(number), vec![2; len]).unwrap());
    }
    // Small leaves are merged, and what was merged may be merged once more.
    (0..3).for_each(|_| db.reclaim());
    db.check();
    let (live, raw) = bytes();
    assert!(live < full / 8, "{live} bytes of {full} for {raw} of values that shrank");
    // A third of every leaf stays, too much to merge it: pages shrink.
    (0..20_000).for_each(|number| space.insert(key(number), [3; 400]).unwrap());
    let (full, _) = bytes();
    (0..20_000).filter(|number| number % 3 > 0).for_each(|number| {
        assert!(space.remove(key(number)).unwrap());
    });
    db.check();
    let (live, raw) = bytes();
    assert!(live < full * 3 / 5, "{live} bytes of {full} for {raw} that are left");
    assert_eq!(space.get(key(3)).unwrap().unwrap(), [3; 400]);
}

/// A longer value may take less room in its leaf, when it is the first that lies outside: leaves emptied so were
/// never merged, by single writes from the beginning, by batches since they change pages in place.
#[test]
fn leaves_whose_values_move_out_are_merged() {
    for in_batches in [false, true] {
        let db = manual();
        let space = db.keyspace("all").unwrap();
        (0..2_000u32).for_each(|n| space.insert(n.to_be_bytes(), [1; 1_900]).unwrap());
        let full = db.stats().leaves;
        if in_batches {
            for first in (0..2_000).step_by(100) {
                let mut batch = db.batch();
                (first..first + 100u32)
                    .for_each(|n| batch.insert(&space, n.to_be_bytes(), [2; 3_000]));
                batch.commit().unwrap();
            }
        } else {
            (0..2_000u32).for_each(|n| space.insert(n.to_be_bytes(), [2; 3_000]).unwrap());
        }
        (0..4).for_each(|_| db.reclaim());
        db.check();
        let left = db.stats().leaves;
        assert!(left < full / 8, "{left} leaves of {full}, in batches: {in_batches}");
    }
}

/// What only a still has need of counts as retained, however it was removed: of large values that a range took
/// away, those kept as single entries counted as live.
#[test]
fn large_values_that_only_a_still_needs_are_retained() {
    type Remove = fn(&Database, &Keyspace);
    let ways: [Remove; 3] = [
        |_, space| assert!(space.remove(7u32.to_be_bytes()).unwrap()),
        |_, space| {
            let seven = 7u32.to_be_bytes()..8u32.to_be_bytes();
            assert_eq!(space.delete_range(seven).unwrap(), 1);
        },
        |db, space| {
            let mut batch = db.batch();
            batch.remove(space, 7u32.to_be_bytes());
            batch.commit().unwrap();
        },
    ];
    for remove in ways {
        let db = manual();
        let space = db.keyspace("all").unwrap();
        (0..20u32).for_each(|n| space.insert(n.to_be_bytes(), [1; 100]).unwrap());
        space.insert(7u32.to_be_bytes(), vec![2; 100_000]).unwrap();
        let still = db.snapshot().unwrap();
        remove(&db, &space);
        let stats = db.stats();
        assert!(stats.retained_bytes >= 100_000, "{} bytes retained", stats.retained_bytes);
        assert!(stats.live_bytes < 100_000, "{} bytes live", stats.live_bytes);
        drop(still);
        db.reclaim();
        assert_eq!(db.stats().retained_bytes, 0);
    }
}

/// R11: behind a pass nothing is kept for it, by single writes and by batches, and what was kept ahead of it
/// goes when it comes by; a still that is held has need of all the same.
#[test]
fn a_pass_needs_nothing_of_what_it_has_passed() {
    let db = manual();
    let space = db.keyspace("all").unwrap();
    let key = |number: u32| number.to_be_bytes();
    let write = |numbers: std::ops::Range<u32>, value: u8| {
        numbers.clone().step_by(2).for_each(|n| space.insert(key(n), [value; 100]).unwrap());
        let mut batch = db.batch();
        numbers.skip(1).step_by(2).for_each(|n| batch.insert(&space, key(n), [value; 90]));
        batch.commit().unwrap();
    };
    let retained = || db.stats().retained_bytes;
    write(0..10_000, 1);
    let mut pass = db.pass().unwrap();
    // As far as it has come.
    let mut place = 0;
    let step = |pass: &mut stillframe::simulation::LeafPass, place: &mut u32| {
        let entries = pass.step().unwrap();
        let last = entries.as_ref().and_then(|entries| entries.last());
        if let Some((_, key, ..)) = last.filter(|(id, ..)| *id != 0) {
            *place = u32::from_be_bytes(key[..].try_into().unwrap()) + 1;
        }
        entries.is_some()
    };
    while place < 5000 {
        assert!(step(&mut pass, &mut place));
    }
    write(0..place, 2);
    assert_eq!(retained(), 0, "kept behind a pass");
    // A batch on both sides keeps ahead only.
    let mut batch = db.batch();
    (0..place).for_each(|n| batch.insert(&space, key(n), [3; 80]));
    batch.insert(&space, key(9_999), [3; 80]);
    batch.commit().unwrap();
    assert!((1..10_000).contains(&retained()), "{} kept for one entry", retained());
    write(place..10_000, 4);
    assert!(retained() > 400_000, "{} kept ahead of a pass", retained());
    let still = db.snapshot().unwrap();
    write(0..100, 5);
    let for_still = retained();
    while step(&mut pass, &mut place) {}
    assert_eq!(place, 10_000);
    assert!(retained() < 100_000, "{} is left behind a pass, {for_still} before", retained());
    assert!(retained() > 5_000, "{} kept for a still", retained());
    still.check().unwrap();
    drop(still);
    db.reclaim();
    assert_eq!(retained(), 0, "nothing but a pass that is through");
    drop(pass);
    db.reclaim();
    db.check();
}

//! The threads that look after an open directory's log: what nobody waits for is written and synced in time. And many
//! threads that write at all levels while segments follow one another and saves go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stillframe::simulation::{Random, SimDisk};
use stillframe::{Builder, Database, Durability, Error, SaveOptions, Seq, WriteOptions};

use crate::log::{DIR, content, open, segments};
use crate::saves::Dir;

/// What has not happened by then never will.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Returns once `is_so`; that it never comes to be so is an error.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "never: {what}");
        thread::yield_now();
    }
}

fn at(level: Durability) -> WriteOptions {
    WriteOptions::new().durability(level)
}

fn written(db: &Database) -> Seq {
    db.stats().log.unwrap().written
}

fn durable(db: &Database) -> Seq {
    db.stats().log.unwrap().durable
}

/// What is found after the power went now and nothing was kept but what was synced.
fn unplugged(disk: &SimDisk) -> Database {
    open(&disk.crash_point(disk.change_count()).image(&[]))
}

#[test]
fn what_nobody_waits_for_leaves_the_process_soon() {
    let disk = SimDisk::new();
    let builder = Database::builder().disk(disk.clone()).durability(Durability::Memory);
    let db = builder.open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    // Each time the thread has gone to sleep, or is about to.
    for n in 0..30_u32 {
        data.insert(n.to_be_bytes(), "v").unwrap();
        wait_until("it is written", || written(&db) == db.seq());
    }
    let killed = open(&disk.fork());
    assert_eq!((content(&killed), killed.position()), (content(&db), db.position()));
    assert_eq!(unplugged(&disk).seq(), Seq(0), "nobody asked for a sync");
}

#[test]
fn what_is_to_be_durable_in_time_is_synced_in_time() {
    let disk = SimDisk::new();
    let db = Database::builder().disk(disk.clone()).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    for n in 0..20_u32 {
        // One behind the other and long after each other; soon, and after the thread has seen that nothing happens.
        let soonest = u64::from(n % 2) * 40;
        for last in 0..=n % 3 {
            let period = Durability::Periodic(Duration::from_millis(soonest + u64::from(last) * 7));
            data.insert_with((n * 3 + last).to_be_bytes(), "v", at(period)).unwrap();
        }
        wait_until("it is durable", || durable(&db) == db.seq());
        let found = unplugged(&disk);
        assert_eq!((content(&found), found.position()), (content(&db), db.position()));
    }
}

/// A sync that was due later kept an earlier one from being done in time. And what was written between the look at the last
/// batch and the taking away of the time that was due was left out of that sync, and waited for the next write: that
/// takes a write within a microsecond, which these threads may or may not meet.
#[test]
fn the_earliest_time_counts_and_nobody_is_left_out() {
    let builder = Database::builder().disk(SimDisk::new()).durability(Durability::Memory);
    let db = builder.open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    data.insert_with("late", "v", at(Durability::Periodic(Duration::from_secs(100_000)))).unwrap();
    data.insert_with("soon", "v", at(Durability::Periodic(Duration::from_millis(5)))).unwrap();
    wait_until("the early one is durable", || durable(&db) == db.seq());
    for round in 0..20_u64 {
        thread::scope(|scope| {
            for writer in 0..3_u64 {
                let data = data.clone();
                scope.spawn(move || {
                    for n in 0..300_u64 {
                        let key = [writer, round, n].map(u64::to_be_bytes).concat();
                        data.insert_with(key, "v", at(Durability::Periodic(Duration::ZERO)))
                            .unwrap();
                    }
                });
            }
        });
        wait_until("all are durable", || durable(&db) == db.seq());
    }
}

/// Without a mark damage to the last batch looks like what a crash leaves, though it was synced.
#[test]
fn what_is_durable_is_marked_when_nothing_happens() {
    let disk = SimDisk::new();
    let db = Database::builder().disk(disk.clone()).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    for n in 0..3_u8 {
        // The byte is found in the file: no other is like it.
        data.insert_with("k", [0xA0 + n; 40], at(Durability::Sync)).unwrap();
        let damaged = || {
            let (disk, path) = (disk.fork(), segments(&disk).remove(0));
            let bytes = disk.contents(&path).unwrap();
            let value = bytes.windows(40).position(|bytes| *bytes == [0xA0 + n; 40]).unwrap();
            disk.edit(&path, |bytes| bytes[value] ^= 1).unwrap();
            Database::builder().disk(disk).manual_log().open(DIR)
        };
        wait_until("a mark is written", || matches!(damaged(), Err(Error::Corrupt { .. })));
    }
    assert_eq!(open(&disk.fork()).seq(), db.seq());
}

const WRITERS: u64 = 6;

type Own = BTreeMap<Vec<u8>, Vec<u8>>;

/// What one thread has done: its entries after each of its batches, and which of them were durable after how many changes
/// of the disk.
#[derive(Default)]
struct Done {
    states: Vec<Own>,
    durable: Vec<(usize, usize)>,
}

/// Each thread has keys of its own, its number in front.
fn write(db: &Database, disk: Option<&SimDisk>, writer: u64, seed: u64) -> Done {
    let data = db.keyspace("data").unwrap();
    let mut random = Random::new(seed);
    let (mut state, mut done) = (Own::new(), Done::default());
    done.states.push(state.clone());
    let levels = [
        Durability::Memory,
        Durability::Memory,
        Durability::Os,
        Durability::Periodic(Duration::from_millis(1)),
        Durability::Sync,
    ];
    let key = |n: u64| [&[writer as u8][..], &n.to_be_bytes()].concat();
    for n in 0..150_u64 {
        let level = levels[random.below(levels.len() as u64) as usize];
        let value = vec![n as u8; 1 + random.below(600) as usize];
        if random.one_in(4) {
            let mut batch = db.batch();
            batch.durability(level);
            let (low, high) = (key(random.below(30)), key(random.below(30)));
            batch.delete_range::<&Vec<u8>>(&data, &low..&high);
            state.retain(|key, _| *key < low || *key >= high);
            for _ in 0..2 {
                let key = key(random.below(30));
                batch.insert(&data, &key, &value);
                state.insert(key, value.clone());
            }
            batch.commit().unwrap();
        } else {
            let key = key(random.below(30));
            data.insert_with(&key, &value, WriteOptions::new().durability(level)).unwrap();
            state.insert(key, value);
        }
        done.states.push(state.clone());
        if let (Durability::Sync, Some(disk)) = (level, disk) {
            done.durable.push((disk.change_count(), done.states.len() - 1));
        }
    }
    done
}

/// Many threads write at all levels, another one saves all the while.
fn write_and_save(db: &Database, disk: Option<&SimDisk>, seed: u64) -> Vec<Done> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                db.compact_log(SaveOptions::default().threads(1)).unwrap();
            }
        });
        let writers = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(db, disk, writer, seed * WRITERS + writer)));
        let writers: Vec<_> = writers.collect();
        let done: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        over.store(true, Ordering::Release);
        done.into_iter().map(|done| done.expect("a writer")).collect()
    })
}

/// What there is of the keys of `writer`.
fn own(db: &Database, writer: usize) -> Own {
    let content = content(db).into_iter().map(|((_, key), value)| (key, value));
    content.filter(|(key, _)| usize::from(key[0]) == writer).collect()
}

fn seed() -> u64 {
    let seed = std::env::var("STILLFRAME_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("STILLFRAME_SEED={seed}");
    seed
}

fn small_segments() -> Builder {
    Database::builder().segment_bytes(16 << 10).durability(Durability::Memory)
}

fn found_after(end: impl FnOnce(Database)) {
    let dir = Dir::new("keeper");
    let opened = || small_segments().open(dir.file("db")).unwrap();
    let db = opened();
    let done = write_and_save(&db, None, seed());
    // No save comes after this one.
    db.keyspace("data").unwrap().insert([98], "the last").unwrap();
    let before = (content(&db), db.position());
    end(db);
    let db = opened();
    db.check();
    assert!((content(&db), db.position()) == before);
    for (writer, done) in done.iter().enumerate() {
        assert!(done.states.last() == Some(&own(&db, writer)), "writer {writer}");
    }
    db.keyspace("data").unwrap().insert([99], "goes on").unwrap();
    db.close().unwrap();
}

#[test]
fn what_many_threads_wrote_is_there_after_closing() {
    found_after(|db| db.close().unwrap());
}

#[test]
fn what_many_threads_wrote_is_there_after_dropping() {
    found_after(drop);
}

#[test]
fn what_a_power_cut_leaves_of_many_threads_is_a_prefix_of_each() {
    let seed = seed();
    let disk = SimDisk::new();
    let db = small_segments().disk(disk.clone()).open(DIR).unwrap();
    let done = write_and_save(&db, Some(&disk), seed);
    let mut random = Random::new(seed);
    for _ in 0..40 {
        let count = random.below(disk.change_count() as u64 + 1) as usize;
        let point = disk.crash_point(count);
        let found = open(&point.image(&point.draw(&mut random)));
        for (writer, done) in done.iter().enumerate() {
            let must = done.durable.iter().rev().find(|(at, _)| *at <= count);
            let must = must.map_or(0, |(_, state)| *state);
            let own = own(&found, writer);
            let is_there = done.states[must..].contains(&own);
            assert!(is_there, "seed {seed}, cut at {count}: what writer {writer} has never had");
        }
    }
}

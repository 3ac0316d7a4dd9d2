//! Writers on several threads, stills held across all of it, and the history that every still must fit.
//!
//! Each writer owns the keys that begin with its number and logs what it does to them, with the Seqs before and
//! after; batches of all writers set a few shared keys to one token, and their Position is known exactly. A
//! still at S must then show each writer's keys as they were after a prefix of its log that S allows, and the
//! token of the last batch up to S, whole. The machine picks the schedule, the seed the operations.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use stillframe::simulation::Random;
use stillframe::{Database, Keyspace, Seq, Snapshot};

use crate::model::for_each_seed;

const WRITERS: u8 = 3;
const STEPS: usize = 250;
/// Shared keys, spread so that they lie in leaves far apart.
const SHARED: [&[u8]; 4] = [b"\x00!", b"\x01!", b"\x02!", b"\x09!"];

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// One operation of a writer on its own keys: `None` removes.
struct Logged {
    /// The database's Seq before and after.
    before: Seq,
    after: Seq,
    effect: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What one thread did.
#[derive(Default)]
struct Log {
    own: Vec<Logged>,
    tokens: Vec<(Seq, Vec<u8>)>,
}

/// What a still showed.
struct Shown {
    seq: Seq,
    content: Content,
}

fn content_of(snapshot: &Snapshot) -> Content {
    let space = snapshot.keyspace("all").unwrap();
    let pair = |item: stillframe::Result<(stillframe::Slice, stillframe::Slice)>| {
        let (key, value) = item.unwrap();
        (key.to_vec(), value.to_vec())
    };
    space.range::<&[u8]>(..).map(pair).collect()
}

fn write(db: &Database, space: &Keyspace, writer: u8, seed: u64) -> Log {
    let mut random = Random::new(seed);
    let (mut log, mut own) = (Log::default(), Content::new());
    for step in 0..STEPS {
        let key = vec![writer, b'k', random.below(30) as u8];
        let value = format!("{writer}/{step}").into_bytes();
        let before = db.seq();
        let mut effect = Vec::new();
        match random.below(12) {
            0..5 => {
                space.insert(&key, &value).unwrap();
                effect.push((key, Some(value)));
            }
            5..8 => {
                assert_eq!(space.remove(&key).unwrap(), own.contains_key(&key));
                effect.push((key, None));
            }
            8 => {
                // Some of a writer's keys and the shared ones, in one batch.
                let mut batch = db.batch();
                for shared in SHARED {
                    batch.insert(space, shared, &value);
                }
                batch.insert(space, &key, &value);
                let seq = batch.commit().unwrap().seq;
                log.tokens.push((seq, value.clone()));
                effect.push((key, Some(value)));
            }
            9 => {
                let low = vec![writer, b'k', random.below(30) as u8];
                let high = vec![writer, b'k', random.below(30) as u8];
                let range = (Bound::Included(low.clone()), Bound::Excluded(high.clone()));
                let gone: Vec<_> =
                    own.keys().filter(|key| **key >= low && **key < high).cloned().collect();
                assert_eq!(space.delete_range(range).unwrap(), gone.len() as u64);
                effect.extend(gone.into_iter().map(|key| (key, None)));
            }
            10 => {
                let had = own.get(&key).cloned();
                let old = space.replace(&key, &value).unwrap();
                assert_eq!(old.as_deref(), had.as_deref());
                effect.push((key, Some(value)));
            }
            _ => {
                let got = space.get(&key).unwrap();
                assert_eq!(got.as_deref(), own.get(&key).map(|value| &value[..]), "own writes");
            }
        }
        for (key, value) in &effect {
            match value {
                Some(value) => drop(own.insert(key.clone(), value.clone())),
                None => drop(own.remove(key)),
            }
        }
        log.own.push(Logged { before, after: db.seq(), effect });
    }
    log
}

/// Takes stills and reads them again and again, three and more at a time, until the writers are done.
fn watch(db: &Database, done: &AtomicBool, shown: &Mutex<Vec<Shown>>, seed: u64) {
    let mut random = Random::new(seed);
    let mut held: Vec<(Snapshot, Content)> = Vec::new();
    loop {
        let last_round = done.load(Ordering::Acquire);
        if held.len() < 6 {
            let snapshot = db.snapshot().unwrap();
            let content = content_of(&snapshot);
            shown.lock().unwrap().push(Shown { seq: snapshot.seq(), content: content.clone() });
            held.push((snapshot, content));
        }
        let (snapshot, content) = &held[random.below(held.len() as u64) as usize];
        snapshot.check().unwrap();
        assert_eq!(content_of(snapshot), *content, "a still changed");
        if held.len() > 3 && random.one_in(2) {
            held.swap_remove(random.below(held.len() as u64) as usize);
        }
        if last_round {
            return;
        }
    }
}

fn check(shown: &Shown, logs: &[Log]) {
    let seq = shown.seq;
    for (writer, log) in (0..WRITERS).zip(logs) {
        let prefix = [writer, b'k'];
        let seen: Content = shown
            .content
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let must = log.own.partition_point(|step| step.after <= seq);
        let may = log.own.partition_point(|step| step.before < seq);
        let mut state = Content::new();
        let mut fits = false;
        for (at, step) in log.own[..may].iter().enumerate() {
            fits |= at >= must && state == seen;
            for (key, value) in &step.effect {
                match value {
                    Some(value) => drop(state.insert(key.clone(), value.clone())),
                    None => drop(state.remove(key)),
                }
            }
        }
        fits |= state == seen;
        assert!(fits, "at {seq} writer {writer} had never written what the still shows");
    }
    let tokens = logs.iter().flat_map(|log| &log.tokens).filter(|(at, _)| *at <= seq);
    let expected = tokens.max().map(|(_, token)| token);
    for key in SHARED {
        assert_eq!(shown.content.get(key), expected, "at {seq} a batch is not whole");
    }
}

fn run(seed: u64) {
    let db = Database::builder().leaf_entries(4).manual_reclaim().in_memory().unwrap();
    let space = db.keyspace("all").unwrap();
    let (done, shown) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
    let spawn_watcher = |number: u64| {
        let (db, done, shown) = (db.clone(), Arc::clone(&done), Arc::clone(&shown));
        thread::spawn(move || watch(&db, &done, &shown, seed ^ number))
    };
    let watchers: Vec<_> = [101, 102].map(spawn_watcher).into();
    let reclaimer = {
        let (db, done) = (db.clone(), Arc::clone(&done));
        thread::spawn(move || {
            while !done.load(Ordering::Acquire) {
                db.reclaim();
                thread::yield_now();
            }
        })
    };
    let spawn_writer = |writer: u8| {
        let (db, space) = (db.clone(), space.clone());
        thread::spawn(move || write(&db, &space, writer, seed * 8 + u64::from(writer)))
    };
    let writers: Vec<_> = (0..WRITERS).map(spawn_writer).collect();
    let logs: Vec<_> = writers.into_iter().map(thread::JoinHandle::join).collect();
    done.store(true, Ordering::Release);
    for thread in watchers.into_iter().chain([reclaimer]) {
        thread.join().expect("a watcher");
    }
    let logs: Vec<Log> = logs.into_iter().map(|log| log.expect("a writer")).collect();
    let shown = std::mem::take(&mut *shown.lock().unwrap());
    shown.iter().for_each(|shown| check(shown, &logs));
    let end = db.snapshot().unwrap();
    check(&Shown { seq: end.seq(), content: content_of(&end) }, &logs);
    drop(end);
    db.reclaim();
    db.check();
    assert_eq!(db.stats().retained_bytes, 0);
}

#[test]
fn stills_fit_the_history_of_all_threads() {
    for_each_seed("threads", 25, run);
}

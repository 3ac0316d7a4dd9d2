//! Transactions on several threads, which read lists and append to them.

use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use stillframe::simulation::Random;
use stillframe::{Database, Keyspace, Result, Slice, Transaction};

use super::Counts;
use super::cycles::{self, Done};

const THREADS: u64 = 3;
const EACH: u32 = 14;
/// With leaves of three, some lie together and some apart.
const KEYS: u64 = 8;

pub(super) fn run(seed: u64) -> std::result::Result<Counts, String> {
    let builder = Database::builder().leaf_entries(3).transaction_attempts(u32::MAX);
    let db = builder.in_memory().map_err(|e| e.to_string())?;
    let space = db.keyspace("lists").map_err(|e| e.to_string())?;
    let (clock, attempts) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(THREADS as usize);
    let one = |number: u64| -> Result<Vec<Done>> {
        let mut random = Random::new(seed ^ number << 32);
        start.wait();
        let own = |n| {
            transaction(
                &db,
                &space,
                &mut random,
                (number as u32 + 1) << 16 | n << 4,
                &clock,
                &attempts,
            )
        };
        (0..EACH).map(own).collect()
    };
    let one = &one;
    let all: Vec<Result<Vec<Done>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || one(number))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread that reads and appends"))
            .collect()
    });
    let all: Result<Vec<Vec<Done>>> = all.into_iter().collect();
    let done = all.map_err(|e| e.to_string())?.concat();
    let last =
        space.range::<&[u8]>(..).map(|item| item.map(|(key, list)| (key[0], ids(Some(&list)))));
    let last: HashMap<u8, Vec<u32>> = last.collect::<Result<_>>().map_err(|e| e.to_string())?;
    db.check();
    let edges = cycles::check(&done, &last)?;
    let read_only = done.iter().filter(|done| done.appended.is_empty()).count() as u64;
    let committed = done.len() as u64;
    Ok(Counts { committed, read_only, conflicts: attempts.into_inner() - committed, edges })
}

fn ids(list: Option<&Slice>) -> Vec<u32> {
    let id = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    list.map(|list| list.chunks_exact(4).map(id).collect()).unwrap_or_default()
}

fn transaction(
    db: &Database,
    space: &Keyspace,
    random: &mut Random,
    first_id: u32,
    clock: &AtomicU64,
    attempts: &AtomicU64,
) -> Result<Done> {
    let steps: Vec<(u64, u8, u8)> = (0..1 + random.below(4))
        .map(|_| (random.below(10), random.below(KEYS) as u8, random.below(KEYS + 1) as u8))
        .collect();
    let began = clock.fetch_add(1, Ordering::SeqCst);
    let run = |tx: &mut Transaction| {
        attempts.fetch_add(1, Ordering::Relaxed);
        let mut done = Done { began, ..Done::default() };
        for (n, &(kind, key, other)) in steps.iter().enumerate() {
            if n > 0 && kind % 2 == 0 {
                thread::yield_now();
            }
            match kind {
                0..=4 => append(tx, space, key, first_id + n as u32, &mut done)?,
                5..=7 => read(tx, space, key, &mut done).map(drop)?,
                _ => scan(tx, space, key.min(other), key.max(other), kind == 9, &mut done)?,
            }
        }
        Ok(done)
    };
    let done = db.transact(run)?;
    Ok(Done { ended: clock.fetch_add(1, Ordering::SeqCst), ..done })
}

/// Without what this one has appended.
fn others(list: &[u32], key: u8, done: &Done) -> Vec<u32> {
    list.iter().filter(|id| !done.appended.contains(&(key, **id))).copied().collect()
}

fn read(tx: &mut Transaction, space: &Keyspace, key: u8, done: &mut Done) -> Result<Vec<u32>> {
    let list = ids(tx.get(space, [key])?.as_ref());
    done.read.push((key, others(&list, key, done)));
    Ok(list)
}

fn append(tx: &mut Transaction, space: &Keyspace, key: u8, id: u32, done: &mut Done) -> Result<()> {
    let mut list = read(tx, space, key, done)?;
    list.push(id);
    done.appended.push((key, id));
    tx.insert(space, [key], list.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
}

/// Reads `[low, high)` to its end, or up to the first list. What it does not show is empty.
fn scan(
    tx: &mut Transaction,
    space: &Keyspace,
    low: u8,
    high: u8,
    is_all: bool,
    done: &mut Done,
) -> Result<()> {
    let mut next = low;
    for entry in tx.range(space, [low]..[high]) {
        let (key, list) = entry?;
        (next..key[0]).for_each(|key| done.read.push((key, Vec::new())));
        done.read.push((key[0], others(&ids(Some(&list)), key[0], done)));
        next = key[0] + 1;
        if !is_all {
            return Ok(());
        }
    }
    (next..high).for_each(|key| done.read.push((key, Vec::new())));
    Ok(())
}

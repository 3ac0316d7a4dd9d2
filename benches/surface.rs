//! What stands on the tree: transactions.
//!
//! `cargo bench --bench surface [-- --quick] [--only SECTION]`; the number of records is `STILLFRAME_BENCH_KEYS`, 3,000,000 if unset.
//! A line is a median over rounds, in which the variants take turns, with the smallest and largest beside it. Lines that begin
//! with `=>` hold a figure against what is expected.

mod workload;

use std::env;
use std::process::ExitCode;

use stillframe::{Database, Keyspace};

use workload::measure::{Samples, at_least, interleaved, together};
use workload::{Key, Keys, records, shuffled, value};

const SECTIONS: &[&str] = &["transactions"];
const KEYS: Keys = Keys::Demo;

#[derive(Debug, Clone, Copy)]
struct Effort {
    records: usize,
    rounds: usize,
    count: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|given| given != "--bench").collect();
    let is_quick = arguments.iter().any(|given| given == "--quick");
    let only = arguments.iter().position(|given| given == "--only");
    let only = only.and_then(|at| arguments.get(at + 1).cloned());
    if only.as_ref().is_some_and(|only| !SECTIONS.contains(&only.as_str())) {
        eprintln!("no such section; there are {SECTIONS:?}");
        return ExitCode::from(2);
    }
    let (rounds, count) = if is_quick { (3, 10_000) } else { (9, 500_000) };
    let effort = Effort { records: records(), rounds, count };
    for section in SECTIONS {
        if only.as_ref().is_some_and(|only| only != section) {
            continue;
        }
        println!("\n== {section}, {} records", effort.records);
        transactions(effort);
    }
    ExitCode::SUCCESS
}

fn loaded(records: usize) -> (Database, Keyspace) {
    let db = Database::in_memory();
    let data = db.keyspace("data").expect("a keyspace");
    for number in shuffled(records) {
        data.insert(KEYS.key(number), value(number)).expect("an insert");
    }
    (db, data)
}

/// Pairs of keys, those of one thread apart from those of the other.
fn pairs(records: usize, count: usize, thread: usize) -> Vec<[Key; 2]> {
    let mut random = workload::Random::new(11 + thread as u64);
    let mut key = || KEYS.key(random.below(records / 2) * 2 + thread);
    (0..count).map(|_| [key(), key()]).collect()
}

/// Reads two records and gives each the value of the other.
fn swap_in_transaction(db: &Database, data: &Keyspace, [a, b]: &[Key; 2]) {
    let swap = db.transact(|tx| {
        let (of_a, of_b) = (tx.get(data, a)?, tx.get(data, b)?);
        tx.insert(data, a, of_b.unwrap_or_default())?;
        tx.insert(data, b, of_a.unwrap_or_default())
    });
    swap.expect("a transaction");
}

/// The same as two reads and a batch, with nothing to say that it holds.
fn swap_in_batch(db: &Database, data: &Keyspace, [a, b]: &[Key; 2]) {
    let get = |key| data.get(key).expect("a read").unwrap_or_default();
    let (of_a, of_b) = (get(a), get(b));
    let mut batch = db.batch();
    batch.insert(data, a, of_b);
    batch.insert(data, b, of_a);
    batch.commit().expect("a batch");
}

fn transactions(effort: Effort) {
    let (db, data) = loaded(effort.records);
    let all: Vec<_> = (0..2).map(|t| pairs(effort.records, effort.count, t)).collect();
    let (db, data, all) = (&db, &data, &all);
    let run = |threads: usize, swap: fn(&Database, &Keyspace, &[Key; 2])| {
        let time = together(threads, |thread| {
            all[thread].iter().for_each(|pair| swap(db, data, pair));
        });
        (threads * effort.count) as f64 / time.as_secs_f64()
    };
    let found = interleaved(
        effort.rounds,
        &mut [
            ("one", Box::new(|_| run(1, swap_in_transaction))),
            ("two", Box::new(|_| run(2, swap_in_transaction))),
            ("batch", Box::new(|_| run(1, swap_in_batch))),
            ("batches", Box::new(|_| run(2, swap_in_batch))),
        ],
    );
    let names = [
        "transactions, 1 thread",
        "transactions, 2 threads",
        "batches, 1 thread",
        "batches, 2 threads",
    ];
    for (name, rate) in names.iter().zip(&found) {
        let [median, min, max] = [rate.median(), rate.min(), rate.max()].map(|rate| rate / 1e6);
        println!("  {name:<24} {median:.3} M/s ({min:.3} to {max:.3})");
    }
    let over = |a: &Samples, b: &Samples| a.over(b).median();
    at_least("disjoint transactions, 2 threads over 1", over(&found[1], &found[0]), 1.6, "x");
    println!("  beside: batches, 2 threads over 1: {:.2} x", over(&found[3], &found[2]));
    println!("  a transaction over reads and a batch: {:.2} x", over(&found[0], &found[2]));
}

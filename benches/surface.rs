//! What stands on the tree: transactions, expiry, subscriptions.
//!
//! `cargo bench --bench surface [-- --quick] [--only SECTION]`; the number of records is `STILLFRAME_BENCH_KEYS`, 3,000,000 if unset.
//! A line is a median over rounds, in which the variants take turns, with the smallest and largest beside it. Lines that begin
//! with `=>` hold a figure against what is expected.

mod workload;

use std::cell::RefCell;
use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stillframe::{Database, Durability, Keyspace, SubscribeOptions, WriteOptions};

use workload::measure::{Latencies, Samples, at_least, at_most, interleaved, together};
use workload::{FreshValues, Key, Keys, Probes, Scratch, records, shuffled, value};

const SECTIONS: &[&str] = &["transactions", "expiry", "feed"];
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
        match *section {
            "transactions" => transactions(effort),
            "expiry" => expiry(effort, is_quick),
            _ => feed(effort),
        }
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

/// Writes while nobody reads the changes, somebody would and doesn't, and somebody does.
fn feed(effort: Effort) {
    let scratch = Scratch::new();
    for in_memory in [false, true] {
        let builder = || Database::builder().durability(Durability::Memory);
        // Without a directory there is a log once somebody has subscribed, not before.
        // Each has one of its own, so that all have written as much before.
        let names =
            ["no subscriber", "none now, one before", "one that does not read", "one that reads"];
        let dbs = names.map(|name| match in_memory {
            true => Database::in_memory(),
            false => builder().open(scratch.file(name)).expect("a database"),
        });
        let [without, before, stalled, reading] = &dbs;
        let fill = |db: &Database| {
            let data = db.keyspace("data").expect("a keyspace");
            for number in shuffled(effort.records) {
                data.insert(KEYS.key(number), value(number)).expect("an insert");
            }
        };
        dbs.iter().for_each(fill);
        let subscribe =
            |db: &Database| db.subscribe(SubscribeOptions::new()).expect("a subscription");
        dbs[1..].iter().for_each(|db| drop(subscribe(db)));
        let probes = Probes::new(KEYS, effort.records, 5);
        let values = FreshValues::new();
        let (probes, values) = (&probes, &values);
        let write = |db: &Database, round: usize| {
            let data = db.keyspace("data").expect("a keyspace");
            let began = Instant::now();
            let mut values = values.values(round);
            for key in probes.keys(round, effort.count) {
                data.insert(key, values.next().expect("without end")).expect("an update");
            }
            effort.count as f64 / began.elapsed().as_secs_f64()
        };
        let lags = RefCell::new(Samples::default());
        let found = interleaved(
            effort.rounds,
            &mut [
                ("none", Box::new(|round| write(without, round))),
                ("log", Box::new(|round| write(before, round))),
                (
                    "stalled",
                    Box::new(|round| {
                        let _unread = subscribe(stalled);
                        write(stalled, round)
                    }),
                ),
                (
                    "reading",
                    Box::new(|round| {
                        let mut changes = subscribe(reading);
                        let last = reading.seq().0 + effort.count as u64;
                        let reader = std::thread::spawn(move || {
                            let mut count = 0;
                            while changes.received().seq.0 < last {
                                count += changes.recv().expect("a batch").changes.len();
                            }
                            (count, Instant::now())
                        });
                        let rate = write(reading, round);
                        let ended = Instant::now();
                        let (count, read) = reader.join().expect("a reader");
                        assert_eq!(count, effort.count);
                        lags.borrow_mut().0.push(read.duration_since(ended).as_secs_f64() * 1e3);
                        rate
                    }),
                ),
            ],
        );
        println!("  {}", if in_memory { "in memory" } else { "in a directory" });
        for (name, rate) in names.iter().zip(&found) {
            let [median, min, max] = [rate.median(), rate.min(), rate.max()].map(|rate| rate / 1e6);
            println!("    {name:<24} {median:.3} M/s ({min:.3} to {max:.3})");
        }
        let over = |a: &Samples, b: &Samples| a.over(b).median();
        at_least(
            "writes, one that does not read over none now",
            over(&found[2], &found[1]),
            0.97,
            "x",
        );
        println!("  beside: one that reads over none now: {:.2} x", over(&found[3], &found[1]));
        println!("  beside: none now over no subscriber ever: {:.2} x", over(&found[1], &found[0]));
        let lags = lags.borrow();
        println!(
            "  behind after the last write: {:.1} ms ({:.1} to {:.1})",
            lags.median(),
            lags.min(),
            lags.max()
        );
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("some time to come")
}

/// Entries that fall due within one second, while others are written.
fn expiry(effort: Effort, is_quick: bool) {
    let due = if is_quick { 20_000 } else { 1_000_000 };
    let rounds = if is_quick { 1 } else { 3 };
    let scratch = Scratch::new();
    let builder = Database::builder().save_when_log_exceeds(None);
    let db = builder.open(scratch.file("expiry")).expect("a database");
    let data = db.keyspace("data").expect("a keyspace");
    for number in shuffled(effort.records) {
        data.insert(KEYS.key(number), value(number)).expect("an insert");
    }
    let sessions = db.keyspace("sessions").expect("a keyspace");
    let probes = Probes::new(KEYS, effort.records, 7);
    let values = FreshValues::new();
    // Overwrites records until it is told to stop.
    let write = |round: usize, is_over: &dyn Fn() -> bool| {
        let (mut latencies, mut values) = (Latencies::new(), values.values(round));
        let mut last = Instant::now();
        for batch in 0.. {
            for key in probes.keys(round * 1_000 + batch, 256) {
                data.insert(key, values.next().expect("without end")).expect("an update");
                let now = Instant::now();
                latencies.record(now - last);
                last = now;
            }
            if is_over() {
                break;
            }
            last = Instant::now();
        }
        latencies
    };
    let mut beyond = Samples::default();
    for round in 0..rounds {
        // Long enough for all to be there before, and for a look at writes that nothing disturbs.
        let from = now_ms() + if is_quick { 1_000 } else { 12_000 };
        let before = db.stats().expired;
        for number in shuffled(due) {
            let until = WriteOptions::new().expire_at(from + (number % 1_000) as u64);
            let key = format!("{round}-{number:08}");
            sessions.insert_with(key, value(number), until).expect("an insert");
        }
        let left = from.saturating_sub(now_ms());
        assert!(left > 0, "{due} entries were not there in time");
        let idle = write(round, &|| now_ms() >= from);
        let swept = || db.stats().expired - before >= due as u64;
        let began = Instant::now();
        let busy =
            write(round + 50, &|| swept() && began.elapsed() >= Duration::from_millis(1_500));
        let took = began.elapsed();
        // Per second of each.
        let idle_s = left as f64 / 1e3;
        let expected = idle.above_5_ms() as f64 / idle_s * took.as_secs_f64();
        beyond.0.push(busy.above_5_ms() as f64 - expected);
        println!(
            "  round {round}: {due} entries gone {:.2} s after the first was due; idle: {} writes, p99.9 {:.1} us, max {:.1} ms, above 5 ms {} in {idle_s:.1} s; meanwhile: {} writes, p99.9 {:.1} us, max {:.1} ms, above 5 ms {} in {:.1} s",
            took.as_secs_f64(),
            idle.count(),
            idle.quantile_us(0.999),
            idle.max_us() / 1e3,
            idle.above_5_ms(),
            busy.count(),
            busy.quantile_us(0.999),
            busy.max_us() / 1e3,
            busy.above_5_ms(),
            took.as_secs_f64(),
        );
        assert!(sessions.is_empty().expect("a count"), "something that expires is still there");
    }
    at_most(
        "writes above 5 ms beyond those of an idle time as long, median",
        beyond.median(),
        0.0,
        "",
    );
}

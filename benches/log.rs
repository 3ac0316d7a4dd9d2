//! What the log costs: updates at each level of durability, syncs beside those of a bare file, recovery.
//!
//! `cargo bench --bench log [-- --quick] [--only SECTION]`; the number of records is `STILLFRAME_BENCH_KEYS`,
//! 3,000,000 if unset. Levels take turns on one database, so that all meet the same machine; a line is a median
//! over rounds with the smallest and largest beside it. Lines that begin with `=>` hold a figure against what is expected.

mod workload;

use std::env;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use stillframe::{Database, Durability, Keyspace, SaveOptions, WriteOptions};

use workload::measure::{Latencies, Samples, at_least, at_most};
use workload::{FreshValues, Keys, Probes, Scratch, records, shuffled, value};

const SECTIONS: &[&str] = &["levels", "syncs", "recovery"];
const KEYS: Keys = Keys::Demo;

#[derive(Debug, Clone, Copy)]
struct Effort {
    records: usize,
    rounds: usize,
    phase: Duration,
    /// Batches in the log that is recovered.
    logged: usize,
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
    let effort = if is_quick {
        Effort { records: records(), rounds: 1, phase: Duration::from_millis(200), logged: 20_000 }
    } else {
        let phase = Duration::from_secs(10);
        Effort { records: records(), rounds: 3, phase, logged: 3_000_000 }
    };
    for section in SECTIONS {
        if only.as_ref().is_some_and(|only| only != section) {
            continue;
        }
        println!("\n== {section}, {} records", effort.records);
        match *section {
            "levels" => levels(effort),
            "syncs" => syncs(effort),
            _ => recovery(effort),
        }
    }
    ExitCode::SUCCESS
}

fn open(dir: &Path) -> (Database, Keyspace) {
    // Saves by itself would be measured as well.
    let builder = Database::builder().durability(Durability::Memory).save_when_log_exceeds(None);
    let db = builder.open(dir).expect("a database");
    let data = db.keyspace("data").expect("a keyspace");
    (db, data)
}

/// Puts the records into `data` in random order.
fn load(data: &Keyspace, records: usize) {
    for number in shuffled(records) {
        data.insert(KEYS.key(number), value(number)).expect("an insert");
    }
}

/// Overwrites uniformly random records at `level` for so long.
fn write(data: &Keyspace, effort: Effort, level: Durability, round: usize) -> (f64, Latencies) {
    let probes = Probes::new(KEYS, effort.records, 7 + round as u64);
    let values = FreshValues::new();
    let options = WriteOptions::new().durability(level);
    let mut latencies = Latencies::new();
    let (began, mut last) = (Instant::now(), Instant::now());
    let mut values = values.values(round);
    'all: for batch in 0.. {
        for key in probes.keys(batch, 4_096) {
            let value = values.next().expect("without end");
            data.insert_with(key, value, options).expect("an update");
            let now = Instant::now();
            latencies.record(now - last);
            last = now;
            if now - began >= effort.phase {
                break 'all;
            }
        }
    }
    (latencies.count() as f64 / began.elapsed().as_secs_f64(), latencies)
}

fn levels(effort: Effort) {
    let scratch = Scratch::new();
    println!("  the disk writes and syncs {:.0} MB/s", disk_speed(&scratch.file("speed")));
    let (db, data) = open(&scratch.file("levels"));
    load(&data, effort.records);
    db.persist(Durability::Sync).expect("a sync");
    let levels = [
        ("memory", Durability::Memory),
        ("os", Durability::Os),
        ("periodic", Durability::default()),
    ];
    let mut found: Vec<Vec<(f64, Latencies)>> = levels.iter().map(|_| Vec::new()).collect();
    for round in 0..effort.rounds {
        for (of, (_, level)) in found.iter_mut().zip(levels) {
            of.push(write(&data, effort, level, round));
            db.persist(Durability::Sync).expect("a sync");
        }
    }
    let memory = Latency::of(&found[0]);
    for ((name, _), found) in levels.iter().zip(&found) {
        let Latency { rate, p50, p999, max, slow } = Latency::of(found);
        println!(
            "  {name:<9} {:.3} M/s ({:.3} to {:.3}), p50 {:.2} p99.9 {:.2} max {max:.0} us, above 5 ms: {slow}",
            rate.median() / 1e6,
            rate.min() / 1e6,
            rate.max() / 1e6,
            p50.median(),
            p999.median()
        );
        if *name == "memory" {
            continue;
        }
        at_least(
            &format!("updates at {name}, over memory"),
            rate.over(&memory.rate).median(),
            0.75,
            "x",
        );
        let tail = p999.over(&memory.p999).median();
        at_most(&format!("p99.9 at {name}, over memory"), tail, 2.0, "x");
        at_most(
            &format!("writes above 5 ms at {name}"),
            slow as f64,
            memory.slow as f64,
            "(as memory)",
        );
    }
    db.close().expect("a close");
}

struct Latency {
    rate: Samples,
    p50: Samples,
    p999: Samples,
    max: f64,
    slow: u64,
}

impl Latency {
    fn of(rounds: &[(f64, Latencies)]) -> Self {
        let quantile =
            |share| Samples(rounds.iter().map(|round| round.1.quantile_us(share)).collect());
        Latency {
            rate: Samples(rounds.iter().map(|round| round.0).collect()),
            p50: quantile(0.5),
            p999: quantile(0.999),
            max: Samples(rounds.iter().map(|round| round.1.max_us()).collect()).max(),
            slow: rounds.iter().map(|round| round.1.above_5_ms()).sum(),
        }
    }
}

/// MB/s of writing 256 MiB to a new file and syncing it.
fn disk_speed(path: &Path) -> f64 {
    let piece: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[at as usize % 3]).collect();
    let file = File::create(path).expect("a file");
    let began = Instant::now();
    for at in 0..256 {
        file.write_all_at(&piece, at * piece.len() as u64).expect("a write");
    }
    file.sync_data().expect("a sync");
    268.4 / began.elapsed().as_secs_f64()
}

/// Bytes of a bare commit, about those of an update.
const BARE: usize = 160;

/// Syncs a second of a file to which `BARE` bytes are appended, or in which zeros are overwritten, each time.
fn bare(path: &Path, overwrite: bool, time: Duration) -> f64 {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path);
    let file = file.expect("a file");
    if overwrite {
        file.write_all_at(&vec![0; 32 << 20], 0).expect("a write");
    }
    file.sync_all().expect("a sync");
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < time {
        file.write_all_at(&[7; BARE], count * BARE as u64).expect("a write");
        file.sync_data().expect("a sync");
        count += 1;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn syncs(effort: Effort) {
    let scratch = Scratch::new();
    let (db, data) = open(&scratch.file("syncs"));
    load(&data, effort.records.min(100_000));
    db.persist(Durability::Sync).expect("a sync");
    let time = effort.phase / 3;
    let commits = |threads: usize| {
        let options = WriteOptions::new().durability(Durability::Sync);
        let began = Instant::now();
        let count: usize = thread::scope(|scope| {
            let writers: Vec<_> = (0..threads)
                .map(|thread| {
                    let data = data.clone();
                    scope.spawn(move || {
                        let mut count = 0_usize;
                        while began.elapsed() < time {
                            let key = KEYS.key(thread * 10_000 + count % 10_000);
                            data.insert_with(key, value(count), options).expect("an update");
                            count += 1;
                        }
                        count
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).sum()
        });
        count as f64 / began.elapsed().as_secs_f64()
    };
    let mut lanes: [Vec<f64>; 4] = Default::default();
    for _ in 0..effort.rounds {
        lanes[0].push(bare(&scratch.file("append"), false, time));
        lanes[1].push(bare(&scratch.file("overwrite"), true, time));
        lanes[2].push(commits(1));
        lanes[3].push(commits(8));
    }
    let names = ["bare append", "bare overwrite", "1 thread", "8 threads"];
    let lanes = lanes.map(Samples);
    for (name, lane) in names.iter().zip(&lanes) {
        println!(
            "  {name:<15} {:>8.0} a second ({:.0} to {:.0})",
            lane.median(),
            lane.min(),
            lane.max()
        );
    }
    let best = if lanes[0].median() > lanes[1].median() { &lanes[0] } else { &lanes[1] };
    at_least(
        "durable commits, 1 thread, over the best bare file",
        lanes[2].over(best).median(),
        0.9,
        "x",
    );
    println!("  8 threads over 1: {:.2}x", lanes[3].over(&lanes[2]).median());
    db.close().expect("a close");
}

/// Loads the records and saves them, updates them, and opens the directory again.
fn recovery(effort: Effort) {
    let scratch = Scratch::new();
    let dir = scratch.file("recovery");
    let (db, data) = open(&dir);
    load(&data, effort.records);
    let raw_bytes = db.stats().raw_bytes as f64;
    db.compact_log(SaveOptions::default()).expect("a save");
    let timed = || {
        let began = Instant::now();
        let db = Database::open(&dir).expect("it opens again");
        let took = began.elapsed().as_secs_f64();
        let found = (db.position(), db.snapshot().expect("a still").fingerprint());
        db.close().expect("a close");
        (took, found)
    };
    let found = (db.position(), db.snapshot().expect("a still").fingerprint());
    db.close().expect("a close");
    drop((db, data));
    let mut loads = Vec::new();
    for _ in 0..effort.rounds {
        let (took, again) = timed();
        assert_eq!(again, found);
        loads.push(took);
    }
    let (db, data) = open(&dir);
    let probes = Probes::new(KEYS, effort.records, 3);
    let values = FreshValues::new();
    let updates = probes.keys(0, effort.logged);
    for (key, value) in updates.zip(values.values(1)) {
        data.insert(key, value).expect("an update");
    }
    let found = (db.position(), db.snapshot().expect("a still").fingerprint());
    db.close().expect("a close");
    drop((db, data));
    let (mut rates, loads) = (Vec::new(), Samples(loads));
    for _ in 0..effort.rounds {
        let (took, again) = timed();
        assert_eq!(again, found);
        rates.push(effort.logged as f64 / (took - loads.median()));
    }
    let rates = Samples(rates);
    println!(
        "  snapshot alone {:.0} MB/s of raw; then {:.3} M updates/s from the log ({:.3} to {:.3})",
        raw_bytes / 1e6 / loads.median(),
        rates.median() / 1e6,
        rates.min() / 1e6,
        rates.max() / 1e6
    );
    at_least("updates recovered a second", rates.median() / 1e6, 0.8, "M");
}

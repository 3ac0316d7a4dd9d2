//! Every figure that the README and the notes quote, beside its peers, measured in interleaved rounds.
//!
//! `cargo bench --bench ratios [-- --quick] [--keys demo|random] [--only SECTION]`; the number of
//! records is `STILLFRAME_BENCH_KEYS`, 3,000,000 if unset. Each section, and each contender whose
//! memory is measured, runs in a process of its own. A line is a median over rounds with the smallest
//! and largest round beside it; a ratio is the median of the rounds' ratios. What is expected over `BTreeMap` is
//! expected over one with keys of any length, as the engine takes them (boxed slices); one that holds keys
//! of 16 bytes inline is about twice as quick and is shown beside it. Lines that begin with
//! `=>` hold a figure against what is expected of a quiet machine with 2 cores; they are repeated at the end.

mod workload;

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stillframe::{Compression, Database, SaveOptions, SaveReport, SnapshotFile};

use workload::contenders::{BoxedTree, Contender, Engine, LockedTree, Scan, Shards, SkipList};
use workload::measure::{
    Lane, Latencies, Samples, at_least, at_most, interleaved, resident_bytes, together,
};
use workload::{FreshValues, Keys, Probes, Random, Scratch, records, value};

const SECTIONS: &[&str] = &["memory", "points", "scans", "stills", "saving", "files"];

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Effort {
    records: usize,
    rounds: usize,
    /// Point operations in a round, for each thread.
    operations: usize,
    idle: Duration,
    cuts: usize,
}

impl Effort {
    fn new(quick: bool) -> Self {
        let records = records();
        if quick {
            let idle = Duration::from_millis(200);
            Effort { records, rounds: 1, operations: 20_000, idle, cuts: 200 }
        } else {
            let idle = Duration::from_secs(3);
            Effort { records, rounds: 7, operations: 400_000, idle, cuts: 1000 }
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|given| given != "--bench").collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|given| given == name)?;
        arguments.get(at + 1).cloned()
    };
    let effort = Effort::new(arguments.iter().any(|given| given == "--quick"));
    if let Some(section) = option("--section") {
        let keys =
            option("--keys").and_then(|name| Keys::of_name(&name)).expect("a section has keys");
        section_of(&section, keys, effort);
        return ExitCode::SUCCESS;
    }
    let wanted_keys = option("--keys");
    let only = option("--only");
    if only.as_ref().is_some_and(|only| !SECTIONS.contains(&only.as_str())) {
        eprintln!("no such section; there are {SECTIONS:?}");
        return ExitCode::from(2);
    }
    let mut verdicts = Vec::new();
    for keys in Keys::ALL {
        if wanted_keys.as_ref().is_some_and(|wanted| wanted != keys.name()) {
            continue;
        }
        for section in SECTIONS {
            if only.as_ref().is_some_and(|only| only != section) {
                continue;
            }
            println!("\n== {section}, {} keys, {} records", keys.name(), effort.records);
            if *section == "memory" {
                memory(keys, &arguments, &mut verdicts);
            } else {
                verdicts.extend(child(section, keys, &arguments));
            }
        }
    }
    println!("\n== what is expected, and what was found");
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    ExitCode::SUCCESS
}

/// Runs one section in a process of its own, passes on what it prints and returns its verdicts.
fn child(section: &str, keys: Keys, arguments: &[String]) -> Vec<String> {
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.args(["--section", section, "--keys", keys.name()]).stdout(Stdio::piped());
    command.args(arguments.iter().filter(|given| *given == "--quick"));
    let mut child = command.spawn().expect("this program runs again");
    let mut verdicts = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("lines of text");
        println!("{line}");
        if line.starts_with("=>") {
            verdicts.push(line);
        }
    }
    let status = child.wait().expect("the section ends");
    assert!(status.success(), "section {section}: {status}");
    verdicts
}

fn section_of(section: &str, keys: Keys, effort: Effort) {
    match section {
        "points" => points(keys, effort),
        "scans" => scans(keys, effort),
        "stills" => stills(keys, effort),
        "saving" => saving(keys, effort),
        "files" => files(keys, effort),
        "memory of stillframe" => memory_of::<Engine>(keys, effort),
        "memory of BTreeMap" => memory_of::<LockedTree>(keys, effort),
        "memory of BTreeMap, boxed keys" => memory_of::<BoxedTree>(keys, effort),
        "memory of dashmap" => memory_of::<Shards>(keys, effort),
        "memory of skiplist" => memory_of::<SkipList>(keys, effort),
        other => panic!("no section {other:?}"),
    }
}

// ---- memory ----

fn memory(keys: Keys, arguments: &[String], verdicts: &mut Vec<String>) {
    for of in ["stillframe", "BTreeMap", "BTreeMap, boxed keys", "dashmap", "skiplist"] {
        verdicts.extend(child(&format!("memory of {of}"), keys, arguments));
    }
}

fn memory_of<C: Contender>(keys: Keys, effort: Effort) {
    let order = workload::shuffled(effort.records);
    let contender = C::empty();
    let before = resident_bytes();
    let mut raw_bytes = 0;
    for number in order.iter().copied() {
        let value = value(number);
        contender.put(&keys.key(number), &value);
        raw_bytes += 16 + value.len() as u64;
    }
    let grown = resident_bytes().saturating_sub(before);
    let records = effort.records as f64;
    let (raw, all) = (raw_bytes as f64 / records, grown as f64 / records);
    println!(
        "  {:<30} {all:>7.1} bytes a record, {raw:.1} of them key and value, {:.1} above",
        C::NAME,
        all - raw
    );
    if C::NAME == Engine::NAME {
        at_most(&named("memory above key and value", keys), all - raw, 24.0, "bytes a record");
    }
    drop(contender);
}

// ---- points ----

fn points(keys: Keys, effort: Effort) {
    let engine = Engine::loaded(keys, effort.records);
    let tree = LockedTree::loaded(keys, effort.records);
    let boxed = BoxedTree::loaded(keys, effort.records);
    let shards = Shards::loaded(keys, effort.records);
    let values = FreshValues::new();
    let probes = [Probes::new(keys, effort.records, 11), Probes::new(keys, effort.records, 12)];
    let bench = Points { effort, probes: &probes, values: &values };
    let all = |work: Work, threads: usize| {
        let mut lanes: Vec<Lane<'_>> = vec![
            bench.lane(&engine, work, threads),
            bench.lane(&tree, work, threads),
            bench.lane(&boxed, work, threads),
            bench.lane(&shards, work, threads),
        ];
        let samples = interleaved(effort.rounds, &mut lanes);
        print_rates(&format!("{}, {}", work.name(), counted(threads, "thread")), &lanes, &samples);
        samples
    };

    for work in [Work::Get, Work::GetBorrowed, Work::Update] {
        let (one, two) = (all(work, 1), all(work, 2));
        let name = work.name();
        at_least(
            &named(&format!("{name}, 1 thread, over BTreeMap"), keys),
            one[0].over(&one[2]).median(),
            2.2,
            "x",
        );
        // The factor a second thread brings; only the rounds of one measurement are paired.
        let factor = |lane: usize| two[lane].median() / one[lane].median();
        let (ours, theirs) = (factor(0), factor(3));
        println!("  a second thread brings {ours:.2}x, to dashmap {theirs:.2}x");
        if work == Work::Update {
            at_least(&named("update, 2 threads over 1", keys), ours, 1.6, "x");
        } else {
            let what = named(&format!("{name}, 2 threads over 1, over dashmap's factor"), keys);
            at_least(&what, ours / theirs, 0.85, "x");
        }
    }

    for work in [Work::GetOne, Work::GetOneBorrowed] {
        let mut lanes: Vec<Lane<'_>> =
            vec![bench.lane(&engine, work, 1), bench.lane(&engine, work, 2)];
        lanes[1].0 = "2 threads";
        let samples = interleaved(effort.rounds, &mut lanes);
        print_rates(work.name(), &lanes, &samples);
        let what = named(&format!("{}, 2 threads over 1", work.name()), keys);
        at_least(&what, samples[1].over(&samples[0]).median(), 1.0, "x");
    }

    let mut lanes: Vec<Lane<'_>> = vec![
        bench.lane(&engine, Work::GetMany, 1),
        bench.lane(&engine, Work::Get, 1),
        bench.lane(&boxed, Work::Get, 1),
        bench.lane(&tree, Work::Get, 1),
    ];
    lanes[1].0 = "stillframe, get";
    let samples = interleaved(effort.rounds, &mut lanes);
    print_rates(Work::GetMany.name(), &lanes, &samples);
    let over = |lane: usize| samples[0].over(&samples[lane]).median();
    at_least(&named("get_many of 16, over BTreeMap's gets", keys), over(2), 2.8, "x");
    at_least(&named("get_many of 16, over our own gets", keys), over(1), 1.25, "x");

    let mut lanes: Vec<Lane<'_>> = vec![
        bench.lane(&engine, Work::Batch, 1),
        bench.lane(&tree, Work::Batch, 1),
        bench.lane(&boxed, Work::Batch, 1),
    ];
    let samples = interleaved(effort.rounds, &mut lanes);
    print_rates(Work::Batch.name(), &lanes, &samples);
}

/// What a round of point operations does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Get,
    GetBorrowed,
    GetOne,
    GetOneBorrowed,
    GetMany,
    Update,
    Batch,
}

/// Keys in one `get_many` and in one batch.
const GROUP: usize = 16;

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Get => "get",
            Work::GetBorrowed => "get_with",
            Work::GetOne => "get of one key",
            Work::GetOneBorrowed => "get_with of one key",
            Work::GetMany => "get_many of 16",
            Work::Update => "update",
            Work::Batch => "batch of 16 updates",
        }
    }
}

struct Points<'a> {
    effort: Effort,
    probes: &'a [Probes; 2],
    values: &'a FreshValues,
}

impl<'a> Points<'a> {
    /// Rounds of `work` on `contender`: operations a second, of all threads together.
    fn lane<C: Contender>(&'a self, contender: &'a C, work: Work, threads: usize) -> Lane<'a> {
        let operations = self.effort.operations;
        let round = move |round: usize| {
            let took = together(threads, |thread| self.run(contender, work, round, thread));
            (operations * threads) as f64 / took.as_secs_f64()
        };
        (C::NAME, Box::new(round))
    }

    fn run<C: Contender>(&self, contender: &C, work: Work, round: usize, thread: usize) {
        let count = self.effort.operations;
        let probes = &self.probes[thread];
        let mut values = self.values.values(round * 2 + thread);
        let mut value = || values.next().expect("an endless cycle");
        let mut sum = 0;
        match work {
            Work::Get => probes.keys(round, count).for_each(|key| sum += contender.get(key)),
            Work::GetBorrowed => {
                probes.keys(round, count).for_each(|key| sum += contender.get_borrowed(key));
            }
            Work::GetOne | Work::GetOneBorrowed => {
                let key = self.probes[0].keys(round, 1).next().expect("one key");
                for _ in 0..count {
                    let key = std::hint::black_box(key);
                    sum += match work {
                        Work::GetOne => contender.get(key),
                        _ => contender.get_borrowed(key),
                    };
                }
            }
            Work::GetMany => {
                probes.groups(round, count, GROUP).for_each(|keys| sum += contender.get_many(keys));
            }
            Work::Update => probes.keys(round, count).for_each(|key| contender.put(key, value())),
            Work::Batch => {
                probes
                    .groups(round, count, GROUP)
                    .for_each(|keys| contender.put_batch(keys, value()));
            }
        }
        std::hint::black_box(sum);
    }
}

// ---- scans ----

fn scans(keys: Keys, effort: Effort) {
    const LENGTH: usize = 100;
    let engine = Engine::loaded(keys, effort.records);
    let tree = LockedTree::loaded(keys, effort.records);
    let boxed = BoxedTree::loaded(keys, effort.records);
    let skips = SkipList::loaded(keys, effort.records);
    let probes = Probes::new(keys, effort.records, 21);
    let count = (effort.operations / 20).max(1);
    fn lane<'a, S: Scan>(
        contender: &'a S,
        scan: fn(&S, &workload::Key, usize) -> usize,
        probes: &'a Probes,
        count: usize,
    ) -> Lane<'a> {
        let round = move |round: usize| {
            let took = together(1, |_| {
                let scans = probes.keys(round, count).map(|from| scan(contender, from, LENGTH));
                std::hint::black_box(scans.sum::<usize>());
            });
            (count * LENGTH) as f64 / took.as_secs_f64()
        };
        (S::NAME, Box::new(round))
    }
    let measured = |name: &str, lanes: &mut [Lane<'_>], expected: f64| {
        let samples = interleaved(effort.rounds, lanes);
        print_rates(&format!("{name}, records"), lanes, &samples);
        let ratio = samples[0].over(&samples[1]).median();
        at_least(&named(&format!("{name}, over BTreeMap"), keys), ratio, expected, "x");
    };
    let mut borrowed = [
        lane(&engine, Engine::scan_borrowed, &probes, count),
        lane(&boxed, BoxedTree::scan_borrowed, &probes, count),
        lane(&tree, LockedTree::scan_borrowed, &probes, count),
        lane(&skips, SkipList::scan_borrowed, &probes, count),
    ];
    measured("scan_with of 100", &mut borrowed, 1.3);
    let mut owned = [
        lane(&engine, Engine::scan, &probes, count),
        lane(&boxed, BoxedTree::scan, &probes, count),
        lane(&tree, LockedTree::scan, &probes, count),
        lane(&skips, SkipList::scan, &probes, count),
    ];
    measured("range of 100", &mut owned, 0.8);
}

// ---- stills ----

fn stills(keys: Keys, effort: Effort) {
    let small = Engine::loaded(keys, 1000);
    let large = Engine::loaded(keys, effort.records);
    let mut lanes: Vec<Lane<'_>> = vec![
        ("1,000 records", Box::new(|_| cuts_ns(&small.database, effort.cuts * 10, None).median())),
        ("all records", Box::new(|_| cuts_ns(&large.database, effort.cuts * 10, None).median())),
    ];
    let samples = interleaved(effort.rounds, &mut lanes);
    print_samples("a cut, nobody writes", &lanes, &samples, 1.0, "ns");
    at_most(
        &named("cut, all records over 1,000", keys),
        samples[1].over(&samples[0]).median(),
        1.25,
        "x",
    );
    drop(lanes);

    let probes = Probes::new(keys, effort.records, 31);
    let values = FreshValues::new();
    let stop = AtomicBool::new(false);
    let mut cuts = thread::scope(|scope| {
        scope.spawn(|| {
            let mut values = values.values(0);
            for key in probes.keys(0, usize::MAX) {
                large.put(key, values.next().expect("an endless cycle"));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let cuts = cuts_ns(&large.database, effort.cuts, Some(Duration::from_micros(200)));
        stop.store(true, Ordering::Relaxed);
        cuts
    });
    cuts.0.sort_by(f64::total_cmp);
    let p99 = cuts.0[cuts.0.len() * 99 / 100];
    println!("  a cut beside a writer: median {:.0} ns, p99 {p99:.0} ns", cuts.median());
    at_most(&named("cut beside a writer, median", keys), cuts.median() / 1e3, 2.0, "us");

    let update = |round: usize| {
        let mut values = values.values(round);
        let began = Instant::now();
        for key in probes.keys(round, effort.operations) {
            large.put(key, values.next().expect("an endless cycle"));
        }
        effort.operations as f64 / began.elapsed().as_secs_f64()
    };
    let mut lanes: Vec<Lane<'_>> = vec![
        ("nothing held", Box::new(update)),
        (
            "under a fresh still",
            Box::new(|round| {
                let _still = large.database.snapshot().expect("an open database");
                update(round)
            }),
        ),
    ];
    let samples = interleaved(effort.rounds, &mut lanes);
    print_rates("update, mostly the first of its record", &lanes, &samples);
    drop(lanes);

    let still = large.database.snapshot().expect("an open database");
    let still = still.keyspace("bench").expect("its keyspace");
    let _: f64 = (0..3).map(update).sum();
    let read = |round: usize, get: &dyn Fn(&workload::Key) -> usize| {
        let began = Instant::now();
        let keys = probes.keys(round, effort.operations);
        std::hint::black_box(keys.map(get).sum::<usize>());
        effort.operations as f64 / began.elapsed().as_secs_f64()
    };
    let on_still =
        |key: &_| still.get(key).expect("a readable still").map_or(0, |value| value.len());
    let live =
        |key: &_| large.keyspace.get(key).expect("an open database").map_or(0, |value| value.len());
    let mut lanes: Vec<Lane<'_>> = vec![
        ("live", Box::new(|round| read(round, &live))),
        ("on a still", Box::new(|round| read(round, &on_still))),
    ];
    let samples = interleaved(effort.rounds, &mut lanes);
    print_rates("get, what is read overwritten since the cut", &lanes, &samples);
    drop(lanes);

    let clear = |engine: &Engine| {
        let began = Instant::now();
        let removed = engine.keyspace.clear().expect("an open database");
        (removed, began.elapsed().as_secs_f64())
    };
    let (_, under_still) = clear(&large);
    drop((still, large));
    let (removed, alone) = clear(&Engine::loaded(keys, effort.records));
    println!("  clear of {removed} records: {alone:.2} s, under a still {under_still:.2} s");
}

/// Takes `count` cuts, `apart` from one another, and drops each outside of its clock; nanoseconds.
fn cuts_ns(database: &Database, count: usize, apart: Option<Duration>) -> Samples {
    let cut = |_| {
        let began = Instant::now();
        let still = database.snapshot().expect("an open database");
        let took = began.elapsed();
        drop(still);
        // Not asleep: waking up, with caches that others have used, is not the cut's.
        let next = Instant::now() + apart.unwrap_or_default();
        while Instant::now() < next {
            std::hint::spin_loop();
        }
        took.as_secs_f64() * 1e9
    };
    Samples((0..count).map(cut).collect())
}

// ---- saving beside a writer ----

fn saving(keys: Keys, effort: Effort) {
    let scratch = Scratch::new();
    let path = scratch.file("saving.still");
    let engine = Engine::loaded(keys, effort.records);
    let rounds = effort.rounds.div_ceil(2);
    let found = Film { engine: &engine, keys, effort, path: &path }.roll(rounds);

    let of = |column: fn(&Round) -> f64| Samples(found.iter().map(column).collect());
    let line = |name: &str, rate: Samples, of: &dyn Fn(&Round) -> &Latencies| {
        let quantile =
            |share| Samples(found.iter().map(|round| of(round).quantile_us(share)).collect());
        let max = Samples(found.iter().map(|round| of(round).max_us()).collect()).max();
        println!(
            "  writer {name:<8} {:>7.3} M/s, p50 {:.2} p99 {:.2} p99.9 {:.2} max {max:.0} us, above 5 ms: {}",
            rate.median() / 1e6,
            quantile(0.5).median(),
            quantile(0.99).median(),
            quantile(0.999).median(),
            found.iter().map(|round| of(round).above_5_ms()).sum::<u64>(),
        );
    };
    let (idle, saving) = (of(|round| round.idle_rate), of(|round| round.saving_rate));
    line("idle", idle.clone(), &|round| &round.idle);
    line("saving", saving.clone(), &|round| &round.saving);
    let tail = of(|round| round.saving.quantile_us(0.999) / round.idle.quantile_us(0.999));
    let slow_idle: u64 = found.iter().map(|round| round.idle.above_5_ms()).sum();
    let slow_saving: u64 = found.iter().map(|round| round.saving.above_5_ms()).sum();
    at_least(&named("writer while saving, over idle", keys), saving.over(&idle).median(), 0.8, "x");
    at_most(&named("writer's p99.9 while saving, over idle", keys), tail.median(), 2.0, "x");
    at_most(
        &named("writes above 5 ms while saving", keys),
        slow_saving as f64,
        slow_idle as f64,
        "writes (as idle)",
    );
    let extra = of(|round| round.extra_bytes as f64 / round.report.raw_bytes as f64 * 100.0);
    at_most(&named("extra memory while saving, peak", keys), extra.max(), 30.0, "% of the data");
    let speed = of(|round| mb_per_s(&round.report, round.report.elapsed));
    at_least(&named("save beside the writer", keys), speed.median(), 350.0, "MB/s");
}

struct Film<'a> {
    engine: &'a Engine,
    keys: Keys,
    effort: Effort,
    path: &'a Path,
}

/// One stretch of writing alone and one beside a save.
struct Round {
    idle: Latencies,
    saving: Latencies,
    idle_rate: f64,
    saving_rate: f64,
    extra_bytes: u64,
    report: SaveReport,
}

impl Film<'_> {
    fn roll(&self, rounds: usize) -> Vec<Round> {
        // Even phases are idle, odd ones save; the last stops everyone.
        let phase = AtomicUsize::new(0);
        let peak = AtomicU64::new(0);
        let end = rounds * 2;
        let probes = Probes::new(self.keys, self.effort.records, 41);
        let values = FreshValues::new();
        thread::scope(|scope| {
            let writer = scope.spawn(|| self.write(&probes, &values, &phase, end));
            scope.spawn(|| {
                while phase.load(Ordering::Relaxed) < end {
                    peak.fetch_max(resident_bytes(), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let mut facts = Vec::new();
            for round in 0..rounds {
                let began = Instant::now();
                thread::sleep(self.effort.idle);
                let idle = began.elapsed();
                let before = resident_bytes();
                peak.store(before, Ordering::Relaxed);
                phase.store(round * 2 + 1, Ordering::Relaxed);
                let began = Instant::now();
                let database = &self.engine.database;
                let save = database.save(self.path, SaveOptions::default()).expect("a save begins");
                let report = save.wait().expect("a save succeeds");
                let saving = began.elapsed();
                phase.store(round * 2 + 2, Ordering::Relaxed);
                let extra = peak.load(Ordering::Relaxed).max(resident_bytes()) - before;
                facts.push((idle, saving, extra, report));
            }
            let mut phases = writer.join().expect("no panic").into_iter();
            let mut rounds = Vec::new();
            for (idle_time, saving_time, extra_bytes, report) in facts {
                let idle = phases.next().expect("a phase for each");
                let saving = phases.next().expect("a phase for each");
                rounds.push(Round {
                    idle_rate: idle.count() as f64 / idle_time.as_secs_f64(),
                    saving_rate: saving.count() as f64 / saving_time.as_secs_f64(),
                    idle,
                    saving,
                    extra_bytes,
                    report,
                });
            }
            rounds
        })
    }

    /// Overwrites uniformly random records without pause; each phase's times apart.
    fn write(
        &self,
        probes: &Probes,
        values: &FreshValues,
        phase: &AtomicUsize,
        end: usize,
    ) -> Vec<Latencies> {
        let mut values = values.values(0);
        let mut phases: Vec<Latencies> = (0..end).map(|_| Latencies::new()).collect();
        for key in probes.keys(0, usize::MAX) {
            let value = values.next().expect("an endless cycle");
            let now = phase.load(Ordering::Relaxed);
            let Some(latencies) = phases.get_mut(now) else { break };
            let began = Instant::now();
            self.engine.put(key, value);
            latencies.record(began.elapsed());
        }
        phases
    }
}

// ---- files ----

fn files(keys: Keys, effort: Effort) {
    let scratch = Scratch::new();
    let path = scratch.file("all.still");
    let engine = Engine::loaded(keys, effort.records);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let rounds = effort.rounds.div_ceil(2);
    let save = |compression: Compression| {
        let options = SaveOptions::default().compression(compression).threads(cores);
        let began = Instant::now();
        let handle = engine.database.save(&path, options).expect("a save begins");
        let report = handle.wait().expect("a save succeeds");
        (mb_per_s(&report, began.elapsed()), report)
    };
    let mut file_share = f64::NAN;
    let mut lanes: Vec<Lane<'_>> = vec![
        ("raw", Box::new(|_| save(Compression::Raw).0)),
        (
            "LZ4",
            Box::new(|_| {
                let (speed, report) = save(Compression::Lz4);
                file_share = report.file_bytes as f64 / report.raw_bytes as f64;
                speed
            }),
        ),
    ];
    let samples = interleaved(rounds, &mut lanes);
    print_samples("save, nobody writes, all cores", &lanes, &samples, 1.0, "MB/s");
    drop(lanes);
    at_least(
        &named("save with LZ4, nobody writes, all cores", keys),
        samples[1].median(),
        700.0,
        "MB/s",
    );
    at_most(&named("file over raw, LZ4", keys), file_share, 0.46, "x");
    let raw_bytes = engine.database.stats().raw_bytes;
    drop(engine);

    let mut lanes: Vec<Lane<'_>> = vec![(
        "load",
        Box::new(|_| {
            let began = Instant::now();
            let loaded = Database::load(&path).expect("a sound file");
            let took = began.elapsed();
            drop(loaded);
            raw_bytes as f64 / 1e6 / took.as_secs_f64()
        }),
    )];
    let samples = interleaved(rounds, &mut lanes);
    print_samples("load", &lanes, &samples, 1.0, "MB/s");
    drop(lanes);
    at_least(&named("load", keys), samples[0].median(), 800.0, "MB/s");
    in_place(keys, effort, &path, rounds);
}

fn in_place(keys: Keys, effort: Effort, path: &Path, rounds: usize) {
    let probes = Probes::new(keys, effort.records, 51);
    type Open = fn(&Path) -> stillframe::Result<SnapshotFile>;
    #[expect(unsafe_code, reason = "nobody shortens the file that this program just wrote")]
    // SAFETY: the file lies in a folder of this process's own, which writes to it no more.
    let open_mapped: Open = |path| unsafe { SnapshotFile::open_mapped(path) };
    for (name, open) in
        [("open", (|path| SnapshotFile::open(path)) as Open), ("open_mapped", open_mapped)]
    {
        let first = |round: usize| {
            let key = probes.keys(round, 1).next().expect("one key");
            let began = Instant::now();
            let file = open(path).expect("a sound file");
            let keyspace = file.keyspace("bench").expect("its keyspace");
            let found = keyspace.get(key).expect("a sound file");
            let took = began.elapsed();
            assert!(found.is_some(), "every probe is a record");
            took.as_secs_f64() * 1e3
        };
        let file = open(path).expect("a sound file");
        let keyspace = file.keyspace("bench").expect("its keyspace");
        let count = effort.operations / 4;
        let mut random = Random::new(7);
        let gets = |round: usize| {
            let from = round + random.below(1000);
            let began = Instant::now();
            for key in probes.keys(from, count) {
                std::hint::black_box(keyspace.get(key).expect("a sound file"));
            }
            count as f64 / began.elapsed().as_secs_f64()
        };
        let mut lanes: Vec<Lane<'_>> =
            vec![("first get", Box::new(first)), ("gets", Box::new(gets))];
        let samples = interleaved(rounds, &mut lanes);
        let (opened, rate) = (&samples[0], &samples[1]);
        println!(
            "  {name} and first get: {:.3} ms; then {:.0} gets/s",
            opened.median(),
            rate.median()
        );
        at_most(
            &named(&format!("{name} in place and first get"), keys),
            opened.median(),
            10.0,
            "ms",
        );
        at_least(
            &named(&format!("random gets in place, {name}"), keys),
            rate.median() / 1e3,
            50.0,
            "k/s",
        );
    }
}

fn mb_per_s(report: &SaveReport, took: Duration) -> f64 {
    report.raw_bytes as f64 / 1e6 / took.as_secs_f64()
}

// ---- what is printed ----

fn print_rates(what: &str, lanes: &[Lane<'_>], samples: &[Samples]) {
    print_samples(what, lanes, samples, 1e6, "M/s");
}

fn print_samples(what: &str, lanes: &[Lane<'_>], samples: &[Samples], per: f64, unit: &str) {
    println!("  {what}");
    let ours = &samples[0];
    for ((name, _), theirs) in lanes.iter().zip(samples) {
        let (median, min, max) = (theirs.median() / per, theirs.min() / per, theirs.max() / per);
        print!("    {name:<30} {median:>9.3} {unit} ({min:.3} to {max:.3})");
        if std::ptr::eq(ours, theirs) {
            println!();
        } else {
            println!(", the first over it {:.2}x", ours.over(theirs).median());
        }
    }
    // The parent passes lines on as they come.
    io::stdout().flush().expect("an open standard output");
}

fn named(what: &str, keys: Keys) -> String {
    format!("{what} [{}]", keys.name())
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

//! What replicas cost, and how soon they have what their primary has. The replica is a process of its own, on the same machine.
//!
//! `cargo bench --bench replicas [-- --quick] [--only SECTION]`; the number of records is `STILLFRAME_BENCH_KEYS`,
//! 3,000,000 if unset. Lines that begin with `=>` hold a figure against what is expected.

mod workload;

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stillframe::{
    AckLevel, Database, HistoryId, Keyspace, Link, Position, Primary, PrimaryOptions,
    ReplicaSource, SaveOptions, Seq,
};

use workload::measure::{Latencies, Samples, at_least, at_most};
use workload::redis::{Redis, warm_memory};
use workload::{FreshValues, Keys, Probes, Scratch, records, shuffled, value};

const SECTIONS: &[&str] = &["full", "stream", "lag", "delta"];
const KEYS: Keys = Keys::Demo;
/// More than one side needs for 3,000,000 records.
const WARM_BYTES: usize = 2 << 30;
const LONG: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|given| given != "--bench").collect();
    if let [role, address, place] = &arguments[..]
        && role == "replica"
    {
        return replica(address, place);
    }
    let is_quick = arguments.iter().any(|given| given == "--quick");
    let only = arguments.iter().position(|given| given == "--only");
    let only = only.and_then(|at| arguments.get(at + 1).cloned());
    if only.as_ref().is_some_and(|only| !SECTIONS.contains(&only.as_str())) {
        eprintln!("no such section; there are {SECTIONS:?}");
        return ExitCode::from(2);
    }
    let records = records();
    let rounds = if is_quick { 1 } else { 3 };
    let phase = if is_quick { Duration::from_millis(300) } else { Duration::from_secs(8) };
    for section in SECTIONS {
        if only.as_ref().is_some_and(|only| only != section) {
            continue;
        }
        println!("\n== {section}, {records} records");
        match *section {
            "full" => full(records, rounds),
            "stream" => stream(records, rounds, phase),
            "lag" => lag(records, phase),
            _ => delta(records, rounds),
        }
    }
    ExitCode::SUCCESS
}

/// The other process: follows, and answers one line for each that it reads.
fn replica(address: &str, place: &str) -> ExitCode {
    let db = match place {
        "memory" => Database::in_memory(),
        path => Database::open(path).expect("a database"),
    };
    let replica = db.follow(ReplicaSource::tcp(address)).expect("it follows");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["wait", history, seq] => {
                let history = u128::from_str_radix(history, 16).expect("a history");
                let position = Position {
                    history: HistoryId(history.to_be_bytes()),
                    seq: Seq(seq.parse().expect("a number")),
                };
                replica.wait_for(position, LONG).expect("it comes");
                let status = replica.status();
                println!("{:?} {}", status.counts, status.lag);
            }
            _ => return ExitCode::SUCCESS,
        }
    }
    ExitCode::SUCCESS
}

/// The other process, seen from here.
struct Other {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn start(address: &str, place: &str) -> Self {
        let mut child = Command::new(env::current_exe().expect("a name"))
            .args(["replica", address, place])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    fn wait_for(&mut self, position: Position) -> String {
        writeln!(self.input, "wait {} {}", position.history, position.seq).expect("it listens");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        line.trim().to_owned()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "end");
        let _ = self.child.wait();
    }
}

fn open(dir: &Path, records: usize) -> (Database, Keyspace, Primary, String) {
    let db = Database::builder().save_when_log_exceeds(None).open(dir).expect("a database");
    let data = db.keyspace("data").expect("a keyspace");
    for number in shuffled(records) {
        data.insert(KEYS.key(number), value(number)).expect("an insert");
    }
    let primary = db.serve_replicas(PrimaryOptions::new()).expect("it serves");
    let address = primary.listen_tcp("127.0.0.1:0").expect("an address").to_string();
    (db, data, primary, address)
}

fn full(records: usize, rounds: usize) {
    let scratch = Scratch::new();
    let (db, data, primary, address) = open(&scratch.file("primary"), records);
    // With the log it would be sent that.
    db.compact_log(stillframe::SaveOptions::default()).expect("a save");
    let redis = redis_with(records, &scratch.file("."));
    let mut took = [(); 4].map(|()| Samples::default());
    let [in_memory, on_disk, redis_on_disk, redis_in_memory] = &mut took;
    for round in 0..rounds {
        for (place, took) in [("memory", &mut *in_memory), ("directory", &mut *on_disk)] {
            let dir = scratch.file(&format!("replica-{round}"));
            let place = if place == "memory" { place } else { dir.to_str().expect("a name") };
            warm_memory(WARM_BYTES);
            let began = Instant::now();
            let mut other = Other::start(&address, place);
            other.wait_for(db.position());
            took.0.push(began.elapsed().as_secs_f64());
            drop(other);
            let _ = std::fs::remove_dir_all(&dir);
        }
        let Some(redis) = &redis else { continue };
        let direct = &["--repl-diskless-load", "on-empty-db"][..];
        for (more, took) in [(&[][..], &mut *redis_on_disk), (direct, &mut *redis_in_memory)] {
            warm_memory(WARM_BYTES);
            let began = Instant::now();
            let other = Redis::follow(&scratch.file("."), redis, more);
            other.wait_for(redis);
            took.0.push(began.elapsed().as_secs_f64());
        }
    }
    drop(redis);
    for (name, took) in [
        ("full sync into memory", &*in_memory),
        ("full sync into a directory", on_disk),
        ("full sync of Redis, by way of a file as is its default", redis_on_disk),
        ("full sync of Redis, into memory", redis_in_memory),
    ] {
        let (median, min, max) = (took.median(), took.min(), took.max());
        println!("{name}: {median:.2} s ({min:.2} to {max:.2})");
    }
    let against = in_memory.over(redis_on_disk).median();
    at_most("full sync into memory, of Redis's", against, 0.125, "x");
    at_most(
        "full sync into a directory, of Redis's",
        on_disk.over(redis_on_disk).median(),
        0.125,
        "x",
    );
    at_most(
        "full sync into memory, of Redis's into memory",
        in_memory.over(redis_in_memory).median(),
        0.125,
        "x",
    );
    // Writes meanwhile.
    let probes = Probes::new(KEYS, records, 7);
    let mut idle = Latencies::new();
    let mut busy = Latencies::new();
    let fresh = FreshValues::new();
    let mut values = fresh.values(1);
    let mut write = |latencies: &mut Latencies, until: &dyn Fn() -> bool| {
        for key in probes.keys(0, usize::MAX) {
            let began = Instant::now();
            data.insert(key, values.next().expect("without end")).expect("an insert");
            latencies.record(began.elapsed());
            if until() {
                break;
            }
        }
    };
    let began = Instant::now();
    write(&mut idle, &|| began.elapsed() > Duration::from_secs(3));
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = Other::start(&address, "memory");
            other.wait_for(db.position());
            is_done.store(true, Ordering::Relaxed);
        });
        write(&mut busy, &|| is_done.load(Ordering::Relaxed));
    });
    println!(
        "writes: p99.9 {:.1} us idle ({} writes), {:.1} us during a full sync ({} writes)",
        idle.quantile_us(0.999),
        idle.count(),
        busy.quantile_us(0.999),
        busy.count()
    );
    at_most(
        "p99.9 of writes during a full sync",
        busy.quantile_us(0.999) / idle.quantile_us(0.999),
        2.0,
        "x",
    );
    drop(primary);
}

/// A Redis with the same records, where one is installed.
fn redis_with(records: usize, dir: &Path) -> Option<Redis> {
    if !Redis::is_here() {
        println!("redis-server is not installed: nothing is held against it");
        return None;
    }
    let redis = Redis::start(dir, &[]);
    redis.fill(records);
    Some(redis)
}

fn stream(records: usize, rounds: usize, phase: Duration) {
    let scratch = Scratch::new();
    let (db, data, primary, address) = open(&scratch.file("primary"), records);
    let (mut alone, mut with) = (Samples(Vec::new()), Samples(Vec::new()));
    let mut behind = Samples(Vec::new());
    let redis = redis_with(records, &scratch.file("."));
    let (mut redis_alone, mut redis_with) = (Samples::default(), Samples::default());
    for round in 0..rounds {
        if let Some(redis) = &redis {
            let writes = usize::try_from(phase.as_millis()).unwrap_or(usize::MAX) * 500;
            redis_alone.0.push(redis.writes_a_second(records, writes));
            let other = Redis::follow(&scratch.file("."), redis, &[]);
            other.wait_for(redis);
            redis_with.0.push(redis.writes_a_second(records, writes));
        }
        for is_with in [false, true] {
            let mut other = is_with.then(|| {
                let mut other = Other::start(&address, "memory");
                other.wait_for(db.position());
                other
            });
            let probes = Probes::new(KEYS, records, 7 + round as u64);
            let fresh = FreshValues::new();
            let mut values = fresh.values(1);
            let (began, mut count) = (Instant::now(), 0);
            for key in probes.keys(0, usize::MAX) {
                data.insert(key, values.next().expect("without end")).expect("an insert");
                count += 1;
                if count % 256 == 0 && began.elapsed() > phase {
                    break;
                }
            }
            let rate = f64::from(count) / began.elapsed().as_secs_f64();
            if let Some(other) = &mut other {
                let ended = Instant::now();
                other.wait_for(db.position());
                behind.0.push(ended.elapsed().as_secs_f64());
                with.0.push(rate);
            } else {
                alone.0.push(rate);
            }
        }
    }
    println!(
        "writes a second: {:.0} alone, {:.0} with a replica; it has all {:.2} s ({:.2} to {:.2}) after the last",
        alone.median(),
        with.median(),
        behind.median(),
        behind.min(),
        behind.max()
    );
    let kept = with.over(&alone);
    at_least("writes with a replica, of those without", kept.median(), 0.75, "x");
    println!("   ({:.2} to {:.2})", kept.min(), kept.max());
    if redis.is_some() {
        println!(
            "Redis, pipelines of 32: {:.0} alone, {:.0} with a replica, {:.2} of those without",
            redis_alone.median(),
            redis_with.median(),
            redis_with.over(&redis_alone).median()
        );
        let against = with.over(&redis_with).median();
        at_least("writes with a replica, of Redis's with one", against, 2.0, "x");
    }
    at_most("behind when the writer ends", behind.max(), 1.0, "s");
    drop(primary);
}

/// How long after a batch was committed a reader who waits for it on the replica has it, at half the rate that was written without a pause.
fn lag(records: usize, phase: Duration) {
    for (name, over_tcp, most_ms) in [("within the process", false, 1.0), ("over TCP", true, 5.0)] {
        let scratch = Scratch::new();
        let (db, data, primary, address) = open(&scratch.file("primary"), records);
        let copy = Database::in_memory();
        let source = if over_tcp {
            ReplicaSource::tcp(address)
        } else {
            let primary = primary.clone();
            ReplicaSource::links(move || {
                let (ours, theirs) = Link::pair();
                primary.attach(theirs);
                Ok(ours)
            })
        };
        let replica = copy.follow(source).expect("it follows");
        replica.wait_for(db.position(), LONG).expect("it comes");
        let probes = Probes::new(KEYS, records, 7);
        let fresh = FreshValues::new();
        let mut values = fresh.values(1);
        let mut keys = probes.keys(0, usize::MAX);
        let mut insert = || {
            let (key, value) = (keys.next().expect("a key"), values.next().expect("a value"));
            data.insert(key, value).expect("an insert");
        };
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < phase / 4 {
            (0..256).for_each(|_| insert());
            count += 256;
        }
        let full = f64::from(count) / began.elapsed().as_secs_f64();
        replica.wait_for(db.position(), LONG).expect("it comes");
        let mut lags = Latencies::new();
        let (tell, told) = crossbeam_channel::bounded::<(Position, Instant)>(1);
        let (began, mut count) = (Instant::now(), 0_u32);
        thread::scope(|scope| {
            scope.spawn(|| {
                for (position, committed) in told {
                    replica.wait_for(position, LONG).expect("it comes");
                    lags.record(committed.elapsed());
                }
            });
            while began.elapsed() < phase {
                // Evenly, as far as sleeping allows.
                let due = began + Duration::from_secs_f64(f64::from(count) / (full / 2.0));
                if let Some(early) = due.checked_duration_since(Instant::now()) {
                    thread::sleep(early.max(Duration::from_micros(50)));
                    continue;
                }
                insert();
                count += 1;
                if count % 64 == 0 {
                    // Full: the one before is waited for.
                    let _ = tell.try_send((db.position(), Instant::now()));
                }
            }
            drop(tell);
        });
        println!(
            "lag {name}: p50 {:.0} us, p99 {:.0} us, {} samples, at {:.0} of {full:.0} writes a second",
            lags.quantile_us(0.5),
            lags.quantile_us(0.99),
            lags.count(),
            f64::from(count) / began.elapsed().as_secs_f64()
        );
        at_most(&format!("p99 of the lag {name}"), lags.quantile_us(0.99) / 1e3, most_ms, "ms");
    }
}

/// What is sent to a replica that was away while a hundredth of the records changed, with and without the log of that time, beside what a replica is sent that
/// has nothing.
fn delta(records: usize, rounds: usize) {
    let scratch = Scratch::new();
    let builder = Database::builder().save_when_log_exceeds(None).segment_bytes(256 << 10);
    let db = builder.open(scratch.file("primary")).expect("a database");
    let data = db.keyspace("data").expect("a keyspace");
    for number in shuffled(records) {
        data.insert(KEYS.key(number), value(number)).expect("an insert");
    }
    let primary =
        db.serve_replicas(PrimaryOptions::new().always_compress(true)).expect("it serves");
    let address = primary.listen_tcp("127.0.0.1:0").expect("an address").to_string();
    let copy = Database::in_memory();
    // How many bytes came, and after how long it had all.
    let follow = || {
        let began = Instant::now();
        let replica = copy.follow(ReplicaSource::tcp(&address)).expect("it follows");
        replica.wait_for(db.position(), LONG).expect("it comes");
        let took = began.elapsed().as_secs_f64();
        primary.wait(db.position(), 1, AckLevel::Applied, LONG).expect("it says so");
        let sent: u64 = primary.replicas().iter().map(|replica| replica.sent_bytes).sum();
        let way = replica.status().caught_up;
        replica.stop();
        while !primary.replicas().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        (sent as f64 / 1e6, took, way)
    };
    let (full_mb, full_s, _) = follow();
    println!("everything: {full_mb:.1} MB in {full_s:.2} s");
    let fresh = FreshValues::new();
    let changes = (records / 100).max(1);
    for (name, run) in [("uniform", 1), ("clustered, by 1,000", 1_000)] {
        for is_lost in [false, true] {
            let (mut bytes, mut of_leaves, mut of_log) = (Vec::new(), Vec::new(), Vec::new());
            let (mut seconds, mut share) = (Vec::new(), Vec::new());
            let mut ways = Vec::new();
            for round in 0..rounds {
                let before = db.seq();
                let mut random = workload::Random::new(17 + round as u64);
                let mut values = fresh.values(round + 1);
                // Keys are numbers in order: a run of them lies together.
                for _ in 0..(changes / run).max(1) {
                    let from = random.below(records.saturating_sub(run).max(1));
                    for number in from..records.min(from + run) {
                        let value = values.next().expect("without end");
                        data.insert(KEYS.key(number), value).expect("an insert");
                    }
                }
                if is_lost {
                    // A segment goes when it is full and a snapshot has what it holds.
                    while db.log_bytes_after(before).expect("a log").is_some() {
                        (0..1_000).for_each(|n| {
                            data.insert(KEYS.key(0), value(n)).expect("an insert");
                        });
                        db.compact_log(SaveOptions::default()).expect("a save");
                    }
                }
                let (changed, all, raw) = db.changed_after(before);
                let log = db.log_bytes_after(before).expect("a log");
                let (mb, took, way) = follow();
                bytes.push(mb);
                of_leaves.push(raw as f64 / 1e6);
                of_log.push(log.unwrap_or(0) as f64 / 1e6);
                seconds.push(took);
                share.push(changed as f64 / all as f64);
                ways.push(way);
            }
            let [bytes, of_leaves, of_log, seconds, share] =
                [bytes, of_leaves, of_log, seconds, share].map(Samples);
            println!(
                "{name}, {}: {:.2} MB ({:.2} to {:.2}) in {:.2} s ({:.2} to {:.2}), {ways:?}; {:.1} % of the leaves changed, {:.2} MB raw; log {:.2} MB",
                if is_lost { "no log" } else { "log" },
                bytes.median(),
                bytes.min(),
                bytes.max(),
                seconds.median(),
                seconds.min(),
                seconds.max(),
                100.0 * share.median(),
                of_leaves.median(),
                of_log.median(),
            );
            let what = format!("bytes sent, {name}");
            if is_lost {
                let of_raw = bytes.over(&of_leaves).median();
                at_most(&format!("{what}, of those of the changed leaves"), of_raw, 0.6, "x");
            } else {
                let cheaper: Vec<f64> = of_log
                    .0
                    .iter()
                    .zip(&of_leaves.0)
                    .map(|(log, raw)| log.min(raw * 0.6))
                    .collect();
                let of_cheaper = bytes.over(&Samples(cheaper)).median();
                at_most(&format!("{what}, of the cheaper way"), of_cheaper, 1.05, "x");
            }
            at_most(&format!("time until it has all, {name}"), seconds.max(), full_s, "s");
        }
    }
    drop(primary);
}
